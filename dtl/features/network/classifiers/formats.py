"""The formats of classifiers, and what each says of itself."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass
from typing import Any

from dtl.config.errors import UserError
from dtl.features.views import Views

ENDINGS = {"keras": ".keras", "onnx": ".onnx", "openvino": ".xml", "saved_model": ""}
"""Formats, and how the names of their files end; a SavedModel is a folder of any other name."""

EXTRA_NAME = "classifier.json"
"""File inside a .keras file, or in the folder ``assets.extra`` of a SavedModel: `About` as JSON."""

_PACKAGES = {"onnx": ("onnx", "onnxruntime", "tf2onnx"), "openvino": ("openvino",)}


@dataclass(frozen=True)
class About:
    """What a classifier says of itself: to use it takes no more.

    Parameters
    ----------
    class_names : tuple of str
        In the order of the probabilities.
    inputs : dict of str to (height, width)
        Names of its inputs: RGB images (n, height, width, 3) of 0 to 255.
    resize : {"stretch", "crop"}
        How an image gets its size; bilinear with antialiasing.
    temperature : float
        By which the logits are divided; 1 where it was not fitted.
    head_sha256, dtl : str
        The head's fingerprint, and which code exported it.
    provenance : dict
        What the head was trained on and how.
    """

    class_names: tuple[str, ...]
    inputs: dict[str, tuple[int, int]]
    resize: str
    temperature: float
    head_sha256: str
    dtl: str
    provenance: dict[str, Any]

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=1)

    def to_texts(self) -> dict[str, str]:
        """Return its parts as texts: one that is none is JSON."""
        values = asdict(self)
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}


def choose_format(url: str, given: str = "") -> str:
    """Return the format of a classifier by its name, and by what was asked for.

    Examples
    --------
    >>> choose_format("a.xml"), choose_format("model", "saved_model")
    ('openvino', 'saved_model')
    >>> choose_format("a.keras", "onnx")
    Traceback (most recent call last):
        ...
    dtl.config.errors.UserError: `out` of the format onnx ends in .onnx. Received: 'a.keras'.
    """
    by_name = next((kind for kind, end in ENDINGS.items() if end and url.endswith(end)), "")
    if not given and not by_name:
        raise UserError(
            "`out` must end in .keras, .onnx, or .xml for OpenVINO; a SavedModel is a folder: add "
            f"--format saved_model. Received: {url!r}."
        )
    if given not in ("", by_name) and (given != "saved_model" or by_name):
        end = ENDINGS[given]
        what = f"ends in {end}" if end else "is a folder, whose name has no such ending"
        raise UserError(f"`out` of the format {given} {what}. Received: {url!r}.")
    return given or by_name


def check_packages(kind: str) -> None:
    """Refuse a format whose packages are not installed."""
    lost = [p for p in _PACKAGES.get(kind, ()) if importlib.util.find_spec(p) is None]
    if lost:
        raise UserError(
            f"The format {kind} needs {', '.join(lost)}. In dtl's folder: "
            f"pip install -e '.[{kind}]'."
        )


def name_inputs(views: Views, own_size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Return the inputs' names and sizes.

    Examples
    --------
    >>> name_inputs(Views(), (224, 224))
    {'image': (224, 224)}
    >>> name_inputs(Views(((224, 224), (320, 320))), (224, 224))
    {'image_224': (224, 224), 'image_320': (320, 320)}
    """
    sizes = views.sizes or (own_size,)
    names = ["image"] if len(sizes) == 1 else [f"image_{height}" for height, _ in sizes]
    return dict(zip(names, sizes, strict=True))
