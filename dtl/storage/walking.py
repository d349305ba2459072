"""Listing of folders, one after the other; none is passed over because it could not be listed."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dtl.config.errors import UserError
from dtl.config.text import is_unicode, printable
from dtl.storage.files import find_type, read_time
from dtl.storage.guards import check_guards
from dtl.storage.places import filesystem, has_folders, join
from dtl.storage.retries import ask

__all__ = ["EMPTY", "Found", "list_names", "remove_partials", "walk"]

_ARCHIVES = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip

EMPTY = "an empty folder"


class _GoneError(OSError):
    """A folder that was removed while it was listed."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file below a folder, or a link that leads to none; equal whenever it was written."""

    path: str  # relative to the folder; printable where its name is not UTF-8
    n_bytes: int
    problem: str = ""  # why it cannot be read as a file; empty where it can
    modified: int = field(default=0, compare=False)  # microseconds since 1970; 0 if unknown


class _Folder(NamedTuple):
    url: str
    path: str  # on its filesystem
    prefix: str  # of the relative paths of what is in it
    links_in: tuple[str, ...] = ()  # real folders in which the links on the way to it lie


def walk(
    url: str, leave_out: Callable[[str], str] | None = None, *, with_empty: bool = False
) -> Iterator[Found]:
    """Yield all files below a folder; sorted within a folder, its own before its folders'.

    Links to folders are followed, except to a folder above themselves. `leave_out` may give the
    reason not to list folders of a name; such a folder is yielded with it. `with_empty` also yields
    folders in which nothing is, with the problem `EMPTY`.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    OSError
        If a folder below cannot be listed, after several tries: its files would be missed.
    UserError
        If it lies on a web server.
    """
    if not has_folders(url):
        raise UserError(
            f"{url}: the folders of a web server cannot be listed. Download them, and give that "
            "folder; or give one .tar file by its whole URL."
        )
    fs, root = filesystem(url)
    kind = find_type(url)
    if kind is None:
        raise FileNotFoundError(f"No such folder: {url}.")
    if kind != "directory":
        raise NotADirectoryError(f"Not a folder: {url}.{_advise_on_archive(url)}")
    waiting = [_Folder(url, root, "")]
    while waiting:
        folder = waiting.pop()
        below: list[_Folder] = []
        entries = _list(fs, folder)
        if with_empty and not entries and folder.prefix:
            yield Found(_show(folder.prefix.rstrip("/")), 0, EMPTY)
        for name, entry in entries:
            path, place = folder.prefix + name, join(folder.url, name)
            if not name:
                yield Found(_show(f"{path}/"), 0, "a name with nothing between two slashes")
                continue
            is_folder, n_bytes, modified, problem = _read_entry(fs, entry, place)
            if is_folder:
                links_in = folder.links_in
                if entry.get("islink"):
                    links_in = (*links_in, os.path.realpath(folder.path))
                    problem = _find_loop(entry["name"], links_in)
                if not problem and leave_out is not None:
                    problem = leave_out(name)
                if not problem:
                    below.append(_Folder(place, entry["name"], f"{path}/", links_in))
                    continue
                n_bytes = 0
            if not problem and not is_unicode(path):
                problem = "its name is not UTF-8"
            yield Found(_show(path), n_bytes, problem, modified)
        waiting += reversed(below)


def _show(path: str) -> str:
    return path if is_unicode(path) else printable(path)


def list_names(url: str) -> list[str]:
    """List the names of what is in a folder, sorted; none if there is no such folder."""
    fs, path = filesystem(url)
    try:
        return [name for name, _ in _sort(path, ask(fs, url, fs.ls, path, detail=True)) if name]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _list(fs: Any, folder: _Folder) -> list[tuple[str, Mapping[str, Any]]]:
    """List names and details of what is in a folder; sorted."""
    try:
        entries = ask(fs, folder.url, fs.ls, folder.path, detail=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _GoneError(
            f"{folder.url} was removed while being listed. Try again when nothing changes the "
            "folder."
        ) from error
    except PermissionError as error:
        error.add_note(
            f"{folder.url} may not be listed, and its files would be missed. Ask for permission to "
            "read it (chmod), or move it elsewhere."
        )
        raise
    except OSError as error:
        error.add_note(
            f"{folder.url} cannot be listed, and its files would be missed. Try again later, or "
            "move it elsewhere."
        )
        raise
    return _sort(folder.path, entries)


def _sort(folder: str, entries: Iterable[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    named = []
    for entry in entries:
        path = entry["name"].rstrip("/")
        if path != folder.rstrip("/"):
            named.append((path.rsplit("/", 1)[-1], entry))
        elif entry["type"] == "directory" or entry["size"]:
            named.append(("", entry))  # in an object store, "a//b.jpg"
        # Otherwise it is the folder's own empty object.
    return sorted(named, key=operator.itemgetter(0))


def _read_entry(fs: Any, entry: Mapping[str, Any], url: str) -> tuple[bool, int, int, str]:
    """Return of an entry of a folder whether it is a folder itself, and what `Found` has of it."""
    if not entry.get("islink"):
        problem = _name_kind(entry.get("mode", 0)) if entry["type"] == "other" else ""
        is_folder, n_bytes = entry["type"] == "directory", int(entry["size"] or 0)
        return is_folder, n_bytes, read_time(entry), problem
    try:
        target = ask(fs, url, os.stat, entry["name"])
    except (FileNotFoundError, NotADirectoryError):
        return False, 0, 0, "a link to nowhere"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False, 0, 0, "a link to itself"
        raise
    if stat.S_ISDIR(target.st_mode) or stat.S_ISREG(target.st_mode):
        return stat.S_ISDIR(target.st_mode), target.st_size, round(target.st_mtime * 1e6), ""
    return False, 0, 0, f"a link to {_name_kind(target.st_mode)}"


def _name_kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "neither a file nor a folder")


def _find_loop(link: str, links_in: tuple[str, ...]) -> str:
    target = os.path.realpath(link).rstrip("/")
    above = any(f"{place}/".startswith(f"{target}/") for place in links_in)
    return "a link to a folder above itself" if above else ""


def _advise_on_archive(url: str) -> str:
    if not url.lower().endswith(_ARCHIVES):
        return ""
    return " Unpack it, and give that folder; of archives, only .tar files are read as they are."


def remove_partials(url: str, *, below: bool = True) -> None:
    """Remove half-written files that a killed process left in a folder, and in those below it."""
    fs, root = filesystem(url)
    if fs.async_impl or find_type(url) != "directory":
        return  # object stores have none, and would take long to list
    check_guards(url)
    waiting = [_Folder(url, root, "")]
    while waiting:
        folder = waiting.pop()
        with contextlib.suppress(_GoneError):
            for name, entry in _list(fs, folder):
                place = join(folder.url, name)
                if entry["type"] == "directory" and name:
                    waiting += [_Folder(place, entry["name"], "")] if below else []
                elif name.endswith(".partial"):
                    with contextlib.suppress(FileNotFoundError):  # its writer has just ended
                        ask(fs, place, fs.rm_file, entry["name"])
