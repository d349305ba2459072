"""Recognition of photographs among other files: by their names, and by their first bytes."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from dtl import storage
from dtl.images.decoding import formats

ReadAt = Callable[[int, int], bytes]
"""Reads at most so many bytes of a file from an offset."""

NO_IMAGE = "not an image"
HIDDEN = "hidden file"
HIDDEN_FOLDER = "hidden folder"
_HIDDEN = {
    "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "lost+found",
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "system volume information",
    "network trash folder", "temporary items",
}  # fmt: skip
_NEVER_IMAGES = {
    ".bat", ".c", ".cc", ".cfg", ".cls", ".conf", ".cpp", ".css", ".csv", ".doc", ".docx", ".h",
    ".hh", ".hpp", ".htm", ".html", ".ini", ".ipynb", ".java", ".js", ".json", ".jsonl", ".log",
    ".lst", ".md", ".pdf", ".ps1", ".py", ".r", ".rst", ".rtf", ".sh", ".sql", ".tex", ".toml",
    ".ts", ".tsv", ".txt", ".url", ".xls", ".xlsx", ".xml", ".yaml", ".yml",
}  # fmt: skip
_UNREADABLE = {".cr3", ".jxl", ".orf", ".raf", ".rw2", ".svg", ".svgz", ".x3f"}
_ARCHIVES = (
    ".7z", ".bz2", ".gz", ".lz4", ".rar", ".tbz", ".tbz2", ".tgz", ".txz", ".tzst", ".xz", ".z",
    ".zip", ".zst",
)  # fmt: skip
_CONTROL_BYTES = bytes({*range(32)} - set(b"\t\n\v\f\r\x1b"))
_TEXT_FORMATS = {"PPM", "XBM", "XPM"}
_SAMPLE_BITS = {"1": 1, "I": 16, "F": 32}
_SIGNATURE_BYTES = 16
"""Bytes that tell text from binary: every binary format has a control byte in them."""
_MOST_TEXT_BYTES = 64 << 20
"""Size above which a file of text is not looked through for an image."""
_BUFFER_BYTES = 64 << 10


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is the system's own, and no photograph.

    Examples
    --------
    >>> [is_hidden(name) for name in (".git", "@eaDir", "$RECYCLE.BIN", "Thumbs.db", "cat")]
    [True, True, True, True, False]
    """
    return name.startswith(".") or name.lower() in _HIDDEN


def is_archive(path: str) -> bool:
    """Return whether a file's extension is that of an archive, other than a plain tar.

    Examples
    --------
    >>> is_archive("photos.tar.gz"), is_archive("photos.ZIP"), is_archive("photos.tar")
    (True, True, False)
    """
    return path.lower().endswith(_ARCHIVES)


def judge_name(path: str) -> str:
    """Return why a file cannot be an image, as its extension says; empty if it may be one.

    Examples
    --------
    >>> judge_name("a/notes.TXT"), judge_name("a/logo.svg"), judge_name("a/RENAME2")
    ('not an image', 'a format that is not read: convert it to JPEG', '')
    """
    suffix = PurePosixPath(path).suffix.lower()
    if is_archive(path):
        return "an archive: unpack it, or make a tar of its files"
    if suffix in _UNREADABLE:
        return "a format that is not read: convert it to JPEG"
    return NO_IMAGE if suffix in _NEVER_IMAGES else ""


def may_be_image(start: bytes) -> bool:
    """Return whether a file that starts with these bytes needs `judge_content`."""
    return formats.is_heic(start) or formats.begins_like_image(start)


def judge_file(url: str, n_bytes: int) -> str:
    """Return why a file is no image, as its content says; empty if it is one."""
    try:
        start = storage.read_start(url, formats.N_MAGIC_BYTES)
        if not may_be_image(start):  # most are not, and so need no second request
            return NO_IMAGE
        with storage.Ranges(url) as file:
            return judge_content(file.window().at, n_bytes)
    except (FileNotFoundError, PermissionError):
        return "cannot be read"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return "cannot be read: its disk fails"


def judge_content(read_at: ReadAt, n_bytes: int) -> str:
    """Return why a file is no image, as its content says; empty if it is one.

    The file must parse as an image and not only begin like one. If it begins with text, or is in a
    format that may be text, all of it must be an image's.

    Examples
    --------
    >>> text = b"BMW X5, photographed in Munich"
    >>> judge_content(lambda offset, n: text[offset : offset + n], len(text))
    'not an image'
    """
    start = read_at(0, formats.N_MAGIC_BYTES)
    if formats.is_heic(start):
        return formats.HEIC
    if formats.begins_like_image(start) and _parses(start, read_at, n_bytes):
        return ""
    return NO_IMAGE


def _parses(start: bytes, read_at: ReadAt, n_bytes: int) -> bool:
    first = start[:_SIGNATURE_BYTES]
    is_text = first.translate(None, _CONTROL_BYTES) == first
    if not is_text and (start[:4] == b"RIFF" or start[4:8] == b"ftyp"):
        # Pillow reads all of a WebP and allocates its pixels. These signatures are long enough.
        return True
    raw = _File(read_at, n_bytes)
    try:
        with (
            io.BufferedReader(raw, _BUFFER_BYTES) as file,
            Image.open(file, formats=formats.FORMATS) as image,
        ):
            in_text = is_text or image.format in _TEXT_FORMATS
            return not in_text or _is_all_image(image, n_bytes)
    except Image.DecompressionBombError:
        return not is_text
    except Exception:  # decoders raise anything
        if raw.problem is not None:
            raise raw.problem from None
        return False


def _is_all_image(image: Image.Image, n_bytes: int) -> bool:
    """Return whether a file that might be text is an image to its end."""
    if image.width * image.height > 8 * n_bytes:
        return False
    (decoder, _, start, _), *_ = image.tile  # type: ignore[attr-defined]
    if decoder in ("raw", "ppm"):  # any text would do for the pixels, but not of any length
        n_bits = len(image.getbands()) * _SAMPLE_BITS.get(image.mode, 8)
        n_left = n_bytes - start - -(-image.width * n_bits // 8) * image.height
        return n_left in (0, 1)
    if n_bytes > _MOST_TEXT_BYTES:
        return False
    image.load()
    return True


class _File(io.RawIOBase):
    """File whose bytes are read as they are needed."""

    def __init__(self, read_at: ReadAt, n_bytes: int) -> None:
        self._read_at, self._n_bytes, self._position = read_at, n_bytes, 0
        self.problem: OSError | None = None  # of the storage, which is no fault of the image

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._n_bytes}[whence]
        if start + offset < 0:
            raise ValueError("a place before the start of the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read_at(self._position, len(buffer))
        except OSError as error:
            self.problem = error
            raise
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
