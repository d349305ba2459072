"""Stores that grew in ten lists against fresh ones, in accuracy, bytes and time: `make bench`.

Accuracy is of the real photographs, over ten seeds. Their features cost some two minutes; with
`DTL_BENCH_VIEWS` those are taken that `test_recipe` keeps there.
"""

from __future__ import annotations

import functools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import COLOURS, CUT, THREADS, command, contents, draw, in_session, jpeg, wait_until
from numpy.typing import NDArray
from scipy import stats

from dtl import config, storage
from dtl.cluster import connection
from dtl.config import ImagesConfig, SplitConfig, TrainConfig
from dtl.features import compaction, growth, splitting
from dtl.features.store import FeatureStore
from dtl.head.model import Head
from dtl.head.softmax import log_softmax
from dtl.images import listing
from dtl.images.values import TEST, ImageList
from dtl.training import trainer
from dtl.training.spec import TrainingSpec
from dtl.training.values import Round

LAYER = "block5_pool"
N_LISTS = 10
SEEDS = range(int(os.environ.get("DTL_BENCH_SEEDS", "10")))
NEAR = 0.005
"""Within so much of its last validation accuracy a training has arrived."""

Known = dict[str, tuple[NDArray[np.float32], int]]
"""Features and content hash by path."""


@pytest.fixture(scope="module")
def known(data: Path, request: pytest.FixtureRequest) -> Known:
    """What is known of the photographs, so that stores are made without the network."""
    root = data / "caltech256"
    views = Path(os.environ.get("DTL_BENCH_VIEWS", "")) / "224.npz"
    if views.exists():
        paths = listing.list_images(ImagesConfig(url=str(root)), 0).path
        features = np.load(views)["avg"]
    else:
        store = FeatureStore.open(str(request.getfixturevalue("real_run")[0] / "features.zarr"))
        paths, features = store.read("path"), store.read(LAYER)
    return {
        path: (row, int.from_bytes(blake2b((root / path).read_bytes(), digest_size=8).digest()))
        for path, row in zip(paths.tolist(), features, strict=True)
    }


# --- accuracy -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a training gave; accuracy in per cent."""

    accuracy: float
    loss: float
    train_loss: float
    spread: float
    n_rounds: int
    n_needed: int
    head: Head


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("arrival", ["random", "by class"])
def test_a_store_that_grew_trains_as_good_a_head(
    data: Path, known: Known, tmp_path: Path, arrival: str
) -> None:
    found: dict[tuple[str, str], list[Result]] = {}
    with connection.connect(config.build({"cluster": {"n_workers": 1}}).cluster) as client:
        for seed in SEEDS:
            images = listing.list_images(ImagesConfig(url=str(data / "caltech256")), seed)
            for name, result in train_all(images, known, arrival, seed, client, tmp_path):
                found.setdefault(name, []).append(result)
    columns = ("accuracy", "loss", "train_loss", "spread", "n_rounds", "n_needed")
    for (solver, name), results in found.items():
        table = {c: np.array([getattr(r, c) for r in results]) for c in columns}
        print(f"{arrival}, {solver}, {name}:", *(f"{c} {v.mean():.4g}" for c, v in table.items()))
        if name == "fresh":
            fresh = table
            continue
        gains = {c: find_interval(table[c] - fresh[c]) for c in ("accuracy", "loss")}
        print("  against fresh:", *(f"{c} {g:+.3f} ± {h:.3f}" for c, (g, h) in gains.items()))
        gain, half = gains["accuracy"]
        # As averaging would go on where classes are new, and does not: `stages._go_on`.
        if (arrival, solver, name) != ("by class", "averaging", "warm"):
            assert gain + half >= 0 or gain >= -0.3


def find_interval(gain: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean, and half of its 95 % interval (Student's t)."""
    half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
    return float(gain.mean()), float(half)


def train_all(
    images: ImageList, known: Known, arrival: str, seed: int, client: Client, folder: Path
) -> Iterator[tuple[tuple[str, str], Result]]:
    """Train on a store that grows, and on the same rows in the order of a fresh one."""
    url, head_url = str(folder / "grown.zarr"), str(folder / "before.npz")
    storage.remove(url)
    store: FeatureStore | None = None
    warm: dict[str, Result | None] = {"averaging": None, "lbfgs": None}
    for k, some in enumerate(list_arrivals(images, arrival, seed), 1):
        store = take_in(url, store, some, known, seed)
        method = "random" if arrival == "random" else "auto"  # the first list lacks a class
        splitting.split_images(store, SplitConfig(method=method), seed)
        for solver, before in warm.items():
            if solver == "lbfgs" and k < N_LISTS - 1:
                continue  # it ends at the one optimum, wherever it started
            start = ""
            if before is not None:
                storage.write_bytes(head_url, before.head.to_bytes())
                start = head_url
            warm[solver] = train(store, solver, seed, client, start)
    assert store is not None
    assert len(store.generations) == N_LISTS
    storage.remove(str(folder / "fresh.zarr"))
    fresh = compaction.compact(str(folder / "fresh.zarr"), store, client)
    for solver, result in warm.items():
        yield (solver, "fresh"), train(fresh, solver, seed, client)
        yield (solver, "grown"), train(store, solver, seed, client)
        assert result is not None
        yield (solver, "warm"), result


def list_arrivals(images: ImageList, arrival: str, seed: int) -> Iterator[ImageList]:
    """Yield ever longer lists: of images in random order, or of ever more classes."""
    rng = np.random.default_rng(seed)
    if arrival == "random":
        turn = rng.permutation(len(images)) * N_LISTS // len(images)
    else:
        n_classes = len(images.class_names)
        turn = (rng.permutation(n_classes) * N_LISTS // n_classes)[images.label]
    for k in range(N_LISTS):
        rows = np.flatnonzero(turn <= k)
        classes, label = np.unique(images.label[rows], return_inverse=True)
        yield replace(
            images.take(rows),
            label=label.astype(np.int32),
            class_names=tuple(images.class_names[c] for c in classes),
        )


def take_in(
    url: str, store: FeatureStore | None, listed: ImageList, known: Known, seed: int
) -> FeatureStore:
    attrs = {"root": listed.root, **growth.describe_left_out(listed)}
    if store is None:
        settings = {"layers": [LAYER], "dtype": "float32", "images": listed.description}
        made = {"settings": settings, "weights": "given", "weights_sha256": "0", "seed": seed,
                "versions": {}}  # fmt: skip
        store = FeatureStore.create(
            url, listed, {LAYER: 512}, dtype="float32", chunk_images=64, attrs=attrs | made
        )
    else:
        store = growth.take_in(store, listed, attrs, ImagesConfig(), pytest.fail)
    for chunk in store.pending_chunks():
        rows = [known[str(path)] for path in store.read("path", chunk)]
        features, hashes = zip(*rows, strict=True)
        values = {LAYER: np.stack(features)}
        store.write_chunk(chunk, values, np.array(hashes, np.uint64), [""] * len(rows))
    return store


def train(
    store: FeatureStore, solver: str, seed: int, client: Client, start_from: str = ""
) -> Result:
    options = TrainConfig(solver=solver, start_from=start_from)
    trained = trainer.train(TrainingSpec(store, options, LAYER, seed), client)
    test = store.read_split() == TEST
    log_p = log_softmax(trained.head.logits(store.read(LAYER)[test]))
    label, history = store.read("label")[test], trained.history
    return Result(
        accuracy=100 * float((log_p.argmax(axis=1) == label).mean()),
        loss=-float(log_p[np.arange(len(label)), label].mean()),
        train_loss=history[-1].train_loss,
        spread=float(np.mean([r.spread for r in history[-3:]])),
        n_rounds=len(history),
        n_needed=count_needed(history),
        head=trained.head,
    )


def count_needed(history: list[Round]) -> int:
    """Count the rounds after which the validation accuracy stays near its last."""
    far = [
        r.round
        for r in history
        if abs(r.validation_accuracy - history[-1].validation_accuracy) > NEAR
    ]
    return max(far, default=0) + 1


# --- bytes ----------------------------------------------------------------------------------------

PICTURES_PER_LIST = 8


@pytest.mark.timeout(3600)
def test_ten_lists_that_are_killed_end_in_the_bytes_of_undisturbed_ones(tmp_path: Path) -> None:
    """Each of ten lists has new, changed and removed images; its first run is killed."""
    pictures = tmp_path / "pictures"
    draw(pictures, COLOURS, 14)
    rng, took, n_killed = np.random.default_rng(0), 0.0, 0
    run = ("featurize", "--images", pictures, *CUT, "--out")
    disturbed = (*run, tmp_path / "killed", "--cluster.n-workers", "2")
    for k in range(N_LISTS + 1):
        if k:
            change_pictures(pictures, k)
            after = rng.uniform(0.3, 1.0) * took
            n_killed += (was_killed := kill_after(after, *disturbed))
            found = describe(tmp_path / "killed" / "features.zarr")
            print(
                f"list {k}: {after:.1f} of {took:.1f} s, killed: {was_killed}; {found}", flush=True
            )
        started = time.monotonic()
        done = command(*disturbed)
        assert done.returncode == 0, done.stderr
        took = time.monotonic() - started
        assert command(*run, tmp_path / "undisturbed", *THREADS).returncode == 0
        files = [contents(tmp_path / name / "features.zarr") for name in ("undisturbed", "killed")]
        assert files[0] == files[1]
    print(f"{n_killed} of {N_LISTS} were killed; all {len(files[0])} files are the same")
    assert n_killed >= N_LISTS // 2
    assert command(*run, tmp_path / "fresh").returncode == 0
    compacted = command("compact", "--model", tmp_path / "killed", "--out", tmp_path / "compacted")
    assert compacted.returncode == 0, compacted.stderr
    compare_stores(tmp_path / "compacted", tmp_path / "fresh", "block1_pool", most=1e-5)


def change_pictures(pictures: Path, k: int) -> None:
    """Add pictures of an old and of a new class, change one, and remove one."""
    rng = np.random.default_rng([1, k])

    def picture() -> bytes:
        return jpeg(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8))

    (pictures / f"class{k}").mkdir()
    for i in range(PICTURES_PER_LIST // 2):
        (pictures / "red" / f"new{k}-{i}.jpg").write_bytes(picture())
        (pictures / f"class{k}" / f"{i}.jpg").write_bytes(picture())
    (pictures / "blue" / f"{k}.jpg").write_bytes(picture())
    (pictures / "green" / f"{k}.jpg").unlink()


def kill_after(seconds: float, *arguments: object) -> bool:
    """Kill a command and its workers after so long; return whether it still ran."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dtl.pipeline", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda: not in_session(process.pid), "the workers to end")
        return True


def describe(folder: Path) -> str:
    """Say how far a killed run had come."""
    store = FeatureStore(str(folder))
    if store.is_growing:
        return "it was taking in the list"
    return f"{store.n_done} of {store.n_images} rows in {len(store.generations)} lists are done"


def compare_stores(found: Path, expected: Path, layer: str, most: float) -> None:
    """Print which files of two stores differ: the layer's alone, and by how much."""
    files = [contents(folder / "features.zarr") for folder in (found, expected)]
    assert files[0].keys() == files[1].keys()
    differ = [name for name, data in files[1].items() if data != files[0][name]]
    a, b = (
        FeatureStore.open(str(folder / "features.zarr")).read(layer) for folder in (found, expected)
    )
    largest = np.abs(b).max()
    relative = np.abs(a - b) / np.maximum(np.abs(b), 0.01 * largest)
    print(
        f"{len(differ)} of {len(files[1])} files differ: {differ[:4]}; {(a != b).mean():.2%} of "
        f"the features differ, by at most {np.abs(a - b).max() / largest:.2g} of the largest, and "
        f"{relative.max():.2g} of their own value where it is above 1 % of that",
        flush=True,
    )
    assert all(name.startswith(f"{layer}/c/") for name in differ)
    assert relative.max() <= most


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("engine", "precision", "most"),
    [
        ("tensorflow", "float32", 1e-4),
        ("tensorflow", "bfloat16", 0.1),
        ("openvino", "float32", 1e-4),
        ("openvino", "int8", 0.1),
    ],
)
def test_how_near_a_compacted_store_comes_to_a_fresh_one(
    data: Path, tmp_path: Path, engine: str, precision: str, most: float
) -> None:
    """On 100 photographs, which came in three lists."""
    names = sorted(p.relative_to(data / "caltech256") for p in (data / "caltech256").glob("*/*"))
    names = names[:: len(names) // 100][:100]
    network = os.environ.get("DTL_BENCH_INT8", "")
    if precision == "int8" and not network:
        pytest.skip("DTL_BENCH_INT8 names no network/int8.xml of a run")
    weights = ["--features.weights", data / "vgg16_imagenet_conv.npz"]
    run = [
        "featurize", "--images", tmp_path / "photographs", "--features.layers", LAYER,
        *(["--features.network", network] if precision == "int8" else weights),
        "--features.engine", engine, "--features.precision", precision,
        "--features.chunk-images", "16", *THREADS,
    ]  # fmt: skip
    for n in (45, 77, 100):
        for name in np.random.default_rng(0).permutation(len(names))[:n]:
            place = tmp_path / "photographs" / names[name]
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(data / "caltech256" / names[name])
        done = command(*run, "--out", tmp_path / "grown")
        assert done.returncode == 0, done.stderr
    done = command(*run, "--out", tmp_path / "fresh")
    assert done.returncode == 0, done.stderr
    done = command("compact", "--model", tmp_path / "grown", "--out", tmp_path / "compacted")
    assert done.returncode == 0, done.stderr
    print(f"{engine}, {precision}: ", end="")
    compare_stores(tmp_path / "compacted", tmp_path / "fresh", LAYER, most)


# --- time -----------------------------------------------------------------------------------------

N_TURNS = 2
N_MADE_UP = int(os.environ.get("DTL_BENCH_IMAGES", "30607"))


@dataclass(frozen=True)
class Cost:
    """Seconds of a command: of the clock, and of the processors that it and its workers used."""

    wall_s: float
    processor_s: float

    def __str__(self) -> str:
        return f"{self.wall_s:.1f} s, {self.processor_s:.1f} s of processor"


def measure(name: str, *arguments: object) -> Cost:
    def processor_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before, started = processor_s(), time.monotonic()
    done = command(*arguments)
    cost = Cost(time.monotonic() - started, processor_s() - before)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "as before" in line]
    print(f"{name}: {cost}; load {os.getloadavg()[0]:.1f}; {' '.join(said)}", flush=True)
    return cost


@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("source", ["made up", "photographs"])
def test_one_per_cent_more_costs_its_share(
    source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """1.5 % of the first run, and what one more image costs: listing, and a worker's start."""
    pictures = tmp_path / "pictures"
    if source == "made up":
        add = draw_made_up(pictures)
        settings = ["--features.layers", "block1_pool", "--features.weights", "random",
                    "--features.views", "96"]  # fmt: skip
    else:
        data = request.getfixturevalue("data")
        add = link_photographs(pictures, data / "caltech256")
        settings = ["--features.layers", LAYER, "--features.precision", "bfloat16",
                    "--features.weights", data / "vgg16_imagenet_conv.npz"]  # fmt: skip
    run = ("featurize", "--images", pictures, "--out", tmp_path / "out", *settings)
    n_more = len(add) // (100 + N_TURNS)
    costs: dict[str, list[Cost]] = {}

    def take(n: int, name: str) -> None:
        for _ in range(n):
            add.pop()()
        costs.setdefault(name, []).append(measure(f"{n} images {name}", *run))

    take(len(add) - N_TURNS * (n_more + 1), "at first")
    for _ in range(N_TURNS):  # in turn, for the machines are shared
        take(0, "more: nothing new")
        take(1, "more")
        take(n_more, "more: 1 %")
    for kind in ("wall_s", "processor_s"):
        first, nothing, start, more = (
            min(getattr(cost, kind) for cost in of_name) for of_name in costs.values()
        )
        print(
            f"{source}, {kind}: at first {first:.1f}, nothing new {nothing:.1f}, 1 more "
            f"{start:.1f}, 1 % more {more:.1f}: {(more - start) / first:.2%} and the start-up"
        )
        assert nothing < 5
    # Of the processors alone: what else the machine does moves a start by seconds.
    assert more <= 0.015 * first + start


Files = list[Callable[[], object]]


def draw_made_up(folder: Path) -> Files:
    """Return what writes each image of 257 classes."""
    rng = np.random.default_rng(0)

    def draw_one(k: int) -> None:
        place = folder / f"{k % 257:03}" / f"{k}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        place.write_bytes(jpeg(blocks.repeat(8, axis=0).repeat(8, axis=1)))

    return [functools.partial(draw_one, k) for k in range(N_MADE_UP)]


def link_photographs(folder: Path, root: Path) -> Files:
    def link(name: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(root / name)

    names = sorted(path.relative_to(root) for path in root.glob("*/*"))
    order = np.random.default_rng(0).permutation(len(names))
    return [functools.partial(link, names[k]) for k in order]
