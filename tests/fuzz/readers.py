"""Readers of foreign bytes: what each is given, and what it may answer."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mutations
import numpy as np
import samples

from dtl.config import ImagesConfig
from dtl.config.errors import UserError
from dtl.evaluation.certainty import Thresholds
from dtl.features.network.files import source
from dtl.features.network.files.declaration import EXAMPLE
from dtl.features.store import FeatureStore
from dtl.images.decoding import formats
from dtl.images.decoding.recognition import judge_content
from dtl.images.labels import read_table
from dtl.images.listing import find_images
from dtl.pipeline import tables
from dtl.pipeline.arguments import parse_arguments
from dtl.pipeline.commands import COMMANDS
from dtl.pipeline.results import Results
from dtl.pipeline.run import read_options
from dtl.storage import lock
from dtl.storage.ledger import IMAGES, Ledger
from dtl.training.checkpoint import Checkpoint, resume
from dtl.training.tuning import Search

MOST_PIXELS = 4_000_000
"""Of an image: so the limit of memory shows a decoder that takes far more than an image needs."""


@dataclass(frozen=True)
class Reader:
    """One reader.

    Parameters
    ----------
    samples : callable
        Returns whole inputs.
    read : callable
        Reads bytes, with a folder for files; asserts what must hold of that which could be read.
    errors : tuple of type
        What it may raise instead, with a message.
    mutate : callable
        Makes an input.
    has_url : bool
        Whether it knows the URL of what it reads, and so names it.
    """

    samples: Callable[[], Sequence[bytes]]
    read: Callable[[bytes, Path], object]
    errors: tuple[type[Exception], ...] = (UserError,)
    mutate: Callable[[random.Random, Sequence[bytes]], bytes] = mutations.mutate
    has_url: bool = False

    def make_input(self, name: str, seed: int) -> bytes:
        """Return the input of a seed."""
        return self.mutate(random.Random(f"{name} {seed}"), self.samples())


def _read_image(data: bytes, _: Path) -> None:
    pixels = formats.decode(data, (24, 32), max_pixels=MOST_PIXELS)
    assert (pixels.shape, pixels.dtype) == ((24, 32, 3), np.uint8)
    assert formats.thumbnail(data, 16, max_pixels=MOST_PIXELS)


def _judge_content(data: bytes, _: Path) -> None:
    assert formats.begins_like_image(data[: formats.N_MAGIC_BYTES]) in (True, False)
    reason = judge_content(lambda offset, n_bytes: data[offset : offset + n_bytes], len(data))
    if reason:
        raise UserError(reason)


def _mutate_image(rng: random.Random, samples_: Sequence[bytes]) -> bytes:
    data = mutations.mutate(rng, samples_)
    return mutations.repair_png(data) if rng.random() < 0.5 else data


def _read_tar(data: bytes, folder: Path) -> None:
    found = _find_in_tar(data, folder)
    for n_bytes, offset in zip(found.sizes, found.offset, strict=True):
        assert offset > 0
        assert 0 <= n_bytes <= len(data) - offset


def _find_in_tar(data: bytes, folder: Path) -> Any:
    (folder / "0.tar").write_bytes(data)
    return find_images(str(folder / "0.tar"))


def _mutate_tar(rng: random.Random, samples_: Sequence[bytes]) -> bytes:
    data = mutations.mutate(rng, samples_)
    return mutations.repair_tar(data) if rng.random() < 0.7 else data


def _read_sidecar(name: str, data: bytes, folder: Path) -> None:
    found = _find_in_tar(samples.make_tar({"a.jpg": b"1", name: data, "b.jpg": b"2"}), folder)
    assert len(found.paths) == 2
    assert not any(".." in path.split("/") or path.startswith("/") for path in found.paths)


def _read_labels(kind: str, data: bytes, folder: Path) -> None:
    (folder / f"labels.{kind}").write_bytes(data)
    config = ImagesConfig(url=str(folder), labels=str(folder / f"labels.{kind}"))
    for path, (split, name) in read_table(config).places.items():
        assert not path.startswith(("/", "../"))
        assert split in range(-1, 3)
        assert name is None or name.strip() == name != ""


def _mutate_npz(rng: random.Random, samples_: Sequence[bytes]) -> bytes:
    if rng.random() < 0.7:
        return mutations.mutate_members(rng, samples_)
    return mutations.mutate(rng, samples_)


def _read_result(name: str, show: Callable[[Results], object], data: bytes, folder: Path) -> None:
    (folder / name).write_bytes(data)
    show(Results(str(folder)))


def _use_head(results: Results) -> None:
    head = results.trained_head()
    logits = head.logits(np.zeros((2, len(head.mean)), np.float32))
    p = np.exp(head.log_probabilities(np.nan_to_num(logits)))
    if head.held_out is not None:
        with contextlib.suppress(UserError):  # too few rows
            Thresholds.find(head, 0.5, 0.3).apply(p, head.class_names)
    assert len(head.fingerprint) == 64


def _use_novelty(results: Results) -> None:
    found = results.novelty()
    score = found.score(np.ones((2, len(found.scaling.mean)), np.float32))
    assert found.is_unlike(score).shape == (2,)


def _read_checkpoint(kind: Any, data: bytes, folder: Path) -> None:
    (folder / "checkpoint.npz").write_bytes(data)
    resume(str(folder / "checkpoint.npz"), samples.PROVENANCE, kind.from_bytes)


def _read_config_file(data: bytes, folder: Path) -> None:
    (folder / "options.toml").write_bytes(data)
    arguments = ["run", "--config", str(folder / "options.toml"), "--out", str(folder / "out")]
    read_options(parse_arguments(arguments), COMMANDS["run"])


def _read_ledger(data: bytes, folder: Path) -> None:
    (folder / IMAGES).write_bytes(data)
    wanted = {"dataset": "caltech256", "seed": 0}
    find_images(str(folder))
    Ledger(str(folder), IMAGES, wanted).inspect()


def _read_lock(data: bytes, folder: Path) -> None:
    lock._DEAD_AFTER_S = 0.0  # a driver elsewhere would be watched for half a minute
    (folder / ".dtl-lock").write_bytes(data)
    with lock.hold(str(folder)):
        pass


def _mutate_store(rng: random.Random, samples_: Sequence[bytes]) -> bytes:
    """Mutate one file of the store, but not its name."""
    named = [sample.partition(b"\0") for sample in samples_]
    name, _, content = rng.choice(named)
    others = [rng.choice(named)[2] for _ in range(3)]
    return name + b"\0" + mutations.mutate(rng, [content, content, content, *others])


def _write_store(folder: Path, changed: bytes = b"", content: bytes = b"") -> str:
    for sample in samples.store_files():
        name, _, whole = sample.partition(b"\0")
        path = folder / "store" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if name == changed else whole)
    return str(folder / "store")


def _read_store(data: bytes, folder: Path) -> None:
    """Read all of a store of which one file is another.

    What is read of columns must be what was written: zeros in place of a class would be trained on.
    """
    changed, _, content = data.partition(b"\0")
    columns = _read_columns(_write_store(folder, changed, content))
    whole = {sample.partition(b"\0")[2] for sample in samples.store_files()}
    if b"/c/" in changed and content not in whole:  # no checksum tells a file from its neighbour
        for name, values in _read_whole_store().items():
            # A figure may be NaN, which equals nothing; texts have no NaN.
            same = np.array_equal(columns[name], values, equal_nan=values.dtype.kind == "f")
            assert same, f"{name} is read as something else"


@functools.cache
def _read_whole_store() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return _read_columns(_write_store(Path(folder)))


def _read_columns(url: str) -> dict[str, Any]:
    store = FeatureStore.open(url)
    assert store.n_features("fc2") == store.read("fc2").shape[1]
    assert len(store.images()) == store.n_images
    assert store.list_skipped() == []
    assert isinstance(store.fingerprint, dict)
    assert store.split_fingerprint is not None
    names = ("fc2", "path", "label", "given_split", "split", "content_hash", "error", "figures",
             "status")  # fmt: skip
    chunks = [store.read("fc2", chunk) for chunk in range(store.n_chunks)]
    return {name: store.read(name) for name in names} | {"by chunk": np.concatenate(chunks)}


def _read_weights(name: str, data: bytes, folder: Path) -> None:
    from dtl.features.network.weights import loading  # with Keras, which takes seconds

    (folder / name).write_bytes(data)
    layers = [SimpleNamespace(weights=True)]
    for weight in loading._open_weights(str(folder / name), SimpleNamespace(layers=layers)):
        assert weight.read().shape == weight.shape


def _read_declaration(data: bytes, folder: Path) -> None:
    (folder / "a.onnx").write_bytes(b"")
    (folder / "a.toml").write_bytes(data)
    assert (source.find(str(folder / "a.onnx")).declared.divisor > 0).all()


def _read_network(data: bytes, folder: Path) -> None:
    (folder / "a.onnx").write_bytes(data)
    (folder / "a.toml").write_bytes(b"")
    found = source.find(str(folder / "a.onnx"))
    assert source.describe(found, ("conv",), "avg").n_features["conv"] > 0


def _of_result(
    name: str, made: Callable[[], Sequence[bytes]], show: Callable[[Results], Any]
) -> Reader:
    return Reader(made, functools.partial(_read_result, name, show), has_url=True)


def _of_npz(made: Callable[[], Sequence[bytes]], read: Callable[[bytes, Path], object]) -> Reader:
    return Reader(made, read, mutate=_mutate_npz, has_url=True)


READERS: Mapping[str, Reader] = {
    "images": Reader(samples.images, _read_image, mutate=_mutate_image),
    "content": Reader(samples.images, _judge_content, mutate=_mutate_image),
    "tars": Reader(samples.archives, _read_tar, mutate=_mutate_tar, has_url=True),
    "cls": Reader(lambda: samples.CLASSES, functools.partial(_read_sidecar, "a.cls")),
    "json": Reader(lambda: samples.DESCRIPTIONS, functools.partial(_read_sidecar, "a.json")),
    **{
        f"labels {kind}": Reader(
            functools.partial(samples.label_tables, kind), functools.partial(_read_labels, kind),
            has_url=True,
        )
        for kind in ("csv", "jsonl", "parquet")
    },
    "head": _of_npz(samples.heads, functools.partial(_read_result, "head.npz", _use_head)),
    "checkpoint": _of_npz(samples.checkpoints, functools.partial(_read_checkpoint, Checkpoint)),
    "search": _of_npz(samples.searches, functools.partial(_read_checkpoint, Search)),
    "evaluation": _of_result(
        "evaluation.json", samples.evaluations, lambda r: tables.format_scores(r.evaluation())
    ),
    "history": _of_result("history.parquet", samples.histories, Results.history),
    "timings": _of_result("timings.json", samples.timings, Results.timings),
    "timeline": _of_result("timeline.json", samples.timelines, Results.timeline),
    "comparison": _of_result(
        "compare.json", samples.comparisons, lambda r: tables.format_comparison(r.comparison())
    ),
    "tuning": _of_result(
        "tune.json", samples.tunings, lambda r: tables.format_trials(r.tuning())
    ),
    "check": _of_result("check.json", samples.checks, lambda r: tables.format_check(r.check())),
    "issues": _of_result("issues.parquet", samples.issues, Results.issues),
    "probe": _of_result(
        "probe.json", samples.probes, lambda r: tables.format_probe(r.probe())
    ),
    "novelty": _of_npz(
        samples.novelties, functools.partial(_read_result, "novelty.npz", _use_novelty)
    ),
    "stored config": _of_result("config.toml", samples.configurations, Results.config),
    "config": Reader(samples.configurations, _read_config_file),
    "ledger": Reader(samples.ledgers, _read_ledger, has_url=True),
    "lock": Reader(samples.locks, _read_lock, (UserError, BlockingIOError), has_url=True),
    "store": Reader(samples.store_files, _read_store, mutate=_mutate_store, has_url=True),
    "weights npz": Reader(
        samples.weights_npz, functools.partial(_read_weights, "w.npz"), mutate=_mutate_npz,
        has_url=True,
    ),
    "weights hdf5": Reader(
        samples.weights_hdf5, functools.partial(_read_weights, "w.h5"), has_url=True
    ),
    "declaration": Reader(lambda: [EXAMPLE.encode()], _read_declaration),
    "network": Reader(samples.networks, _read_network, has_url=True),
}  # fmt: skip

SLOW = ("weights npz", "weights hdf5", "network")
"""Readers that import Keras, or start a process for each input."""
