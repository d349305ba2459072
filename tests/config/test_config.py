"""The configuration: one declaration of every option, checked where it is made."""

from __future__ import annotations

import tomllib
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.config import (
    ADDED,
    RETIRED,
    Config,
    build,
    list_options,
    parse_text,
    parse_toml,
    to_dict,
    to_fingerprint,
)
from dtl.config.errors import UserError

OPTIONS = {option.key: option for option in list_options()}
PLACE = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20).filter(
    lambda text: "::" not in text
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SHARE = st.one_of(
    st.floats(0, 1, exclude_max=True), st.integers(0, 2**40), st.just("rest"), st.just(0)
)


def nested(key: str, value: object) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def read(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("key", OPTIONS)
def test_every_option_has_help_and_its_default_is_allowed(key: str) -> None:
    option = OPTIONS[key]
    assert len(option.help) > 10
    assert not option.help.endswith(".")
    assert read(build(nested(key, option.default)), key) == option.default == read(build(), key)


def test_flags_are_unique_and_short_for_the_main_keys() -> None:
    flags = [option.flag for option in OPTIONS.values()]
    assert len(set(flags)) == len(flags)
    assert OPTIONS["images.url"].flag == "--images"
    assert OPTIONS["cluster.address"].flag == "--cluster"
    assert OPTIONS["train.learning_rate"].flag == "--train.learning-rate"
    assert OPTIONS["out"].flag == "--out"


@settings(deadline=None)
@given(
    out=PLACE,
    seed=st.integers(0, 2**63 - 1),
    layers=st.lists(TEXT, min_size=1, max_size=4),
    resize=st.sampled_from(["stretch", "crop"]),
    max_skipped=st.floats(0, 1),
    train=SHARE,
    validation=SHARE,
    learning_rate=st.floats(0, 1e6, exclude_min=True),
    average_optimizer=st.booleans(),
)
def test_toml_round_trip(
    out: str,
    seed: int,
    layers: list[str],
    resize: str,
    max_skipped: float,
    train: float | str,
    validation: float | str,
    learning_rate: float,
    average_optimizer: bool,
) -> None:
    config = build(
        {
            "out": out,
            "seed": seed,
            "features": {"layers": layers},
            "images": {"resize": resize, "max_skipped": max_skipped},
            "split": {"train": train, "validation": validation},
            "train": {"learning_rate": learning_rate, "average_optimizer": average_optimizer},
        }
    )
    assert (config.seed, config.split.train, config.features.layers) == (seed, train, tuple(layers))
    text = tomli_w.dumps(to_dict(config))
    again = build(parse_toml(text.encode()))
    assert again == config
    assert tomli_w.dumps(to_dict(again)) == text


def test_the_saved_configuration_has_every_key() -> None:
    saved = tomllib.loads(tomli_w.dumps(to_dict(Config())))
    keys = {
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in saved.items()
        for key in (value if isinstance(value, dict) else [""])
    }
    assert keys == set(OPTIONS)


def test_later_layers_win_key_by_key() -> None:
    file = {"seed": 1, "train": {"epochs": 5, "l2": 0.5}}
    line = {"train": {"epochs": 7}}
    config = build(file, {}, line)
    assert (config.seed, config.train.epochs, config.train.l2) == (1, 7.0, 0.5)
    assert build(line, file).train.epochs == 5.0


def test_layers_are_left_as_they_were() -> None:
    file = {"train": {"epochs": 5}}
    build(file, {"train": {"epochs": 7, "l2": 0.0}})
    assert file == {"train": {"epochs": 5}}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"train": {"learning_rat": 1}}, r"Unknown key train\.learning_rat\. Did you mean learni"),
        ({"train": {"learning-rate": 1.0}}, r"Did you mean learning_rate\? Known: layer, normal"),
        ({"train": {"normalize": "L2"}}, r"normalize must be one of standardise, l2, sqrt-l2\. Re"),
        ({"train": {"xyzzy": 1}}, r"Unknown key train\.xyzzy\. Known: layer, "),
        ({"sed": 1}, r"Unknown key sed\. Did you mean seed\? Known: out, seed, .*, check\."),
        ({"trian": {"epochs": 1}}, r"Unknown key trian\. Did you mean train\?"),
        ({"train": 3}, r"\[train\] must be a table of options\. Received: 3\."),
        ({"seed": "0"}, r"seed must be a whole number\. Received: '0'\."),
        ({"seed": -1}, r"seed must be 0 or more\. Received: -1\."),
        ({"seed": True}, r"seed must be a whole number\. Received: True\."),
        ({"out": 3}, r"out must be text\. Received: 3\."),
        ({"overwrite": 1}, r"overwrite must be true or false\. Received: 1\."),
        ({"train": {"epochs": "2"}}, r"train\.epochs must be a number\. Received: '2'\."),
        ({"features": {"layers": 3}}, r"features\.layers must be a list of texts\. Received: 3"),
        ({"compare": {"shards": [4, "8"]}}, r"compare\.shards must be a list of whole numbers"),
        (
            {"compare": {"frequencies": [0]}},
            r"compare\.frequencies must be numbers, each 1 or more",
        ),
        ({"features": {"layers": ["fc1", 2]}}, r"features\.layers must be a list of texts"),
        ({"features": {"layers": []}}, r"features\.layers must be one layer or more"),
        (
            {"features": {"precision": "half"}},
            r"must be one of auto, float32, bfloat16, float16, int8\.",
        ),
        ({"split": {"train": True}}, r"split\.train must be a whole number or a number or text"),
        ({"split": {"train": "half"}}, r"split\.train must be a fraction below 1, .* 'half'"),
        ({"split": {"test": 1.0}}, r"split\.test must be a fraction below 1"),
        ({"split": {"test": -1}}, r"split\.test must be a fraction below 1"),
        ({"split": {"train_per_class": -1}}, r"split\.train_per_class must be 0 or more"),
        ({"images": {"max_skipped": 1.1}}, r"must be a fraction from 0 to 1\. Received: 1\.1\."),
        ({"images": {"max_pixels": 0}}, r"images\.max_pixels must be 1 or more\. Received: 0\."),
        ({"train": {"momentum": 1}}, r"train\.momentum must be from 0 to below 1"),
        ({"train": {"learning_rate": 0}}, r"train\.learning_rate must be above 0"),
        ({"train": {"l2": -1e-9}}, r"train\.l2 must be 0 or more"),
        ({"train": {"l2": float("nan")}}, r"train\.l2 must be a finite number\. Received: nan\."),
        ({"train": {"epochs": float("inf")}}, r"train\.epochs must be a finite number"),
        ({"train": {"hidden_units": -1}}, r"train\.hidden_units must be 0 or more"),
        ({"train": {"hidden_start": "fc2"}}, r"hidden_start must be one of random, network"),
        ({"train": {"hidden_start": "network"}}, r"and train\.hidden_units = 0\. Give the number"),
        (
            {"train": {"hidden_units": 9, "hidden_start": "network", "start_from": "a.npz"}},
            r"train\.hidden_start = network and train\.start_from are two starts\. Give one",
        ),
        (
            {"train": {"hidden_units": 9, "hidden_start": "network", "normalize": "sqrt-l2"}},
            r"not the unit length of train\.normalize = sqrt-l2\. Use standardise\.",
        ),
        (
            {"train": {"hidden_units": 9, "solver": "lbfgs"}},
            r"hidden_units = 9 has none\. Use aver",
        ),
        ({"cluster": {"address": "host:8786"}}, r"cluster\.address must be local, yarn, tcp://"),
        (
            {"cluster": {"n_workers": 3}, "yarn": {"adaptive_max": 2}},
            r"least `cluster.n_workers` = 3",
        ),
        ({"cluster": {"n_workers": 0}}, r"cluster\.n_workers must be 1 or more"),
    ],
)
def test_what_is_wrong_is_named(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tables)


@pytest.mark.parametrize(
    "tables", [{section: dict(values)} for section, values in RETIRED.items()], ids=list(RETIRED)
)
def test_a_stored_configuration_with_retired_options_is_still_one(tables: dict[str, Any]) -> None:
    assert build(tables) == build()
    ((section, values),) = tables.items()
    for name in values:
        with pytest.raises(UserError, match=rf"{section}\.{name} is no option any more: it is"):
            build({section: {name: 77}})
        assert f"{section}.{name}" not in OPTIONS


def test_a_fingerprint_has_the_retired_options() -> None:
    found = to_fingerprint(build({"train": {"normalize": "l2"}}).train)
    assert found == {**to_dict(build().train), "normalize": "l2", **RETIRED["train"]}
    assert to_fingerprint(build().split) == to_dict(build().split)


def test_a_fingerprint_has_an_option_that_was_added_only_where_it_is_set() -> None:
    before = to_dict(build().train)
    assert {before.pop(name) for name in ADDED["train"]} == {"standardise"}
    assert to_fingerprint(build().train) == {**before, **RETIRED["train"]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"seed = 1\nout  \n", r"Not valid TOML: .* \(at line 2, column "),
        ("out = 'ö'".encode("latin-1"), "byte 7 is none of UTF-8. Save it as UTF-8, not as UTF-16"),
        ("seed = 1".encode("utf-16"), "byte 0 is none of UTF-8. Save it as UTF-8"),
        ("seed = 1".encode("utf-16-le"), "it has zero bytes. Save it as UTF-8"),
        (b"seed = " + b"9" * 5000, "Not valid TOML: Exceeds the limit"),
        (b"out = " + b"[" * 9999, "Not valid TOML: maximum recursion depth"),
        (b"\x89PNG\r\n\x1a\n", "byte 0 is none of UTF-8"),
    ],
    ids=["syntax", "Latin-1", "UTF-16", "UTF-16 without a mark", "digits", "depth", "a picture"],
)
def test_what_is_no_toml(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_toml(data)


def test_toml_of_an_editor_of_windows(cases: Path) -> None:
    options = parse_toml((cases / "config" / "bom.toml").read_bytes())
    assert build(options).train.epochs == 3


@pytest.mark.parametrize("key", ["out", "images.url", "features.weights", "train.start_from"])
def test_places_that_filesystems_take_for_chains(key: str) -> None:
    section, _, name = key.rpartition(".")
    for url in ("zip::memory://a", "a::b", "a\nb", "a\0", "a\x1b[2J", "a\udcff"):
        given = {section: {name: url}} if section else {name: url}
        with pytest.raises(UserError, match=rf"{key} must be a URL or path .* rename it") as raised:
            build(given)
        assert repr(url) in str(raised.value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "-3", -3),
        ("seed", "1.5", "1.5"),
        ("out", "12", "12"),
        ("overwrite", "True", True),
        ("overwrite", "false", False),
        ("overwrite", "yes", "yes"),
        ("train.epochs", "0.5", 0.5),
        ("train.epochs", "3", 3.0),
        ("train.epochs", "many", "many"),
        ("features.layers", "fc1, fc2,", ("fc1", "fc2")),
        ("features.layers", "fc2", ("fc2",)),
        ("features.layers", "", ()),
        ("features.precision", "float16", "float16"),
        ("split.train", "5000", 5000),
        ("split.train", "0.5", 0.5),
        ("split.train", "rest", "rest"),
    ],
)
def test_text_of_the_command_line(key: str, text: str, value: object) -> None:
    parsed = parse_text(OPTIONS[key], text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("key", OPTIONS)
def test_text_of_every_default_is_the_default(key: str) -> None:
    default = OPTIONS[key].default
    text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    assert read(build(nested(key, parse_text(OPTIONS[key], text))), key) == default


def test_the_layer_to_train_on() -> None:
    layers = {"features": {"layers": ["fc1", "fc2"]}}
    assert build(layers).layer == "fc1"
    assert build(layers, {"train": {"layer": "fc2"}}).layer == "fc2"
    with pytest.raises(ValueError, match=r"one of features\.layers \('fc1', 'fc2'\)\. .* 'fc3'"):
        build(layers, {"train": {"layer": "fc3"}})


def test_one_layer_may_be_given_as_text() -> None:
    assert build({"features": {"layers": "fc1"}}).features.layers == ("fc1",)


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        build().train.epochs = 3.0  # type: ignore[misc]
