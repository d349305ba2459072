"""Memory of a worker at fc2, and of the driver for each listed image: `make bench`."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import psutil

from dtl import config
from dtl.cluster import connection
from dtl.features import featurization
from dtl.features.values import ExtractionSpec
from dtl.images import listing

LISTED = """
import json, sys, tracemalloc
import fsspec
from dtl import config
from dtl.features.values import ExtractionSpec
from dtl.images import listing, split

n = int(sys.argv[1])
fs = fsspec.filesystem("memory")
for i in range(n):
    fs.pipe_file(f"/photographs/{i % 100:03d}.class/{i % 100:03d}_{i:07d}.jpg", b"x")
c = config.build({"images": {"url": "memory://photographs"}})
tracemalloc.start()
listed = listing.list_images(c.images, 0)
split.assign_splits(listed, c.split, 0)
ExtractionSpec(c.features, c.images).fingerprint(listed)
now, peak = tracemalloc.get_traced_memory()
print(json.dumps([now, peak]))
"""


def test_driver_memory_for_each_listed_image() -> None:
    peaks = {}
    for n in (1_000, 100_000):
        done = subprocess.run(
            [sys.executable, "-c", LISTED, str(n)], capture_output=True, text=True, check=True
        )
        kept, peaks[n] = json.loads(done.stdout)
        print(f"{n} listed images: {kept / n:.0f} bytes each kept, {peaks[n] / n:.0f} at the peak")
    per_image = (peaks[100_000] - peaks[1_000]) / 99_000
    print(f"each further image: {per_image:.0f} bytes at the peak")
    assert peaks[100_000] / 100_000 <= 1024
    assert per_image <= 1024


def test_worker_memory_does_not_grow_with_the_images(data: Path, tmp_path: Path) -> None:
    names = sorted((data / "caltech256").glob("*/*"))
    peaks = {}
    for n in (128, 512):
        few = tmp_path / f"{n}"
        for path in names[:: len(names) // n][:n]:
            link = few / path.relative_to(data / "caltech256")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        c = config.build(
            {"images": {"url": str(few)}, "features": {"weights": "random", "chunk_images": 64}}
        )
        listed = listing.list_images(c.images, c.seed)
        with connection.connect(c.cluster) as client:
            featurization.featurize(
                str(tmp_path / f"{n}.zarr"), listed, ExtractionSpec(c.features, c.images), client
            )
            (peaks[n],) = client.run(_peak_bytes).values()
        print(f"{n} images at fc2: the worker's peak is {peaks[n] / 2**30:.2f} GiB")
    print(f"driver now: {psutil.Process().memory_info().rss / 2**20:.0f} MiB")
    assert max(peaks.values()) < 3 * 2**30
    assert peaks[512] - peaks[128] < 200 * 2**20


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
