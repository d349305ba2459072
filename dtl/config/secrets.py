"""Secrets in options and texts: passwords and keys in URLs, values of environment variables.

What is written to a file of a run, to a terminal or a log goes through `hide` or `hide_options`
before. A URL that is read back without its secret is known by `is_hidden`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
"""Stands in place of a secret."""

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
_URL = re.compile(rf"({_SCHEME})(.*?)(?={_SCHEME}|\s|$)")
_WHOLE_URL = re.compile(rf"({_SCHEME})(.*)", re.DOTALL)
_SECRET_QUERY = re.compile(
    r"([?&;][^=&#\s]*(?:sig|token|key|secret|pass|pwd|cred|auth|delegation)[^=&#\s]*=)[^&#\s'\"]+",
    re.IGNORECASE,
)
# The keys of S3 have slashes, so that they look like a port and a path.
_NO_PORT = re.compile(r"[^:\[]*:(?!\d*\W*$)")
_HIDDEN_PART = re.compile(r"(?::|//|=)" + re.escape(HIDDEN))


def hide(text: str) -> str:
    """Put ``***`` in place of passwords, tokens and keys in the URLs of a text.

    Examples
    --------
    >>> hide("No such file: ftp://me:pw@host:21/a. Check hdfs://host:8020/b@c.")
    'No such file: ftp://me:***@host:21/a. Check hdfs://host:8020/b@c.'
    >>> hide("https://host/photos?sig=AbC&v=2")
    'https://host/photos?sig=***&v=2'
    """
    return _URL.sub(_hide_url, text) if "://" in text else text


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
        return hide(_WHOLE_URL.sub(_hide_url, value))
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
    return "://" in url and _HIDDEN_PART.search(url) is not None


def _hide_url(found: re.Match[str]) -> str:
    scheme, rest = found.groups()
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    end = authority.rfind("@")
    if end < 0 and _NO_PORT.match(authority):
        end = rest.find("@")
    if end >= 0:
        name, colon, _ = rest[:end].partition(":")
        if colon:
            rest = f"{name}:{HIDDEN}{rest[end:]}"
        elif scheme.lower() in ("http://", "https://"):  # a token; elsewhere, a user's name
            rest = f"{HIDDEN}{rest[end:]}"
    return scheme + _SECRET_QUERY.sub(rf"\1{HIDDEN}", rest)
