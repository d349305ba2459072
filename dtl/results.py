"""The folder of a run: what lies in it, and what the report is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tomli_w

from dtl import (
    comparison,
    config,
    evaluation,
    features,
    images,
    split,
    storage,
    trainer,
    tuning,
)
from dtl.config import Config, TrainConfig
from dtl.feature_store import FeatureStore
from dtl.report import ReportInput
from dtl.types import (
    DONE,
    SPLITS,
    Comparison,
    Evaluation,
    Extent,
    Head,
    Round,
    Tuning,
    differences,
)

_PICTURE_SIDE = 256
"""Pixels of the longer side of a mistake's picture in the report."""


class Results:
    """The files of a run under its `--out`.

    ====================  ==============================================================
    ``config.toml``       the resolved configuration
    ``features.zarr``     `FeatureStore`
    ``head.npz``          `Head`: of the last round, or of the best validation (``train.keep``)
    ``head-best.npz``     that of the best validation, where ``head.npz`` is another's
    ``head-last.npz``     that of the last round, where ``head.npz`` is another's
    ``checkpoint.npz``    `Checkpoint`: of a training that is not finished
    ``history.parquet``   a `Round` a row
    ``evaluation.json``   `Evaluation`
    ``timings.json``      how long each stage took; differs from run to run
    ``report.html``
    ``compare.json``      `Comparison`
    ``compare.html``      the page of it
    ``tune.json``         `Tuning`
    ``tune.html``         the page of it
    ``tune.npz``          `Search`: of one that is not finished
    ``tuned.toml``        the options of training that it found best
    ====================  ==============================================================

    Every file is written whole or not at all.
    """

    def __init__(self, url: str) -> None:
        self.url = storage.absolute(url)
        self.features = storage.join(self.url, "features.zarr")
        self.report = storage.join(self.url, "report.html")
        self.comparison_page = storage.join(self.url, "compare.html")
        self.tuning_page = storage.join(self.url, "tune.html")
        self.tuned = storage.join(self.url, "tuned.toml")
        self.head_files = tuple(
            storage.join(self.url, name) for name in ("head.npz", "head-best.npz", "head-last.npz")
        )
        self.checkpoint = storage.join(self.url, "checkpoint.npz")
        self.tuning_checkpoint = storage.join(self.url, "tune.npz")

    def config(self) -> dict[str, Any]:
        """The options of the run, as tables.

        Raises
        ------
        FileNotFoundError
            If there has been no run.
        """
        data = self._read("config.toml")
        if data is None:
            raise FileNotFoundError(f"No config.toml in {self.url}. Start with `run --out`.")
        return config.parse_toml(data.decode(), storage.join(self.url, "config.toml"))

    def write_config(self, value: Config) -> None:
        """Keep the configuration; a report of another one goes."""
        data = tomli_w.dumps(config.to_dict(value)).encode()
        if data != self._read("config.toml"):
            storage.remove(self.report)
            self._write("config.toml", data)

    def store(self) -> FeatureStore:
        """The finished feature store.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is none, or it is not finished.
        """
        store = FeatureStore.open(self.features)
        if pending := store.pending_chunks():
            raise ValueError(
                f"{len(pending)} of {store.n_chunks} chunks of {self.features} are not computed "
                "yet. Run the featurize stage to its end first."
            )
        return store

    def head(self) -> Head | None:
        """The trained head, if there is one."""
        data = self._read("head.npz")
        return None if data is None else Head.from_bytes(data)

    def history(self) -> list[Round]:
        """The rounds of the head's training."""
        data = self._read("history.parquet")
        return [] if data is None else trainer.history_from_bytes(data)

    def write_head(
        self, head: Head, history: list[Round], other: Head | None = None, keep: str = "last"
    ) -> None:
        """Keep a head, and remove the checkpoint that led to it.

        The head goes last, so that it always has its own history and its own other head.

        Parameters
        ----------
        other : Head, optional
            That of the best validation if `keep` is ``last``; of the last round, if ``best``.
        """
        self._write("history.parquet", trainer.history_to_bytes(history))
        for name, kept in (("best", "last"), ("last", "best")):
            if other is not None and keep == kept:
                self._write(f"head-{name}.npz", other.to_bytes())
            else:
                storage.remove(storage.join(self.url, f"head-{name}.npz"))
        self._write("head.npz", head.to_bytes())
        storage.remove(self.checkpoint)

    def evaluation(self) -> Evaluation | None:
        """The scores, if there are any."""
        data = self._read("evaluation.json")
        return None if data is None else evaluation.from_json(data)

    def write_evaluation(self, value: Evaluation) -> None:
        """Keep scores; a report of others goes."""
        storage.remove(self.report)
        self._write("evaluation.json", evaluation.to_json(value))

    def write_report(self, html: str) -> None:
        """Keep the report."""
        storage.write_bytes(self.report, html.encode())

    def comparison(self) -> Comparison | None:
        """The comparison, if there is one."""
        data = self._read("compare.json")
        return None if data is None else comparison.from_json(data)

    def write_comparison(self, value: Comparison, html: str) -> None:
        """Keep a comparison; its page goes first, so that a comparison always has its own."""
        self._write("compare.html", html.encode())
        self._write("compare.json", comparison.to_json(value))

    def tuning(self) -> Tuning | None:
        """The search for options, if there was one."""
        data = self._read("tune.json")
        return None if data is None else tuning.from_json(data)

    def write_tuning(self, value: Tuning, html: str) -> None:
        """Keep a search, its page first; a report without it, and its checkpoint, go."""
        storage.remove(self.report)
        self._write("tune.html", html.encode())
        self._write("tune.json", tuning.to_json(value))
        storage.remove(self.tuning_checkpoint)

    def write_tuned(self, value: TrainConfig) -> None:
        """Keep options of training as a file that ``train --config`` takes."""
        self._write("tuned.toml", tomli_w.dumps({"train": config.to_dict(value)}).encode())

    def timings(self) -> dict[str, dict[str, Any]]:
        """Seconds, number and unit of what each stage did."""
        data = self._read("timings.json")
        timings: dict[str, dict[str, Any]] = {} if data is None else json.loads(data)
        return timings

    def add_timing(
        self, stage: str, seconds: float, n: int, unit: str, *, add: bool = False
    ) -> None:
        """Keep what a stage took; `add` to what it took before it was interrupted."""
        timings = self.timings()
        if add and stage in timings:
            seconds += timings[stage]["seconds"]
            n += timings[stage]["n"]
        timings[stage] = {"seconds": round(seconds, 3), "n": n, "unit": unit}
        self._write("timings.json", (json.dumps(timings, indent=1) + "\n").encode())

    def _read(self, name: str) -> bytes | None:
        url = storage.join(self.url, name)
        return storage.read_bytes(url) if storage.exists(url) else None

    def _write(self, name: str, data: bytes) -> None:
        storage.write_bytes(storage.join(self.url, name), data)


def report_input(
    results: Results, settings: Config, store: FeatureStore, head: Head, scores: Evaluation
) -> ReportInput:
    """Gather what the report shows; reads the pictures of the mistakes."""
    usable = store.read("status") == DONE
    label, rows = store.read("label"), store.read("split")
    n_classes = len(store.class_names)
    n_duplicates, n_conflicting = split.count_duplicates(
        store.read("content_hash")[usable], label[usable]
    )
    root = settings.images.url or str(store.attrs["root"])
    made_by = {k: v for k, v in store.attrs.items() if k not in _SHOWN_ELSEWHERE}
    return ReportInput(
        title=root.rstrip("/").rsplit("/", 1)[-1],
        config=config.to_dict(settings),
        provenance={"features": made_by, "head": dict(head.provenance), "files": _files(scores)},
        class_names=store.class_names,
        class_counts={
            name: np.bincount(label[rows == k], minlength=n_classes)
            for k, name in enumerate(SPLITS)
        },
        history=results.history(),
        evaluation=scores,
        pictures=_pictures(root, store, scores, settings.images.max_pixels),
        skipped=features.skipped_images(store),
        left_out=[(path, reason) for path, reason in store.attrs["left_out"]],
        n_duplicates=n_duplicates,
        n_conflicting=n_conflicting,
        timings=results.timings(),
        warnings=warnings(store),
        tuning=tuning_of(results.tuning(), head.provenance),
    )


def tuning_of(found: Tuning | None, made_from: Mapping[str, Any]) -> Tuning | None:
    """A search on the features and the split that a head was made from; None for another."""
    names = ("features", "weights_sha256", "split", "layer")
    if found is None or differences(
        {name: found.provenance[name] for name in names},
        {name: made_from[name] for name in names},
    ):
        return None
    return found


_SHOWN_ELSEWHERE = {"class_names", "left_out", "n_left_out", "dtl", "shards"}


def warnings(store: FeatureStore) -> list[str]:
    """What whoever reads the scores must know first."""
    if store.attrs["weights"] != "random":
        return []
    return [
        f"The network was not trained: {store.settings['network']} has random weights, so its "
        "features are random projections and the scores are far below what ImageNet weights give. "
        "This shows that everything runs, not how good a classifier can be."
    ]


def _files(scores: Evaluation) -> Mapping[str, Any]:
    return {"head.npz": f"SHA-256 {scores.provenance['head_sha256']}"}


def _pictures(
    root: str, store: FeatureStore, scores: Evaluation, max_pixels: int
) -> dict[str, bytes]:
    files: dict[str, str | Extent] = {m.path: storage.join(root, m.path) for m in scores.mistakes}
    if store.attrs.get("shards"):
        places = zip(store.read("path"), store.files(str(store.attrs["root"])), strict=True)
        files = {str(path): place for path, place in places if path in files}
    pictures = {}
    for path, file in files.items():
        try:
            data = storage.read_file(file)
            pictures[path] = images.thumbnail(data, _PICTURE_SIDE, max_pixels=max_pixels)
        except (OSError, ValueError):
            continue  # the photographs may have moved since; the report says which it lacks
    return pictures
