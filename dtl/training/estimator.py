"""A scikit-learn classifier that trains as the pipeline does, on Dask or NumPy arrays.

Blocks of rows take the place of the store's chunks: `arrays.load_blocks` makes shards of them, and
`trainer.fit` does the rest.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.system import CPU_COUNT
from distributed import Client, get_worker, worker_client
from numpy.typing import ArrayLike, NDArray

from dtl.cluster.connection import make_local
from dtl.cluster.spread import Session
from dtl.config import TrainConfig
from dtl.config.errors import MissingExtraError
from dtl.head import blas, softmax
from dtl.head.scaling import Scaling, scale_rows
from dtl.training import trainer
from dtl.training.values import Round

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.metrics import accuracy_score
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data

    from dtl.training import arrays
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "dtl.SoftmaxRegression needs scikit-learn. In dtl's folder: pip install -e '.[sklearn]'."
    ) from error

_NOT_OF_ARRAYS = {
    "layer", "start_from", "features_in", "patience", "stop_on", "keep", "hidden_units",
    "hidden_start",
}  # fmt: skip
"""Options of training that speak of a store, of its files, or of validation rows; and those of
hidden units, with which it were no softmax regression."""

_OPTIONS = tuple(spec for spec in fields(TrainConfig) if spec.name not in _NOT_OF_ARRAYS)

_DEFAULTS = {spec.name: spec.default for spec in _OPTIONS} | {
    "random_state": 0, "client": None, "verbose": False
}  # fmt: skip

_SIGNATURE = inspect.Signature(
    [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in _DEFAULTS.items()
    ]
)


class SoftmaxRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Softmax regression by local SGD with averaging, on a Dask cluster.

    It minimises ``mean cross-entropy + l2 / 2 * sum(kernel ** 2)`` of the scaled features, as
    scikit-learn's ``LogisticRegression(C=1 / (l2 * n_rows))`` behind a ``StandardScaler`` does, or
    with ``normalize="l2"`` behind a ``Normalizer`` and a division by one number. The result has
    the same bits on any number of workers, for the same blocks of rows.

    Parameters
    ----------
    solver, n_shards, epochs, batch_size, averaging_frequency, learning_rate, momentum, l2, ...
        The options of `dtl.config.TrainConfig` by their names, with their defaults, but for those
        that speak of a store or of validation; OPTIONS.md says what each is. They are
        checked by `fit`. A "chunk" is a block of rows here.
    random_state : int, RandomState or None, default 0
        Of the order of the rows; an int is `seed` of a run. None: another order each time.
    client : distributed.Client, optional
        Where to train. None: within a Dask task, that task's cluster; else the current client;
        and where there is none, threads of this process for as long as `fit` takes. Copies to
        other processes are without it, and clones share it.
    verbose : bool, default False
        Show the progress of `fit`.

    Attributes
    ----------
    classes_ : (n_classes,) array
        Labels, sorted.
    coef_ : (n_classes, n_features) float64
        For features as they are given, not standardised; with `normalize`, for rows that it has
        scaled. Two rows for two classes, too.
    intercept_ : (n_classes,) float64
    n_features_in_ : int
    n_iter_ : int
        Rounds.
    history_ : list of Round

    Notes
    -----
    Every shard gets whole blocks of a Dask array, in their order, so blocks should be fair samples:
    shuffle rows that are sorted by class. Rows stay on the workers, in float32; a block is released
    when its shard has been made. The rows of a NumPy array are shuffled, and sent in tasks. For
    more than a gigabyte, use Dask arrays. Probabilities have no temperature, for which rows would
    have to be held out: scikit-learn's `CalibratedClassifierCV` does that, with
    ``method="temperature"``.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> SoftmaxRegression(epochs=100, l2=0.001).fit(X, y).score(X, y) > 0.95
    True
    """

    random_state: int | np.random.RandomState | None
    client: Client | None
    verbose: bool
    classes_: NDArray[Any]
    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    n_features_in_: int
    n_iter_: int
    history_: list[Round]

    def __init__(self, **parameters: Any) -> None:
        _SIGNATURE.bind(self, **parameters)  # refuses other names
        self.__dict__.update(_DEFAULTS | parameters)

    # scikit-learn reads the parameters' names and defaults from it.
    __init__.__signature__ = _SIGNATURE  # type: ignore[attr-defined]

    def fit(self, X: da.Array | ArrayLike, y: da.Array | ArrayLike) -> SoftmaxRegression:
        """Train.

        Parameters
        ----------
        X : (n_rows, n_features) Dask array or array-like
            Numbers, finite. Sizes of a Dask array's blocks need not be known.
        y : (n_rows,) Dask array or array-like
            Labels of any type that sorts. Where sizes of blocks are unknown, as many blocks as X.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For options out of range, rows that do not fit the labels, features that are not
            finite, fewer than two classes, more shards than blocks, or a diverging learning rate.
        """
        config, seed = self._config(), self._seed()
        _refuse_frames(X, y)
        if isinstance(X, da.Array):
            X = arrays.check_dask_rows(X)
            validate_data(self, X, skip_check_array=True)
        else:
            y = y.compute() if isinstance(y, da.Array) else y
            checked: tuple[NDArray[Any], NDArray[Any]] = validate_data(self, X, y)
            check_classification_targets(checked[1])
        with _connect(self.client) as client:
            session = Session(client)
            if isinstance(X, da.Array):
                blocks = arrays.compute_blocks(client, X, y)
            else:
                blocks = arrays.cut_blocks(session, *checked, config.n_shards, seed)
            inputs, self.classes_ = arrays.load_blocks(session, *blocks, config)
            fitted = trainer.fit(inputs, config, seed, session, show=self.verbose)
            scaling: Scaling = session.result(inputs.scaling)
        params, self.history_ = fitted.last, fitted.history
        kernel = params["kernel"].astype(np.float64) / scaling.scale[:, None]
        self.coef_ = np.ascontiguousarray(kernel.T)
        self.intercept_ = params["bias"] - scaling.mean @ kernel
        self.n_iter_ = len(self.history_)
        return self

    def decision_function(self, X: da.Array | ArrayLike) -> da.Array | NDArray[np.float64]:
        """Logits; for two classes, the second's less the first's.

        Returns
        -------
        (n_rows, n_classes) or, for two classes, (n_rows,) float64
            A lazy Dask array for a Dask array.
        """
        width = len(self.classes_) if len(getattr(self, "classes_", ())) > 2 else None
        return self._map(_decide, X, np.dtype(np.float64), width)

    def predict_proba(self, X: da.Array | ArrayLike) -> da.Array | NDArray[np.float64]:
        """Probabilities (n_rows, n_classes) of the classes, in the order of `classes_`."""
        check_is_fitted(self)
        return self._map(_probabilities, X, np.dtype(np.float64), len(self.classes_))

    def predict(self, X: da.Array | ArrayLike) -> da.Array | NDArray[Any]:
        """Return the likeliest label (n_rows,) of each row; lazy for a Dask array."""
        check_is_fitted(self)
        return self._map(_predict, X, self.classes_.dtype, None, classes=self.classes_)

    def score(
        self,
        X: da.Array | ArrayLike,
        y: da.Array | ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Accuracy; only labels come to this process."""
        _refuse_frames(X, y)
        lazy = {"true": y, "predicted": self.predict(X)}
        if any(isinstance(value, da.Array) for value in lazy.values()):
            with _connect(self.client) as client:
                lazy = client.compute(dask.delayed(lazy)).result()
        return float(accuracy_score(lazy["true"], lazy["predicted"], sample_weight=sample_weight))

    def __getstate__(self) -> dict[str, Any]:
        # A client belongs to its process.
        state: dict[str, Any] = super().__getstate__() | {"client": None}
        return state

    def __sklearn_clone__(self) -> SoftmaxRegression:
        twin: SoftmaxRegression = BaseEstimator.__sklearn_clone__(copy.copy(self))
        twin.client = self.client
        return twin

    def _config(self) -> TrainConfig:
        values = {spec.name: getattr(self, spec.name) for spec in _OPTIONS}
        # A search over np.logspace brings NumPy's scalars.
        return TrainConfig(
            **{k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
        )

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31))

    def _map(
        self, function: Any, X: Any, dtype: np.dtype[Any], width: int | None, **arguments: Any
    ) -> Any:
        """Apply a function of rows; `width` is of its result, None if that has one axis."""
        check_is_fitted(self)
        _refuse_frames(X)
        arguments |= {"coef": self.coef_, "intercept": self.intercept_}
        arguments["normalize"] = self.normalize
        if not isinstance(X, da.Array):
            return function(validate_data(self, X, reset=False), **arguments)
        X = arrays.check_dask_rows(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        shape: dict[str, Any] = {"drop_axis": 1, "meta": np.empty(0, dtype)}
        if width is not None:
            shape = {"chunks": (X.chunks[0], (width,)), "meta": np.empty((0, 0), dtype)}
        return X.map_blocks(function, dtype=dtype, **shape, **arguments)


@contextmanager
def _connect(client: Client | None) -> Iterator[Client]:
    """Yield the client given, the task's, the current one, or one of threads of this process."""
    if client is not None:
        yield client
        return
    try:
        get_worker()
    except ValueError:
        pass
    else:
        # A task that waits for others must make room for them.
        with worker_client() as client:
            yield client
        return
    try:
        client = Client.current()
    except ValueError:
        with (
            make_local(
                processes=False, n_workers=1, threads_per_worker=CPU_COUNT, memory_limit=0
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
        return
    yield client


def _refuse_frames(*values: Any) -> None:
    for value in values:
        if dask.is_dask_collection(value) and not isinstance(value, da.Array):
            raise TypeError(
                f"Dask arrays are expected. Received: {type(value).__name__}. Use its "
                "to_dask_array(lengths=True)."
            )


def _logits(
    rows: NDArray[Any], coef: NDArray[np.float64], intercept: NDArray[np.float64], normalize: str
) -> NDArray[np.float64]:
    arrays.check_finite(rows)
    scaled = scale_rows(rows, normalize, np.float64)
    with blas.one_blas_thread():
        logits: NDArray[np.float64] = scaled @ coef.T + intercept
    return logits


def _decide(rows: NDArray[Any], **weights: Any) -> NDArray[np.float64]:
    logits = _logits(rows, **weights)
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits


def _probabilities(rows: NDArray[Any], **weights: Any) -> NDArray[Any]:
    probabilities: NDArray[Any] = np.exp(softmax.log_softmax(_logits(rows, **weights)))
    return probabilities


def _predict(rows: NDArray[Any], classes: NDArray[Any], **weights: Any) -> NDArray[Any]:
    labels: NDArray[Any] = classes[_logits(rows, **weights).argmax(axis=1)]
    return labels
