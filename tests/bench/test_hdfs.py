"""Featurize with images and results on HDFS against a local disk, in one run: `make bench`."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from minicluster import MiniCluster

from dtl import config, storage
from dtl.cluster import connection
from dtl.features import extraction, featurization
from dtl.features.values import ExtractionSpec
from dtl.images import listing

N_IMAGES = 768
N_TURNS = 3


def test_hdfs_is_as_fast_as_a_local_disk(data: Path, tmp_path: Path, hadoop: MiniCluster) -> None:
    names = sorted(p.relative_to(data / "caltech256") for p in (data / "caltech256").glob("*/*"))
    places = {"disk": str(tmp_path), "hdfs": f"{hadoop.url}/bench"}
    for name in names[:: len(names) // N_IMAGES][:N_IMAGES]:
        for place in places.values():
            storage.write_bytes(
                f"{place}/photographs/{name}", (data / "caltech256" / name).read_bytes()
            )
    speed: dict[str, list[float]] = {place: [] for place in places}
    options = {"weights": "random"}
    c = config.build({"features": options})
    with connection.connect(c.cluster) as client:
        spec = ExtractionSpec(c.features, c.images)
        extraction.prepare(client, spec)
        for turn in range(N_TURNS):
            for name, place in places.items():
                c = config.build({"features": options, "images": {"url": f"{place}/photographs"}})
                listed = listing.list_images(c.images, c.seed)
                started = time.perf_counter()
                url = f"{place}/{turn}.zarr"
                featurization.featurize(url, listed, spec, client)
                speed[name].append(len(listed) / (time.perf_counter() - started))
            print(f"turn {turn}:", {name: round(s[-1], 2) for name, s in speed.items()}, "images/s")
    ratio = statistics.median(speed["hdfs"]) / statistics.median(speed["disk"])
    print(f"HDFS / local disk = {ratio:.3f}")
    assert ratio >= 0.95
