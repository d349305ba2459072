"""Memory of a worker and of the driver, training on a store that stays where it is: `make bench`.

`DTL_BENCH_ROWS=1000000` is the whole bar: 8 GB of disk, and some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

N_ROWS = int(os.environ.get("DTL_BENCH_ROWS", "100000"))
N_FEATURES, N_CLASSES = 4096, 257

WRITE = """
import sys
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from dtl.feature_store import FeatureStore
from dtl.types import ImageList

url, n, n_features, n_classes = sys.argv[1], *map(int, sys.argv[2:])
rng = np.random.default_rng(0)
label = rng.integers(0, n_classes, n).astype(np.int32)
listed = ImageList(
    root="/nowhere",
    path=np.array([f"{k:03d}/{i:07d}.jpg" for i, k in enumerate(label)], np.dtypes.StringDType()),
    label=label,
    given_split=np.full(n, -1, np.int8),
    size_bytes=np.ones(n, np.int64),
    class_names=tuple(f"class {k}" for k in range(n_classes)),
)
store = FeatureStore.create(
    url, listed, {"fc2": n_features}, dtype="float16", chunk_images=256,
    attrs={"settings": {"made": "by a benchmark"}, "weights_sha256": "0", "weights": "random"},
)
centres = rng.standard_normal((n_classes, n_features), np.float32)

def write(chunk):
    rows = store.rows(chunk)
    k = label[rows]
    x = np.random.default_rng([1, chunk]).standard_normal((len(k), n_features), np.float32) * 8
    x += centres[k]
    store.write_chunk(chunk, {"fc2": x.astype(np.float16)}, np.arange(rows.start, rows.stop,
                      dtype=np.uint64), [""] * len(k))

with ThreadPoolExecutor(2) as pool:
    list(pool.map(write, range(store.n_chunks)))
store.write_split(rng.choice(3, n, p=(0.8, 0.1, 0.1)).astype(np.int8), {"made": "by a benchmark"})
"""

TRAIN = """
import json, sys, time
import numpy as np
from dtl import cluster, config, trainer
from dtl.feature_store import FeatureStore

def peak():
    # Of this program: getrusage counts what was there before exec, too.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

if __name__ == "__main__":
    c = config.build({
        "cluster": {"memory_limit": "2GiB"},
        "train": {"epochs": 1, "features_in": "store", "validate_every": 1_000_000},
    })
    store = FeatureStore.open(sys.argv[1])
    with cluster.connect(c.cluster) as client:
        started = time.monotonic()
        head, history = trainer.train(
            store, c.train, "fc2", 0, client, checkpoint=sys.argv[1] + ".checkpoint.npz"
        )
        seconds = time.monotonic() - started
        workers = list(client.run(peak).values())
    print(json.dumps({
        "seconds": seconds, "workers": workers, "driver": peak(), "rounds": len(history),
        "rounds_s": sum(r.step_s + r.average_s + r.wait_s for r in history[1:]),
        "accuracy": history[-1].validation_accuracy,
    }))
"""


def run(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_memory_while_features_stay_in_the_store(tmp_path: Path) -> None:
    url = tmp_path / "features.zarr"
    run(WRITE, url, N_ROWS, N_FEATURES, N_CLASSES)
    (tmp_path / "train.py").write_text(TRAIN)
    done = subprocess.run(
        [sys.executable, tmp_path / "train.py", url], stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{N_ROWS} x {N_FEATURES} float16, {N_CLASSES} classes, one epoch:"
        f" {found['seconds']:.0f} s, {found['rounds']} rounds in {found['rounds_s']:.0f} s;"
        f" worker's peak {max(found['workers']) / 2**20:.0f} MiB,"
        f" driver's {found['driver'] / 2**20:.0f} MiB;"
        f" validation {found['accuracy']:.1%}"
    )
    assert max(found["workers"]) < 2 * 2**30
    assert found["driver"] < 500 * 2**20
    assert found["accuracy"] > 10 / N_CLASSES
