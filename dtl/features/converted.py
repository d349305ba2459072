"""Networks for OpenVINO: converted, quantized and judged on one worker, before work starts.

In the folder ``network`` beside the features lie ``converted``, the network as it came, and
``int8`` where it was quantized. Both are made once, in processes of their own: a worker that
computes imports neither Keras nor TensorFlow.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl import storage
from dtl.cluster import processors
from dtl.cluster.workers import check_shared, run_on_each_worker, run_on_one_worker
from dtl.config import ImagesConfig
from dtl.config.errors import UserError
from dtl.features.network import guard, network_file
from dtl.features.network.apart import run_apart
from dtl.features.network.files.source import NetworkSource, read_apart
from dtl.features.network.network_file import NetworkFile
from dtl.features.values import (
    ExtractionSpec,
    FileSpec,
    NetworkSpec,
    check_weights,
    fingerprint_network,
)
from dtl.images import tars
from dtl.images.decoding.reading import open_images
from dtl.images.values import ImageList
from dtl.storage import Extent

log = logging.getLogger(__name__)

_CONVERTED, _INT8 = "converted", "int8"
"""Files of `network_file` in the folder of networks."""

_N_CALIBRATION = 300
_N_HELD_OUT = 300
_FEWEST_OF_A_CLASS = 10
"""Images of a class that are held out: without neighbours of its class 1-NN tells nothing."""

_PROCESS_BYTES = 512 << 20
"""Memory of a process that has imported OpenVINO, and has decoded images."""

AUTO_INT8_IMAGES = 10_000
"""Images from which on `auto` takes int8: with fewer, making it takes longer than it saves."""


def prepare(
    client: Client,
    spec: ExtractionSpec,
    precision: str,
    images: ImageList | None = None,
    *,
    repair: bool = False,
) -> tuple[FileSpec, NetworkFile, dict[str, Any]]:
    """Make sure that the network is converted, and choose its precision.

    Parameters
    ----------
    precision : str
        As ``features.precision``.
    images : ImageList, optional
        That the network is for: it is made where it is not there, and calibrated on some of them.
        Without them it must be there.
    repair : bool
        Read the files, and make damaged ones again.

    Returns
    -------
    how : FileSpec
        The network, and how to compute with it.
    found : NetworkFile
        Its description.
    quantization : dict
        How far int8 is from float32 (`guard.measure_distance`), where it was made; ``refused`` says
        why `auto` does not take it, if so.
    """
    check_shared(client, spec.network_url)
    available = run_on_each_worker(client, _list_precisions)
    common = [p for p in ("int8", "bfloat16", "float32") if all(p in a for a in available.values())]
    if precision not in ("auto", *common):
        raise UserError(
            f"features.precision = {precision}: not every worker's processor computes it at speed. "
            f"They have: {sorted(map(list, {*map(tuple, available.values())}))}. Use auto or "
            "float32. (int8 takes VNNI or AMX.)"
        )
    url = storage.join(spec.network_url, _CONVERTED)
    if images is None and network_file.find(url, _describe_source(spec)) is None:
        raise UserError(
            f"The converted network of these features is not at {url}.xml. Copy the folder of the "
            "run with its folder `network`, or run its featurize stage with `repair`."
        )
    found, quantization = provide_converted(client, spec, repair=repair), {}
    if found.is_quantized:
        if precision not in ("auto", "int8") or "int8" not in common:
            raise UserError(
                f"{spec.features.network} is in int8 already. Set `features.precision` = int8, "
                "which takes processors with VNNI or AMX on all workers."
            )
        log.info("%s is in int8 already: it is taken as it is", spec.features.network)
        return FileSpec(url, found.sha256, "int8", spec.features.batch_images), found, {}
    tries_int8, chosen = precision == "int8", precision
    if precision == "auto":
        many = images is not None and len(images) >= AUTO_INT8_IMAGES
        tries_int8 = "int8" in common and many
        chosen = next(p for p in common if p != "int8")
    if tries_int8:
        int8 = _provide_int8(client, spec, found, images, repair=repair)
        quantization = int8.guard
        if not (refusal := guard.find_refusal(int8.guard)):
            log.info("int8 is used. %s", guard.describe(int8.guard))
            url, found, chosen = storage.join(spec.network_url, _INT8), int8, "int8"
        elif precision == "int8":
            raise UserError(
                f"int8 is refused: {refusal}. {guard.describe(int8.guard)}. Set "
                "`features.precision` = auto, bfloat16 or float32."
            )
        else:
            log.warning(
                "int8 is not used: %s. %s. Going on in %s.",
                refusal, guard.describe(int8.guard), chosen,
            )  # fmt: skip
            quantization = quantization | {"refused": refusal}
    return FileSpec(url, found.sha256, chosen, spec.features.batch_images), found, quantization


def estimate_memory(
    found: NetworkFile, batch_images: int, sizes: Sequence[tuple[int, int]] = ()
) -> int:
    """Return the bytes that a worker needs to run a network on batches of images of some sizes."""
    own_pixels = math.prod(found.input_size)
    area = max((height * width / own_pixels for height, width in sizes), default=1.0)
    batch_bytes = int(batch_images * found.activation_bytes * area)
    # The weights that are read, a copy for each size; the interpreter, decoded images and a batch.
    room = max(1 << 30, _PROCESS_BYTES + batch_bytes)
    return (1 + max(len(sizes), 1)) * found.weights_bytes + room


def provide_converted(client: Client, spec: ExtractionSpec, *, repair: bool = False) -> NetworkFile:
    """Convert the network on a worker, unless it is there; return its description.

    Weights that cannot be had are an `OSError`.
    """
    url, made_from = storage.join(spec.network_url, _CONVERTED), _describe_source(spec)
    if not repair and (found := network_file.find(url, made_from)) is not None:
        return found
    log.info("converting %s for OpenVINO", spec.features.network)
    network = spec.make_network_spec("float32")
    return run_on_one_worker(client, _convert, url, network, made_from)  # type: ignore[no-any-return]


@contextlib.contextmanager
def local_network(
    spec: ExtractionSpec, provenance: Mapping[str, Any]
) -> Iterator[tuple[Path, Path]]:
    """Yield the .xml and .bin of the network that computed features, as paths of this machine.

    What TensorFlow computed is converted now. `provenance` is that of the features, or of a head;
    other weights than its own are a `UserError`.
    """
    sha256 = provenance["weights_sha256"]
    if spec.engine == "openvino":
        int8, converted = (storage.join(spec.network_url, name) for name in (_INT8, _CONVERTED))
        quantized = network_file.find(int8)
        is_int8 = quantized is not None and quantized.sha256 == sha256
        with network_file.local_files(int8 if is_int8 else converted, sha256) as paths:
            yield paths
        return
    with tempfile.TemporaryDirectory(prefix="dtl-network-") as folder:
        path = Path(folder) / _CONVERTED
        made = _convert_here(spec.make_network_spec("float32"), {}, path)
        check_weights(made.source_sha256, sha256, "The head")
        yield path.with_suffix(".xml"), path.with_suffix(".bin")


def _describe_source(spec: ExtractionSpec) -> dict[str, Any]:
    f = spec.features
    return fingerprint_network(spec.network) | {
        "layers": list(f.layers), "pooling": f.pooling,
        "preprocess": f.preprocess, "weights": spec.weights,
    }  # fmt: skip


def is_there(spec: ExtractionSpec, sha256: str) -> bool:
    """Return whether the network's files that features were computed with are still there."""
    urls = [storage.join(spec.network_url, name) for name in (_CONVERTED, _INT8)]
    found = [network_file.find(url) for url in urls] if spec.engine == "openvino" else []
    return any(network is not None and network.sha256 == sha256 for network in found)


def _provide_int8(
    client: Client,
    spec: ExtractionSpec,
    float32: NetworkFile,
    images: ImageList | None,
    *,
    repair: bool,
) -> NetworkFile:
    url = storage.join(spec.network_url, _INT8)
    if images is None:
        if (found := network_file.find(url)) is not None:
            return found
        raise UserError(
            f"The int8 network of these features is not at {url}.xml, and only the images that it "
            "was calibrated on make it again. Copy the folder of the run with its folder "
            "`network`, or run its featurize stage with `repair`."
        )
    made_from = {
        "network": float32.sha256, "images": images.description, "resize": spec.images.resize,
        "max_pixels": spec.images.max_pixels, "n_calibration": _N_CALIBRATION,
    }  # fmt: skip
    if (found := network_file.find(url, made_from)) is not None and not repair:
        return found
    n_calibration = min(_N_CALIBRATION, len(images) // 2)
    held_out = choose_held_out(images.label, n_calibration)
    # Rows are in random order, drawn by the seed, and so are the first of them.
    rows = [np.arange(n_calibration), held_out]
    files = [tars.locate_listed(images, r) for r in rows]
    log.info("quantizing the network with %d images, and comparing %d", *map(len, files))
    return run_on_one_worker(  # type: ignore[no-any-return]
        client, _quantize, url, storage.join(spec.network_url, _CONVERTED), float32, made_from,
        files, images.label[held_out], spec.images,
    )  # fmt: skip


def choose_held_out(label: NDArray[np.integer[Any]], n_calibration: int) -> NDArray[np.intp]:
    """Choose rows, (n_images,), to compare on: after the first ones, of classes with neighbours.

    Examples
    --------
    >>> choose_held_out(np.array([0, 1, 1, 0, 2, 0]), 2)
    array([2, 3, 4, 5])
    """
    later = label[n_calibration:]
    labelled = later >= 0 if (later >= 0).any() else np.ones(len(later), bool)
    classes, first, counts = np.unique(later[labelled], return_index=True, return_counts=True)
    per_class = max(_FEWEST_OF_A_CLASS, -(-_N_HELD_OUT // max(len(classes), 1)))
    # Classes in the order of their rows, which is random; those with a single image last.
    order = np.lexsort((first, counts < 2))
    chosen: list[int] = []
    for k in order:
        chosen += np.flatnonzero(later == classes[k])[:per_class].tolist()
        if len(chosen) >= _N_HELD_OUT:
            break
    return n_calibration + np.sort(np.array(chosen[:_N_HELD_OUT], np.intp))


# --- on a worker ---------------------------------------------------------------------------------


def _list_precisions() -> list[str]:
    from dtl.features.network import quiet_openvino  # noqa: F401  (refuses where it is missing)

    return processors.list_precisions()


def _convert(url: str, spec: NetworkSpec, made_from: Mapping[str, Any]) -> NetworkFile:
    if (found := network_file.find(url, made_from, check=True)) is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="dtl-network-") as folder:
        path = Path(folder) / _CONVERTED
        description = _convert_here(spec, made_from, path)
        network_file.put(path, url, description)
    return description


def _convert_here(spec: NetworkSpec, made_from: Mapping[str, Any], path: Path) -> NetworkFile:
    """Write the converted network to files of this machine, by a process of its own."""
    if isinstance(spec.name, NetworkSource):
        is_keras = spec.name.kind == "keras"
        convert = "conversion.convert_file" if is_keras else "files.graph.convert"
        convert = f"dtl.features.network.{convert}"
        return read_apart(convert, spec.name, spec, made_from, path)  # type: ignore[no-any-return]
    convert = "dtl.features.network.conversion.convert"
    return run_apart(convert, spec, made_from, path)  # type: ignore[no-any-return]


def _quantize(
    url: str,
    float32_url: str,
    float32: NetworkFile,
    made_from: Mapping[str, Any],
    files: Sequence[Sequence[str | Extent]],
    label: NDArray[np.integer[Any]],
    images: ImagesConfig,
) -> NetworkFile:
    if (found := network_file.find(url, made_from, check=True)) is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="dtl-network-") as name:
        folder = Path(name)
        for what, of_them in zip(("calibration", "held_out"), files, strict=True):
            readable, pixels = _read_pixels(of_them, float32.input_size, images)
            np.save(folder / what, pixels)
        np.save(folder / "label", label[readable])
        with network_file.local_files(float32_url, float32.sha256) as network:
            quantize = "dtl.features.network.quantization.quantize"
            description: NetworkFile = run_apart(
                quantize, network, float32.source_sha256, made_from, folder
            )
        network_file.put(folder / "int8", url, description)
    return description


def _read_pixels(
    files: Sequence[str | Extent], size: tuple[int, int], config: ImagesConfig
) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Read images; return which could be read, and the pixels of those."""
    with open_images(files, [size], config, n_ahead=48) as opened:
        pixels = [image.pixels for image in opened]
    readable = np.array([len(image) > 0 for image in pixels], bool)
    if not readable.any():
        raise UserError(
            f"None of {len(files)} images that int8 needs could be read. Use another "
            "`features.precision`, or see which images are damaged."
        )
    return readable, np.stack([image[0] for image in pixels if image])
