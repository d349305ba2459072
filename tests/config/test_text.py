"""Names as people can read them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtl.config.text import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("caf\udce9", r"caf\xe9"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("familie 👨‍👩‍👧 Müller 甲虫 می‌خواهم", "familie 👨‍👩‍👧 Müller 甲虫 می‌خواهم"),
    ],
    ids=["newline", "terminal", "not UTF-8", "direction", "other alphabets"],
)
def test_what_would_not_show_is_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown


@given(st.text(st.characters(exclude_categories=[])))
def test_anything_fits_into_one_line_of_any_encoding(name: str) -> None:
    shown = printable(name)
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in shown)
    assert printable(shown) == shown


def test_lines_that_are_meant_stay() -> None:
    assert printable("one\ntwo\r", keep="\n") == "one\ntwo\\r"
