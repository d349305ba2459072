"""The files of a run: each read through one door, whatever has become of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtl import config
from dtl.cluster.timeline.values import Life, Stage, Timeline, Worker
from dtl.config.errors import UserError
from dtl.evaluation.values import (
    AnswerScores,
    Evaluation,
    Mistake,
    Reliability,
    SetScores,
    SplitScores,
)
from dtl.head.model import Head
from dtl.head.scaling import Scaling
from dtl.neighbours.novelty import Novelty
from dtl.pipeline.results import Results
from dtl.training.checkpoint import Checkpoint, resume
from dtl.training.values import (
    Comparison,
    Contender,
    Round,
    Rung,
    Trial,
    Tuning,
    history_to_bytes,
)

MADE_FROM = {
    "features": {"network": "VGG16"}, "weights_sha256": "0", "split": {}, "layer": "fc2",
    "train": {"l2": 0.1}, "seed": 0,
}  # fmt: skip
ROUND = Round(1, 0.5, 1.5, (1.0, 2.0), 0.01, 0.1, 0.1, 0.1, 0.1, 0.1)
SCORES = SplitScores(2, 1.0, 1.0, 0.1, 1.0, 1.0, 1.0, {"a": {"n_images": 2}}, ((0, 0, 2),))
HELD = Reliability(((2, 2, 0.9),), 0.1, (0.0, 0.2), 0.1, 0.1, (0.0, 0.2), 0.1, (0.0, 0.2))
SCORES = replace(
    SCORES, reliability={"before": HELD, "after": HELD}, sets=(SetScores(0.9, 2, 2, 2),),
    answers=(AnswerScores(0.05, 2, 0),),
)  # fmt: skip
ZEROS = np.zeros((2, 2), np.float32)
HEAD = Head(ZEROS, ZEROS[0], ZEROS[0], ZEROS[0] + 1, ("a", "b"), MADE_FROM)
SCALING = Scaling("standardise", np.zeros(2), np.ones(2, np.float32))
NOVELTY = Novelty(SCALING, np.eye(2, dtype=np.float32), 1, 0.5, 0.05, 9, MADE_FROM)
CONTENDER = Contender("L-BFGS", 1, 0, {"train": 1.0}, {"train": 0.1}, 0.1, 0.0, 0.0, 1.0, 9, ())
WORKER = Worker(
    "tcp://a:1",
    "a",
    0.0,
    9.0,
    "lost",
    8,
    {"features": 2},
    {"features": ((0.0, 1.0, 1.0, 1),)},
    ((0.0, 9),),
)
LIFE = Life(0.0, 9.0, "", (Stage("train", 0.0, 9.0),), ((0.0, 9),), (WORKER,), 1, 1)
TRIAL = Trial(0.1, 0.1, 0.0, 10, (Rung(1.0, 1.0, 0.1, 1.0, 0.1),))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """A folder with every file of a run that `Results` reads."""
    made = Results(str(tmp_path / "out"))
    made.write_config(config.build({"out": made.url}))
    made.write_novelty(NOVELTY)
    made.write_head(HEAD, [ROUND])
    made.write_evaluation(
        Evaluation(
            {"train": SCORES},
            (Mistake("a/1.jpg", "train", "a", "b", 0.9),),
            ("a", "b"),
            {"head_sha256": HEAD.fingerprint, "n_mistakes": 24},
        )
    )
    made.write_comparison(Comparison((CONTENDER,), MADE_FROM | {"compare": {}}), "")
    made.write_tuning(Tuning((TRIAL,), (1.0,), "validation_loss", (), MADE_FROM | {"tune": {}}), "")
    made.add_timing("train", 1.5, 3, "rounds")
    made.write_timeline(Timeline((LIFE,)))
    saved = Checkpoint({"kernel": ZEROS}, {}, (ROUND,), 1.0, MADE_FROM)
    Path(made.checkpoint).write_bytes(saved.to_bytes())
    return made


READERS: dict[str, Callable[[Results], Any]] = {
    "config.toml": Results.config,
    "head.npz": Results.head,
    "novelty.npz": Results.novelty,
    "history.parquet": Results.history,
    "evaluation.json": Results.evaluation,
    "compare.json": Results.comparison,
    "tune.json": Results.tuning,
    "timings.json": Results.timings,
    "timeline.json": Results.timeline,
    "checkpoint.npz": lambda r: resume(r.checkpoint, MADE_FROM, Checkpoint.from_bytes),
}


def test_novelty_of_other_features_is_not_used(results: Results) -> None:
    assert results.novelty_of(HEAD) is not None
    other = replace(HEAD, provenance=MADE_FROM | {"layer": "fc1"})
    assert results.novelty_of(other) is None
    results.write_novelty(None)
    assert results.novelty_of(HEAD) is None
    results.write_novelty(NOVELTY)
    results.remove_trained()
    assert results.novelty() is None


def replace_values(value: Any) -> Iterator[Any]:
    """Yield the JSON values that differ from one in one place: of another type, or gone."""
    places = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in [*places]:
        for other in (None, [None], {"x": None}, "text"):
            yield put(value, key, other)
        if isinstance(value, dict):
            yield {k: v for k, v in value.items() if k != key}
        if isinstance(inner, dict | list) and key != "provenance":  # which is free
            yield from (put(value, key, changed) for changed in replace_values(inner))


def put(value: Any, key: Any, inner: Any) -> Any:
    copy = value.copy()
    copy[key] = inner
    return copy


def refused(results: Results, name: str) -> str:
    with pytest.raises(UserError) as told:
        READERS[name](results)
    message = str(told.value)
    assert message.startswith(f"{results.url}/{name}")
    advice = " to have both made again." if name == "history.parquet" else " to have it made again."
    assert message.endswith((advice, "Remove it to start again."))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read_and_a_missing_one_is_none(results: Results, name: str) -> None:
    assert READERS[name](results)
    Path(results.url, name).unlink()
    if name == "config.toml":
        with pytest.raises(FileNotFoundError, match=r"No config.toml in .*Start with"):
            results.config()
    elif name == "history.parquet":  # not an empty one: a report would say that nothing was trained
        with pytest.raises(FileNotFoundError, match=rf"{results.url}/{name} is gone\. Put back"):
            results.history()
    else:
        assert not READERS[name](results)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_a_message_with_its_url(results: Results, name: str) -> None:
    file = Path(results.url, name)
    whole = file.read_bytes()
    # Half of a TOML file may be a whole one: it is cut within a value.
    half = whole.index(b"=") + 1 if name == "config.toml" else len(whole) // 2
    damaged = [
        whole[:half],
        whole[:-3] + b"\xff\xff\xff",
        b"\0" * 99,
        b"[",
        b"\xff\xfe",
    ]
    if name != "config.toml":  # empty, it is one
        damaged += [b"", b"3", b"null", b"[]", b"{}", b'{"scores": 3}', b"[" * 99_999]
    for data in damaged:
        if data == b"{}" and name in ("timings.json", "timeline.json"):
            continue
        file.write_bytes(data)
        refused(results, name)
    file.unlink()
    file.mkdir()
    assert "is a folder, and no file" in refused(results, name)


@pytest.mark.parametrize(
    "name", ["evaluation.json", "compare.json", "tune.json", "timings.json", "timeline.json"]
)
def test_json_of_another_form_is_refused_or_taken_as_it_is(results: Results, name: str) -> None:
    file = Path(results.url, name)
    others = [*replace_values(json.loads(file.read_text()))]
    n_refused = 0
    for other in others:
        file.write_text(json.dumps(other))
        try:
            found = READERS[name](results)
        except UserError as error:
            assert str(error).startswith(f"{results.url}/{name} is damaged: ")  # noqa: PT017
            n_refused += 1
        else:
            assert covers(found if name == "timings.json" else asdict(found), other)
    assert n_refused > len(others) / 2 > 5


def covers(found: Any, stored: Any) -> bool:
    """Whether all that was stored was found; fields with a default may be more."""
    if isinstance(stored, dict):
        return all(key in found and covers(found[key], v) for key, v in stored.items())
    if isinstance(stored, list):
        return len(found) == len(stored) and all(map(covers, found, stored))
    return bool(found == stored)


def test_flipped_bits_of_a_history_are_found(results: Results) -> None:
    file = Path(results.url, "history.parquet")
    whole = history_to_bytes([ROUND, replace(ROUND, round=2, loss=0.7)])
    file.write_bytes(whole)
    right = repr(results.history())  # which holds NaN
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 500):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1 :])
        try:
            assert repr(results.history()) == right
        except (UserError, MemoryError) as error:
            shown = f"{error}{getattr(error, '__notes__', '')}"
            assert f"{results.url}/history.parquet" in shown


def test_the_evaluation_of_the_field(results: Results, cases: Path) -> None:
    data = (cases / "files" / "evaluation-empty-object.json").read_bytes()
    Path(results.url, "evaluation.json").write_bytes(data)
    assert "is damaged: it lacks the field class_names" in refused(results, "evaluation.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 0.9}, "train has 2 images and an accuracy of 0.9, but 2 of 2 images are"),
        ({"n_images": 3}, "train has 3 images and an accuracy of 1.0, but 2 of 2 images are"),
        ({"confusion": [[0, 0, 1], [0, 1, 1]]}, "but 1 of 2 images are right in its confusion"),
        ({"confusion": [[2, 2, 2]]}, "train has a label in its confusion that no class has"),
    ],
)
def test_scores_that_contradict_each_other(
    results: Results, change: dict[str, Any], message: str
) -> None:
    file = Path(results.url, "evaluation.json")
    stored = json.loads(file.read_text())
    stored["scores"]["train"] |= change
    file.write_text(json.dumps(stored))
    assert message in refused(results, "evaluation.json")


def test_a_file_that_may_not_be_read_is_not_a_missing_one(results: Results) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, who can become another user")
    for folder in [*Path(results.url).parents][:3]:
        if folder != Path("/tmp"):
            folder.chmod(0o755)
    for name in READERS:
        Path(results.url, name).chmod(0o600)
    try:
        os.seteuid(65534)
        for name, read in READERS.items():
            with pytest.raises(PermissionError, match=f"{results.url}/{name}"):
                read(results)
    finally:
        os.seteuid(0)


def test_a_damaged_configuration_is_not_written_over(results: Results) -> None:
    file, other = Path(results.url, "config.toml"), config.build({"out": results.url, "seed": 1})
    file.write_bytes(b"\0\0")
    with pytest.raises(UserError, match=f"{file}: Not valid TOML"):
        results.write_config(other)
    assert file.read_bytes() == b"\0\0"
    file.write_text("of_another_version = 1\n")
    results.write_config(other)
    assert config.build(results.config()) == other
