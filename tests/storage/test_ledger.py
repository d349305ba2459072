"""The ledger: a folder is begun, continued, finished, or replaced if that is allowed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from dtl import storage
from dtl.config.errors import DifferentSettingsError, UserError
from dtl.config.provenance import Claim
from dtl.images.listing import find_images
from dtl.storage.ledger import IMAGES, Ledger, read_json, read_parsed

NAME = "_ledger.json"


def fill(url: Path, seed: int) -> Ledger:
    ledger = Ledger(str(url), NAME, {"seed": seed})
    ledger.claim()
    (url / "piece").write_text(f"of seed {seed}")
    return ledger


def test_absent_begun_finished(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "new"), NAME, {"seed": 0})
    assert ledger.inspect() is Claim.ABSENT
    assert not (tmp_path / "new").exists()
    assert ledger.claim() is Claim.ABSENT
    (tmp_path / "new" / "piece.0.partial").write_text("half")
    assert ledger.claim() is ledger.inspect() is Claim.BEGUN
    assert [path.name for path in (tmp_path / "new").iterdir()] == [NAME]
    ledger.finish()
    assert ledger.inspect(overwrite=True) is ledger.claim() is Claim.FINISHED
    assert json.loads((tmp_path / "new" / NAME).read_text()) == {"seed": 0, "complete": True}


def test_other_settings_are_refused_or_replaced(tmp_path: Path) -> None:
    fill(tmp_path, 1).finish()
    (tmp_path / ".dtl-lock").touch()
    other = Ledger(str(tmp_path), NAME, {"seed": 2})
    for refuse in (other.inspect, other.claim):
        with pytest.raises(DifferentSettingsError, match=r"asked for 2, stored 1\n.*`overwrite`"):
            refuse()
    assert other.inspect(overwrite=True) is Claim.REPLACE
    assert (tmp_path / "piece").exists()
    assert other.claim(overwrite=True) is Claim.REPLACE
    assert {path.name for path in tmp_path.iterdir()} == {NAME, ".dtl-lock"}
    assert other.inspect() is Claim.BEGUN


def test_details_are_stored_and_not_compared(tmp_path: Path) -> None:
    fill(tmp_path, 0).finish()
    for n_pieces in (1, 2):
        ledger = Ledger(str(tmp_path), NAME, {"seed": 0}, {"n_pieces": n_pieces})
        assert ledger.inspect() is Claim.BEGUN
        assert (ledger.read() or {}).get("n_pieces") != n_pieces
        assert ledger.claim() is Claim.BEGUN
        assert ledger.read() == {"seed": 0, "n_pieces": n_pieces, "complete": False}
        ledger.finish()
        assert ledger.inspect() is ledger.claim() is Claim.FINISHED
        assert ledger.read() == {"seed": 0, "n_pieces": n_pieces, "complete": True}
    with pytest.raises(DifferentSettingsError, match="seed: asked for 2, stored 0\nGive"):
        Ledger(str(tmp_path), NAME, {"seed": 2}, {"n_pieces": 1}).inspect()
    assert (tmp_path / "piece").exists()


def test_killed_while_the_other_pieces_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fill(tmp_path, 1)
    first.finish()

    def die(url: str, keep: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "empty_folder", die)
    other = Ledger(str(tmp_path), NAME, {"seed": 2})
    with pytest.raises(KeyboardInterrupt):
        other.claim(overwrite=True)
    assert first.inspect() is Claim.BEGUN
    assert other.inspect(overwrite=True) is Claim.REPLACE


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_cannot_be_read_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    ledger = Ledger(str(tmp_path), NAME, {"seed": 0})
    with pytest.raises(UserError, match=rf"{tmp_path} is not empty: it has thesis\.txt\. Choose"):
        ledger.claim(overwrite=overwrite)
    file = Ledger(str(tmp_path / "thesis.txt"), NAME, {"seed": 0})
    with pytest.raises(UserError, match=r"thesis\.txt is a file\. Choose an empty folder"):
        file.claim(overwrite=overwrite)
    for data in ("", '{"seed": 0, "compl', "[0]", "\0\0"):
        (tmp_path / NAME).write_text(data)
        with pytest.raises(UserError, match=rf"{tmp_path}/{NAME} is damaged: .*empty the folder"):
            ledger.claim(overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_json_file(tmp_path: Path) -> None:
    url = str(tmp_path / "scores.json")
    assert read_json(url) is None
    Path(url).write_bytes(b'{"a": 1}')
    assert read_json(url) == {"a": 1}
    for data in (b'{"a": \xff}', b"", b"[0]", b"[" * 100_000, b'{"a": ' * 100_000, b"\0" * 99):
        Path(url).write_bytes(data)
        with pytest.raises(UserError, match=rf"{url} is damaged: .* Put back a copy of it, or rem"):
            read_json(url)


def test_a_sparse_file_is_no_json(tmp_path: Path) -> None:
    url = tmp_path / "scores.json"
    with url.open("wb") as file:
        file.truncate(60 << 30)
    with pytest.raises(UserError, match=rf"{url} is damaged: .* has 64424509440 bytes"):
        read_json(str(url))


def test_the_ledger_of_the_field(tmp_path: Path, cases: Path) -> None:
    shutil.copy(cases / "files/dtl_images-list.json", tmp_path / IMAGES)
    (tmp_path / "cat").mkdir()
    said = rf"{tmp_path}/{IMAGES} is damaged: it holds no JSON object"
    with pytest.raises(UserError, match=said):
        Ledger(str(tmp_path), IMAGES, {"seed": 0}).claim(overwrite=True)
    with pytest.raises(UserError, match=said):
        find_images(str(tmp_path))


@pytest.mark.parametrize(
    "stored", ['{"seed": [0], "complete": "yes"}', '{"seed": null}', '{"complete": {}, "x": 1}']
)
def test_a_ledger_with_other_types_is_one_of_other_settings(tmp_path: Path, stored: str) -> None:
    (tmp_path / NAME).write_text(stored)
    with pytest.raises(DifferentSettingsError, match=rf"{tmp_path} was made with other settings"):
        Ledger(str(tmp_path), NAME, {"seed": 0}).inspect()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("not so"), KeyError("kernel"), EOFError(), RecursionError("too deep"),
        OverflowError("too large"), OSError("Arrow's own"), ZeroDivisionError("by 0"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_parser_raises_is_a_message_with_the_file(
    tmp_path: Path, error: Exception
) -> None:
    (tmp_path / "x.npz").write_bytes(b"bytes")

    def parse(data: bytes) -> NoReturn:
        assert data == b"bytes"
        raise error

    with pytest.raises(UserError, match=rf"^{tmp_path}/x.npz is damaged: .*\. Mend it\.$") as told:
        read_parsed(str(tmp_path / "x.npz"), parse, "Mend it.")
    assert str(error).strip("'") in str(told.value)
    assert told.value.__cause__ is error


def test_a_lack_of_memory_damages_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"bytes")

    def parse(data: bytes) -> NoReturn:
        raise MemoryError("2 GiB")

    with pytest.raises(MemoryError, match="2 GiB") as told:
        read_parsed(str(tmp_path / "x.npz"), parse)
    assert told.value.__notes__ == [f"while reading {tmp_path}/x.npz"]


def test_a_storage_that_fails_is_no_absent_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str, _: int) -> NoReturn:
        raise PermissionError(13, "Permission denied", url)

    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=rf"^{tmp_path}/folder is a folder, and no file\. "):
        read_json(str(tmp_path / "folder"))
    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(PermissionError, match="Permission denied"):
        read_json(str(tmp_path / "x.json"))
