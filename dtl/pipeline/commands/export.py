"""A network and a trained head as one classifier, checked on stored images before it is written."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from dtl import storage
from dtl.cluster import versions
from dtl.config import hide_options
from dtl.config.errors import UserError
from dtl.features import converted, extraction
from dtl.features.network.classifiers import formats
from dtl.features.network.classifiers.formats import About
from dtl.features.network.files.source import NetworkSource
from dtl.features.values import ExtractionSpec
from dtl.features.views import Views
from dtl.head.model import Head
from dtl.pipeline.commands import export_check
from dtl.pipeline.commands.export_check import BATCH_IMAGES, N_IMAGES, Original
from dtl.pipeline.messages import print_line
from dtl.pipeline.results import Results
from dtl.pipeline.run import Run
from dtl.report.model_card import CardInput, render_card

_MARK = "saved_model.pb"
"""File that a folder is a SavedModel by."""
_NAMES = {_MARK, "fingerprint.pb", "variables", "assets", "assets.extra"}
"""Everything in the folder of one."""


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument(
        "--format", choices=[*formats.ENDINGS], default="",
        help="default: by the ending of out: .keras, .onnx, .xml; a SavedModel is a folder",
    )  # fmt: skip
    parser.add_argument(
        "--unchecked", action="store_true",
        help=f"do not compare it with the run on {N_IMAGES} stored images; its card says so",
    )  # fmt: skip


def export(run: Run, arguments: argparse.Namespace) -> None:
    """Write a classifier, what it says of itself with its check, and its model card."""
    c, model, out = run.options, Results(arguments.model), run.options.out.rstrip("/")
    kind = formats.choose_format(out, arguments.format)
    formats.check_packages(kind)
    head, spec = model.trained_head(), replace(run.extraction, network_url=model.network)
    _check_engine(kind, spec, out)
    _check_free(kind, out, overwrite=c.overwrite)
    extraction.check_head(head, spec)
    writer = importlib.import_module(f"dtl.features.network.classifiers.{kind}_classifier")
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(_open(kind, spec, head, writer))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dtl-")))
        about, check = _describe(head, spec, opened.own_size), None
        path = folder / f"classifier{formats.ENDINGS[kind]}"
        if arguments.unchecked:
            opened.write(path, about)
        else:  # images that are gone are told before the conversion
            sample = export_check.read_sample(run, model.store(), head, about)
            opened.write(path, about)
            views = Views.of(spec.features)
            check = export_check.check(sample, opened.original, head, views, writer, path)
        scores = model.evaluation()
        if scores and scores.provenance["head_sha256"] != about.head_sha256:
            scores = None
        said = {"format": kind, "check": check, "classifier": asdict(about)}
        card = CardInput(storage.base_name(out), kind, about, scores, check)
        storage.remove(out)  # or it would be there with the card, or the weights, of the next one
        storage.write_bytes(f"{out}.json", (json.dumps(said, indent=1) + "\n").encode())
        storage.write_bytes(f"{out}.md", render_card(card).encode())
        _put(path, out)  # last, so that a classifier always has its own card
    print_line(f"Classifier of {len(head.class_names)} classes: {out}")
    print_line(export_check.describe(check))
    print_line(f"How to use it, and what it is worth: {out}.md")


def _check_engine(kind: str, spec: ExtractionSpec, out: str) -> None:
    network = spec.network
    if kind != "openvino" and isinstance(network, NetworkSource) and network.kind != "keras":
        stem = out.removesuffix(formats.ENDINGS[kind])
        raise UserError(
            f"{spec.features.network} is no network of Keras, so that with the head it is no "
            f"{kind} model. Export it for OpenVINO: --out {stem}.xml"
        )


def _check_free(kind: str, out: str, *, overwrite: bool) -> None:
    """Refuse to replace files, unless told to, and what is no classifier in any case."""
    there = storage.find_type(out)
    if there not in (None, "directory" if kind == "saved_model" else "file"):
        raise UserError(f"{out} is a {there}, and no {kind} classifier. Choose another `out`.")
    if kind == "saved_model" and (others := {*storage.list_names(out)} - _NAMES):
        raise UserError(
            f"{out} holds other files than a SavedModel, such as {min(others)}. Choose another "
            "`out`."
        )
    files = [out, f"{out}.json", f"{out}.md"]
    if kind == "openvino":
        files.append(_name_weights(out))
    taken = [url for url in files if storage.exists(url)]
    if taken and not overwrite:
        raise UserError(f"{taken[0]} is there already. Choose another `out`, or set `overwrite`.")
    storage.check_place(out)


class _Opened(NamedTuple):
    """The network of the classifier, and what writes both."""

    original: Original
    own_size: tuple[int, int]
    write: Callable[[Path, About], None]


@contextlib.contextmanager
def _open(kind: str, spec: ExtractionSpec, head: Head, writer: Any) -> Iterator[_Opened]:
    views = Views.of(spec.features)
    if kind == "openvino":
        from dtl.features.network import openvino_network

        with converted.local_network(spec, head.provenance) as paths:
            model = openvino_network.read_files(*paths)
            precision = "int8" if openvino_network.is_quantized(model) else "float32"
            network = openvino_network.OpenVinoNetwork(model, "", precision, BATCH_IMAGES)
            yield _Opened(
                Original(network, precision), openvino_network.find_input_size(model),
                lambda path, about: writer.write(paths, head, views, path, about),
            )  # fmt: skip
        return
    from dtl.features.network import keras_network
    from dtl.features.network.classifiers import keras_classifier

    keras = keras_network.load(spec.make_network_spec("float32"))
    classifier = keras_classifier.make(keras, head, views)
    yield _Opened(
        Original(keras, "float32"), keras.description.input_size,
        lambda path, about: writer.write(classifier, path, about),
    )  # fmt: skip


def _describe(head: Head, spec: ExtractionSpec, own_size: tuple[int, int]) -> About:
    return About(
        class_names=head.class_names,
        inputs=formats.name_inputs(Views.of(spec.features), own_size),
        resize=spec.images.resize,
        temperature=head.temperature,
        head_sha256=head.fingerprint,
        dtl=versions.list_versions()["dtl"],
        provenance=hide_options(dict(head.provenance)),
    )


def _name_weights(out: str) -> str:
    return f"{out.removesuffix(formats.ENDINGS['openvino'])}.bin"


def _put(path: Path, url: str) -> None:
    """Copy a classifier to its place; what a folder is known by comes last."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        for file in sorted(files, key=lambda file: file.name == _MARK):
            storage.put(str(file), storage.join(url, file.relative_to(path).as_posix()))
        return
    if path.suffix == formats.ENDINGS["openvino"]:
        storage.put(str(path.with_suffix(".bin")), _name_weights(url))
    storage.put(str(path), url)
