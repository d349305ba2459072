"""Files of arrays that lie about themselves: refused in bounded time and memory."""

from __future__ import annotations

import io
import json
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.config.errors import UserError
from dtl.head.npz import from_npz, reading, to_npz

GOOD = to_npz({"kernel": np.ones((2, 3), np.float32)}, {"a": 1})


def npy(header: bytes, data: bytes = b"", version: int = 1) -> bytes:
    """An .npy file with any header."""
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def says(descr: str, shape: str, *, fortran: str = "False") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()


def pack(member: bytes, name: str = "kernel.npy", kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr(name, member)
        meta = io.BytesIO()
        np.save(meta, np.frombuffer(b"{}", np.uint8))
        archive.writestr("meta.npy", meta.getvalue())
    return buffer.getvalue()


def refusal(data: bytes) -> str:
    with pytest.raises(UserError) as caught, reading("head"):
        from_npz(data)
    message = str(caught.value)
    assert message.startswith("Not a head that dtl wrote: ")
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy(says("'<f4'", "(-2, 3)"), bytes(24)), "has a header that no array of numbers has"),
        (npy(says("'<f4'", "(2.0, 3)"), bytes(24)), "has a header that no array of numbers has"),
        (npy(says("'<f4'", "(2, 3)") * 200, bytes(24)), "has a header that no array"),
        (npy(says("'<f4'", "(" * 5000), bytes(24)), "has a header that no array of numbers has"),
        (npy(b"x" * 20_000), "has a header that no array of numbers has"),
        (npy(says("[('a', '<f4')]", "(2,)"), bytes(8)), "has a header that no array of numbers"),
        (npy(says("'|O'", "(2,)"), bytes(8)), "holds Python objects, which are never loaded"),
        (npy(says("'<f3'", "(2,)"), bytes(8)), "holds '<f3', not numbers"),
        (npy(says("'|V4'", "(2,)"), bytes(8)), "holds '|V4', not numbers"),
        (npy(says("'<M8'", "(2,)"), bytes(16)), "holds '<M8', not numbers"),
        (npy(says("'<f4'", "(2, 3)"), bytes(23)), r"takes \d+ bytes; it has"),
        (npy(says("'<f4'", "(2, 3)"), bytes(25)), r"takes \d+ bytes; it has"),
        (npy(says("'<f4'", "(1000000, 1000000)")), "which takes 40000000000.. bytes; it has"),
        (npy(says("'<f8'", "(99999999999999999999, 2)")), "bytes; it has"),
        (npy(says("'<f4'", "()" * 2), bytes(4)), "has a header that no array of numbers has"),
        (npy(says("'<f4'", "(2,)"), bytes(8), version=9), "is no .npy file"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(50), "has a header that no array"),
        (b"", "is no .npy file"),
        (b"\x80\x04N.", "is no .npy file"),
    ],
)
def test_arrays_that_are_none(member: bytes, message: str) -> None:
    assert re.search(message, refusal(pack(member))), refusal(pack(member))


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_arrays_are_refused_unread(kind: int) -> None:
    bomb = pack(npy(says("'<f4'", "(5000, 5000)"), bytes(10**8)), kind=kind)
    assert len(bomb) < 200_000
    tracemalloc.start()
    assert "its arrays are compressed, which dtl never does" in refusal(bomb)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_the_bomb_of_the_field(cases: Path) -> None:
    data = (cases / "files" / "zipbomb-head.npz").read_bytes()
    assert "its arrays are compressed, which dtl never does" in refusal(data)


def test_members_that_claim_more_than_the_file_has() -> None:
    """The directory of a zip says what it likes; here that each member is the whole file."""
    data = bytearray(pack(npy(says("'<f4'", "(2, 3)"), bytes(24))))
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1 << 31)  # its size when unpacked
    assert "its arrays are larger than all of its" in refusal(bytes(data))


def test_fortran_order_is_read_as_it_was_meant() -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    arrays, _ = from_npz(to_npz({"kernel": array}, {}))
    np.testing.assert_array_equal(arrays["kernel"], array)


@pytest.mark.parametrize(
    "array",
    [np.float32(1), np.zeros((0, 3), "f4"), np.arange(3), np.array([True]), np.array(["é", "b"])],
)
def test_numbers_and_texts_of_any_shape(array: np.ndarray) -> None:
    arrays, _ = from_npz(to_npz({"a": array}, {}))
    np.testing.assert_array_equal(arrays["a"], array, strict=True)
    assert arrays["a"].flags.writeable


@pytest.mark.parametrize("meta", [b"", b"[1]", b"{", b"[" * 100_000, b"\xff", b"null"])
def test_other_json(meta: bytes) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.frombuffer(meta, np.uint8))
    refusal(buffer.getvalue())


def flip(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[at % len(data)] ^= 1 << bit
    return bytes(changed)


def cut(data: bytes, at: int, _: int) -> bytes:
    return data[: at % len(data)]


@settings(deadline=None, max_examples=500)
@given(st.integers(0, 1 << 16), st.integers(0, 7), st.sampled_from([flip, cut]))
def test_damage_is_told_or_changes_nothing(
    at: int, bit: int, damage: Callable[[bytes, int, int], bytes]
) -> None:
    try:
        with reading("head"):
            arrays, meta = from_npz(damage(GOOD, at, bit))
    except UserError:
        return
    assert json.dumps(meta) == '{"a": 1}'
    np.testing.assert_array_equal(arrays["kernel"], np.ones((2, 3)))
