"""The folder of a run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import tomli_w

from dtl import config, storage
from dtl.config import Config, TrainConfig
from dtl.config.errors import UserError
from dtl.evaluation.values import Evaluation
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.storage.ledger import read_json
from dtl.training import values as training_values
from dtl.training.values import Comparison, Round, Tuning

_T = TypeVar("_T")


class Results:
    """The files of a run in its folder, ``out``.

    ====================  ==============================================================
    ``config.toml``       the resolved configuration
    ``features.zarr``     `FeatureStore`
    ``head.npz``          `Head`: of the last round, or of the best validation (`train.keep`)
    ``head-best.npz``     `Head` of the best validation, if ``head.npz`` is another's
    ``head-last.npz``     `Head` of the last round, if ``head.npz`` is another's
    ``checkpoint.npz``    `Checkpoint` of a training that is not finished
    ``history.parquet``   one `Round` per row
    ``evaluation.json``   `Evaluation`
    ``timings.json``      how long each stage took; differs from run to run
    ``report.html``       the page of the run
    ``compare.json``      `Comparison`, with its page, ``compare.html``
    ``tune.json``         `Tuning`, with its page, ``tune.html``
    ``tune.npz``          `Search` that is not finished
    ``tuned.toml``        options of training that validated best
    ====================  ==============================================================

    Every file is written whole or not at all.
    """

    def __init__(self, url: str) -> None:
        self.url = storage.absolute(url)
        self.features = self._place("features.zarr")
        self.report = self._place("report.html")
        self.comparison_page = self._place("compare.html")
        self.tuning_page = self._place("tune.html")
        self.tuned = self._place("tuned.toml")
        self.checkpoint = self._place("checkpoint.npz")
        self.tuning_checkpoint = self._place("tune.npz")
        self.head_files = tuple(map(self._place, ("head.npz", "head-best.npz", "head-last.npz")))

    def config(self) -> dict[str, Any]:
        """Read the options of the run, as tables."""
        text = self._parse("config.toml", bytes.decode)
        if text is None:
            raise FileNotFoundError(f"No config.toml in {self.url}. Start with `dtl run`.")
        return config.parse_toml(text, self._place("config.toml"))

    def write_config(self, value: Config) -> None:
        """Store the configuration, and remove the report of another one."""
        try:
            if config.build(self.config()) == value:
                return  # whether or not it was written in other words, or with retired options
        except (FileNotFoundError, UserError):
            pass
        storage.remove(self.report)
        self._write("config.toml", tomli_w.dumps(config.to_dict(value)).encode())

    def store(self) -> FeatureStore:
        """Open the feature store, which must be finished."""
        store = FeatureStore.open(self.features)
        if pending := store.pending_chunks():
            raise UserError(
                f"{len(pending)} of {store.n_chunks} chunks of {self.features} are not computed "
                "yet. Run the featurize stage to its end first."
            )
        return store

    def head(self) -> Head | None:
        """Read the head; None if there is none."""
        return self._parse("head.npz", Head.from_bytes)

    def trained_head(self) -> Head:
        """Read the head, which must be there."""
        if (head := self.head()) is None:
            raise FileNotFoundError(f"No head.npz in {self.url}. Run the train stage first.")
        return head

    def history(self) -> list[Round]:
        """Read the rounds of the head's training."""
        return self._parse("history.parquet", training_values.history_from_bytes) or []

    def write_head(
        self, head: Head, history: list[Round], other: Head | None = None, keep: str = "last"
    ) -> None:
        """Store a head, and remove the checkpoint that led to it.

        The head is written last, so that it always has its own history and its own `other` head:
        of the best validation if `keep` is ``last``, of the last round if ``best``.
        """
        self._write("history.parquet", training_values.history_to_bytes(history))
        for name in ("best", "last"):
            if other is not None and name != keep:
                self._write(f"head-{name}.npz", other.to_bytes())
            else:
                storage.remove(self._place(f"head-{name}.npz"))
        self._write("head.npz", head.to_bytes())
        storage.remove(self.checkpoint)

    def evaluation(self) -> Evaluation | None:
        """Read the scores; None if there are none."""
        values = read_json(self._place("evaluation.json"))
        return None if values is None else Evaluation.from_dict(values)

    def write_evaluation(self, value: Evaluation) -> None:
        """Store scores, and remove the report of others."""
        storage.remove(self.report)
        self._write("evaluation.json", value.to_json())

    def comparison(self) -> Comparison | None:
        """Read the comparison; None if there is none."""
        return self._parse("compare.json", functools.partial(training_values.from_json, Comparison))

    def write_comparison(self, value: Comparison, html: str) -> None:
        """Store a comparison; its page first, so that a comparison always has its own."""
        self._write("compare.html", html.encode())
        self._write("compare.json", training_values.to_json(value))

    def tuning(self) -> Tuning | None:
        """Read the search for options; None if there was none."""
        return self._parse("tune.json", functools.partial(training_values.from_json, Tuning))

    def write_tuning(self, value: Tuning, html: str) -> None:
        """Store a search, its page first; remove its checkpoint, and the report without it."""
        storage.remove(self.report)
        self._write("tune.html", html.encode())
        self._write("tune.json", training_values.to_json(value))
        storage.remove(self.tuning_checkpoint)

    def write_tuned(self, value: TrainConfig) -> None:
        """Store options of training as a file that ``train --config`` takes."""
        self._write("tuned.toml", tomli_w.dumps({"train": config.to_dict(value)}).encode())

    def timings(self) -> dict[str, dict[str, Any]]:
        """Read the seconds, number and unit of what each stage did."""
        return dict(read_json(self._place("timings.json")) or {})

    def add_timing(
        self, stage: str, seconds: float, n: int, unit: str, *, add: bool = False
    ) -> None:
        """Store what a stage took; with `add`, on top of what it took before an interruption."""
        timings = self.timings()
        if add and stage in timings:
            seconds += timings[stage]["seconds"]
            n += timings[stage]["n"]
        timings[stage] = {"seconds": round(seconds, 3), "n": n, "unit": unit}
        self._write("timings.json", (json.dumps(timings, indent=1) + "\n").encode())

    def _place(self, name: str) -> str:
        return storage.join(self.url, name)

    def _parse(self, name: str, parse: Callable[[bytes], _T]) -> _T | None:
        url = self._place(name)
        return parse(storage.read_bytes(url)) if storage.exists(url) else None

    def _write(self, name: str, data: bytes) -> None:
        storage.write_bytes(self._place(name), data)
