"""Mutations of a file's bytes, drawn from a seed."""

from __future__ import annotations

import io
import random
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""Takes a generator, the bytes, and samples to take from; returns other bytes."""

_NUMBERS = (
    b"0", b"-1", b"1", b"255", b"65536", b"4294967296", b"-9223372036854775808", b"9" * 30,
    b"1e999", b"1.5", b"NaN", b"7" * 11,
)  # fmt: skip
_TOKENS = (
    b"null", b"true", b"[]", b"{}", b'""', b"[[", b'{"a":', b"\xef\xbb\xbf", b"\xff", b"\r\n", b"'",
    b'"', b",", b"=", b"..", b"/", b"\0", "ä".encode(), b'"\\ud800"', b"[" * 2000, *_NUMBERS,
)  # fmt: skip
_TOKEN = re.compile(rb'"[^"\n]*"|[\w.+-]+|[\[\]{},:=]')
_DIGITS = re.compile(rb"[0-9]+")


def mutate(rng: random.Random, samples: Sequence[bytes]) -> bytes:
    """Return one of the samples after one or more mutations."""
    data = rng.choice(samples)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        data = rng.choice(MUTATIONS)(rng, data, samples)
    return data


def _flip_bits(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _number in range(rng.choice((1, 1, 2, 8, 64)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _splice(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    other = rng.choice(samples)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _set_extreme(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Set what may be a length or a count to a value at an end of its range."""
    width = rng.choice((1, 2, 4, 8))
    most = (1 << 8 * width) - 1
    value = rng.choice(
        (0, 1, most, most >> 1, (most >> 1) + 1, most - 1, 1 << rng.randrange(8 * width))
    )
    at = rng.randrange(max(len(data) - width, 0) + 1)
    field = value.to_bytes(width, rng.choice(("little", "big")))
    return data[:at] + field + data[at + width :]


def _duplicate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _range(rng, data)
    return data[:stop] + data[start:stop] * rng.choice((1, 1, 2, 50)) + data[stop:]


def _remove(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _range(rng, data)
    return data[:start] + data[stop:]


def _zero(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _range(rng, data)
    return data[:start] + bytes(stop - start) + data[stop:]


def _insert(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 16, 600))) + data[at:]


def _replace_number(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return _replace(rng, data, _DIGITS, _NUMBERS)


def _replace_token(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return _replace(rng, data, _TOKEN, _TOKENS)


def _begin_anew(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Keep nothing, or the first bytes, before noise."""
    return data[: rng.choice((0, 0, 4, 16))] + rng.randbytes(rng.choice((0, 1, 100, 3000)))


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits, _flip_bits, _truncate, _splice, _set_extreme, _set_extreme, _duplicate, _remove,
    _zero, _insert, _replace_number, _replace_token, _begin_anew,
)  # fmt: skip


def _range(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(start + rng.choice((1, 4, 16, 512, 5000)), len(data))


def _replace(
    rng: random.Random, data: bytes, what: re.Pattern[bytes], by: Sequence[bytes]
) -> bytes:
    found = list(what.finditer(data[:20_000]))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(by) + data[match.end() :]


# --- repairs: checksums would keep most mutations from what is behind them -----------------------


def repair_png(data: bytes) -> bytes:
    """Set the checksum of each chunk of a PNG to what it should be; other bytes stay."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    changed, at = bytearray(data), 8
    while at + 12 <= len(data):
        (n_bytes,) = struct.unpack_from(">I", data, at)
        end = at + 8 + n_bytes
        if end + 4 > len(data):
            break
        struct.pack_into(">I", changed, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(changed)


def repair_tar(data: bytes) -> bytes:
    """Set the checksum of each block that looks like a header of a tar to what it should be."""
    changed = bytearray(data)
    for at in range(0, len(data) - tarfile.BLOCKSIZE + 1, tarfile.BLOCKSIZE):
        block = data[at : at + tarfile.BLOCKSIZE]
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
            changed[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(changed)


def mutate_members(rng: random.Random, samples: Sequence[bytes]) -> bytes:
    """Return one of the .npz files with a member mutated, and a checksum that fits it."""
    members = [found for sample in samples if (found := _list_members(sample))]
    chosen = dict(rng.choice(members))
    name = rng.choice(sorted(chosen))
    chosen[name] = mutate(
        rng, [chosen[name], *(other for m in members for other in m.values())][:6]
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as file:
        for other, data in chosen.items():
            file.writestr(zipfile.ZipInfo(other), data)
    return buffer.getvalue()


def _list_members(data: bytes) -> dict[str, bytes]:
    """Return the members of a .npz; none of one that failed in the field and cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            small = [info for info in file.infolist() if info.file_size < 1 << 20]
            return {info.filename: file.read(info) for info in small}
    except (zipfile.BadZipFile, NotImplementedError, OSError, zlib.error, EOFError):
        return {}
