"""Weights of an HDF5 file, read in a process of their own with limits of time and memory.

HDF5 is a format of trees and programs in C: a damaged file can hold a reader for ever, end its
process, or name other files. `read` starts this module as a program, which imports no Keras. The
arrays come through a pipe, without pickles.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_CPU_S = 20
"""Processor time of the process. VGG16's weights take a second, compressed ones some more."""

_SILENT_S = 120.0
"""Time without a word from the process: slow storage takes no processor time."""

_PART_BYTES = 16 << 20
"""Bytes of an array that are read at a time: each part is a word that slow storage gives."""

_MEMORY_BYTES = 4 << 30
"""Address space of the process: ten times the largest array of keras.applications."""

_TOO_LARGE = f"it takes more than {_MEMORY_BYTES >> 30} GiB to read"

LayerNames = list[tuple[str, "LayerNames"]]
"""Layers that have weights, as Keras 3 names them in a file, with the layers inside of each."""


class Weight(NamedTuple):
    """An array of a file, of which the numbers are read when they are wanted."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[np.float32]]


def read(path: str, layers: LayerNames) -> Generator[Weight, None, None]:
    """Yield the weights of a file of Keras 1 to 3, in the order of the network's layers.

    Parameters
    ----------
    layers : list
        Those of the network: files of Keras 3 do not hold their order.

    Raises
    ------
    ValueError
        If it is no such file, or reading it takes more than the limits.
    OSError
        If the storage failed, or gave nothing for two minutes.
    """
    ours, its = Pipe()
    process = subprocess.Popen(
        # Not from the working directory (-P), which may hold anything.
        [sys.executable, "-P", "-m", __name__, str(its.fileno()), path, str(_CPU_S)],
        pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env=_environment(),
    )  # fmt: skip
    its.close()
    with process, ours:
        try:
            ours.send_bytes(json.dumps(layers).encode())
            while (answer := json.loads(_receive(ours, process))) is not None:
                if "error" in answer:
                    _raise(answer)
                shape = tuple(answer["shape"])
                yield Weight(answer["name"], shape, partial(_read_numbers, ours, process, shape))
                _send_word(ours, b"next")
        finally:
            process.kill()


def _read_numbers(
    ours: Connection, process: subprocess.Popen[bytes], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    if 4 * math.prod(shape) > _MEMORY_BYTES:
        raise ValueError(_TOO_LARGE)
    numbers = np.empty(math.prod(shape), np.float32)
    _send_word(ours, b"read")
    n_read = 0
    while n_read < numbers.size:
        answer = json.loads(_receive(ours, process))
        if "error" in answer:
            _raise(answer)
        part = np.frombuffer(_receive(ours, process), np.float32)
        numbers[n_read : n_read + part.size] = part
        n_read += part.size
    return numbers.reshape(shape)


def _send_word(ours: Connection, word: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # it has ended: what is received next says how
        ours.send_bytes(word)


def _receive(ours: Connection, process: subprocess.Popen[bytes]) -> bytes:
    try:
        if ours.poll(_SILENT_S):
            return ours.recv_bytes()
    except (EOFError, ConnectionError):
        status = process.wait()
        if status == -signal.SIGXCPU:
            raise ValueError(
                f"after {_CPU_S} s of computing it was not read, so it is damaged"
            ) from None
        assert process.stderr is not None
        last = process.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(f"the process that read it ended with status {status}. {last}") from None
    raise TimeoutError(
        errno.ETIMEDOUT,
        f"Nothing of the weights was read for {_SILENT_S:.0f} s: their storage is slow, or hangs",
    )


def _raise(answer: dict[str, Any]) -> None:
    if answer["errno"] is not None:
        raise OSError(answer["errno"], answer["error"])
    raise ValueError(answer["error"])


def _environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OPENBLAS_NUM_THREADS": "1",  # each has some memory that counts
        "HDF5_PLUGIN_PRELOAD": "::",  # no libraries of others, whatever filters the file names
    }


# --- in the process ------------------------------------------------------------------------------


def _main(fileno: int, path: str, cpu_s: int) -> None:
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, cpu_s)
    if sys.platform == "linux":  # macOS has no such limit
        _limit(resource.RLIMIT_AS, _MEMORY_BYTES)
    with Connection(fileno) as pipe:
        try:
            import h5py

            with h5py.File(path) as file:
                for name, dataset in _find(file, json.loads(pipe.recv_bytes())):
                    _check(dataset, file, name)
                    _send(pipe, {"name": name, "shape": dataset.shape})
                    while pipe.recv_bytes() == b"read":
                        for part in _read_parts(dataset):
                            _send(pipe, {"shape": part.shape})
                            pipe.send_bytes(part.reshape(-1).view(np.uint8).data)
            _send(pipe, None)
        except MemoryError:
            _send(pipe, {"error": _TOO_LARGE, "errno": None})
        except Exception as error:  # h5py raises anything on other bytes
            kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
            _send(pipe, {"error": f"{kind}{error}", "errno": getattr(error, "errno", None)})


def _read_parts(dataset: Any) -> Iterator[NDArray[np.float32]]:
    if not dataset.shape:
        yield np.asarray(dataset[()], np.float32)
    elif dataset.size:
        rows = dataset.chunks[0] if dataset.chunks else 1  # no chunk is decompressed twice
        rows *= max(_PART_BYTES // (4 * rows * (dataset.size // len(dataset))), 1)
        for start in range(0, len(dataset), rows):
            yield np.asarray(dataset[start : start + rows], np.float32, "C")


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _send(pipe: Connection, value: Any) -> None:
    pipe.send_bytes(json.dumps(value).encode())


def _check(dataset: Any, file: Any, name: str) -> None:
    # A group has no dtype, an empty dataset no shape.
    dtype, shape = getattr(dataset, "dtype", None), getattr(dataset, "shape", None)
    if dtype is None or dtype.kind not in "fiu" or shape is None:
        raise ValueError(f"{name} is no array of numbers")
    if dataset.file.filename != file.filename or dataset.external or dataset.is_virtual:
        raise ValueError(f"the numbers of {name} lie in another file")


def _find(file: Any, layers: LayerNames) -> Iterator[tuple[str, Any]]:
    legacy = file.get("model_weights", file)  # beside the configuration in a whole model
    if "layer_names" in legacy.attrs:  # the layout of Keras 1 and 2, and of keras.applications
        for layer in _decode(legacy.attrs["layer_names"]):
            for weight in _decode(legacy[layer].attrs["weight_names"]):
                yield weight, legacy[layer][weight]
    elif "layers" in file:
        yield from _find_numbered(file["layers"], layers)


def _find_numbered(group: Any, layers: LayerNames) -> Iterator[tuple[str, Any]]:
    """Find the arrays of Keras 3's .weights.h5, which names layers by class and number."""
    for name, inner in layers:
        if name in group:
            if "layers" in group[name]:  # a model within the model
                yield from _find_numbered(group[name]["layers"], inner)
            variables = group[name].get("vars", {})
            for key in sorted(variables, key=int):
                yield variables[key].name.strip("/"), variables[key]


def _decode(values: Sequence[Any]) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
