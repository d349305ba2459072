"""The ledger beside a folder that is filled piece by piece: with what, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dtl import storage
from dtl.config.provenance import differences

LEDGER = "_dtl_images.json"
"""Beside images that were packed or fetched: what they are of, and whether all of it is there."""


# --- the ledger ----------------------------------------------------------------------------------


def check_free(url: str, asked: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Refuse a folder that holds something else than what is asked, or a part of it.

    Raises
    ------
    ValueError
        With `overwrite`, only if no ledger tells that what is there may be replaced.
    """
    stored = _read_ledger(url)
    found = differences(asked, stored) if stored is not None else []
    if found and not overwrite:
        raise ValueError(
            f"{url} holds images of other settings:\n  "
            + "\n  ".join(found)
            + "\nUse the same settings, choose another place, or replace them with --overwrite."
        )
    if storage.is_file(url):
        raise ValueError(f"{url} is a file. Choose an empty folder, or a new one.")
    if stored is None and storage.exists(url):
        inside = next((path for path, _ in storage.walk(url) if not path.startswith(".")), None)
        if inside is not None:
            raise ValueError(
                f"{url} is not empty: it has {inside}. Choose an empty folder, or a new one."
            )


def claim(url: str, asked: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Begin to fill a folder with what is asked, or go on; its ledger says that it is not whole.

    Raises
    ------
    ValueError
        As `check_free`.
    """
    check_free(url, asked, overwrite=overwrite)
    if (stored := _read_ledger(url)) == asked:
        storage.clean(url)
        return
    if stored is not None:
        storage.clear(url)
    _write_ledger(url, asked, complete=False)


def finish(url: str, asked: Mapping[str, Any]) -> None:
    """Say in the ledger that the folder is whole."""
    _write_ledger(url, asked, complete=True)


def is_finished(url: str, asked: Mapping[str, Any]) -> bool:
    """Whether exactly this is there, and whole."""
    file = storage.join(url, LEDGER)
    return storage.exists(file) and json.loads(storage.read_bytes(file)) == {
        **asked,
        "complete": True,
    }


def _read_ledger(url: str) -> dict[str, Any] | None:
    """What a folder was filled with; None where that is not known."""
    file = storage.join(url, LEDGER)
    if not storage.exists(file):
        return None
    ledger: dict[str, Any] = json.loads(storage.read_bytes(file))
    ledger.pop("complete", None)
    return ledger


def _write_ledger(url: str, asked: Mapping[str, Any], *, complete: bool) -> None:
    data = json.dumps({**asked, "complete": complete}, indent=1).encode()
    storage.write_bytes(storage.join(url, LEDGER), data)
