"""What training starts from: zeros, noise, a head trained before, or the network's own next layer.

All but the first two are a `Head`, which standardised otherwise: the network's own layer is one
that did not, below a softmax layer of zeros.
"""

from __future__ import annotations

import logging

import numpy as np
from distributed import Client, Future

from dtl import storage
from dtl.cluster.spread import submit_value
from dtl.config import TrainConfig
from dtl.config.provenance import differences
from dtl.features.store import FeatureStore
from dtl.features.values import NetworkSpec, describe_weights
from dtl.head import blas, hidden, softmax
from dtl.head.averaging import Moments
from dtl.head.model import Head
from dtl.head.softmax import Params

log = logging.getLogger(__name__)


def head_url(url: str) -> str:
    """Where the head is that `train.start_from` names: a file, or one in the folder of a run."""
    return url if url.endswith(".npz") else storage.join(url, "head.npz")


def find(
    store: FeatureStore, config: TrainConfig, layer: str, weights: str, client: Client, run: str
) -> Future | None:
    """The head to start from, as a future of `Head`; None to start anew.

    Parameters
    ----------
    weights : str
        As ``features.weights``, of the network whose layer is asked for; empty: as the features
        were made.

    Raises
    ------
    ValueError
        If it is of other features, another split of them, other classes or hidden units; or the
        network has no such layer, or other weights.
    OSError
        If it, or the network's weights, cannot be had.
    """
    if config.start_from:
        return submit_value(client, _saved(config, store, layer), f"head-{run}")
    if config.hidden_start == "random":
        return None
    network_spec = spec(store, weights or str(store.attrs["weights"]))
    found = client.submit(
        network_head,
        network_spec, layer, store.attrs["weights_sha256"], config.hidden_units, store.class_names,
        key=f"network-head-{run}",
    )  # fmt: skip
    if (error := found.exception()) is not None:  # before the features are read
        raise error
    return found


def describe_network(store: FeatureStore, weights: str) -> str:
    """What the weights are of the network whose layer is asked for, as `find` takes them."""
    return describe_weights(weights or str(store.attrs["weights"]), int(store.attrs["seed"]))


def submit(
    found: Future | None,
    store: FeatureStore,
    config: TrainConfig,
    layer: str,
    seed: int,
    moments: Future,
    client: Client,
    run: str,
) -> Future:
    """What the first round starts from, as a future of `Params`.

    Parameters
    ----------
    found : future of Head, or None
        What `find` returned.
    moments : future of Moments
        Of the training rows.
    """
    if found is not None:
        return client.submit(carry_over, found, moments, key=f"carry-over-{run}")
    n_features, n_classes, key = store.n_features(layer), len(store.class_names), f"start-{run}"
    if config.hidden_units:
        return client.submit(
            hidden.start, n_features, config.hidden_units, n_classes, seed, key=key
        )
    return client.submit(softmax.zeros, n_features, n_classes, key=key)


def carry_over(head: Head, moments: Moments) -> Params:
    """A head's weights for features that are standardised by other moments.

    With them the logits are the same function of the features as the head's.
    """
    params = head.weights
    kernel_name, bias_name = list(params)[:2]  # of the layer that takes the features
    scale = head.scale.astype(np.float64)
    kernel = params[kernel_name].astype(np.float64)
    shift = (moments.mean.astype(np.float32) - head.mean.astype(np.float64)) / scale
    with blas.one_blas_thread():
        bias = params[bias_name] + shift @ kernel
    return params | {
        kernel_name: (kernel * (moments.scale() / scale)[:, None]).astype(np.float32),
        bias_name: bias.astype(np.float32),
    }


def spec(store: FeatureStore, weights: str) -> NetworkSpec:
    """The network that a store's features are of, with weights from where they are now."""
    made = store.fingerprint
    return NetworkSpec(
        name=made["network"],
        layers=tuple(made["layers"]),
        pooling=made["pooling"],
        weights=weights if weights in ("imagenet", "random") else storage.absolute(weights),
        seed=int(store.attrs["seed"]),
        preprocess=made["preprocess"],
    )


def network_head(
    spec: NetworkSpec, layer: str, sha256: str, n_units: int, class_names: tuple[str, ...]
) -> Head:
    """The Dense layer that follows `layer` in a network, on a worker, below a softmax of zeros.

    Parameters
    ----------
    spec : NetworkSpec
        With the stored layers.
    sha256 : str
        Of the weights up to them.

    Raises
    ------
    ValueError
        If no Dense layer of `n_units` ReLU units follows, or the weights are others.
    """
    from dtl.features import architecture, networks

    name, found_units = architecture.find_hidden_layer(spec.name, layer)
    if found_units != n_units:
        raise ValueError(
            f"train.hidden_units = {n_units}, but {name} of {spec.name}, which the hidden layer "
            f"is to start from, has {found_units} units. Give that number, or train.hidden_start = "
            "random."
        )
    kernel, bias, found_sha256 = networks.read_dense(spec, name)
    if found_sha256 != sha256:
        raise ValueError(
            f"The features were made with weights of SHA-256 {sha256}, the same layers of the "
            f"worker's network have {found_sha256}. Give --features.weights as it was."
        )
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


def _saved(config: TrainConfig, store: FeatureStore, layer: str) -> Head:
    """The head that `train.start_from` names; ValueError where it is of other features or rows."""
    head = Head.from_bytes(storage.read_bytes(head_url(config.start_from)))
    # The features say of which images. In another split of the same ones, some that the head was
    # trained on would be held out here, and scored as if it had not seen them.
    asked = {
        "features": store.fingerprint,
        "split": store.split_fingerprint,
        "layer": layer,
        "hidden units": config.hidden_units,
    }
    made = {name: head.provenance[name] for name in ("features", "split", "layer")}
    found = differences(asked, made | {"hidden units": head.n_units})
    if head.class_names != store.class_names:
        only = sorted({*head.class_names} ^ {*store.class_names})
        found.append(
            f"classes: {len(store.class_names)} here, {len(head.class_names)} there; not in both: "
            + (", ".join(only[:10]) or "none, but their order differs")
        )
    if found:
        raise ValueError(
            f"The head at train.start_from = {config.start_from} cannot be trained further here:"
            "\n  "
            + "\n  ".join(found)
            + "\nStart from a head of the same classes, features, split, layer and "
            "train.hidden_units, or from none."
        )
    return head
