from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from helpers import contents

from dtl.config import FeaturesConfig, ImagesConfig
from dtl.config.errors import UserError
from dtl.evaluation import parts, prediction
from dtl.evaluation.certainty import Thresholds
from dtl.evaluation.prediction import predict
from dtl.features.network import keras_network
from dtl.features.values import ExtractionSpec, NetworkSpec
from dtl.head.held_out import HeldOut
from dtl.head.model import Head
from dtl.images import listing
from dtl.images.decoding import formats
from dtl.images.listing import ImageFiles
from dtl.neighbours.novelty import Novelty
from dtl.neighbours.search import scale_to_unit
from dtl.storage import lock

FEATURES = FeaturesConfig(
    layers=("block1_pool",), weights="random", precision="float32", batch_images=4, chunk_images=8
)
SPEC = ExtractionSpec(FEATURES, ImagesConfig())
BROKEN = {"green/8.jpg": b"", "red/text.jpg": b"no picture at all"}


@pytest.fixture
def root(pictures: Path) -> Path:
    """Twenty-four pictures and two that cannot be read."""
    for name, data in BROKEN.items():
        (pictures / name).write_bytes(data)
    return pictures


def listed(root: Path) -> list[str]:
    return sorted(contents(root))


def found(root: Path) -> ImageFiles:
    images = listing.find_images(str(root))
    images.sort()
    return images


def features_of(root: Path, paths: Sequence[str]) -> np.ndarray:
    network = keras_network.load(NetworkSpec(layers=("block1_pool",), weights="random"))
    pixels = [formats.decode((root / path).read_bytes(), (224, 224)) for path in paths]
    batch = np.stack(pixels)
    return np.concatenate([network.compute(one[None])["block1_pool"] for one in batch])


@pytest.fixture
def head(root: Path) -> Head:
    return make_head(root, 0)


def make_head(root: Path, seed: int) -> Head:
    """Seven classes, to which pictures of one colour go together, some more surely than others."""
    features = features_of(root, sorted(set(listed(root)) - set(BROKEN)))
    rng = np.random.default_rng(seed)
    network = keras_network.load(NetworkSpec(layers=("block1_pool",), weights="random"))
    return Head(
        kernel=0.1 * rng.normal(size=(64, 7)).astype(np.float32),
        bias=rng.normal(size=7).astype(np.float32),
        mean=features.mean(axis=0),
        scale=features.std(axis=0) + np.float32(1e-3),
        class_names=tuple(f"class {k}" for k in range(7)),
        provenance={
            "layer": "block1_pool",
            "features": {"precision": "float32"} | SPEC.meaning,
            "weights_sha256": network.weights_sha256,
        },
    )


def run(
    out: Path, root: Path, head: Head, client: Client, *, seed: int = 0, overwrite: bool = False
) -> int:
    return predict(
        str(out), found(root), head, replace(SPEC, seed=seed), lambda: client, overwrite=overwrite
    )


def expected_classes(root: Path, head: Head) -> dict[str, str]:
    readable = sorted(set(listed(root)) - set(BROKEN))
    best = head.logits(features_of(root, readable)).argmax(axis=1)
    return {path: head.class_names[k] for path, k in zip(readable, best, strict=True)}


@pytest.mark.slow
def test_rows_are_the_heads_answers(
    root: Path, tmp_path: Path, head: Head, processes: Client
) -> None:
    assert run(tmp_path / "out", root, head, processes) == 2
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == [
        "path", "class", "probability", "top5", "error", "size_bytes", "modified", "content_hash"
    ]  # fmt: skip
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == listed(root)
    errors = {row["path"]: row["error"] for row in rows if row["path"] in BROKEN}
    assert errors["green/8.jpg"] == "empty file"
    assert errors["red/text.jpg"].startswith("not an image that Pillow reads")
    readable = [row for row in rows if row["path"] not in BROKEN]
    assert {row["path"]: row["class"] for row in readable} == expected_classes(root, head)
    assert len({row["class"] for row in readable}) > 1
    logits = head.logits(features_of(root, [row["path"] for row in readable])).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, probabilities in zip(readable, p, strict=True):
        assert row["error"] is None
        order = np.argsort(-probabilities)[:5]
        assert [t["class"] for t in row["top5"]] == [head.class_names[k] for k in order]
        found = [t["probability"] for t in row["top5"]]
        assert found == pytest.approx(probabilities[order].tolist(), abs=1e-4)
        assert row["probability"] == found[0]
    for row in rows:
        if row["path"] in BROKEN:
            assert row["class"] is row["probability"] is row["top5"] is None


def test_only_missing_parts_are_computed(
    root: Path, tmp_path: Path, head: Head, processes: Client
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # empty, and so as good as none
    run(out, root, head, processes)
    parts = sorted(out.glob("part-*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [8, 8, 8, 2]
    before = contents(out)
    parts[1].unlink()
    # What a killed worker leaves; a reader of the folder would stumble over it.
    (out / "part-000001.parquet.0123456789abcdef.partial").write_bytes(b"PAR1")
    written = {part: part.stat().st_mtime_ns for part in parts if part.exists()}
    assert len(written) == 3
    assert run(out, root, head, processes) == 2  # of all, not only of those computed now
    assert {part: part.stat().st_mtime_ns for part in written} == written
    assert contents(out) == before
    assert pq.read_table(out).num_rows == 26
    # And once more, with nothing to do.
    assert run(out, root, head, processes) == 2
    assert contents(out) == before


@pytest.mark.slow
def test_predictions_of_another_head_are_refused_or_replaced(
    root: Path, tmp_path: Path, head: Head, processes: Client
) -> None:
    out, other = tmp_path / "out", make_head(root, 1)
    run(out, root, head, processes)
    before = contents(out)
    message = (
        rf"{out} was made with other settings:\n  head: asked for '{other.fingerprint}', stored "
        rf"'{head.fingerprint}'\nGive .*, choose another `out`, or set `overwrite`"
    )
    with pytest.raises(ValueError, match=message):
        run(out, root, other, processes)
    assert contents(out) == before
    run(out, root, other, processes, overwrite=True)
    rows = pq.read_table(out).to_pylist()
    found = {row["path"]: row["class"] for row in rows if row["error"] is None}
    assert found == expected_classes(root, other) != expected_classes(root, head)
    assert len(contents(out)) == len(before)


def test_a_head_that_another_command_put_there_predicts_nothing(tmp_path: Path) -> None:
    def head(value: float) -> Head:
        one = np.full(2, value, np.float32)
        kernel = np.full((2, 2), value, np.float32)
        return Head(kernel, one, mean=one, scale=one, class_names=("a", "b"), provenance={})

    file, wanted = tmp_path / "_head.npz", head(1).fingerprint
    file.write_bytes(head(2).to_bytes())
    with pytest.raises(UserError, match=rf"_head\.npz is not the head .* expected {wanted}"):
        prediction._load_head(str(file), wanted)
    file.write_bytes(head(1).to_bytes())
    assert prediction._load_head(str(file), wanted).fingerprint == wanted


def test_the_lock_of_the_driver_is_no_hindrance_and_stays(
    root: Path, tmp_path: Path, head: Head, processes: Client
) -> None:
    out, other = tmp_path / "out", make_head(root, 1)
    with lock.hold(str(out)):
        run(out, root, head, processes)
        run(out, root, other, processes, overwrite=True)
        assert (out / ".dtl-lock").exists()
        assert pq.read_table(out).num_rows == 26
    assert not list(out.glob(".*"))


def test_a_damaged_ledger_is_never_overwritten(
    root: Path, tmp_path: Path, head: Head, processes: Client
) -> None:
    run(tmp_path / "out", root, head, processes)
    (tmp_path / "out" / "_dtl.json").write_text('{"head": "12')
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=r"_dtl\.json is damaged"):
        run(tmp_path / "out", root, head, processes, overwrite=True)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_predictions_is_never_replaced(
    root: Path, tmp_path: Path, head: Head, processes: Client, overwrite: bool
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for name, problem in (("out", "is not empty: it has"), ("out/thesis.txt", "is a file")):
        with pytest.raises(UserError, match=f"{tmp_path / name} {problem}.* Choose an empty"):
            run(tmp_path / name, root, head, processes, overwrite=overwrite)
    assert contents(tmp_path / "out") == {"thesis.txt": b"years of work"}


def test_a_network_that_is_not_the_heads_is_refused_before_anything_is_replaced(
    root: Path, tmp_path: Path, head: Head, processes: Client
) -> None:
    message = (
        r"The head was made with other weights:\n  SHA-256 of the weights: asked for '\w{64}', "
        f"stored '{head.provenance['weights_sha256']}'\nGive `features.weights` and `seed`"
    )
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "new", root, head, processes, seed=1)
    assert not (tmp_path / "new").exists()
    run(tmp_path / "out", root, head, processes)
    before = contents(tmp_path / "out")
    renamed = replace(head, class_names=tuple("abcdefg"))
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", root, renamed, processes, seed=1, overwrite=True)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"preprocess": "dl4j"}, r"  preprocess: asked for 'dl4j', stored 'network'\nGive"),
        ({"pooling": "max"}, r"  pooling: asked for 'max', stored 'avg'\nGive"),
        ({"layers": ("fc1",)}, r"  layers: asked for \['fc1'\], stored \['block1_pool'\]\nGive"),
        ({"resize": "crop"}, r"  resize: asked for 'crop', stored 'stretch'\nGive"),
    ],
)
def test_features_that_would_mean_something_else_are_refused(
    root: Path, tmp_path: Path, head: Head, processes: Client, changed: dict[str, object],
    message: str,
) -> None:  # fmt: skip
    image = replace(ImagesConfig(), **{k: v for k, v in changed.items() if k == "resize"})
    asked = replace(FEATURES, **{k: v for k, v in changed.items() if k != "resize"})
    with pytest.raises(ValueError, match=r"features that were made otherwise:\n" + message):
        predict(
            str(tmp_path / "p"), found(root), head, ExtractionSpec(asked, image), lambda: processes
        )
    assert not (tmp_path / "p").exists()


def test_memory_of_one_process_is_refused(root: Path, head: Head, processes: Client) -> None:
    with pytest.raises(ValueError, match=r"memory://out: memory:// belongs to one process"):
        predict("memory://out", found(root), head, SPEC, lambda: processes)


# --- lists that change ---------------------------------------------------------------------------


def no_client() -> Client:
    raise AssertionError("workers were started")


def rows_of(out: Path) -> dict[str, dict[str, object]]:
    rows = pq.read_table(out).to_pylist()
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows), "a path has two rows"
    return by_path


def assert_alike(out: Path, fresh: Path) -> None:
    """The same rows, but for the last bits of probabilities: images were in other batches."""
    found, expected = rows_of(out), rows_of(fresh)
    assert found.keys() == expected.keys()
    for path, row in expected.items():
        top, others = row.pop("top5"), found[path].pop("top5")
        assert found[path] == row | {"probability": pytest.approx(row["probability"], abs=1e-6)}
        for one, other in zip(top or (), others or (), strict=True):
            assert other == one | {"probability": pytest.approx(one["probability"], abs=1e-6)}


@pytest.fixture
def grow(root: Path, tmp_path: Path) -> Callable[[], None]:
    """Takes three pictures away; the function puts them back, changes two and removes another."""
    late = ["blue/1.jpg", "green/3.jpg", "red/0.jpg"]
    data = {path: (root / path).read_bytes() for path in late}
    for path in late:
        (root / path).unlink()

    def grow() -> None:
        for path, photograph in data.items():
            (root / path).write_bytes(photograph)
        (root / "green" / "2.jpg").write_bytes(data["red/0.jpg"])
        (root / "green" / "8.jpg").write_bytes(data["blue/1.jpg"])  # which was empty
        (root / "red" / "5.jpg").unlink()

    return grow


@pytest.mark.slow
def test_a_longer_list_classifies_what_is_new(
    root: Path, tmp_path: Path, head: Head, processes: Client, grow: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "dtl")
    out = tmp_path / "out"
    assert run(out, root, head, processes) == 2
    assert "as before" not in caplog.text
    first = out / "part-000000.parquet"
    written, before = first.stat().st_mtime_ns, pq.read_table(out).to_pylist()
    grow()
    assert run(out, root, head, processes) == 1
    assert "predictions: 3 new, 2 changed, 1 removed, 20 as before" in caplog.text
    assert "predictions: 5 of 5 images" in caplog.text
    assert first.stat().st_mtime_ns == written
    parts = sorted(out.glob("part-*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [8, 6, 8, 3]
    after = rows_of(out)
    assert [row for row in before if row == after.get(row["path"])] == [
        row for row in before if row["path"] not in ("green/2.jpg", "green/8.jpg", "red/5.jpg")
    ]
    run(tmp_path / "fresh", root, head, processes)
    assert_alike(out, tmp_path / "fresh")
    # And once more, with nothing to do.
    whole = contents(out)
    assert predict(str(out), found(root), head, SPEC, no_client) == 1
    assert "predictions: nothing new, 25 as before" in caplog.text
    assert contents(out) == whole


def sure(head: Head) -> Head:
    """A head with validation rows, of which the confident ones are right."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 300)
    right = confidence > rng.uniform(0.1, 0.6, 300)
    label = rng.integers(0, 7, 300).astype(np.int32)
    return replace(
        head, temperature=1.3, held_out=HeldOut(label, np.where(right, 0, confidence), confidence)
    )


@pytest.mark.slow
def test_sets_and_answers_have_columns(
    root: Path, tmp_path: Path, head: Head, processes: Client, grow: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "dtl")
    head, out, asked = sure(head), tmp_path / "out", {"coverage": 0.8, "max_error": 0.2}

    blue = [f"blue/{path}" for path in listed(root / "blue")]
    unit = scale_to_unit(features_of(root, blue), head.scaling, "rows")
    novelty = Novelty(head.scaling, unit, k=2, threshold=0.3, share=0.05, n_held_out=9)

    def run(out: Path, connect: Callable[[], Client], **options: float) -> None:
        predict(str(out), found(root), head, SPEC, connect, novelty=novelty, **options)

    run(out, lambda: processes, **asked)
    assert re.search(r"(?s)14 of 21 new images \(66.7%\) are unlike .*; of images", caplog.text)
    assert re.search(r"answers of which at most 20% are wrong: \d+ of 21 new images", caplog.text)
    assert "hold the right class of 80% of images like the validation ones" in caplog.text
    grow()
    run(out, lambda: processes, **asked)
    assert pq.read_table(out).column_names[-4:] == ["set", "answer", "novelty", "unlike"]
    rows = rows_of(out)
    readable = [path for path, row in rows.items() if row["error"] is None]
    p = np.exp(head.log_probabilities(head.logits(features_of(root, readable))))
    expected = Thresholds.find(head, **asked).apply(p, head.class_names)
    answers = [row["answer"] for row in expected]
    assert 0 < answers.count(None) < len(answers)
    for path, row in zip(readable, expected, strict=True):
        assert rows[path] == rows[path] | row
        assert rows[path]["class"] == row["set"][0]
        assert rows[path]["unlike"] == (not path.startswith("blue") and path != "green/8.jpg")
        assert rows[path]["unlike"] == (rows[path]["novelty"] > 0.3)
    unread = rows["red/text.jpg"]
    assert (unread["class"], unread["set"], unread["answer"]) == (None, None, None)
    run(out, no_client, **asked)
    for options, message in (
        ({}, r"coverage: asked for None, stored 0.8\n  max_error: asked for None, stored 0.2"),
        (asked | {"coverage": 0.9}, r"coverage: asked for 0.9, stored 0.8"),
    ):
        with pytest.raises(UserError, match=message):
            run(out, no_client, **options)
    with pytest.raises(UserError, match=r"novelty: asked for None, stored '\w{64}'"):
        predict(str(out), found(root), head, SPEC, no_client, **asked)


def test_what_validation_rows_do_not_show_is_refused(
    root: Path, tmp_path: Path, head: Head
) -> None:
    for asked, of, message in (
        ({"coverage": 0.9}, head, "never held against validation images"),
        ({"coverage": 1.0}, sure(head), "coverage must be above 0 and below 1"),
        ({"coverage": 0.999}, sure(head), "needs at least 999 validation images"),
        ({"max_error": 0.001}, sure(head), "takes at least 2,995 validation images"),
    ):
        with pytest.raises(UserError, match=message):
            predict(str(tmp_path / "p"), found(root), of, SPEC, no_client, **asked)
    assert not (tmp_path / "p").exists()


def test_a_killed_update_goes_on_to_the_same_bytes(
    root: Path, tmp_path: Path, head: Head, processes: Client, grow: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    start, whole, killed = tmp_path / "start", tmp_path / "whole", tmp_path / "killed"
    run(start, root, head, processes)
    grow()
    shutil.copytree(start, whole)
    run(whole, root, head, processes)

    def map_last(client: Client, function: object, tasks: Sequence[object], **others: Any) -> Any:
        yield from map_chunks(client, function, tasks[-1:], **others)
        raise KeyboardInterrupt

    def write_nothing(*_: object) -> None:
        raise KeyboardInterrupt

    map_chunks = prediction.map_chunks
    for module, name, replacement in (
        (prediction, "map_chunks", map_last),
        (parts, "write", write_nothing),
        (prediction, "_classify", write_nothing),
    ):
        shutil.rmtree(killed, ignore_errors=True)
        shutil.copytree(start, killed)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, replacement)
            with pytest.raises(KeyboardInterrupt):
                run(killed, root, head, processes)
        assert json.loads((killed / "_dtl.json").read_text())["complete"] is False
        assert len(rows_of(killed)) < 25 or module is parts
        run(killed, root, head, processes)
        assert contents(killed) == contents(whole)


def test_a_shorter_list_needs_no_workers(
    root: Path, tmp_path: Path, head: Head, processes: Client
) -> None:
    out = tmp_path / "out"
    run(out, root, head, processes)
    before = rows_of(out)
    for path in ("red/6.jpg", "red/7.jpg", "red/text.jpg", "blue/0.jpg"):
        (root / path).unlink()
        del before[path]
    assert predict(str(out), found(root), head, SPEC, no_client) == 1
    assert rows_of(out) == before
    parts = sorted(out.glob("part-*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [7, 8, 7]
    for path in listed(root / "red"):
        (root / "red" / path).unlink()
    predict(str(out), found(root), head, SPEC, no_client)
    assert sorted(part.name for part in out.glob("part-*")) == [
        "part-000000.parquet", "part-000001.parquet", "part-000002.parquet"
    ]  # fmt: skip
    assert rows_of(out).keys() == set(listed(root))


def test_predictions_of_another_source_are_not_lost(
    root: Path, tmp_path: Path, head: Head, processes: Client
) -> None:
    def spec(source: Path) -> ExtractionSpec:
        return ExtractionSpec(FEATURES, ImagesConfig(url=str(source)))

    out, whole = tmp_path / "out", found(root)
    predict(str(out), whole, head, spec(root), lambda: processes)
    before, one = contents(out), listing.find_images(f"{root}/red/1.jpg")
    message = f"has predictions for {root}, of whose 26 images 26 are not in {root}/red/1.jpg"
    with pytest.raises(UserError, match=message):
        predict(str(out), one, head, spec(root / "red" / "1.jpg"), no_client)
    assert contents(out) == before
    # The same images elsewhere are no loss.
    shutil.copytree(root, tmp_path / "copy")
    copied = found(tmp_path / "copy")
    assert predict(str(out), copied, head, spec(tmp_path / "copy"), no_client) == 2
    predict(str(out), one, head, spec(root / "red" / "1.jpg"), lambda: processes, overwrite=True)
    assert rows_of(out).keys() == {"1.jpg"}


def test_files_of_another_time_are_compared_by_content(
    root: Path, tmp_path: Path, head: Head, processes: Client,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "dtl")
    out, copy = tmp_path / "out", tmp_path / "copy"
    run(out, root, head, processes)
    before = rows_of(out)
    shutil.copytree(root, copy, copy_function=shutil.copyfile)
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "_prepare", no_client)  # no network is loaded
        # The empty file has no hash, and no row that would change.
        os.utime(copy / "green" / "8.jpg", ns=(0, (root / "green" / "8.jpg").stat().st_mtime_ns))
        assert run(out, copy, head, processes) == 2
    assert "25 files have another time" in caplog.text
    assert "predictions: nothing new, 26 as before" in caplog.text
    times = {path: round((copy / path).stat().st_mtime * 1e6) for path in before}
    for path, row in rows_of(out).items():
        assert round(row["modified"].timestamp() * 1e6) == times[path]
        assert row == before[path] | {"modified": row["modified"]}
    assert predict(str(out), found(copy), head, SPEC, no_client) == 2
    # Another content of the same size is another image.
    changed = copy / "red" / "text.jpg"
    changed.write_bytes(bytes(reversed(changed.read_bytes())))
    os.utime(changed, (1, 1))
    run(out, copy, head, processes)
    assert "0 new, 1 changed, 0 removed, 25 as before" in caplog.text
    other = rows_of(out)["red/text.jpg"]["content_hash"]
    assert other == f"{formats.hash_content(changed.read_bytes()):016x}"
    assert other != before["red/text.jpg"]["content_hash"]


def test_tars_that_are_packed_again_with_more_images(
    root: Path, tmp_path: Path, head: Head, processes: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dtl")
    out, packed = tmp_path / "out", tmp_path / "packed"
    packed.mkdir()

    def pack(paths: Sequence[str], time: int) -> None:
        with tarfile.open(packed / "0.tar", "w") as tar:
            for path in paths:
                tar.add(root / path, path)
        os.utime(packed / "0.tar", (time, time))

    paths = listed(root)
    pack(paths[:12], 1)
    run(out, packed, head, processes)
    pack([*reversed(paths[4:])], 2)
    run(out, packed, head, processes)
    assert "14 new, 0 changed, 4 removed, 8 as before" in caplog.text
    run(tmp_path / "fresh", packed, head, processes)
    assert_alike(out, tmp_path / "fresh")
    assert predict(str(out), found(packed), head, SPEC, no_client) == 2


def test_predictions_without_times_are_refused_or_replaced(
    root: Path, tmp_path: Path, head: Head, processes: Client
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ledger = {
        "head": head.fingerprint, "images": "5e", "n_images": 26, "chunk_images": 8,
        "complete": True,
    }  # fmt: skip
    (out / "_dtl.json").write_text(json.dumps(ledger))
    pq.write_table(pa.table({"path": ["blue/0.jpg"]}), out / "part-000000.parquet")
    with pytest.raises(UserError, match=r"an earlier dtl, .* or set `overwrite` to classify all"):
        predict(str(out), found(root), head, SPEC, no_client)
    run(out, root, head, processes, overwrite=True)
    assert rows_of(out).keys() == set(listed(root))


def test_a_part_that_is_no_good_is_named(
    root: Path, tmp_path: Path, head: Head, processes: Client
) -> None:
    out = tmp_path / "out"
    run(out, root, head, processes)
    before, part = contents(out), out / "part-000001.parquet"
    pq.write_table(pa.table({"path": ["blue/0.jpg"]}), part)
    for _ in range(2):
        with pytest.raises(UserError, match=f"{part} is damaged: .* Remove it, and the same"):
            predict(str(out), found(root), head, SPEC, no_client)
        part.write_bytes(before[part.name][:100])
    part.unlink()
    run(out, root, head, processes)
    assert contents(out) == before
