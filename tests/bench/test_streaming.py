"""Memory of a worker and of the driver, training on a store that stays where it is: `make bench`.

`DTL_BENCH_ROWS=1000000` is the whole bar: 8 GB of disk, and some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from helpers import write_store

N_ROWS = int(os.environ.get("DTL_BENCH_ROWS", "100000"))
N_FEATURES, N_CLASSES = 4096, 257

TRAIN = """
import json, sys, time
import numpy as np
from dtl import config
from dtl.cluster import connection
from dtl.features.store import FeatureStore
from dtl.training import trainer
from dtl.training.spec import TrainingSpec

def peak():
    # Of this program: getrusage counts what was there before exec, too.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

if __name__ == "__main__":
    c = config.build({
        "cluster": {"memory_limit": "2GiB"},
        "train": {"epochs": 1, "features_in": "store"},
    })
    store = FeatureStore.open(sys.argv[1])
    with connection.connect(c.cluster) as client:
        started = time.monotonic()
        spec = TrainingSpec(store, c.train, "fc2", 0)
        checkpoint = sys.argv[1] + ".checkpoint.npz"
        history = trainer.train(spec, client, checkpoint=checkpoint).history
        seconds = time.monotonic() - started
        workers = list(client.run(peak).values())
    print(json.dumps({
        "seconds": seconds, "workers": workers, "driver": peak(), "rounds": len(history),
        "rounds_s": sum(r.step_s + r.average_s + r.wait_s for r in history[1:]),
        "accuracy": history[-1].validation_accuracy,
    }))
"""


def write(url: str) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, N_CLASSES, N_ROWS)
    centres = rng.standard_normal((N_CLASSES, N_FEATURES), np.float32)

    def features(chunk: int, rows: slice) -> np.ndarray:
        shape = len(label[rows]), N_FEATURES
        noise = np.random.default_rng([1, chunk]).standard_normal(shape, np.float32)
        return 8 * noise + centres[label[rows]]

    split = rng.choice(3, N_ROWS, p=(0.8, 0.1, 0.1))
    write_store(url, label, features, split, chunk_images=256, dtype="float16")


def test_memory_while_features_stay_in_the_store(tmp_path: Path) -> None:
    url = str(tmp_path / "features.zarr")
    write(url)
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
