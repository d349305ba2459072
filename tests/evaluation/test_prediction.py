from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from distributed import Client
from helpers import contents

from dtl.config import FeaturesConfig, ImagesConfig
from dtl.config.errors import UserError
from dtl.evaluation import prediction
from dtl.evaluation.prediction import predict
from dtl.features.network import keras_network
from dtl.features.values import ExtractionSpec, NetworkSpec
from dtl.head.model import Head
from dtl.images import formats, listing
from dtl.images.listing import ImageFiles
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
    columns = ["path", "class", "probability", "top5", "error", "size_bytes", "modified"]
    assert table.column_names == columns
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
