"""Names of files and classes as people can read them, whatever characters are in them."""

from __future__ import annotations

import re

# Control characters, separators of lines, marks that turn the direction of writing, what XML has no
# place for, and halves of characters, which stand for a name's bytes that are not UTF-8.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str, keep: str = "") -> str:
    r"""Escape what would not show, or change how the text around it shows.

    Parameters
    ----------
    keep : str
        Characters that stay, such as a newline.

    Examples
    --------
    >>> printable("IMG\n1\x1b[2J.jpg")
    'IMG\\n1\\x1b[2J.jpg'
    >>> print(printable("Käfer 甲虫"), printable("caf\udce9"))
    Käfer 甲虫 caf\xe9
    """

    def escape(found: re.Match[str]) -> str:
        character = found[0]
        if character in keep:
            return character
        if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
            return f"\\x{ord(character) - 0xDC00:02x}"
        return character.encode("unicode_escape").decode()

    return _UNSEEN.sub(escape, text)


def is_unicode(name: str) -> bool:
    r"""Return whether a name is text: one with bytes that are not UTF-8 cannot be stored.

    Examples
    --------
    >>> is_unicode("Käfer"), is_unicode("caf\udce9")
    (True, False)
    """
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)
