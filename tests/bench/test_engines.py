"""OpenVINO in int8 against TensorFlow, and against its own bare loop, in one run: `make bench`.

VGG16 to fc2, from files to features in the store. All take turns, for the machines are shared; the
ratios are of the medians. Each engine and precision has a worker process of its own, which keeps
its network.
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import Client

from dtl import config
from dtl.cluster import connection
from dtl.features import extraction, featurization
from dtl.features.values import ExtractionSpec, FileSpec
from dtl.images import listing
from dtl.images.decoding import formats
from dtl.images.values import ImageList

N_IMAGES = int(os.environ.get("DTL_BENCH_IMAGES", "1536"))
N_TURNS = 2
WAYS = (("openvino", "int8"), ("tensorflow", "bfloat16"), ("tensorflow", "float32"))


def _bare_loop(how: FileSpec, root: str, paths: list[str]) -> float:
    """Images/s of OpenVINO alone, on a worker, from files to features; threads decode ahead."""
    import openvino

    core = openvino.Core()
    model = core.read_model(f"{how.url}.xml")
    model.reshape([how.batch_images, 224, 224, 3])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    n_threads = int(os.environ["TF_NUM_INTRAOP_THREADS"])
    compiled = core.compile_model(model, "CPU", settings | {"INFERENCE_NUM_THREADS": n_threads})
    pixels = np.zeros((how.batch_images, 224, 224, 3), np.uint8)
    compiled(pixels)

    def decode(path: str) -> np.ndarray:
        return formats.decode((Path(root) / path).read_bytes(), (224, 224))

    started = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        decoded = pool.map(decode, paths)
        for i in range(0, len(paths), how.batch_images):
            for k in range(min(how.batch_images, len(paths) - i)):
                pixels[k] = next(decoded)
            compiled(pixels)
    return len(paths) / (time.perf_counter() - started)


def _choose(data: Path, folder: Path) -> None:
    names = sorted(p.relative_to(data / "caltech256") for p in (data / "caltech256").glob("*/*"))
    for name in names[:: len(names) // N_IMAGES][:N_IMAGES]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(data / "caltech256" / name)


class _Way:
    """Featurize on one engine in one precision, on a worker of its own."""

    def __init__(self, client: Client, images: ImageList, spec: ExtractionSpec) -> None:
        self.client, self.images, self.spec = client, images, spec
        self.rates: list[float] = []
        self.cpu_s: list[float] = []
        started = time.perf_counter()
        self.extractor = extraction.prepare(client, spec, images=images)
        self.prepare_s = time.perf_counter() - started

    def run(self, url: str) -> None:
        before, started = self._cpu_s(), time.perf_counter()
        featurization.featurize(url, self.images, self.spec, self.client)
        self.rates.append(len(self.images) / (time.perf_counter() - started))
        self.cpu_s.append(self._cpu_s() - before)

    def _cpu_s(self) -> float:
        times = self.client.run(lambda: sum(psutil.Process().cpu_times()[:2]))
        return float(sum(times.values()))

    def pss_gib(self) -> float:
        found = self.client.run(lambda: psutil.Process().memory_full_info().pss)
        return float(sum(found.values())) / 2**30


@pytest.mark.timeout(3600)
def test_int8_is_twice_as_fast_as_bfloat16(data: Path, tmp_path: Path) -> None:
    _choose(data, tmp_path / "photographs")
    ways: dict[str, _Way] = {}
    bare: list[float] = []
    with ExitStack() as stack:
        for engine, precision in WAYS:
            c = config.build({
                "images": {"url": str(tmp_path / "photographs")},
                "features": {"weights": "random", "engine": engine, "precision": precision},
            })  # fmt: skip
            client = stack.enter_context(connection.connect(c.cluster))
            images = listing.list_images(c.images, c.seed)
            spec = ExtractionSpec(c.features, c.images, c.seed, str(tmp_path / "network"))
            ways[f"{engine} {precision}"] = _Way(client, images, spec)
        fast = ways["openvino int8"]
        for turn in range(N_TURNS):
            for name, way in ways.items():
                way.run(str(tmp_path / f"{name}-{turn}.zarr"))
            paths = [str(path) for path in fast.images.path]
            arguments = fast.extractor.network, fast.images.root, paths
            bare.append(fast.client.submit(_bare_loop, *arguments, pure=False).result())
        for name, way in ways.items():
            rate = statistics.median(way.rates)
            print(
                f"{name}: {rate:.2f} images/s ({min(way.rates):.2f} to {max(way.rates):.2f}), "
                f"{1000 * statistics.median(way.cpu_s) / len(way.images):.0f} ms of processor per "
                f"image; prepared in {way.prepare_s:.0f} s; worker {way.pss_gib():.2f} GiB PSS"
            )
    print(f"bare OpenVINO int8: {statistics.median(bare):.2f} ({min(bare):.2f} to {max(bare):.2f})")
    rates = {name: statistics.median(way.rates) for name, way in ways.items()}
    ours = rates["openvino int8"]
    print(f"int8 / bfloat16 on TensorFlow = {ours / rates['tensorflow bfloat16']:.2f}")
    print(f"int8 / float32 on TensorFlow = {ours / rates['tensorflow float32']:.2f}")
    print(f"int8 / its bare loop = {ours / statistics.median(bare):.3f}")
    assert ours >= 0.97 * statistics.median(bare)
    assert ours >= 1.9 * rates["tensorflow bfloat16"]
    assert ours >= 3.7 * rates["tensorflow float32"]


@pytest.mark.timeout(3600)
def test_what_a_worker_needs(data: Path, tmp_path: Path) -> None:
    """Start-up and memory of a worker, each of its own cluster; the converted network is there."""
    _choose(data, tmp_path / "photographs")
    print("\n| engine, precision | until loaded, s | processor, s | PSS after the images, GiB |")
    print("|---|---|---|---|")
    memory: dict[tuple[str, str], float] = {}
    for turn in range(2):  # the first converts, and quantizes
        for engine, precision in (*WAYS, ("openvino", "bfloat16")):
            c = config.build({
                "images": {"url": str(tmp_path / "photographs")},
                "features": {"weights": "random", "engine": engine, "precision": precision},
            })  # fmt: skip
            images = listing.list_images(c.images, c.seed)
            spec = ExtractionSpec(c.features, c.images, c.seed, str(tmp_path / "network"))
            with connection.connect(c.cluster) as client:
                way = _Way(client, images, spec)
                cpu_s = way._cpu_s()
                if turn:
                    way.run(str(tmp_path / f"{engine}-{precision}.zarr"))
                    memory[engine, precision] = way.pss_gib()
                    print(
                        f"| {engine}, {precision} | {way.prepare_s:.1f} | {cpu_s:.1f} | "
                        f"{way.pss_gib():.2f} |"
                    )
    assert memory["openvino", "int8"] < memory["tensorflow", "float32"]
