"""Secrets in options and texts: passwords and keys in URLs, values of environment variables.

Texts for a file of a run, a terminal or a log go through `hide` or `hide_options`
before. A URL that is read back without its secret is known by `is_hidden`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
"""Stands in place of a secret."""

_NO_FIRST_LETTERS = string.digits + "+.-"
_SCHEME_LETTERS = string.ascii_letters + _NO_FIRST_LETTERS
_QUERY = re.compile(r"([?&;][^=&#?;\s]*=)([^&#\s'\"]+)")
_SECRET_NAME = re.compile("sig|token|key|secret|pass|pwd|cred|auth|delegation", re.IGNORECASE)
# The keys of S3 have slashes, so that they look like a port and a path.
_NO_PORT = re.compile(r"[^:\[]*:(?!\d*\W*$)")
_HIDDEN_USER = re.compile(r"://(?:[^/:@]*:)?" + re.escape(HIDDEN) + "@")


def hide(text: str) -> str:
    """Put ``***`` in place of passwords, tokens and keys in the URLs of a text.

    Examples
    --------
    >>> hide("No such file: ftp://me:pw@host:21/a. Check hdfs://host:8020/b@c.")
    'No such file: ftp://me:***@host:21/a. Check hdfs://host:8020/b@c.'
    >>> hide("https://host/photos?sig=AbC&v=2")
    'https://host/photos?sig=***&v=2'
    """
    words = re.split(r"(\s+)", text) if "://" in text else [text]
    return "".join(_hide_word(word) if "://" in word else word for word in words)


def hide_options(value: Any) -> Any:
    """Return tables as `dtl.config.to_dict` makes them, and other values of JSON, without secrets.

    Examples
    --------
    >>> hide_options({"yarn": {"env": ["TOKEN=abc"]}, "images": {"url": "s3://key:secret@photos"}})
    {'yarn': {'env': ['TOKEN=***']}, 'images': {'url': 's3://key:***@photos'}}
    """
    if isinstance(value, Mapping):
        return {
            name: hide_values(v) if name == "env" and isinstance(v, list) else hide_options(v)
            for name, v in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(map(hide_options, value))
    if isinstance(value, str):  # all of it is one URL, even if there are spaces in its password
        before, mark, rest = value.partition("://")
        return hide(before + _hide_url(_split_scheme(before)[1], rest)) if mark else value
    return value


def hide_values(variables: Iterable[Any]) -> list[str]:
    """Return texts of the form NAME=VALUE without their values.

    Examples
    --------
    >>> hide_values(["TOKEN=a=b", "c"])
    ['TOKEN=***', '***']
    """
    halves = (str(variable).partition("=") for variable in variables)
    return [f"{name}={HIDDEN}" if equals else HIDDEN for name, equals, _ in halves]


def is_hidden(url: str) -> bool:
    """Return whether a URL stands without its secret."""
    if "://" not in url:
        return False
    return _HIDDEN_USER.search(url) is not None or any(
        _SECRET_NAME.search(found[1]) and found[2].startswith(HIDDEN)
        for found in _QUERY.finditer(url)
    )


def _hide_word(word: str) -> str:
    """Hide what is secret in a text without spaces, in time that grows with its length only."""
    first, *others = word.split("://")
    shown, scheme = first, _split_scheme(first)[1]
    for number, part in enumerate(others, 1):
        # The next URL begins with its scheme, which stands at the end of this part.
        rest, next_scheme = _split_scheme(part) if number < len(others) else (part, "")
        shown += _hide_url(scheme, rest) + next_scheme
        scheme = next_scheme
    return shown


def _split_scheme(text: str) -> tuple[str, str]:
    """Return what is before the scheme that a text ends with, and the scheme."""
    start = len(text.rstrip(_SCHEME_LETTERS))
    start += len(text) - start - len(text[start:].lstrip(_NO_FIRST_LETTERS))
    return text[:start], text[start:]


def _hide_url(scheme: str, rest: str) -> str:
    """Return ``://`` and the rest of a URL without its secrets."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    end = authority.rfind("@")
    if end < 0 and _NO_PORT.match(authority):
        end = rest.find("@")
    if end >= 0:
        name, colon, _ = rest[:end].partition(":")
        if colon:
            rest = f"{name}:{HIDDEN}{rest[end:]}"
        elif scheme.lower() in ("http", "https"):  # a token; elsewhere, a user's name
            rest = f"{HIDDEN}{rest[end:]}"
    return "://" + _QUERY.sub(_hide_value, rest)


def _hide_value(found: re.Match[str]) -> str:
    return found[1] + HIDDEN if _SECRET_NAME.search(found[1]) else found[0]
