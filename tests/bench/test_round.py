"""What a local step and a round of averaging cost beside what must be paid: `make bench`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import rectified_store

from dtl import config
from dtl.cluster import connection
from dtl.cluster.spread import Session
from dtl.config import TrainConfig
from dtl.head.schedules import Plan
from dtl.training import trainer
from dtl.training.rounds import run
from dtl.training.spec import TrainingSpec
from dtl.training.values import Round

N_TURNS = 5

STEPS = """
import statistics, sys, time
import numpy as np
import tensorflow as tf
from dtl.config import TrainConfig
from dtl.head.blas import one_blas_thread
from dtl.head.descent import descend
from dtl.head.schedules import Steps

N_FEATURES, N_CLASSES, BATCH, N_STEPS, N_TURNS = 4096, 257, 32, 50, 9
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
rng = np.random.default_rng(0)
x = np.maximum(rng.normal(size=(2048, N_FEATURES)), 0).astype("f4")
y = rng.integers(0, N_CLASSES, len(x)).astype("i4")
settings = TrainConfig(learning_rate=0.01, l2=float(sys.argv[1]))
order = np.random.default_rng(1).permutation(len(x))
batches = [order[i * BATCH % 2016 :][:BATCH] for i in range(N_STEPS)]

kernel, bias = (tf.Variable(tf.zeros(s)) for s in ((N_FEATURES, N_CLASSES), (N_CLASSES,)))
velocities = [tf.Variable(tf.zeros_like(v)) for v in (kernel, bias)]

@tf.function
def step(features, labels):
    logits = features @ kernel + bias
    residual = (tf.nn.softmax(logits) - tf.one_hot(labels, N_CLASSES)) / BATCH
    gradient = tf.matmul(features, residual, transpose_a=True)
    if settings.l2:
        gradient += settings.l2 * kernel
    gradients = gradient, tf.reduce_sum(residual, 0)
    # TensorFlow's own kernel: momentum and Nesterov's step in one pass.
    for variable, velocity, gradient in zip((kernel, bias), velocities, gradients):
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle, accum=velocity.handle, lr=settings.learning_rate,
            grad=gradient, momentum=settings.momentum, use_nesterov=True,
        )

def theirs():
    for rows in batches:
        step(x[rows], y[rows])
    return kernel.numpy()

params = {"kernel": np.zeros((N_FEATURES, N_CLASSES), "f4"), "bias": np.zeros(N_CLASSES, "f4")}

def ours():
    global params
    steps = Steps(settings, ((settings.learning_rate,),) * N_STEPS, (settings.l2,))
    params, _ = descend(params, x, y, batches, steps)
    return params["kernel"]

with one_blas_thread():
    assert np.allclose(ours(), theirs(), atol=1e-4)  # the same steps
    times = {ours: [], theirs: []}
    for _ in range(N_TURNS):
        for turn in times:
            started = time.perf_counter()
            turn()
            times[turn].append((time.perf_counter() - started) / N_STEPS)
a, b = (statistics.median(times[turn]) for turn in (ours, theirs))
print(f"l2 {settings.l2:g}: a step {1e3 * a:.2f} ms, tf.function {1e3 * b:.2f} ms")
print(a / b)
"""


@pytest.mark.parametrize("l2", [0.01, 0.0])
def test_a_step_is_near_the_fastest_known(l2: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(l2)], stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    *said, ratio = done.stdout.splitlines()
    print(*said, sep="\n")
    print(f"step / tf.function = {float(ratio):.2f}")
    assert float(ratio) <= 1.3


@pytest.mark.parametrize(("n_features", "n_classes"), [(4096, 257), (512, 19)])
def test_a_round_costs_little_beside_its_steps(
    tmp_path: Path, n_features: int, n_classes: int
) -> None:
    """What a round of ten steps takes less what they take in the task that is last."""
    store = rectified_store(str(tmp_path / "features.zarr"), 4096, n_features, n_classes)
    n_rounds = 60
    settings = TrainConfig(n_shards=8, batch_size=32)
    c = config.build({"cluster": {"n_workers": 1, "threads_per_worker": 2}})
    with connection.connect(c.cluster) as client:
        session = Session(client)
        inputs = trainer.prepare(TrainingSpec(store, settings, "fc2", 0), session)
        per_epoch = -(-int(inputs.n_train.max()) // settings.batch_size)
        epochs = n_rounds * settings.averaging_frequency / per_epoch
        plan = Plan.make(inputs.n_train, replace(settings, epochs=epochs), 0)
        rounds: list[Round] = []
        for _ in range(N_TURNS):
            rounds += run(inputs, plan, Session(client), show=False).history[5:]
    average, wait, step = (
        1e3 * statistics.median(getattr(r, name) for r in rounds)
        for name in ("average_s", "wait_s", "step_s")
    )
    overhead = 1e3 * statistics.median(r.average_s + r.wait_s for r in rounds)
    print(
        f"\n{inputs.n_train.sum()} rows of {n_features}, {n_classes} classes, 8 shards on 2 "
        f"threads: a round's steps {step:.1f} ms, all else {overhead:.1f} ms (averages "
        f"{average:.1f}, wait {wait:.1f})"
    )
    assert overhead < 25
