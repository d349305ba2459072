"""Names of files and classes as people can read them, whatever characters are in them."""

from __future__ import annotations

import re

# Control characters, separators of lines, marks that turn the direction of writing, and halves of
# characters, which stand for a name's bytes that are not UTF-8.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
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
    >>> printable("Käfer 甲虫")
    'Käfer 甲虫'
    """

    def escape(found: re.Match[str]) -> str:
        character = found[0]
        return character if character in keep else character.encode("unicode_escape").decode()

    return _UNSEEN.sub(escape, text)
