"""The folder of a run."""

from __future__ import annotations

import json
from typing import Any

import tomli_w

from dtl import config, storage
from dtl.config import Config, TrainConfig
from dtl.config.errors import UserError
from dtl.evaluation.values import Evaluation
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.storage.ledger import read_json
from dtl.training import comparison, trainer, tuning
from dtl.training.values import Comparison, Round, Tuning


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
    ``compare.json``      `Comparison`
    ``compare.html``      its page
    ``tune.json``         `Tuning`
    ``tune.html``         its page
    ``tune.npz``          `Search` that is not finished
    ``tuned.toml``        options of training that validated best
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
        """Read the options of the run, as tables.

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
        """Store the configuration, and remove the report of another one."""
        try:
            if config.build(self.config()) == value:
                return  # whether or not it was written in other words, or with retired options
        except (FileNotFoundError, UserError):
            pass
        storage.remove(self.report)
        self._write("config.toml", tomli_w.dumps(config.to_dict(value)).encode())

    def store(self) -> FeatureStore:
        """Open the finished feature store.

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
        """Read the head; None if there is none."""
        data = self._read("head.npz")
        return None if data is None else Head.from_bytes(data)

    def trained_head(self) -> Head:
        """Read the head, which must be there.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        head = self.head()
        if head is None:
            raise FileNotFoundError(f"No head.npz in {self.url}. Run the train stage first.")
        return head

    def history(self) -> list[Round]:
        """Read the rounds of the head's training."""
        data = self._read("history.parquet")
        return [] if data is None else trainer.history_from_bytes(data)

    def write_head(
        self, head: Head, history: list[Round], other: Head | None = None, keep: str = "last"
    ) -> None:
        """Store a head, and remove the checkpoint that led to it.

        The head is written last, so that it always has its own history and its own other head.

        Parameters
        ----------
        other : Head, optional
            Head of the best validation if `keep` is ``last``; of the last round if ``best``.
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
        """Read the scores; None if there are none."""
        values = read_json(storage.join(self.url, "evaluation.json"))
        return None if values is None else Evaluation.from_dict(values)

    def write_evaluation(self, value: Evaluation) -> None:
        """Store scores, and remove the report of others."""
        storage.remove(self.report)
        self._write("evaluation.json", value.to_json())

    def write_report(self, html: str) -> None:
        """Store the report."""
        storage.write_bytes(self.report, html.encode())

    def comparison(self) -> Comparison | None:
        """Read the comparison; None if there is none."""
        data = self._read("compare.json")
        return None if data is None else comparison.from_json(data)

    def write_comparison(self, value: Comparison, html: str) -> None:
        """Store a comparison; its page first, so that a comparison always has its own."""
        self._write("compare.html", html.encode())
        self._write("compare.json", comparison.to_json(value))

    def tuning(self) -> Tuning | None:
        """Read the search for options; None if there was none."""
        data = self._read("tune.json")
        return None if data is None else tuning.from_json(data)

    def write_tuning(self, value: Tuning, html: str) -> None:
        """Store a search, its page first; remove its checkpoint, and the report without it."""
        storage.remove(self.report)
        self._write("tune.html", html.encode())
        self._write("tune.json", tuning.to_json(value))
        storage.remove(self.tuning_checkpoint)

    def write_tuned(self, value: TrainConfig) -> None:
        """Store options of training as a file that ``train --config`` takes."""
        self._write("tuned.toml", tomli_w.dumps({"train": config.to_dict(value)}).encode())

    def timings(self) -> dict[str, dict[str, Any]]:
        """Read the seconds, number and unit of what each stage did."""
        data = self._read("timings.json")
        timings: dict[str, dict[str, Any]] = {} if data is None else json.loads(data)
        return timings

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

    def _read(self, name: str) -> bytes | None:
        url = storage.join(self.url, name)
        return storage.read_bytes(url) if storage.exists(url) else None

    def _write(self, name: str, data: bytes) -> None:
        storage.write_bytes(storage.join(self.url, name), data)
