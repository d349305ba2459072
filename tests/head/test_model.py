"""The values between the stages: what a head is, and that its bytes say all of it."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from dtl.head.held_out import HeldOut
from dtl.head.model import Head
from dtl.head.scaling import NORMALISATIONS, scale_rows
from dtl.images.values import ImageList


def make_head(seed: int = 0, n_features: int = 7, n_classes: int = 3, **changes: Any) -> Head:
    rng = np.random.default_rng(seed)
    head = Head(
        kernel=rng.normal(size=(n_features, n_classes)).astype(np.float32),
        bias=rng.normal(size=n_classes).astype(np.float32),
        mean=rng.normal(size=n_features).astype(np.float32),
        scale=rng.uniform(0.5, 2, n_features).astype(np.float32),
        class_names=tuple(f"{k:03}.straße" for k in range(n_classes)),
        provenance={"layer": "fc2", "features": {"network": "VGG16", "layers": ["fc2"]}},
    )
    return dataclasses.replace(head, **changes)


HELD_OUT = HeldOut(np.array([0, 2], np.int32), np.array([0.0, 0.6]), np.array([0.9, 0.5]))


def make_hidden_head(
    seed: int = 0, n_features: int = 7, n_units: int = 4, n_classes: int = 3
) -> Head:
    rng = np.random.default_rng(seed)
    return make_head(
        seed, n_features, n_classes,
        hidden_kernel=rng.normal(size=(n_features, n_units)).astype(np.float32),
        hidden_bias=rng.normal(size=n_units).astype(np.float32),
        kernel=rng.normal(size=(n_units, n_classes)).astype(np.float32),
    )  # fmt: skip


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(0, 4), st.integers(1, 5))
def test_head_round_trip(seed: int, n_features: int, n_units: int, n_classes: int) -> None:
    head = make_head(seed, n_features, n_classes)
    if n_units:
        head = make_hidden_head(seed, n_features, n_units, n_classes)
    assert head.n_units == n_units
    again = Head.from_bytes(head.to_bytes())
    assert again.weights.keys() == head.weights.keys()
    for name in (*head.weights, "mean", "scale"):
        np.testing.assert_array_equal(getattr(again, name), getattr(head, name), strict=True)
    assert again.class_names == head.class_names
    assert again.provenance == head.provenance
    assert again.fingerprint == head.fingerprint


def test_a_head_of_rows_of_unit_length_round_trip() -> None:
    head = make_head(normalize="sqrt-l2")
    again = Head.from_bytes(head.to_bytes())
    assert again.normalize == "sqrt-l2"
    features = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    features[2] = 0
    logits = head.logits(features)
    assert (again.logits(features) == logits).all()
    assert np.isfinite(logits).all()
    # Rows of one direction are one row, and a standardised head is another one.
    np.testing.assert_allclose(head.logits(features * 8), logits, atol=1e-5)
    assert make_head().fingerprint != head.fingerprint


def test_a_standardised_head_has_the_bytes_that_it_always_had() -> None:
    head = make_head()
    about = {"class_names": head.class_names, "provenance": head.provenance}
    meta = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    arrays = {name: getattr(head, name) for name in ("kernel", "bias", "mean", "scale")}
    before = npz(**arrays, meta=meta)
    assert head.to_bytes() == before
    again = Head.from_bytes(before)
    assert (again.normalize, again.temperature, again.held_out) == ("standardise", 1, None)


def test_a_head_with_a_temperature_round_trip() -> None:
    head = make_head(temperature=1.75, held_out=HELD_OUT)
    again = Head.from_bytes(head.to_bytes())
    assert again.temperature == 1.75
    assert again.held_out is not None
    for name, array in HELD_OUT.to_arrays().items():
        np.testing.assert_array_equal(again.held_out.to_arrays()[name], array, strict=True)
    assert again.held_out.right.tolist() == [True, False]
    assert again.fingerprint == head.fingerprint != make_head().fingerprint
    logits = head.logits(np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32))
    wanted = softmax(logits.astype(np.float64) / 1.75, axis=1)
    np.testing.assert_allclose(np.exp(head.log_probabilities(logits)), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "its temperature is 0.0, and not from 0.001 to 1000"),
        ({"temperature": float("nan")}, "its temperature is nan"),
        ({"temperature": "warm"}, "its temperature must be a number"),
        ({"label": np.array([0, 3], np.int32)}, "labels that 3 classes do not have"),
        ({"label": np.array([0, -1], np.int32)}, "labels that 3 classes do not have"),
        ({"label": np.array([0, 1])}, "its held_out_label is no list of int32"),
        ({"above": np.zeros(3)}, "its held_out arrays have other lengths"),
        ({"above": np.array([0, np.nan])}, "its held_out_above holds numbers that are no prob"),
        ({"confidence": np.array([0.5, 1.5])}, "its held_out_confidence holds numbers"),
        ({"confidence": np.zeros((2, 1))}, "its held_out_confidence is no list of float64"),
    ],
)
def test_a_temperature_that_cannot_be_is_no_head(changes: dict[str, Any], message: str) -> None:
    temperature = changes.pop("temperature", 2.0)
    head = make_head(temperature=temperature, held_out=dataclasses.replace(HELD_OUT, **changes))
    with pytest.raises(ValueError, match=rf"^Not a head that dtl wrote: .*({message}).*\.$"):
        Head.from_bytes(head.to_bytes())


def test_half_of_what_was_held_out_is_no_head() -> None:
    with np.load(io.BytesIO(make_head(held_out=HELD_OUT).to_bytes())) as arrays:
        data = npz(**{name: arrays[name] for name in arrays if name != "held_out_above"})
    with pytest.raises(ValueError, match="its held_out_above is no list of float64"):
        Head.from_bytes(data)


@pytest.mark.parametrize("normalize", ["l3", 2, None, ["l2"]])
def test_an_unknown_scaling_is_named(normalize: Any) -> None:
    data = make_head(normalize=normalize).to_bytes()
    with pytest.raises(ValueError, match=r"its normalize is .*, none of standardise, l2, sqrt-l2"):
        Head.from_bytes(data)


def test_the_same_head_gives_the_same_bytes() -> None:
    data = make_head().to_bytes()
    reordered = dict(reversed(make_head().provenance.items()))
    assert make_head(provenance=reordered).to_bytes() == data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # A time of writing would make two equal runs differ.
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_anyone_can_read_a_head() -> None:
    with np.load(io.BytesIO(make_hidden_head().to_bytes()), allow_pickle=False) as arrays:
        assert {"hidden_bias", "hidden_kernel"} == {*arrays} - {
            "bias", "kernel", "mean", "meta", "scale",
        }  # fmt: skip
    with np.load(io.BytesIO(make_head().to_bytes()), allow_pickle=False) as arrays:
        assert sorted(arrays) == ["bias", "kernel", "mean", "meta", "scale"]


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": np.zeros((7, 3), np.float32)},
        {"bias": np.zeros(3, np.float32)},
        {"class_names": ("a", "b", "c")},
        {"provenance": {"layer": "fc1"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_head_fingerprint_changes_with_what_is_in_it(change: dict[str, Any]) -> None:
    assert make_head(**change).fingerprint != make_head().fingerprint


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


HEAD = make_head().to_bytes()
BAD_JSON = {name: np.zeros(1) for name in ("kernel", "bias", "mean", "scale")}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a text",
        HEAD[:2],
        HEAD[:200],
        HEAD[:-1],
        HEAD.replace(HEAD[200:204], b"\xff\xff\xff\xff"),
        npy(np.zeros(3)),
        npz(weights=np.zeros(3)),
        npz(**BAD_JSON, meta=np.frombuffer(b"{", np.uint8)),
        npz(**BAD_JSON, meta=np.frombuffer(b"[1]", np.uint8)),
        npz(**BAD_JSON, meta=np.frombuffer(b"{}", np.uint8)),
    ],
    ids=[
        "empty",
        "text",
        "2 bytes",
        "begin",
        "no end",
        "damaged",
        "npy",
        "npz",
        "json",
        "[]",
        "{}",
    ],
)
def test_other_bytes_are_no_head(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^Not a head that dtl wrote: .+\.$"):
        Head.from_bytes(data)


def test_pickles_are_not_loaded() -> None:
    with pytest.raises(ValueError, match=r"Not a head that dtl wrote: .*allow_pickle=False"):
        Head.from_bytes(npz(**BAD_JSON, meta=np.array([{}], object)))


NAN, INFINITE = np.float32(np.nan), np.float32(np.inf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kernel": np.zeros((7, 4), "f4")},
            r"its kernel is of shape \(7, 4\) and float32; with 7",
        ),
        ({"kernel": np.zeros((3, 7), "f4")}, r"would be of \(7, 3\) and float32"),
        ({"kernel": np.zeros((7, 3))}, r"its kernel is of shape \(7, 3\) and float64"),
        ({"kernel": np.full((7, 3), "a")}, r"its kernel is of shape \(7, 3\) and <U1"),
        ({"bias": np.zeros(4, "f4")}, r"its bias is of shape \(4,\)"),
        ({"bias": np.zeros((3, 1), "f4")}, r"its bias is of shape \(3, 1\)"),
        ({"mean": np.zeros((7, 1), "f4")}, r"its mean is of shape \(7, 1\)"),
        ({"mean": np.float32(0)}, r"its mean is of shape \(\)"),
        ({"scale": np.ones(8, "f4")}, r"its scale is of shape \(8,\)"),
        ({"scale": np.zeros(7, "f4")}, r"its scale, by which features are divided, is not above 0"),
        ({"kernel": np.full((7, 3), NAN)}, r"its kernel holds NaN or an infinite number"),
        ({"bias": np.full(3, INFINITE)}, r"its bias holds NaN or an infinite number"),
        ({"mean": np.full(7, NAN)}, r"its mean holds NaN or an infinite number"),
        ({"class_names": ("a", "b")}, r"its kernel is of shape \(7, 3\).* and 2 classes"),
        ({"class_names": "abc"}, r"its class_names are no texts"),
        ({"class_names": (1, 2, 3)}, r"its class_names are no texts"),
        ({"class_names": ()}, r"its class_names are no texts"),
        ({"provenance": "a"}, r"its provenance is no JSON object"),
        ({"hidden_bias": np.zeros(4, "f4")}, r"it has half of a hidden layer"),
        (
            {"hidden_bias": np.zeros(4, "f4"), "hidden_kernel": np.zeros((7, 4), "f4")},
            r"its kernel is of shape \(7, 3\).* would be of \(4, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_no_head(changes: dict[str, Any], message: str) -> None:
    data = make_head(**changes).to_bytes()
    with pytest.raises(ValueError, match=rf"^Not a head that dtl wrote: .*{message}.*\.$"):
        Head.from_bytes(data)


@pytest.mark.parametrize("lost", ["kernel", "bias", "mean", "scale"])
def test_a_missing_array_is_named(lost: str) -> None:
    with np.load(io.BytesIO(HEAD)) as arrays:
        data = npz(**{name: arrays[name] for name in arrays if name != lost})
    with pytest.raises(ValueError, match=rf"wrote: it has no {lost}\.$"):
        Head.from_bytes(data)


@settings(deadline=None)
@given(st.integers(0, 99), st.sampled_from(NORMALISATIONS))
def test_folded_equals_logits(seed: int, normalize: str) -> None:
    features = np.random.default_rng(seed).normal(size=(20, 7)).astype(np.float32)
    head = make_head(seed, normalize=normalize)
    ((kernel, bias),) = head.folded()
    assert kernel.dtype == bias.dtype == np.float32
    rows = scale_rows(features, normalize)
    np.testing.assert_allclose(rows @ kernel + bias, head.logits(features), atol=1e-5)
    ((kernel, bias),) = dataclasses.replace(head, temperature=2.5).folded()
    np.testing.assert_allclose(rows @ kernel + bias, head.logits(features) / 2.5, atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 99))
def test_folded_equals_logits_of_hidden_units(seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(20, 7)).astype(np.float32)
    head = make_hidden_head(seed)
    standardised = (features - head.mean) / head.scale
    units = np.maximum(standardised @ head.hidden_kernel + head.hidden_bias, 0)
    expected = units @ head.kernel + head.bias
    np.testing.assert_allclose(head.logits(features), expected, rtol=1e-6)
    (hidden_kernel, hidden_bias), (kernel, bias) = head.folded()
    assert hidden_kernel.dtype == hidden_bias.dtype == np.float32
    folded = np.maximum(features @ hidden_kernel + hidden_bias, 0) @ kernel + bias
    np.testing.assert_allclose(folded, expected, atol=2e-5)
    first, (kernel, bias) = dataclasses.replace(head, temperature=2.5).folded()
    np.testing.assert_array_equal(first[0], hidden_kernel)
    folded = np.maximum(features @ hidden_kernel + hidden_bias, 0) @ kernel + bias
    np.testing.assert_allclose(folded, expected / 2.5, atol=2e-5)


def test_logits_by_hand_and_of_float16() -> None:
    head = Head(
        kernel=np.array([[1, -1], [0, 2]], np.float32),
        bias=np.array([0.5, 0], np.float32),
        mean=np.array([1, 2], np.float32),
        scale=np.array([2, 1], np.float32),
        class_names=("a", "b"),
    )
    logits = head.logits(np.array([[3, 5]], np.float16))
    assert logits.dtype == np.float32
    assert logits.tolist() == [[1.5, 5.0]]


def make_list(**changes: Any) -> ImageList:
    images = ImageList(
        root="/photos",
        path=np.array(["a/1.jpg", "b/2.jpg"], np.dtypes.StringDType()),
        label=np.array([0, 1], np.int32),
        given_split=np.array([-1, -1], np.int8),
        size_bytes=np.array([10, 20], np.int64),
        class_names=("a", "b"),
    )
    return dataclasses.replace(images, **changes)


def test_list_fingerprint_knows_all_but_the_place() -> None:
    images = make_list()
    assert len(images) == 2
    assert make_list(root="s3://bucket", left_out=(("x", "y"),)).fingerprint == images.fingerprint
    changed = [
        make_list(path=np.array(["a/1.jpg", "b/3.jpg"], np.dtypes.StringDType())),
        make_list(path=images.path[::-1]),
        make_list(label=images.label[::-1]),
        make_list(given_split=np.array([0, 1], np.int8)),
        make_list(size_bytes=np.array([10, 21], np.int64)),
        make_list(class_names=("a", "c")),
    ]
    assert len({images.fingerprint, *(c.fingerprint for c in changed)}) == len(changed) + 1
