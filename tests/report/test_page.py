from __future__ import annotations

import hashlib
import html
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import sparse
from scipy.stats import binomtest

from dtl.cluster.timeline.values import Life, Stage, Timeline, Worker
from dtl.config import build, to_dict
from dtl.evaluation.certainty import Measured
from dtl.evaluation.metrics import Counts, count, score
from dtl.evaluation.values import Evaluation, Mistake, Occluded, Occlusion
from dtl.images.values import SPLITS
from dtl.report.illustrations import ConfusedPair, FeatureMap, Illustrations
from dtl.report.page import ReportInput, render
from dtl.report.plots import smooth
from dtl.training.values import Round

HOSTILE = (
    "<script>pwned = 1</script>",
    "</script><script>pwned = 1</script>",
    "<img src=x onerror='pwned = 1'>",
    "\"'><b onmouseover=pwned=1>",
    "<!--<script>",
    "$$\\frac{1}{2}$$",
    "{{ 7 * 7 }} {% raw %}",
    "@true{safe} $name",
    "ängström 花 \N{SMILING FACE WITH SUNGLASSES}",
    "__proto__",
)


def draw(text: str) -> bytes:
    image = Image.new("RGB", (120, 90), "#dde6ee")
    ImageDraw.Draw(image).text((8, 40), text[:14].encode("ascii", "replace").decode(), fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def rounds(n: int, every: int = 5, n_shards: int = 4) -> Iterator[Round]:
    rng = np.random.default_rng(1)
    for index in range(1, n + 1):
        shards = 0.3 + 2.5 * np.exp(-index / 12) * rng.uniform(0.9, 1.1, n_shards)
        accuracies = (1 - np.exp(-index / 9), 0.8 - 0.7 * np.exp(-index / 9), 0.7 + 2 / index)
        scored = accuracies if index % every == 0 else (math.nan,) * 3
        yield Round(
            index, index / 3, float(shards.mean()), tuple(shards), 0.01, 1 / index, 0.3 / index,
            0.1, 0.02, 0.04, *scored,
        )  # fmt: skip


def sample(
    class_names: tuple[str, ...] | None = None,
    n_classes: int = 19,
    n_rounds: int = 90,
    n_images: int = 10,
    n_mistakes: int = 24,
) -> ReportInput:
    names = class_names or tuple(f"{k:03d}.class-{k}" for k in range(1, n_classes + 1))
    n_classes = len(names)
    rng = np.random.default_rng(0)
    parts, class_counts = {}, {}
    sets = ((0.9, np.full(n_classes, 0.5)), (0.95, np.full(n_classes, 0.8)))
    measured = Measured(1.5, fitted=True, sets=sets, answers=((0.05, 0.3), (0.01, math.inf)))
    for split, sharpness in zip(SPLITS, (6, 4, 4), strict=True):
        labels = np.repeat(np.arange(n_classes), rng.integers(2, 2 * n_images, n_classes))
        logits = rng.normal(0, 1.5, (len(labels), n_classes))
        logits[np.arange(len(labels)), labels] += sharpness
        certainty = measured.count(logits, labels)
        parts[split] = measured.score(score(count(logits / 1.5, labels), names), certainty)
        class_counts[split] = np.bincount(labels, minlength=n_classes)
    mistakes = tuple(
        Mistake(f"{names[k % n_classes]}/{k}.jpg", "test", names[k % n_classes], names[-1], 0.9)
        for k in range(n_mistakes)
    )
    config = to_dict(build({"out": "hdfs:///out", "features": {"layers": ["block5_pool"]}}))
    return ReportInput(
        title="caltech256",
        config=config,
        provenance={
            "features": {"network": "VGG16", "layers": ["fc1", "block5_pool"]},
            "weights_sha256": "ab" * 32,
            "versions": {"keras": "3.15.1", "nested": {"deep": {"deeper": "found"}}},
            "none": None,
            "nan": math.nan,
        },
        class_names=names,
        class_counts=class_counts,
        history=list(rounds(n_rounds)),
        evaluation=Evaluation(parts, mistakes, names, temperature=1.5, n_held_out=1234),
        pictures={mistake.path: draw(mistake.true) for mistake in mistakes[1:]},
        skipped=[("a/0.jpg", "0 bytes"), ("b/1.jpg", "truncated"), ("a/2.jpg", "0 bytes")],
        left_out=[(f"c/{k:03d}.db", "no image's extension") for k in range(37)],
        n_duplicates=12,
        n_conflicting=3,
        timings={
            "list": {"seconds": 0.0, "n": 0, "unit": "images"},
            "featurize": {"seconds": 125.0, "n": 1641, "unit": "images"},
            "train": {"seconds": 18.0, "n": n_rounds, "unit": "rounds"},
        },
        warnings=("untrained network: the weights are random",),
    )


def illustrate(report: ReportInput, n_points: int = 40) -> ReportInput:
    """Add confused pairs, a map of the features, and covered pictures."""
    names, rng = report.class_names, np.random.default_rng(0)
    paths = tuple(f"{names[k % len(names)]}/map {k}.jpg" for k in range(n_points))
    confused = ConfusedPair((names[0], names[-1]), (3, 1), (paths[:4], paths[4:8]))
    labels = rng.integers(0, len(names), (2, n_points)).astype(np.int32)
    drop = tuple(map(tuple, rng.normal(size=(8, 8)).round(3).tolist()))
    seen = Occluded(paths[0], names[0], names[1], 0.9, 0.2, drop)
    return replace(
        report,
        illustrations=Illustrations(
            confused=[confused],
            feature_map=FeatureMap("t-SNE", rng.random((n_points, 2)), *labels, paths, 9_999),
            occlusion=Occlusion((seen,)),
            pictures={path: draw("pair") for path in paths[1:8]},
            thumbnails={path: draw("map")[:1400] for path in paths[1:]},
        ),
    )


def make_timeline(names: Sequence[str], *, n_lives: int = 2) -> Timeline:
    """Commands of 100 s, of which all but the last were killed, 30 s after each other.

    Each worker computed features for half of its time. In the first command, the first worker was
    lost at 41 s.
    """

    def work(k: int, life: int) -> Worker:
        is_lost = k == life == 0
        end = 41.0 if is_lost else 100.0
        spans = tuple((t, t + 5.0, 5.0, 1) for t in range(0, int(end) - 10, 10))
        busy = {"features": spans, "training": ((95.0, 96.0, 0.5, 9),) if not is_lost else ()}
        memory = tuple((float(t), (1 << 30) + (t << 20)) for t in range(int(end)))
        return Worker(
            f"tcp://10.0.0.{k % 200}:{40_000 + k}", names[k], 0.0, end,
            "lost" if is_lost else "stayed", 3 << 29, {"features": 2} if is_lost else {},
            busy, memory,
        )  # fmt: skip

    stages = (Stage("list", 0.0, 1.0), Stage("featurize", 1.0, 100.0))
    return Timeline(
        tuple(
            Life(
                130.0 * life, 100.0, "" if life < n_lives - 1 else "finished", stages,
                ((0.0, 100 << 20), (99.0, 200 << 20)),
                tuple(work(k, life) for k in range(len(names))), len(names), int(life == 0),
            )
            for life in range(n_lives)
        )
    )  # fmt: skip


def squeeze(text: str) -> str:
    return re.sub(r"[ \n]+", " ", text)


class Page(HTMLParser):
    """The elements of a page, its visible text, and its scripts and styles."""

    void = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.raw.setdefault(self.open[-1], []).append(data)
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return squeeze(" ".join(self.texts))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def plots(self) -> dict[str, Any]:
        def refuse(name: str) -> NoReturn:
            raise AssertionError(f"{name} is not JSON")

        [data] = [script for script in self.raw["script"] if script.startswith("{")]
        return json.loads(data, parse_constant=refuse)


@pytest.fixture(scope="module")
def report() -> ReportInput:
    return sample()


@pytest.fixture(scope="module")
def page(report: ReportInput) -> Page:
    return Page(render(report))


# --- numbers -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=7), st.sampled_from([1, 3, 7]))
def test_smooth_is_the_mean_of_what_is_finite_in_reach(values: list[float], width: int) -> None:
    found = smooth(np.array(values), width)
    for k, mean in enumerate(found):
        near = np.array(values[max(k - width // 2, 0) : k + width // 2 + 1])
        near = near[np.isfinite(near)]
        expected = near.mean() if len(near) else math.nan
        assert mean == pytest.approx(expected, nan_ok=True, rel=1e-6, abs=1e-6)


# --- the page ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_same_input_gives_the_same_page_in_every_process(report: ReportInput) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_page import *;"
        "print(hashlib.sha256(render(sample()).encode()).hexdigest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        env=os.environ | {"PYTHONHASHSEED": "1"}, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    assert found.strip() == hashlib.sha256(render(report).encode()).hexdigest()
    assert render(report) == render(report)


def test_nothing_is_fetched(page: Page) -> None:
    for tag, attrs in page.elements:
        for name in {"src", "href", "srcset", "action", "data", "poster"} & set(attrs):
            assert attrs[name].startswith(("#", "data:")), (tag, attrs)
    for style in page.raw["style"]:
        assert "url(" not in style
        assert "@import" not in style
    [policy] = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_every_link_leads_somewhere(page: Page) -> None:
    ids = {attrs.get("id") for _, attrs in page.elements}
    assert {a["href"].removeprefix("#") for a in page.all("a")} <= ids
    assert {f"plot-{name}" for name in page.plots} <= ids


def test_every_section_shows_its_numbers(report: ReportInput, page: Page) -> None:
    test = report.evaluation.scores["test"]
    n_right = round(test.accuracy * test.n_images)
    low, high = binomtest(n_right, test.n_images).proportion_ci(method="wilson")
    shares = [test.accuracy, low, high, 1 / 19]
    for scores_ in report.evaluation.scores.values():
        shares += [scores_.accuracy, scores_.top5, scores_.mean_recall, scores_.mean_f1]
        assert f"{scores_.n_images:,}" in page.text
        assert f"{scores_.log_loss:.3f}" in page.text
    for name, values in test.classes.items():
        shares += [values["precision"], values["recall"], values["f1"]]
        assert name in page.text
    for share in shares:
        assert f"{100 * share:.1f}\u202f%" in page.text
    n_images = sum(counts.sum() for counts in report.class_counts.values())
    for text in (
        f"{n_images:,} images of 19 classes", "VGG16 cut at block5_pool",
        "4 replicas, averaged every 10 batches", "Warning. untrained network",
        "90 rounds, 30.0 passes", "mean over 7 rounds", "local steps 9 s in all",
        "12 files have the same content as another file, 3 of them under another class",
        "3 images take no part", "0 bytes a/0.jpg a/2.jpg", "truncated b/1.jpg",
        "37 files of the source", "no image's extension c/000.db", "c/009.db and 27 more",
        "2 min 5 s", "1,641 images 13.1 images/s", "90 rounds 5.0 rounds/s",
        "fc1, block5_pool", "ab" * 32, "deeper found", "nan nan", "none None",
        "python -m dtl.pipeline run --config config.toml", "learning_rate = ",
    ):  # fmt: skip
        assert text in page.text, text


def test_probabilities_are_shown_with_their_intervals(report: ReportInput, page: Page) -> None:
    test = report.evaluation.scores["test"]
    for found in test.reliability.values():
        assert f"{100 * found.error:.1f}\u202f%" in page.text
        assert f"{found.brier:.3f}" in page.text
        low, high = found.log_loss_interval
        assert f"{low:.3f} to {high:.3f}" in page.text
    for sets in test.sets:
        low, high = binomtest(sets.n_covered, test.n_images).proportion_ci(method="wilson")
        assert f"{100 * low:.1f} to {100 * high:.1f}\u202f%" in page.text
        assert f"{sets.n_members / test.n_images:.2f}" in page.text
    assert test.answers[0].n_wrong > 0 == test.answers[1].n_answered
    for text in (
        "divided by a temperature of 1.50, fitted to 1,234 validation images: without it the head "
        "is too sure",
        "Of the images that are given", "by chance if every probability held",
    ):  # fmt: skip
        assert text in page.text, text


def test_probabilities_without_validation_images(report: ReportInput) -> None:
    scores = {}
    for name, s in report.evaluation.scores.items():
        before = {"before": s.reliability["before"]}
        scores[name] = replace(s, reliability=before, sets=(), answers=())
    evaluation = replace(report.evaluation, scores=scores, temperature=1.0, n_held_out=0)
    page = Page(render(replace(report, evaluation=evaluation)))
    assert "The head was trained by an earlier dtl, without a temperature" in page.text
    del scores["validation"]
    page = Page(render(replace(report, evaluation=replace(evaluation, scores=scores))))
    assert "No validation images were set aside" in page.text
    assert "Sets that hold" not in page.text
    # Those of an earlier dtl have no such numbers.
    scores = {name: replace(s, reliability={}) for name, s in scores.items()}
    page = Page(render(replace(report, evaluation=replace(evaluation, scores=scores))))
    assert "Brier" not in page.text


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({}, "from 0.02 down to 0 along half a cosine"),
        ({"schedule": "constant", "learning_rate": 0.3}, "The step size: constant at 0.3."),
        ({"schedule": "exponential", "warmup_epochs": 2.5},
         "up from 0 over 2.5 passes, then from 0.02 down to 0.0002, by the same factor"),
        ({"schedule": "steps", "learning_rate_steps": "10:0.01,20:0.001"},
         "The step size: 0.02 at first, then as given by hand (epoch:rate): 10:0.01,20:0.001."),
        ({"averaging_frequency": 50, "averaging_frequency_end": 5},
         "averaged every 50 down to 5 batches"),
        ({"averaging_frequency": 50, "averaging_frequency_end": 5},
         "50 batches of 64 images on each replica, fewer and fewer, down to 5 at the end, and "
         "ends with the average of all replicas"),
    ],
)  # fmt: skip
def test_the_training_is_described_as_it_was(train: dict[str, object], said: str) -> None:
    report = sample(n_rounds=3, n_images=3)
    config = to_dict(build(report.config | {"train": report.config["train"] | train}))
    # The options leave the rows of a step open; the head's fingerprint has them.
    made_from = dict(report.provenance) | {"head": {"train": {"batch_size": 64}}}
    assert said in Page(render(replace(report, config=config, provenance=made_from))).text


def test_int8_against_float32(report: ReportInput, page: Page) -> None:
    assert "int8 against float32" not in page.text
    known = {"cosine_mean": 0.99917, "cosine_least": 0.98617}
    judged = {"accuracy_exact": 0.9, "accuracy_int8": 0.887, "change": -0.0133}
    distance = {
        "n_calibration": 300, "n_images": 292, "n_classes": 19,
        "layers": {"fc1": known | judged | {"interval": [-0.03, 0.004]}, "fc2": known},
    }  # fmt: skip
    text = Page(render(replace(report, quantization=distance))).text
    for shown in ("0.9992", "0.9862", "-1.33", "-3.00 to +0.40", "too few images", "292 others"):
        assert shown in text
    assert "int8 is not used" not in text
    refused = Page(render(replace(report, quantization=distance | {"refused": "it is too far"})))
    assert "int8 is not used: it is too far." in refused.text


def test_confusions_are_listed_from_the_most_frequent(report: ReportInput, page: Page) -> None:
    wrong = [entry for entry in report.evaluation.scores["test"].confusion if entry[0] != entry[1]]
    true, predicted, n = max(wrong, key=lambda entry: (entry[2], -entry[0], -entry[1]))
    of = sum(entry[2] for entry in report.evaluation.scores["test"].confusion if entry[0] == true)
    names = report.class_names
    assert f"Taken for Images {names[true]} {names[predicted]} {n} of {of}" in page.text


def test_illustrations(report: ReportInput) -> None:
    shown = illustrate(report)
    page = Page(render(shown))
    names = report.class_names
    for text in (
        f"{names[0]} , 3 taken for {names[-1]}", f"{names[-1]} , 1 taken for {names[0]}",
        "40 of the 9,999 test images, as the head sees", "By t-SNE", "90.0\u202f%; down to 20.0",
    ):  # fmt: skip
        assert text in page.text, text
    assert page.text.count("no picture") == 3  # a mistake's, one of a pair, and one that is covered
    assert len(page.all("rect")) == 1 + 64
    [points] = [json.loads(s) for s in page.raw["script"] if s.startswith("[[")]
    assert len(points) == 40
    assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y, *_ in points)
    assert [p[6] == "" for p in points] == [True] + [False] * 39
    assert render(shown) == render(illustrate(report))
    assert "Map of the features" not in Page(render(report)).text


def test_a_missing_picture_is_said(page: Page) -> None:
    pictures = [image["src"] for image in page.all("img")]
    assert len(pictures) == 23
    assert all(source.startswith("data:image/jpeg;base64,/9j/") for source in pictures)
    assert page.text.count("no picture") == 1


# --- hostile names -------------------------------------------------------------------------------


def check_escaped(report: ReportInput) -> None:
    page = Page(render(report))
    names = tuple(map(str, range(len(report.class_names))))
    plain = Page(render(sample(names, n_images=3, n_rounds=2)))
    skeleton = [tag for tag, _ in plain.elements if tag in ("script", "style", "b", "link", "meta")]
    assert [tag for tag, _ in page.elements if tag in skeleton] == skeleton
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    named = {attrs["alt"] for attrs in page.all("img")}
    assert named <= set(report.class_names)
    for name in report.class_names:
        assert squeeze(name) in page.text
    assert set(page.plots) == set(plain.plots)


def test_names_are_shown_and_never_run() -> None:
    report = sample(HOSTILE, n_rounds=2, n_images=3)
    hostile = HOSTILE[1]
    check_escaped(
        replace(
            report,
            title=hostile,
            provenance={hostile: {"deep": [hostile, hostile]}},
            skipped=[(hostile, hostile)],
            left_out=[(hostile, hostile)],
            warnings=(hostile,),
            timings={hostile: {"seconds": 1.0, "n": 1, "unit": "images"}},
            config=to_dict(build({"out": hostile})),
        )
    )


def test_illustrations_run_no_name() -> None:
    report = illustrate(sample(HOSTILE, n_rounds=2, n_images=3))
    page = Page(render(report))
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    plain = Page(render(sample(HOSTILE, n_rounds=2, n_images=3)))
    assert len(page.raw["script"]) == len(plain.raw["script"]) + 1  # with the points
    [points] = [json.loads(s) for s in page.raw["script"] if s.startswith("[[")]
    assert {p[3] for p in points} == set(HOSTILE)


def test_names_that_would_not_show_are_escaped() -> None:
    names = ("two\nlines", "\x1b[31mred", "caf\udce9", "photo\u202egpj.exe")
    report = replace(
        sample(names, n_rounds=2, n_images=3),
        title=names[0],
        skipped=[(names[1], names[2])],
        left_out=[(names[2], names[3])],
        warnings=names,
    )
    text = render(report)
    text.encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    page = Page(text)
    for shown in (r"two\nlines", r"\x1b[31mred", r"caf\xe9", r"photo\u202egpj.exe"):
        assert page.text.count(shown) >= 3
    assert 'out = ""\nseed = 0\n' in text.replace("&#34;", '"').replace("hdfs:///out", "")


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sets(
        st.text(st.sampled_from("<>&\"'/!-{}%$\\scriptéß花"), min_size=1), min_size=2, max_size=6
    )
)
@pytest.mark.slow
def test_any_name_is_escaped(names: set[str]) -> None:
    check_escaped(sample(tuple(sorted(names)), n_rounds=2, n_images=3))


# --- edges ---------------------------------------------------------------------------------------


def only(report: ReportInput, *splits: str) -> ReportInput:
    evaluation = report.evaluation
    return replace(
        report,
        class_counts={s: report.class_counts[s] for s in splits},
        evaluation=replace(evaluation, scores={s: evaluation.scores[s] for s in splits}),
    )


@pytest.mark.parametrize(
    ("splits", "sentence"),
    [
        (("train", "test"), "None of them was used for training"),
        (("train", "validation"), "No blind test"),
        (("train",), "It was trained on them"),
    ],
)
def test_missing_splits(report: ReportInput, splits: tuple[str, ...], sentence: str) -> None:
    page = Page(render(only(report, *splits)))
    assert sentence in page.text
    accuracy = report.evaluation.scores[splits[-1]].accuracy
    assert f"{100 * accuracy:.1f}\u202f% of " in page.text


def test_no_scores_are_refused(report: ReportInput) -> None:
    with pytest.raises(ValueError, match="needs the scores of a split"):
        render(replace(report, evaluation=Evaluation({}, (), report.class_names)))


def test_nothing_newly_trained(report: ReportInput) -> None:
    page = Page(render(replace(report, history=[])))
    assert "Nothing was trained in this run" in page.text
    assert set(page.plots) == {"classes", "confusion", "reliability"}


@pytest.mark.parametrize("n", [1, 2, 151])
def test_any_number_of_rounds(report: ReportInput, n: int) -> None:
    assert "loss" in Page(render(replace(report, history=list(rounds(n))))).plots


def test_values_that_are_not_numbers(report: ReportInput) -> None:
    nan = math.nan
    history = [
        replace(row, shard_loss=(nan, 1.0, nan), validation_accuracy=nan, validation_loss=nan)
        for row in report.history
    ]
    test = replace(report.evaluation.scores["test"], log_loss=nan, mean_f1=nan)
    evaluation = replace(report.evaluation, scores=report.evaluation.scores | {"test": test})
    page = Page(render(replace(report, history=history, evaluation=evaluation)))
    assert len(page.plots) == 8
    assert "\N{EN DASH} \N{EN DASH} Accuracy:" in page.text


def test_files_that_are_left_out_are_counted_where_few_are_named(report: ReportInput) -> None:
    files = [("a.xml", "not an image"), ("b.heic", "HEIC"), ("c.heic", "HEIC")]
    page = Page(render(replace(report, left_out=files, left_out_counts={"HEIC": 5000})))
    assert "5,001 files of the source" in page.text
    assert "5,000 \u00d7 HEIC b.heic c.heic and 4,998 more" in page.text
    assert "1 \u00d7 not an image a.xml" in page.text


def test_nothing_to_tell(report: ReportInput) -> None:
    page = Page(
        render(
            replace(
                report,
                evaluation=replace(report.evaluation, mistakes=()),
                pictures={}, skipped=[("a", "torn")], left_out=[], n_duplicates=0, n_conflicting=0,
                warnings=(), timings={}, provenance={},
            )
        )
    )  # fmt: skip
    assert "1 image takes no part" in page.text
    assert "No two files have the same content" in page.text
    assert "None to show" in page.text
    assert "Warning" not in page.text


def test_no_mistakes_at_all() -> None:
    names = ("a", "b")
    right = score(count(np.eye(2) * 9, np.arange(2)), names)
    counts = {"test": np.ones(2, np.int64)}
    evaluation = Evaluation({"test": right}, (), names)
    report = replace(sample(names), class_counts=counts, evaluation=evaluation)
    page = Page(render(report))
    assert "every image was classified correctly" in page.text
    assert "always, with 2 classes" in page.text


@pytest.mark.slow
@pytest.mark.parametrize(("n_classes", "limit_mb"), [(257, 4.2), (1000, 7.2)])
def test_size(n_classes: int, limit_mb: int) -> None:
    report = illustrate(sample(n_classes=n_classes, n_rounds=3000, n_images=30), 600)
    text = render(report)
    assert len(text.encode()) < limit_mb * 1e6
    assert len(Page(text).plots) == 8


def test_a_crowded_matrix_leaves_out_all_the_smallest_confusions(report: ReportInput) -> None:
    n_classes = 200
    names = tuple(map(str, range(n_classes)))
    pairs = np.arange(n_classes**2)
    n = np.where(pairs % (n_classes + 1) == 0, 5, 1 + (pairs % 7 == 0))
    counts = {"test": np.full(n_classes, 9)}
    confusion = sparse.csr_array(n.reshape(n_classes, n_classes))
    evaluation = Evaluation({"test": score(Counts(confusion, 0, 0.0), names)}, (), names)
    page = Page(
        render(replace(report, class_names=names, class_counts=counts, evaluation=evaluation))
    )
    assert "Confusions of fewer than 2 images are not drawn" in page.text


# --- a browser -----------------------------------------------------------------------------------

LOOK = """<script>
const errors = [], note = text => errors.push(String(text));
addEventListener("error", event => note(event.message));
addEventListener("unhandledrejection", event => note(event.reason));
addEventListener("securitypolicyviolation", event => note(event.blockedURI));
console.error = note;
const canvases = root => [...root.querySelectorAll("*")].flatMap(
  e => [...(e.localName === "canvas" ? [e] : []), ...(e.shadowRoot ? canvases(e.shadowRoot) : [])]);
const painted = c => c.width && c.height
  && c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some(v => v);
setTimeout(() => {
  const first = () => document.querySelector(".sortable tbody th").textContent;
  const names = [first()];
  document.querySelector(".sortable button").click();
  names.push(first());
  document.querySelector(".sortable button").click();
  names.push(first());
  const plots = [...document.querySelectorAll(".plot")];
  document.querySelector(".map circle").dispatchEvent(new PointerEvent("pointerenter"));
  parent.document.body.dataset.found = JSON.stringify({
    errors, names, pwned: typeof pwned, width: innerWidth,
    tip: document.querySelector(".tip").textContent,
    scrollWidth: document.documentElement.scrollWidth,
    painted: plots.filter(plot => canvases(plot).some(painted)).map(plot => plot.id),
  });
}, 6000);
</script>"""


def browse(report: ReportInput, width: int, folder: Path) -> dict[str, Any]:
    # A window is at least 500 pixels wide, a frame as narrow as a phone.
    page = html.escape(render(report).replace("<head>", "<head>" + LOOK, 1))
    frame = f'<body><iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}">'
    path = folder / "frame.html"
    path.write_text(f'<!DOCTYPE html><meta charset="utf-8">{frame}</iframe>', encoding="utf-8")
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1300,900",
        "--virtual-time-budget=20000", "--dump-dom",
    ]  # fmt: skip
    dom = subprocess.run(
        ["chromium", *options, path.as_uri()], capture_output=True, check=True, timeout=600
    ).stdout.decode()
    found = re.search(r'data-found="([^"]*)"', dom)
    assert found, "the page did not finish loading"
    return json.loads(html.unescape(found[1]))


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
@pytest.mark.parametrize(
    ("names", "width"),
    [(None, 1200), (None, 420), (HOSTILE, 1200)],
    ids=["wide", "phone", "hostile"],
)
def test_a_browser_draws_every_plot(
    names: tuple[str, ...] | None, width: int, tmp_path: Path
) -> None:
    report = illustrate(sample(names))
    report = replace(report, timeline=make_timeline(names or tuple(map(str, range(50)))))
    found = browse(report, width, tmp_path)
    assert found["errors"] == []
    assert found["pwned"] == "undefined"
    assert found["width"] == width
    assert found["scrollWidth"] <= width
    shown = report.illustrations.feature_map
    assert shown is not None
    assert report.class_names[shown.label[0]] in found["tip"]
    assert shown.paths[0] in found["tip"]
    plots = {"loss", "accuracy", "updates", "rate", "seconds", "confusion", "classes"}
    plots |= {"reliability", "timeline", "memory"}
    assert {plot.removeprefix("plot-") for plot in found["painted"]} == plots
    if names is None:
        assert found["names"][1:] == [report.class_names[0], report.class_names[-1]]
