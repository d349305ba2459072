"""Files of HDF5 that hold a reader for ever or name other files: told, in bounded time."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import wait_until
from keras_models import FIRST

from dtl.features.network.keras_network import Network
from dtl.features.network.weights import hdf5


def legacy(path: Path, **arrays: object) -> Path:
    """A file in the layout of Keras 1 and 2: one layer, whose weights are as given."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        group = file.create_group("conv")
        group.attrs["weight_names"] = [name.encode() for name in arrays]
        for name, array in arrays.items():
            if callable(array):
                array(group, name)
            else:
                group[name] = array
    return path


def read_all(path: Path) -> dict[str, np.ndarray]:
    return {weight.name: weight.read() for weight in hdf5.read(str(path), [])}


def children() -> set[str]:
    """Processes that read HDF5 for this one."""
    return {
        entry.name for entry in Path("/proc").glob("[0-9]*")
        if b"\0dtl.features.network.weights.hdf5\0" in _command(entry)
        and f"PPid:\t{os.getpid()}\n" in _status(entry)
    }  # fmt: skip


def _command(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def _status(entry: Path) -> str:
    try:
        return (entry / "status").read_text()
    except OSError:
        return ""


def test_numbers_arrive_as_they_are(tmp_path: Path) -> None:
    arrays = {
        f"{dtype} {shape}": np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        for dtype in ("f4", "f8", "f2", "i4", ">f4")
        for shape in ((), (3,), (0, 3), (2, 3, 4))
    }
    found = read_all(legacy(tmp_path / "w.h5", **arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
    assert children() == set()


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    """A dataset of 4 TB that nobody has written takes no space, and no memory."""

    def huge(group: h5py.Group, name: str) -> None:
        group.create_dataset(name, (1 << 20, 1 << 20), "f4", chunks=(1 << 10, 1 << 10))

    path = legacy(tmp_path / "w.h5", kernel=huge, bias=np.ones(2, "f4"))
    found = {weight.name: weight for weight in hdf5.read(str(path), [])}
    assert found["kernel"].shape == (1 << 20, 1 << 20)
    with pytest.raises(ValueError, match=r"it takes more than 4 GiB to read"):
        read_all(path)
    wait_until(lambda: not children(), "the process to end", 60)


def slow_down(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds_per_mib: float, silent_s: float
) -> None:
    """Have arrays come slowly, as from shared storage, in the process that reads them."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import h5py, time\n"
        "read = h5py.Dataset.__getitem__\n"
        "def slow(dataset, key):\n"
        "    found = read(dataset, key)\n"
        f"    time.sleep(found.nbytes / 2**20 * {seconds_per_mib})\n"
        "    return found\n"
        "h5py.Dataset.__getitem__ = slow\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(hdf5, "_SILENT_S", silent_s)


@pytest.mark.slow
def test_weights_of_slow_storage_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, for fc1 of VGG16 (411 MB) takes longer than any silence that is borne."""
    kernel = np.arange(12 << 20, dtype="f4").reshape(3, -1)
    path = legacy(tmp_path / "w.h5", kernel=kernel)
    slow_down(tmp_path / "slow", monkeypatch, 0.25, 10.0)  # 12 s in all, 4 s a part
    np.testing.assert_array_equal(read_all(path)["kernel"], kernel)


def test_compressed_arrays_are_read_in_whole_chunks(tmp_path: Path) -> None:
    kernel = np.arange(700 * 9000, dtype="f4").reshape(700, 9000)

    def compressed(group: h5py.Group, name: str) -> None:
        group.create_dataset(name, data=kernel, chunks=(300, 1000), compression=1)

    path = legacy(tmp_path / "w.h5", kernel=compressed)
    np.testing.assert_array_equal(read_all(path)["kernel"], kernel)


@pytest.mark.slow
def test_storage_that_gives_nothing_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = legacy(tmp_path / "w.h5", kernel=np.ones((1 << 18, 1), "f4"))
    slow_down(tmp_path / "slow", monkeypatch, 600.0, 6.0)
    with pytest.raises(TimeoutError, match=r"Nothing of the weights was read for 6 s: their stor"):
        read_all(path)
    wait_until(lambda: not children(), "the process to end", 60)


@pytest.mark.slow
def test_a_file_that_hangs_its_reader(cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = cases / "files" / "hang-legacy.h5"
    monkeypatch.setattr(hdf5, "_CPU_S", 3)
    told = rf"{file} is no HDF5 file of weights: after 3 s of computing it was not read"
    with pytest.raises(ValueError, match=told):
        Network(replace(FIRST, weights=str(file)))
    wait_until(lambda: not children(), "the process to end", 60)


@pytest.mark.slow
def test_the_limit_of_processor_time_is_the_process_own(
    cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds without this process, too: a worker may be killed meanwhile."""
    monkeypatch.setattr(hdf5, "_CPU_S", 3)
    with pytest.raises(ValueError, match=r"after 3 s of computing it was not read, so it is"):
        read_all(cases / "files" / "hang-legacy.h5")
    wait_until(lambda: not children(), "the process to end", 60)


def test_a_reader_that_crashes(tmp_path: Path) -> None:
    """As a fault of HDF5's own would end it."""
    path = legacy(tmp_path / "w.h5", kernel=np.ones(3))
    weights = hdf5.read(str(path), [])
    weight = next(weights)
    for child in children():
        os.kill(int(child), signal.SIGSEGV)
    wait_until(lambda: not children(), "the process to end", 60)
    with pytest.raises(ValueError, match=r"the process that read it ended with status -11"):
        weight.read()


def external(group: h5py.Group, name: str) -> None:
    group.create_dataset(name, (3,), "f4", external=[("/etc/passwd", 0, 12)])


def virtual(group: h5py.Group, name: str) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (3,), "f4")
    group.create_virtual_dataset(name, layout)


def linked(group: h5py.Group, name: str) -> None:
    other = Path(group.file.filename).with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["a"] = np.ones(3)
    group[name] = h5py.ExternalLink(str(other), "a")


@pytest.mark.parametrize("elsewhere", [external, virtual, linked])
def test_numbers_of_other_files_are_refused(tmp_path: Path, elsewhere: object) -> None:
    path = legacy(tmp_path / "w.h5", kernel=elsewhere)
    with pytest.raises(ValueError, match=r"the numbers of kernel lie in another file"):
        read_all(path)


def group_of(group: h5py.Group, name: str) -> None:
    group.create_group(name)


def empty(group: h5py.Group, name: str) -> None:
    group.create_dataset(name, data=h5py.Empty("f4"))


def texts(group: h5py.Group, name: str) -> None:
    group.create_dataset(name, data=["a", "b"])


def structured(group: h5py.Group, name: str) -> None:
    group.create_dataset(name, data=np.zeros(3, [("a", "f4")]))


@pytest.mark.parametrize("what", [group_of, empty, texts, structured])
def test_what_is_no_array_of_numbers(tmp_path: Path, what: object) -> None:
    with pytest.raises(ValueError, match=r"kernel is no array of numbers"):
        read_all(legacy(tmp_path / "w.h5", kernel=what))


def test_names_of_nothing(tmp_path: Path) -> None:
    path = legacy(tmp_path / "w.h5")
    with h5py.File(path, "r+") as file:
        file["conv"].attrs["weight_names"] = [b"gone"]
    with pytest.raises(ValueError, match=r"gone"):
        read_all(path)


def test_storage_that_fails_is_no_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_all(tmp_path / "gone.h5")


def test_code_in_a_model_is_never_run(tmp_path: Path) -> None:
    """A whole model whose configuration names a Lambda layer: only its arrays are read."""
    path = legacy(tmp_path / "w.h5", kernel=np.ones(3, "f4"))
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = '{"class_name": "Lambda", "config": {"function": "\\u0080"}}'
        file.create_group("model_weights").attrs["layer_names"] = [b"conv"]
        file.move("conv", "model_weights/conv")
    assert list(read_all(path)) == ["kernel"]


def test_an_abandoned_reader_ends(tmp_path: Path) -> None:
    path = legacy(tmp_path / "w.h5", kernel=np.ones(3), bias=np.ones(3))
    weights = hdf5.read(str(path), [])
    next(weights)
    assert len(children()) == 1
    weights.close()
    assert children() == set()


def test_from_several_threads(tmp_path: Path) -> None:
    path = legacy(tmp_path / "w.h5", kernel=np.arange(3))
    found: list[dict[str, np.ndarray]] = []
    threads = [threading.Thread(target=lambda: found.append(read_all(path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f["kernel"].tolist() for f in found] == [[0, 1, 2]] * 3
