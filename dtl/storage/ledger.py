"""The ledger of a folder that is filled piece by piece: from which settings, and whether whole.

A result is claimed before work on it begins, always in this way:

- A folder of many files (tars, fetched images, predictions) has a `Ledger` beside its pieces.
  ``Ledger(url, name, wanted).inspect(overwrite=...)`` says what is there and changes nothing;
  ``.claim(...)`` also makes the folder ready: a folder of other settings is emptied, half-written
  files go, and the ledger says "not complete". Write the pieces that are missing, then
  ``.finish()``. A folder that follows what changes (predictions) has that in `Ledger.details`.
- A result that holds its own fingerprint (a feature store, a checkpoint, a head) is read by its
  owner, who passes the fingerprint to `dtl.config.provenance.claim`.
- A file is read with `read_parsed`, a small JSON result with `read_json`: None where it is absent,
  `UserError` where it is damaged. Only `DifferentSettingsError` may be answered by ``overwrite``,
  so nothing is ever removed because it could not be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dtl import storage
from dtl.config.errors import UserError
from dtl.config.provenance import Claim, claim
from dtl.config.text import printable

IMAGES = "_dtl_images.json"
"""The ledger's name beside images that were packed or fetched."""

LABELS = "_dtl_labels.csv"
"""The name of a table of labels beside tars, if these are not what their folders say."""

_MOST_BYTES = 1 << 33
"""More than any file has that is read whole: the checkpoint of a wide hidden layer."""

_MOST_JSON_BYTES = 1 << 30

_ADVICE = "Put back a copy of it, or remove it, to have it made again."

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Ledger:
    """A JSON file beside the pieces of a result."""

    url: str  # of the folder that is filled
    name: str  # of the file in it
    wanted: Mapping[str, Any]  # fingerprint of the result, of JSON's types
    # How far a result that grows is: stored, and not compared. Other details make it not complete.
    details: Mapping[str, Any] = field(default_factory=dict)

    def inspect(self, *, overwrite: bool = False) -> Claim:
        """Say what the folder holds; changes nothing.

        Raises `DifferentSettingsError` if it was filled with other settings and `overwrite` is not
        set; `UserError` if it holds files and no ledger, or a damaged one, in any case.
        """
        if (ledger := self.read()) is None:
            self._check_empty()
            return Claim.ABSENT
        finished = ledger.pop("complete", None) is True
        details = {name: ledger.pop(name, None) for name in self.details}
        return claim(
            self.wanted, ledger, self.url, finished=finished and details == self.details,
            overwrite=overwrite,
        )  # fmt: skip

    def claim(self, *, overwrite: bool = False) -> Claim:
        """Make the folder ready to be filled, or to be filled further; as `inspect`, otherwise."""
        found = self.inspect(overwrite=overwrite)
        if found is Claim.REPLACE:
            # Not complete from the first file on that goes, whenever this process is killed.
            self._write({**(self.read() or {}), "complete": False})
            storage.empty_folder(self.url, keep=self.name)
        elif storage.exists(self.url):
            storage.remove_partials(self.url)
        if found in (Claim.ABSENT, Claim.REPLACE) or (self.details and found is Claim.BEGUN):
            self._write({**self.wanted, **self.details, "complete": False})
        return found

    def finish(self) -> None:
        """Say in the ledger that the folder is whole."""
        self._write({**self.wanted, **self.details, "complete": True})

    def read(self) -> dict[str, Any] | None:
        """Return what is stored; None without a ledger. A damaged one is a `UserError`."""
        return read_json(
            storage.join(self.url, self.name),
            "Put back a copy of it, choose another `out`, or empty the folder yourself.",
        )

    def _write(self, ledger: Mapping[str, Any]) -> None:
        data = json.dumps(ledger, indent=1).encode()
        storage.write_bytes(storage.join(self.url, self.name), data)

    def _check_empty(self) -> None:
        if storage.is_file(self.url):
            raise UserError(f"{self.url} is a file. Choose an empty folder, or a new one.")
        if storage.exists(self.url):
            names = (f.path for f in storage.walk(self.url) if not f.path.startswith("."))
            if (inside := next(names, None)) is not None:
                raise UserError(
                    f"{self.url} is not empty: it has {inside}. Choose an empty or a new folder."
                )


def read_json(url: str, advice: str = _ADVICE) -> dict[str, Any] | None:
    """Read a JSON object; None without a file. A damaged one is a `UserError` with `advice`."""
    return read_parsed(url, parse_object, advice, _MOST_JSON_BYTES)


def read_parsed(
    url: str,
    parse: Callable[[bytes], _Parsed],
    advice: str = _ADVICE,
    most_bytes: int = _MOST_BYTES,
) -> _Parsed | None:
    """Read a file by a function of its bytes; None without a file.

    Whatever the function raises, but for a lack of memory, is because of the bytes: a `UserError`
    that begins with the URL and ends with `advice`.
    """
    name = printable(url)
    try:
        data = storage.read_bytes(url, most_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError as error:
        raise UserError(f"{name} is a folder, and no file. {advice}") from error
    except storage.TooLargeError as error:
        raise UserError(f"{name} is damaged: {_one_line(error)}. {advice}") from error
    try:
        return parse(data)
    except MemoryError as error:
        error.add_note(f"while reading {name}")
        raise
    except UserError as error:
        raise UserError(f"{name}: {_one_line(error)}. {advice}") from error
    except Exception as error:  # NumPy, Arrow, zipfile and the like raise anything on other bytes
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UserError(f"{name} is damaged: {kind}{_one_line(error)}. {advice}") from error


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object; anything else is a `ValueError`."""
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
