from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Any

import dask
import dask.array as da
import joblib
import numpy as np
import pytest
from dask_ml import model_selection as dask_ml_selection
from dask_ml.wrappers import ParallelPostFit
from distributed import Client
from helpers import local_cluster
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from dtl import SoftmaxRegression
from dtl.config import TrainConfig
from dtl.training.estimator import _NOT_OF_ARRAYS

Rows = tuple[np.ndarray, np.ndarray]


@pytest.fixture(autouse=True)
def _client(request: pytest.FixtureRequest) -> Iterator[None]:
    """The estimators of all tests find the same two workers, or the test's own."""
    own = "one_thread" if "one_thread" in request.fixturenames else "threads"
    with request.getfixturevalue(own).as_current():
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return tuple(train_test_split(x, y, random_state=0, test_size=0.4))


def blobs(
    n: int = 300, n_classes: int = 3, n_features: int = 5, dtype: str = "float64", seed: int = 0
) -> Rows:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    centres = 2 * rng.normal(size=(n_classes, n_features))
    return (centres[y] + rng.normal(size=(n, n_features))).astype(dtype), y


@parametrize_with_checks([SoftmaxRegression(n_shards=2, epochs=20.0, learning_rate=0.1)])
def test_scikit_learns_checks(estimator: SoftmaxRegression, check: partial[None]) -> None:
    check(estimator)


def test_parameters_are_the_options_of_training() -> None:
    defaults = {spec.name: spec.default for spec in fields(TrainConfig)}
    assert defaults.keys() >= _NOT_OF_ARRAYS
    parameters = SoftmaxRegression().get_params()
    assert parameters.pop("random_state") == 0
    assert parameters.pop("client") is None
    assert parameters.pop("verbose") is False
    assert parameters == {k: v for k, v in defaults.items() if k not in _NOT_OF_ARRAYS}
    with pytest.raises(TypeError, match="learning_rat"):
        SoftmaxRegression(learning_rat=0.1)


def test_options_are_checked_by_fit() -> None:
    with pytest.raises(ValueError, match=r"learning_rate must be above 0\. Received: -1\.0"):
        SoftmaxRegression(learning_rate=-1.0).fit(*blobs())
    SoftmaxRegression(l2=np.logspace(-2, -1, 2)[0], n_shards=np.int64(2), epochs=1).fit(*blobs())


@pytest.mark.parametrize("l2", [0.1, 0.01])
def test_comes_within_a_point_of_logistic_regression(digits: Any, l2: float) -> None:
    x, x_test, y, y_test = digits
    exact = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (l2 * len(y)), max_iter=5000))
    best = exact.fit(x, y).score(x_test, y_test)
    model = SoftmaxRegression(
        l2=l2, n_shards=2, epochs=100.0, averaging_frequency=30, learning_rate=0.1
    ).fit(x, y)
    assert 0.9 < best < 0.99
    assert abs(model.score(x_test, y_test) - best) <= 0.01
    assert model.n_iter_ == len(model.history_) == model.history_[-1].round


def test_the_exact_solver_is_logistic_regression(digits: Any) -> None:
    x, x_test, y, _ = digits
    exact = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (0.01 * len(y)), max_iter=5000, tol=1e-8)
    ).fit(x, y)
    model = SoftmaxRegression(solver="lbfgs").fit(x, y)
    assert np.abs(model.predict_proba(x) - exact.predict_proba(x)).max() < 2e-3
    assert (model.predict(x_test) == exact.predict(x_test)).mean() > 0.995


@pytest.mark.slow
@pytest.mark.parametrize("normalize", ["l2", "sqrt-l2"])
def test_rows_of_unit_length_are_scikit_learns(digits: Any, normalize: str) -> None:
    x, x_test, y, _ = digits
    x = np.concatenate([x, np.zeros((1, 64))])  # a picture without ink
    y = np.append(y, 0)
    root = FunctionTransformer(np.sqrt if normalize == "sqrt-l2" else None)
    unit = make_pipeline(root, Normalizer())
    scale = np.sqrt(unit.fit_transform(x).var(axis=0).mean())  # of all features, one number
    exact = make_pipeline(
        unit, FunctionTransformer(lambda rows: rows / scale),
        LogisticRegression(C=1 / (0.01 * len(y)), max_iter=5000, tol=1e-8),
    ).fit(x, y)  # fmt: skip
    model = SoftmaxRegression(solver="lbfgs", normalize=normalize).fit(x, y)
    assert np.abs(model.predict_proba(x) - exact.predict_proba(x)).max() < 2e-3
    assert (model.predict(x_test) == exact.predict(x_test)).mean() > 0.995
    lazy = model.predict_proba(da.from_array(x_test, chunks=(100, 32)))
    assert np.allclose(lazy.compute(), model.predict_proba(x_test))
    defaults = SoftmaxRegression(n_shards=2, normalize=normalize).fit(x, y)
    assert np.abs(defaults.predict_proba(x) - exact.predict_proba(x)).mean() < 0.01


def test_coefficients_are_of_the_features_as_given() -> None:
    x, y = blobs(dtype="float32")
    x = x * np.float32(50) + np.arange(5, dtype=np.float32)
    x[:, 2] = 7  # constant
    model = SoftmaxRegression(epochs=5.0).fit(x, y)
    assert model.coef_.shape == (3, 5)
    assert model.intercept_.shape == (3,)
    logits = x @ model.coef_.T + model.intercept_
    assert np.allclose(model.decision_function(x), logits)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(model.predict_proba(x), p)
    assert np.array_equal(model.predict(x), logits.argmax(axis=1))
    # Training went on standardised features: any affine change of them is the same problem.
    moved = SoftmaxRegression(epochs=5.0).fit((x - 7) * 8, y)
    assert np.allclose(moved.coef_ * 8, model.coef_, rtol=1e-3, atol=1e-6)


def test_features_far_from_zero_keep_their_digits() -> None:
    x, y = blobs()
    near, far = SoftmaxRegression(epochs=5.0).fit(x, y), SoftmaxRegression(epochs=5.0)
    assert np.float32(1e6 + 0.03) == 1e6
    assert np.allclose(far.fit(x + 1e6, y).coef_, near.coef_, rtol=1e-4, atol=1e-5)


def test_two_classes_have_one_decision() -> None:
    x, y = blobs(n_classes=2)
    model = SoftmaxRegression(epochs=5.0).fit(x, np.array(["no", "yes"])[y])
    decision = model.decision_function(x)
    assert decision.shape == (300,)
    assert np.allclose(model.predict_proba(x)[:, 1], 1 / (1 + np.exp(-decision)))
    assert np.array_equal(model.predict(x), np.where(decision > 0, "yes", "no"))
    lazy = model.decision_function(da.from_array(x, chunks=100))
    assert np.allclose(lazy.compute(), decision)


def as_dask(x: np.ndarray, y: np.ndarray) -> tuple[da.Array, da.Array]:
    return da.from_array(x, chunks=(60, 2)), da.from_array(y, chunks=100)


def test_dask_arrays_train_and_predict_lazily() -> None:
    x, y = blobs()
    names = np.array(["ant", "bee", "caterpillar"])[y]
    rows, labels = as_dask(x, names)
    model = SoftmaxRegression(epochs=10.0).fit(rows, labels)
    assert model.n_features_in_ == 5
    assert len(model.history_[0].shard_loss) == 5  # one for every block
    assert model.classes_.tolist() == ["ant", "bee", "caterpillar"]
    for method in ("predict", "predict_proba", "decision_function"):
        lazy, expected = getattr(model, method)(rows), getattr(model, method)(x)
        assert isinstance(lazy, da.Array)
        assert lazy.shape == expected.shape
        assert lazy.dtype == expected.dtype
        computed = lazy.compute()
        assert np.array_equal(computed, expected) or np.allclose(computed, expected, rtol=1e-12)
    assert model.score(rows, labels) == model.score(x, names) > 0.9
    assert model.score(rows, names) == model.score(x, labels) == model.score(x, names)
    weights = np.arange(300.0)
    assert model.score(rows, labels, weights) == model.score(x, names, weights)


def test_labels_and_sizes_of_blocks_come_in_any_form() -> None:
    x, y = blobs()
    rows, labels = as_dask(x, y)
    expected = SoftmaxRegression(epochs=3.0).fit(rows, labels).coef_
    unknown = rows.rechunk((60, 5))[da.ones(300, chunks=60, dtype=bool)]
    unknown_labels = labels.rechunk(60)[da.ones(300, chunks=60, dtype=bool)]
    assert np.isnan(unknown.shape[0])
    for pair in (
        (rows, y),
        (rows, y.tolist()),
        (unknown, y),
        (unknown, unknown_labels),
        (rows, unknown_labels),
        (unknown, labels.rechunk(60)),
    ):
        assert np.array_equal(SoftmaxRegression(epochs=3.0).fit(*pair).coef_, expected)
    model = SoftmaxRegression(epochs=3.0).fit(x, labels)
    assert model.predict(unknown).compute().shape == (300,)
    assert model.predict_proba(unknown).compute().shape == (300, 3)


def test_empty_blocks_are_harmless() -> None:
    x, y = blobs()
    rows = da.concatenate([da.from_array(x, chunks=(100, 5)), da.zeros((0, 5))])
    model = SoftmaxRegression(epochs=3.0).fit(rows, y)
    assert model.score(x, y) > 0.8
    keep = da.from_array(np.arange(300) >= 100, chunks=100)
    filtered, labels = da.from_array(x, chunks=(100, 5))[keep], da.from_array(y, chunks=100)[keep]
    model = SoftmaxRegression(epochs=3.0).fit(filtered, labels)
    assert model.score(x, y) > 0.8


def test_equals_the_same_blocks_as_float32_when_they_are_float32() -> None:
    x, y = blobs(dtype="float32")
    one = SoftmaxRegression(epochs=3.0).fit(*as_dask(x, y))
    again = SoftmaxRegression(epochs=3.0).fit(*as_dask(x.copy(), y.astype("int8")))
    assert np.array_equal(one.coef_, again.coef_)


def test_scikit_learn_fits_its_temperature(one_thread: Client) -> None:
    x, y = load_iris(return_X_y=True)
    model = SoftmaxRegression(client=one_thread, epochs=20, l2=0.0)
    sure = CalibratedClassifierCV(model, method="temperature", cv=2, ensemble=False).fit(x, y)
    assert sure.calibrated_classifiers_[0].calibrators[0].beta_ != 1
    assert sure.score(x, y) >= 0.9


def test_the_seed_orders_the_rows() -> None:
    x, y = blobs()

    def coef(random_state: Any) -> np.ndarray:
        return SoftmaxRegression(epochs=2.0, random_state=random_state).fit(x, y).coef_

    assert np.array_equal(coef(3), coef(np.int64(3)))
    assert np.array_equal(coef(np.random.RandomState(3)), coef(np.random.RandomState(3)))
    assert not np.array_equal(coef(3), coef(4))
    assert not np.array_equal(coef(None), coef(None))


def test_rows_sorted_by_class_are_shuffled() -> None:
    x, y = blobs(n=1200)
    order = np.argsort(y)
    model = SoftmaxRegression(n_shards=4, epochs=20.0).fit(x[order], y[order])
    assert max(model.history_[0].shard_loss) < 1.5 * min(model.history_[0].shard_loss)


@pytest.mark.slow
def test_same_bits_on_any_workers(threads: Client, one_thread: Client) -> None:
    x, y = blobs(n=900, n_features=40)

    def train(client: Client) -> list[SoftmaxRegression]:
        return [
            SoftmaxRegression(n_shards=4, epochs=5.0, client=client).fit(*data)
            for data in ((x, y), as_dask(x, y))
        ]

    with local_cluster(n_workers=4) as cluster, Client(cluster) as four:
        two, one, more = (train(client) for client in (threads, one_thread, four))
    for models in zip(two, one, more, strict=True):
        assert all(np.array_equal(model.coef_, models[0].coef_) for model in models)
        assert all(np.array_equal(model.intercept_, models[0].intercept_) for model in models)


@pytest.mark.slow
def test_starts_threads_where_no_client_is_and_stops_them() -> None:
    code = """
import contextlib, socket
import numpy as np
from distributed import Client
from dtl import SoftmaxRegression
with contextlib.suppress(OSError):  # Dask's usual port is taken, by us or by others
    taken = socket.create_server(("", 8787))
x = np.random.default_rng(0).normal(size=(200, 3))
model = SoftmaxRegression(epochs=2.0).fit(x, x[:, 0] > 0)
print(model.score(x, x[:, 0] > 0) > 0.8)
try:
    Client.current()
except ValueError:
    print("none left")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["True", "none left"]


def test_the_package_imports_neither_scikit_learn_nor_dask() -> None:
    code = "import dtl, sys; print({'sklearn', 'dask', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="no attribute 'Softmax'"):
        __import__("dtl").Softmax  # noqa: B018


@pytest.fixture(scope="module")
def one_thread() -> Iterator[Client]:
    """A worker process of one thread: a task that waits for another there waits forever."""
    with local_cluster(processes=True) as cluster, Client(cluster) as client:
        yield client


def fit_in_task(x: np.ndarray, y: np.ndarray, dask_arrays: bool) -> np.ndarray:
    data = as_dask(x, y) if dask_arrays else (x, y)
    model = SoftmaxRegression(epochs=2.0, n_shards=2).fit(*data)
    assert model.score(*data) > 0.5
    return model.coef_


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dask_arrays", [False, True])
def test_a_task_that_fits_makes_room_for_its_own(one_thread: Client, dask_arrays: bool) -> None:
    x, y = blobs()
    futures = [
        one_thread.submit(fit_in_task, x, y, dask_arrays, pure=False) for _ in range(3)
    ]  # fmt: skip
    expected = fit_in_task(x, y, dask_arrays)
    for future in futures:
        assert np.array_equal(future.result(), expected)


@pytest.mark.timeout(120)
def test_grid_search_on_the_cluster(one_thread: Client) -> None:
    x, y = blobs()
    grid = {"softmaxregression__l2": np.logspace(-3, 1, 2)}
    model = make_pipeline(StandardScaler(), SoftmaxRegression(epochs=3.0, n_shards=2))
    alone = GridSearchCV(model, grid, cv=2).fit(x, y)
    with joblib.parallel_config("dask", client=one_thread):
        search = GridSearchCV(model, grid, cv=2).fit(x, y)
    assert search.best_params_ == alone.best_params_
    expected = alone.cv_results_["mean_test_score"]
    assert np.array_equal(search.cv_results_["mean_test_score"], expected)
    assert search.best_estimator_[-1].n_iter_ > 0


@pytest.mark.timeout(120)
def test_dask_mls_grid_search(one_thread: Client) -> None:
    x, y = blobs()
    model = SoftmaxRegression(epochs=3.0, n_shards=2)
    search = dask_ml_selection.GridSearchCV(model, {"l2": [0.001, 10.0]}, cv=2).fit(x, y)
    assert search.best_params_ == {"l2": 0.001}
    assert search.score(x, y) > 0.8


@pytest.mark.timeout(120)
def test_dask_mls_parallel_post_fit(one_thread: Client) -> None:
    x, y = blobs()
    model = ParallelPostFit(estimator=SoftmaxRegression(epochs=3.0, n_shards=2)).fit(x, y)
    rows, _ = as_dask(x, y)
    rows = rows.rechunk((60, 5))
    inner = model.estimator_ if hasattr(model, "estimator_") else model.estimator
    assert np.array_equal(model.predict(rows).compute(), inner.predict(x))
    assert np.allclose(model.predict_proba(rows).compute(), inner.predict_proba(x), rtol=1e-12)


def test_copies_go_without_the_client_and_clones_share_it(threads: Client) -> None:
    model = SoftmaxRegression(epochs=2.0, client=threads).fit(*blobs())
    assert clone(model).client is threads
    assert clone(model).epochs == 2.0
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin.client is None
        assert np.array_equal(twin.coef_, model.coef_)
    assert model.client is threads


X, Y = blobs()
ROWS = da.from_array(X, chunks=(60, 5))
NAN = np.where(np.arange(300)[:, None] == 130, np.nan, X)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (ROWS, Y[:299], "X has 300 rows, and y 299 labels"),
        (ROWS, da.from_array(Y[:299], chunks=60), "X has 300 rows, and y 299 labels"),
        (ROWS, None, "a label for every row"),
        (ROWS, da.from_array(Y[:, None], chunks=60), r"y must be \(n_rows,\). Received: 2 axes"),
        (ROWS, np.zeros(300, int), "two classes or more. Received: 1 class in 300 rows"),
        (ROWS, Y + 0.5, "Unknown label type"),
        (ROWS[:, 0], Y, r"X must be \(n_rows, n_features\). Received: 1 axes"),
        (ROWS.astype(complex), Y, "real numbers. Received: dtype complex128"),
        (ROWS[ROWS[:, 0] > 0], Y, "rows, and y 300 labels"),
        (ROWS[ROWS[:, 0] > 0], da.from_array(Y, chunks=30), "5 blocks and y 10, of unknown sizes"),
        (ROWS[ROWS[:, 0] > 0], da.from_array(Y, chunks=60), "Block . of X has"),
        (ROWS[:0], Y[:0], "two classes or more. Received: 0 class in 0 rows"),
        (da.from_array(NAN, chunks=(60, 5)), Y, "NaN or infinity in block 2"),
        (X, np.zeros(300, int), "two classes or more. Received: 1 class in 300 rows"),
        (NAN, Y, "NaN"),
    ],
)
def test_bad_arrays_are_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(epochs=1.0).fit(x, y)


def test_more_shards_than_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="n_shards = 9, but X has 5 blocks"):
        SoftmaxRegression(n_shards=9).fit(ROWS, Y)
    with pytest.raises(ValueError, match="n_shards = 301, but X has 300 blocks"):
        SoftmaxRegression(n_shards=301).fit(X, Y)
    assert len(SoftmaxRegression(n_shards=9, epochs=1.0).fit(X, Y).history_[0].shard_loss) == 9


def test_frames_are_refused() -> None:
    frame = dask.delayed(X)
    with pytest.raises(TypeError, match=r"Received: Delayed.*\. Use its to_dask_array"):
        SoftmaxRegression().fit(frame, Y)


def test_a_diverging_learning_rate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Lower `train\.learning_rate`"):
        SoftmaxRegression(learning_rate=1e30, epochs=5.0, l2=0.1).fit(X, Y)


@pytest.mark.parametrize("solver", ["averaging", "lbfgs"])
def test_says_how_far_it_is_only_if_asked(
    solver: str, threads: Client, caplog: pytest.LogCaptureFixture
) -> None:
    model = SoftmaxRegression(solver=solver, epochs=2, l2=0.1)
    with caplog.at_level("INFO", "dtl"):
        model.fit(*blobs())
        assert not caplog.messages
        model.set_params(verbose=True).fit(*blobs())
    assert any(line.startswith(("training: ", "L-BFGS: ")) for line in caplog.messages)


def test_prediction_refuses_what_was_not_trained_on() -> None:
    with pytest.raises(NotFittedError):
        SoftmaxRegression().decision_function(ROWS)
    model = SoftmaxRegression(epochs=1.0).fit(X, Y)
    with pytest.raises(ValueError, match="X has 4 features"):
        model.predict(ROWS[:, :4])
    with pytest.raises(ValueError, match="NaN or infinity"):
        model.predict(da.from_array(NAN, chunks=(60, 5))).compute()
