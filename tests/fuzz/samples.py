"""Whole files of every kind that is read, small ones, the same every time."""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from helpers import ROOT, gaussian_store
from PIL import Image

from dtl import config
from dtl.checking.values import (
    ALL,
    APART,
    CLEAN,
    Accuracy,
    Check,
    DoubleClass,
    Issue,
    Neighbour,
    Overlap,
    SmallClass,
    issues_to_bytes,
)
from dtl.cluster.timeline.values import Life, Stage, Timeline, Worker
from dtl.evaluation.values import Evaluation, Mistake, SplitScores
from dtl.head.held_out import HeldOut
from dtl.head.model import Head
from dtl.head.scaling import Scaling
from dtl.images import tars
from dtl.neighbours.novelty import Novelty
from dtl.training import values
from dtl.training.checkpoint import Checkpoint
from dtl.training.tuning import Search
from dtl.training.values import Comparison, Contender, Probe, Probed, Round, Rung, Trial, Tuning

_DATA = Path(os.environ.get("DTL_DATA", ROOT.parent / "shared" / "data"))
_CASES = _DATA.parent / "cases"

_MOST_BYTES = 100_000
_MODES = ("RGB", "L", "P", "RGBA", "1", "CMYK", "I;16", "LA")

PROVENANCE: dict[str, Any] = {
    "features": {"images": "3 of 3 classes", "precision": "float32"}, "weights_sha256": "0" * 64,
    "split": {"method": "auto", "test": 0.2}, "layer": "fc2", "train": {"l2": 0.01, "epochs": 3.0},
    "seed": 0, "tune": {"eta": 3}, "compare": {"shards": [1, 2]}, "head_sha256": "0" * 64,
    "n_mistakes": 24, "probe": {"n_draws": 3}, "check": {"folds": 5},
}  # fmt: skip


def cases(folder: str, pattern: str = "*") -> list[bytes]:
    """Return files that failed in the field, where they lie beside the project."""
    found = sorted((_CASES / folder).glob(pattern))
    return [path.read_bytes() for path in found if path.stat().st_size <= _MOST_BYTES]


LABELS = {"ant/0.jpg": "ant", "b\u00e9/1": "bee", "./2": "3"}


def label_tables(kind: str) -> list[bytes]:
    """Return tables of labels in a format."""
    if kind == "parquet":
        columns = {"path": [*LABELS], "label": [*LABELS.values()], "split": ["train", "test", None]}
        numbers = {"label": [1, 2], "path": ["a", "b"]}
        found = []
        for table in (columns, numbers):
            buffer = io.BytesIO()
            pq.write_table(pa.table(table), buffer)
            found.append(buffer.getvalue())
        return found
    if kind == "jsonl":
        rows = [{"path": path, "label": name, "split": "dev"} for path, name in LABELS.items()]
        numbers = [{"path": path, "label": k} for k, path in enumerate(LABELS)]
        return ["\n".join(map(json.dumps, table)).encode() for table in (rows, numbers)]
    lines = [f'"{path}",{name},val' for path, name in LABELS.items()]
    text = "\r\n".join(["path,label,split", *lines])
    return [text.encode(), text.replace(",", ";").encode("utf-8-sig"), text.encode("utf-16")]


@functools.cache
def images() -> list[bytes]:
    """Return a picture in every format and mode that Pillow writes, and the field's cases."""
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.normal(128, 60, (24, 32, 3)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    frames = [picture.rotate(90 * k) for k in (1, 2)]
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind in sorted(Image.SAVE.keys() & Image.OPEN.keys() - {"PDF", "EPS", "WMF", "HDF5"}):
        found += [_save(_convert(picture, mode), kind) for mode in _MODES]
    for kind, options in (
        ("JPEG", {"progressive": True, "exif": exif}),
        ("JPEG", {"subsampling": 0, "quality": 100, "comment": b"x" * 300}),
        ("PNG", {"exif": exif, "interlace": 1}),
        *((kind, {"save_all": True, "append_images": frames}) for kind in (
            "GIF", "PNG", "TIFF", "WEBP", "AVIF", "MPO")),
        ("WEBP", {"lossless": True, "exif": exif}),
        ("JPEG2000", {"irreversible": True, "quality_layers": [20]}),
        *(("TIFF", {"compression": compression}) for compression in (
            "tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate", "zstd", "lzma")),
    ):  # fmt: skip
        found.append(_save(picture, kind, **options))
    found.append(_save(_convert(picture, "1"), "TIFF", compression="group4"))
    return sorted(
        {data for data in found if data} | {*cases("decode"), *cases("files", "*-*.[itw]*")}
    )


def _convert(picture: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    return picture.convert(mode)


def _save(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a file; nothing where Pillow cannot write the mode, or this build lacks a codec."""
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):  # of IM
            picture.save(buffer, kind, **options)
    except (OSError, ValueError, KeyError, RuntimeError):
        return b""
    return buffer.getvalue() if buffer.tell() <= _MOST_BYTES else b""


CLASSES = [b"ant", b"3", b"ant/bee\r\n", b"\xef\xbb\xbfk\xc3\xa4fer\r\n"]
DESCRIPTIONS = [
    json.dumps(value).encode()
    for value in ({"cls": 3}, {"label": "ant", "url": "http://a/b", "width": [1, 2.5, None]}, "bee")
]


def make_tar(files: Mapping[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return a tar of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@functools.cache
def archives() -> list[bytes]:
    """Return tars of each format, of WebDataset's kind, with links, and those of the field."""
    photo = _save(Image.new("RGB", (8, 8), "red"), "JPEG")
    long = "/".join(["a" * 60] * 3)
    plain = {
        "ant/1.jpg": photo,
        f"{long}/2.jpg": photo,
        "bee/3.jpg": b"",
        "bee/ä": photo,
        "c": b"x" * 900,
    }
    described = {
        "0.jpg": photo,
        "0.cls": b"3",
        "1.jpg": photo,
        "1.json": DESCRIPTIONS[1],
        "1.txt": b"a",
    }
    linked = io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"ant/{kind.decode()}.jpg")
            info.type, info.linkname = kind, "../../etc/passwd"
            tar.addfile(info)
    ours = b"".join(
        tars.make_header(name, len(photo)) + photo + tars.make_padding(len(photo))
        for name in ("ant/1.jpg", f"{'b' * 120}/2.jpg")
    )
    kinds = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    made = [make_tar(plain if kind != kinds[0] else described, kind) for kind in kinds]
    return [*made, linked.getvalue(), ours + tars.END, *cases("tars")]


def _weights(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.random(shape, np.float32) for name, shape in shapes}


@functools.cache
def heads() -> list[bytes]:
    """Return heads with and without a hidden layer."""
    common = (("mean", (4,)), ("scale", (4,)), ("bias", (3,)))
    about: dict[str, Any] = {"class_names": ("ant", "bee", "käfer"), "provenance": PROVENANCE}
    return [
        Head(**_weights(("kernel", (4, 3)), *common), **about).to_bytes(),
        Head(
            **_weights(
                ("kernel", (5, 3)), ("hidden_kernel", (4, 5)), ("hidden_bias", (5,)), *common
            ),
            **about,
            normalize="sqrt-l2",
            temperature=1.5,
            held_out=HeldOut(
                np.arange(12, dtype=np.int32) % 3, np.linspace(0, 0.5, 12), np.linspace(0.4, 1, 12)
            ),
        ).to_bytes(),
        *cases("files", "*head.npz"),
    ]


_HISTORY = [
    Round(n, n / 2, 1 / n, (0.1, float("nan")), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6) for n in (1, 2, 3)
]


@functools.cache
def checkpoints() -> list[bytes]:
    """Return a checkpoint of a training."""
    params = _weights(("kernel", (4, 3)), ("bias", (3,)), ("state/momentum", (4, 3)))
    best = {"bias": params["bias"]}
    return [Checkpoint(params, best, tuple(_HISTORY), 1.5, PROVENANCE).to_bytes()]


_TRIALS = (
    Trial(0.1, 0.01, 0.0, 10, (Rung(1.0, 0.9, 0.2, 0.8, 0.3), Rung(3.0, 0.9, 0.2, 0.8, 0.3))),
    Trial(0.3, 0.01, 0.0, 10, (), True),
)


@functools.cache
def searches() -> list[bytes]:
    """Return a search that is not finished."""
    return [
        Search(_TRIALS, {0: _weights(("kernel", (4, 3)), ("bias", (3,)))}, PROVENANCE).to_bytes()
    ]


@functools.cache
def evaluations() -> list[bytes]:
    """Return scores."""
    by_class = {"ant": {"n_images": 3, "precision": 1.0, "recall": 0.5, "f1": 0.6}}
    scores = SplitScores(5, 0.6, 1.0, 0.3, 0.8, 0.8, 0.8, by_class, ((0, 0, 3), (0, 1, 2)))
    mistakes = (Mistake("ant/1.jpg", "test", "ant", "bee", 0.9),)
    names = ("ant", "bee", "käfer")
    made = Evaluation({"train": scores, "test": scores}, mistakes, names, PROVENANCE)
    return [made.to_json(), *cases("files", "evaluation*")]


@functools.cache
def histories() -> list[bytes]:
    """Return rounds of a training."""
    return [values.history_to_bytes(_HISTORY)]


@functools.cache
def timings() -> list[bytes]:
    """Return what stages took."""
    took = {"seconds": 1.25, "n": 3, "unit": "images"}
    return [json.dumps({"list": took, "train": took}, indent=1).encode()]


@functools.cache
def timelines() -> list[bytes]:
    """Return who did what when."""
    busy = {"features": ((0.0, 1.0, 0.5, 3),)}
    worker = Worker("tcp://a:1", "a", 0.0, 2.0, "lost", 9, {"features": 2}, busy, ((0.0, 5),))
    life = Life(0.0, 3.0, "", (Stage("train", 0.0, 3.0),), ((0.0, 5),), (worker,), 1, 1)
    return [Timeline((life,), 1).to_json()]


@functools.cache
def comparisons() -> list[bytes]:
    """Return a comparison."""
    scores = {"train": 1.0, "validation": 0.9}
    one = Contender("L-BFGS", 0, 0, scores, scores, 0.1, 0.0, 0.0, 2.5, 100, ((0.5, 0.2),))
    return [values.to_json(Comparison((one,), PROVENANCE, {"train": 70, "validation": 20}))]


@functools.cache
def tunings() -> list[bytes]:
    """Return a finished search."""
    return [values.to_json(Tuning(_TRIALS, (1.0, 3.0), "validation_loss", ("a",), PROVENANCE, 40))]


def checks() -> list[bytes]:
    """Return what is wrong with images."""
    accuracies = (Accuracy(ALL, 9, 7), Accuracy(CLEAN, 8, 7), Accuracy(APART, 8, 6))
    found = Check(
        n_images=9, n_labelled=9, n_judged=9, n_issues={"label": 1, "leak": 1}, n_wrong=1.5,
        held_out=accuracies[:2], overlaps=(Overlap("ant", "bee", 2.0, 0.2),),
        small=(SmallClass("cat", 1, False),),
        double=(DoubleClass("bee", (9, 8), 0.0, ("a.jpg",), ("b.jpg",)),), twins="twins",
        neighbours={"a.jpg": (Neighbour("b.jpg", "bee", 0.9),)}, relabel="relabel.csv",
        head_sha256="0" * 64, accuracies={"test": accuracies}, provenance=PROVENANCE,
    )  # fmt: skip
    return [found.to_json()]


def issues() -> list[bytes]:
    """Return faults of images."""
    found = [Issue("a.jpg", "label", 0.9, "", "ant", "bee"), Issue("b.jpg", "leak", 1.0, "a.jpg")]
    return [issues_to_bytes(found)]


def probes() -> list[bytes]:
    """Return what features were found to be worth."""
    results = (
        Probed("fc2", "l2", method, n, 0.5, 0.4, 0.6, 0.1, 3)
        for method in ("L-BFGS", "5-NN") for n in (0, 1)
    )  # fmt: skip
    return [values.to_json(Probe(tuple(results), "test", PROVENANCE))]


def novelties() -> list[bytes]:
    """Return how unlike the training images an image is."""
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(6, 4)).astype(np.float32)
    scaling = Scaling("sqrt-l2", np.zeros(4), np.ones(4, np.float32))
    return [Novelty(scaling, unit, 2, 0.3, 0.05, 9, PROVENANCE).to_bytes()]


@functools.cache
def configurations() -> list[bytes]:
    """Return files of options."""
    whole = tomli_w.dumps(config.to_dict(config.build({"images": {"url": "/photos"}}))).encode()
    return [whole, b"seed = 3\n[train]\nepochs = 2.5\nl2 = 1e-3\n", *cases("config")]


@functools.cache
def ledgers() -> list[bytes]:
    """Return ledgers of folders of images."""
    return [
        json.dumps({"dataset": "caltech256", "seed": 0, "complete": complete}, indent=1).encode()
        for complete in (True, False)
    ] + cases("files", "dtl_images*")


@functools.cache
def locks() -> list[bytes]:
    """Return locks of drivers that are gone, or elsewhere."""
    return [
        json.dumps({"host": host, "pid": 7, "started": "1", "token": "t", "beat": 3}).encode()
        for host in ("elsewhere", os.uname().nodename)
    ]


@functools.cache
def store_files() -> list[bytes]:
    """Return the files of a small feature store, each as ``name NUL bytes``."""
    with tempfile.TemporaryDirectory() as folder:
        gaussian_store(f"{folder}/store", 25, 4, 3, chunk_images=10)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return [
            os.fsencode(path.relative_to(f"{folder}/store")) + b"\0" + path.read_bytes()
            for path in paths
        ]


@functools.cache
def weights_npz() -> list[bytes]:
    """Return networks' weights as .npz."""
    found = []
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, **_weights(("0", (3, 3, 3, 4)), ("1", (4,))))
        found.append(buffer.getvalue())
    return [*found, *cases("files", "weights*.npz")]


@functools.cache
def weights_hdf5() -> list[bytes]:
    """Return networks' weights in the layouts of Keras 1 to 3."""
    return [_hdf5(_write_legacy), _hdf5(_write_numbered), *cases("files", "*.h5")]


@functools.cache
def networks() -> list[bytes]:
    """Return a network of one convolution as ONNX."""
    from onnx import TensorProto, helper, numpy_helper

    kernel, bias = _weights(("k", (4, 3, 3, 3)), ("b", (4,))).values()
    named = [numpy_helper.from_array(kernel, "k"), numpy_helper.from_array(bias, "b")]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])
    conv = helper.make_tensor_value_info("conv", TensorProto.FLOAT, None)
    node = helper.make_node("Conv", ["image", "k", "b"], ["conv"])
    graph = helper.make_graph([node], "network", [image], [conv], named)
    opset = [helper.make_opsetid("", 17)]
    return [helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()]


def _hdf5(write: Callable[[Any], None]) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        write(file)
    return buffer.getvalue()


def _write_legacy(file: Any) -> None:
    names = ["conv/kernel:0", "conv/bias:0"]
    file.attrs["layer_names"] = [b"conv"]
    file.create_group("conv").attrs["weight_names"] = [name.encode() for name in names]
    for name, array in zip(names, _weights(("k", (3, 3, 3, 4)), ("b", (4,))).values(), strict=True):
        file["conv"].create_dataset(name, data=array, chunks=True, compression="gzip")


def _write_numbered(file: Any) -> None:
    for layer in ("conv2d", "dense_1"):
        for name, array in _weights(("0", (3, 3, 3, 4)), ("1", (4,))).items():
            file.create_dataset(f"layers/{layer}/vars/{name}", data=array)
