"""Parameters that training starts from: zeros, noise, an earlier head, or the network's next layer.

The last two come as a `Head`, whose features were scaled by other numbers, or not at all.
`carry_over` makes up for that.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from distributed import Future

from dtl.cluster.spread import Session
from dtl.config.errors import UserError
from dtl.config.provenance import differences
from dtl.features.store import FeatureStore
from dtl.features.values import NetworkSpec, check_weights, find_source_sha256, locate_weights
from dtl.head import blas, hidden, softmax
from dtl.head.model import Head
from dtl.head.scaling import Scaling
from dtl.head.softmax import Params
from dtl.storage.ledger import read_parsed
from dtl.training.spec import TrainingSpec, continues, head_url


def submit_head(spec: TrainingSpec, session: Session) -> Future | None:
    """Submit the head to start from, as a future of `Head`; None to start anew.

    Raises
    ------
    UserError
        If it is of other features, another split of them, other classes or hidden units; or the
        network has no such layer, or other weights.
    OSError
        If it, or the network's weights, cannot be had.
    """
    config, store = spec.config, spec.store
    if config.start_from:
        return session.submit_value(_read_head(spec), "head")
    if config.hidden_start == "random":
        return None
    head = session.submit(
        network_head,
        network_spec(store, spec.network_weights), spec.layer, find_source_sha256(spec.provenance),
        config.hidden_units, store.class_names,
        name="network-head",
    )  # fmt: skip
    if (error := head.exception()) is not None:  # before the features are read
        raise error
    return head


def submit_params(
    spec: TrainingSpec, head: Future | None, scaling: Future, session: Session
) -> Future:
    """Submit the parameters that the first round starts from, as a future of `Params`.

    The head is that of `submit_head`, and the scaling that of the rows.
    """
    if head is not None:
        return session.submit(carry_over, head, scaling, name="carry-over")
    n_features, n_classes = spec.store.n_features(spec.layer), len(spec.store.class_names)
    if n_units := spec.config.hidden_units:
        sizes = n_features, n_units, n_classes
        return session.submit(hidden.random_params, *sizes, spec.seed, name="start")
    return session.submit(softmax.zero_params, n_features, n_classes, name="start")


def carry_over(head: Head, scaling: Scaling) -> Params:
    """Return a head's weights for rows of which another mean and scale are taken.

    The logits stay the same function of the features.
    """
    params = head.weights
    kernel_name, bias_name = list(params)[:2]  # of the layer that takes the features
    scale = head.scale.astype(np.float64)
    kernel = params[kernel_name].astype(np.float64)
    shift = (scaling.mean.astype(np.float32) - head.mean.astype(np.float64)) / scale
    with blas.one_blas_thread():
        bias = params[bias_name] + shift @ kernel
    return params | {
        kernel_name: (kernel * (scaling.scale / scale)[:, None]).astype(np.float32),
        bias_name: bias.astype(np.float32),
    }


def network_spec(store: FeatureStore, weights: str) -> NetworkSpec:
    """Return the network that a store's features are of, with weights from where they are now."""
    made = store.fingerprint
    return NetworkSpec(
        name=made["network"],
        layers=tuple(made["layers"]),
        pooling=made["pooling"],
        weights=locate_weights(weights),
        seed=int(store.attrs["seed"]),
        preprocess=made["preprocess"],
    )


def network_head(
    spec: NetworkSpec, layer: str, sha256: str, n_units: int, class_names: tuple[str, ...]
) -> Head:
    """Read the Dense layer that follows `layer` in a network, below a softmax layer of zeros.

    It must have `n_units` ReLU units, and the weights up to the stored layers this SHA-256.
    """
    from dtl.features.network import architecture, keras_network

    name, found_units = architecture.find_hidden_layer(spec.name, layer)
    if found_units != n_units:
        raise UserError(
            f"`train.hidden_units` = {n_units}, but {name} of {spec.name}, which the hidden "
            f"layer is to start from, has {found_units} units. Give that number, or set "
            "`train.hidden_start` = random."
        )
    kernel, bias, found_sha256 = keras_network.read_dense(spec, name)
    check_weights(found_sha256, sha256, "The feature store")
    n_features, n_classes = len(kernel), len(class_names)
    return Head(
        hidden_kernel=kernel,
        hidden_bias=bias,
        kernel=np.zeros((n_units, n_classes), np.float32),
        bias=np.zeros(n_classes, np.float32),
        mean=np.zeros(n_features, np.float32),
        scale=np.ones(n_features, np.float32),
        class_names=class_names,
    )


def with_classes(head: Head, class_names: tuple[str, ...]) -> Head:
    """Return a head for other classes: those that it does not know get scores below all others."""
    known = {name: k for k, name in enumerate(head.class_names)}
    columns = np.array([known.get(name, -1) for name in class_names])
    kernel = np.where(columns >= 0, head.kernel[:, columns], 0).astype(np.float32)
    bias = np.where(columns >= 0, head.bias[columns], head.bias.min()).astype(np.float32)
    return replace(
        head, kernel=kernel, bias=bias, class_names=class_names, temperature=1.0, held_out=None
    )


def _read_head(spec: TrainingSpec) -> Head:
    """Read the head that `train.start_from` names, and refuse one of other features or rows."""
    config, store = spec.config, spec.store
    url = head_url(config.start_from)
    head = read_parsed(url, Head.from_bytes, "Give another head as `train.start_from`.")
    if head is None:
        raise FileNotFoundError(f"No such file: {url}. Check `train.start_from`.")
    # The features say of which images. In another split of the same ones, some that the head was
    # trained on would be held out here, and scored as if it had not seen them. Where a store has
    # grown, the rows that it had are split as they were.
    names = ("features", "split", "layer")
    wanted = {name: spec.provenance[name] for name in names}
    made = {name: head.provenance.get(name) for name in names}
    if continues(head, store):
        wanted |= {"features": made["features"], "split": made["split"]}
        head = with_classes(head, store.class_names)
    found = differences(
        wanted | {"hidden units": config.hidden_units, "normalize": config.normalize},
        made | {"hidden units": head.n_units, "normalize": head.normalize},
    )
    if head.class_names != store.class_names:
        only = sorted({*head.class_names} ^ {*store.class_names})
        found.append(
            f"classes: {len(store.class_names)} here, {len(head.class_names)} there; not in both: "
            + (", ".join(only[:10]) or "none, but their order differs")
        )
    if found:
        raise UserError(
            f"The head at `train.start_from` = {config.start_from} cannot be trained further here:"
            + "".join(f"\n  {difference}" for difference in found)
            + "\nStart from a head of the same classes, features, split, layer, "
            "`train.normalize` and `train.hidden_units`, or from none."
        )
    return head
