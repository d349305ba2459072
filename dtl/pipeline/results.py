"""The folder of a run."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import tomli_w

from dtl import config, storage
from dtl.checking import relabel
from dtl.checking.values import Check, Issue, issues_from_bytes, issues_to_bytes
from dtl.cluster.timeline.values import Timeline
from dtl.config import Config, ImagesConfig, TrainConfig
from dtl.config.errors import UserError
from dtl.config.plain import from_plain
from dtl.evaluation.values import Evaluation, Occlusion
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.storage.ledger import parse_object, read_parsed
from dtl.training import values as training_values
from dtl.training.values import Comparison, Probe, Round, Tuning

if TYPE_CHECKING:
    from dtl.neighbours.novelty import Novelty

_T = TypeVar("_T")


class Results:
    """The files of a run in its folder, ``out``.

    ====================  ==============================================================
    ``config.toml``       the resolved configuration, without passwords and the like
    ``features.zarr``     `FeatureStore`
    ``network``           folder of the network that OpenVINO computes (`NetworkFile`)
    ``head.npz``          `Head`: of the last round, or of the best validation (`train.keep`)
    ``head-best.npz``     `Head` of the best validation, if ``head.npz`` is another's
    ``head-last.npz``     `Head` of the last round, if ``head.npz`` is another's
    ``head-before.npz``   `Head` that a training on a store that has grown started from
    ``checkpoint.npz``    `Checkpoint` of a training that is not finished
    ``novelty.npz``       `Novelty`: how unlike the training images an image is
    ``history.parquet``   one `Round` per row
    ``evaluation.json``   `Evaluation`
    ``occlusion.json``    `Occlusion`, of some mistakes
    ``timings.json``      how long each stage took; differs from run to run
    ``timeline.json``     `Timeline`: who did what when; differs from run to run
    ``report.html``       the page of the run
    ``side-by-side.html`` the run beside others
    ``compare.json``      `Comparison`, with its page, ``compare.html``
    ``tune.json``         `Tuning`, with its page, ``tune.html``
    ``tune.npz``          `Search` that is not finished
    ``probe.json``        `Probe`, with its page, ``probe.html``
    ``similar.html``      images that were asked for, with the nearest stored ones
    ``tuned.toml``        options of training that validated best
    ``check.json``        `Check`, with its page, ``check.html``
    ``issues.parquet``    one `Issue` per row
    ``relabel.csv``       all labels, for a person to go through (`dtl.checking.relabel`)
    ``suggest.csv``       unlabelled images to label next, and all labels, for ``images.labels``
    ``suggest.html``      the contact sheet of the former
    ====================  ==============================================================

    Every file is written whole or not at all.
    """

    def __init__(self, url: str) -> None:
        self.url = storage.absolute(url)
        self.config_file = self._place("config.toml")
        self.features = self._place("features.zarr")
        self.network = self._place("network")
        self.report = self._place("report.html")
        self.side_by_side_page = self._place("side-by-side.html")
        self.comparison_page = self._place("compare.html")
        self.tuning_page = self._place("tune.html")
        self.check_page = self._place("check.html")
        self.probe_page = self._place("probe.html")
        self.tuned = self._place("tuned.toml")
        self.suggestions = self._place("suggest.csv")
        self.suggestions_page = self._place("suggest.html")
        self.checkpoint = self._place("checkpoint.npz")
        self.head_before = self._place("head-before.npz")
        self.tuning_checkpoint = self._place("tune.npz")
        self.head_files = tuple(map(self._place, ("head.npz", "head-best.npz", "head-last.npz")))

    def config(self) -> dict[str, Any]:
        """Read the options of the run, as tables."""
        found = self._read("config.toml", config.parse_toml)
        if found is None:
            raise FileNotFoundError(f"No config.toml in {self.url}. Start with `dtl run`.")
        return found

    def write_config(self, value: Config) -> None:
        """Store the configuration, and remove the report of another one."""
        found = self._read("config.toml", config.parse_toml)
        shown = config.hide_options(config.to_dict(value))
        with contextlib.suppress(UserError):  # another version's options, which are replaced
            if found is not None and config.build(found) == config.build(shown):
                return  # whether or not it was written in other words, or with retired options
        storage.remove(self.report)
        self._write("config.toml", tomli_w.dumps(shown).encode())

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
        return self._read("head.npz", Head.from_bytes, *_OF_A_HEAD)

    def keep_head(self) -> None:
        """Keep the head as the one that the next training starts from."""
        storage.write_bytes(self.head_before, storage.read_bytes(self.head_files[0]))

    def trained_head(self) -> Head:
        """Read the head, which must be there."""
        if (head := self.head()) is None:
            raise FileNotFoundError(f"No head.npz in {self.url}. Run the train stage first.")
        return head

    def novelty(self) -> Novelty | None:
        """Read how unlike the training images an image is; None if that was not measured."""
        from dtl.neighbours.novelty import Novelty  # with Dask, which a finished run does not need

        return self._read("novelty.npz", Novelty.from_bytes, *_OF_NOVELTY)

    def write_novelty(self, value: Novelty | None) -> None:
        """Store it, or remove that of other features."""
        if value is None:
            storage.remove(self._place("novelty.npz"))
        else:
            self._write("novelty.npz", value.to_bytes())

    def novelty_of(self, head: Head) -> Novelty | None:
        """Return the stored novelty if it is of a head's features, else None."""
        found = self.novelty()
        if found is None or any(found.provenance[k] != head.provenance[k] for k in _OF_NOVELTY):
            return None
        return found

    def history(self) -> list[Round]:
        """Read the rounds of the head's training, which must be there."""
        place = self._place("history.parquet")
        advice = "Put back a copy of it, or remove head.npz, too, to have both made again."
        found = read_parsed(place, training_values.history_from_bytes, advice)
        if found is None:
            raise FileNotFoundError(f"{place} is gone. {advice}")
        return found

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

    def remove_trained(self) -> None:
        """Remove all results that follow from the features, for the readable rows have changed."""
        self.remove_outdated()
        for name in (
            "history.parquet", "head-best.npz", "head-last.npz", "head.npz", "head-before.npz",
            "tuned.toml", "novelty.npz",
        ):  # fmt: skip
            storage.remove(self._place(name))

    def remove_outdated(self) -> None:
        """Remove what follows from the features, but heads, for there are other images now."""
        for name in (
            "report.html", "evaluation.json", "occlusion.json", "checkpoint.npz", "compare.json",
            "compare.html", "tune.json", "tune.html", "tune.npz", "check.json", "check.html",
            "issues.parquet", "probe.json", "probe.html", "suggest.html",
        ):  # fmt: skip
            storage.remove(self._place(name))

    def evaluation(self) -> Evaluation | None:
        """Read the scores; None if there are none."""
        return self._read("evaluation.json", _parse_evaluation, "head_sha256")

    def evaluation_of(self, head: Head) -> Evaluation:
        """Read the scores of a head, which must be there."""
        scores = self.evaluation()
        if scores is None or scores.provenance["head_sha256"] != head.fingerprint:
            raise FileNotFoundError(
                f"No evaluation of the head in {self.url}. Run the evaluate stage first."
            )
        return scores

    def write_evaluation(self, value: Evaluation) -> None:
        """Store scores, and remove the report of others."""
        storage.remove(self.report)
        self._write("evaluation.json", value.to_json())

    def occlusion(self, head: Head) -> Occlusion | None:
        """Read what covering parts of pictures does to a head's answers; None if not known."""
        parse = functools.partial(training_values.from_json, Occlusion)
        found = self._read("occlusion.json", parse, "head_sha256", "n_images")
        if found is None or found.provenance["head_sha256"] != head.fingerprint:
            return None
        return found

    def write_occlusion(self, value: Occlusion) -> None:
        """Store it."""
        self._write("occlusion.json", training_values.to_json(value))

    def comparison(self) -> Comparison | None:
        """Read the comparison; None if there is none."""
        parse = functools.partial(training_values.from_json, Comparison)
        return self._read("compare.json", parse, "layer", "compare", "train")

    def write_comparison(self, value: Comparison, html: str) -> None:
        """Store a comparison; its page first, so that a comparison always has its own."""
        self._write("compare.html", html.encode())
        self._write("compare.json", training_values.to_json(value))

    def probe(self) -> Probe | None:
        """Read what the features are worth; None if they were not probed."""
        parse = functools.partial(training_values.from_json, Probe)
        return self._read("probe.json", parse, "features", "split", "probe")

    def write_probe(self, value: Probe, html: str) -> None:
        """Store a probe, its page first."""
        self._write("probe.html", html.encode())
        self._write("probe.json", training_values.to_json(value))

    def tuning(self) -> Tuning | None:
        """Read the search for options; None if there was none."""
        parse = functools.partial(training_values.from_json, Tuning)
        return self._read("tune.json", parse, *_OF_A_HEAD, "tune")

    def write_tuning(self, value: Tuning, html: str) -> None:
        """Store a search, its page first; remove its checkpoint, and the report without it."""
        storage.remove(self.report)
        self._write("tune.html", html.encode())
        self._write("tune.json", training_values.to_json(value))
        storage.remove(self.tuning_checkpoint)

    def write_tuned(self, value: TrainConfig) -> None:
        """Store options of training as a file that ``train --config`` takes."""
        shown = config.hide_options({"train": config.to_dict(value)})
        self._write("tuned.toml", tomli_w.dumps(shown).encode())

    def check(self) -> Check | None:
        """Read the figures of the check; None if there was none."""
        return self._read("check.json", Check.from_json, *_OF_A_CHECK)

    def issues(self) -> list[Issue]:
        """Read the issues that the check found, which must be there."""
        place = self._place("issues.parquet")
        advice = "Put back a copy of it, or remove check.json, too, to have both made again."
        found = read_parsed(place, issues_from_bytes, advice)
        if found is None:
            raise FileNotFoundError(f"{place} is gone. {advice}")
        return found

    def write_check(self, value: Check, issues: list[Issue], table: bytes, html: str) -> None:
        """Store a check, its figures last; remove the report without it.

        `table` is the one to relabel, at the place that `choose_relabel` gives.
        """
        storage.remove(self.report)
        self._write("issues.parquet", issues_to_bytes(issues))
        self._write(value.relabel, table)
        self._write("check.html", html.encode())
        self._write("check.json", value.to_json())

    def choose_relabel(self, images: ImagesConfig) -> str:
        """Choose the name of the next table to relabel: one that a person has edited stays."""
        for name in itertools.chain(
            ["relabel.csv"], (f"relabel-{n}.csv" for n in itertools.count(2))
        ):
            place = self._place(name)
            if not storage.exists(place) or not relabel.is_edited(
                storage.read_bytes(place), images
            ):
                break
        return name

    def timings(self) -> dict[str, dict[str, Any]]:
        """Read the seconds, number and unit of what each stage did."""
        return self._read("timings.json", _parse_timings) or {}

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

    def timeline(self) -> Timeline | None:
        """Read who did what when; None if that was not recorded."""
        return self._read("timeline.json", Timeline.from_json)

    def write_timeline(self, value: Timeline) -> None:
        """Store who did what when."""
        self._write("timeline.json", value.to_json())

    def _place(self, name: str) -> str:
        return storage.join(self.url, name)

    def _read(self, name: str, parse: Callable[[bytes], _T], *needed: str) -> _T | None:
        """Read a file, whose provenance must have some keys; None if there is none."""

        def parse_whole(data: bytes) -> _T:
            value = parse(data)
            if lost := [key for key in needed if key not in value.provenance]:  # type: ignore[attr-defined]
                raise ValueError(f"its provenance lacks {', '.join(lost)}")
            return value

        return read_parsed(self._place(name), parse_whole)

    def _write(self, name: str, data: bytes) -> None:
        storage.write_bytes(self._place(name), data)


_OF_NOVELTY = ("features", "split", "layer")
"""Keys of what novelty follows from; those of a head that goes with it have the same values."""

_OF_A_HEAD = ("features", "weights_sha256", "split", "layer", "train", "seed")
"""Keys of a head's provenance, and of all that was made as it was."""

_OF_A_CHECK = ("features", "weights_sha256", "split", "layer", "check", "seed")


def _parse_evaluation(data: bytes) -> Evaluation:
    return Evaluation.from_dict(parse_object(data))


@dataclass(frozen=True)
class _Timing:
    seconds: float
    n: int
    unit: str


def _parse_timings(data: bytes) -> dict[str, dict[str, Any]]:
    timings: dict[str, _Timing] = from_plain(dict[str, _Timing], json.loads(data))
    return {stage: asdict(timing) for stage, timing in timings.items()}
