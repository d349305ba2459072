from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from keras_models import FIRST, draw_images

from dtl.cluster import processors
from dtl.config.errors import UserError
from dtl.features import converted
from dtl.features.network import conversion, network_file, openvino_network
from dtl.features.network.keras_network import Network
from dtl.features.network.network_file import NetworkFile
from dtl.features.network.openvino_network import OpenVinoNetwork
from dtl.features.network.quiet_openvino import openvino
from dtl.features.values import FileSpec

LAYERS = ("block1_conv1", "block1_pool")
SPEC = replace(FIRST, layers=LAYERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, NetworkFile]:
    folder = tmp_path_factory.mktemp("network")
    found = conversion.convert(SPEC, {"a": 1}, folder / "float32")
    network_file.put(folder / "float32", str(folder / "float32"), found)
    return str(folder / "float32"), found


def how(made: tuple[str, NetworkFile], precision: str = "float32", n: int = 2) -> FileSpec:
    return FileSpec(made[0], made[1].sha256, precision, n)


def test_a_converted_network_is_kerass(made: tuple[str, NetworkFile]) -> None:
    network, found = Network(SPEC), made[1]
    assert found.source_sha256 == network.weights_sha256
    assert found.input_size == (224, 224)
    assert found.n_features == {"block1_conv1": 64, "block1_pool": 64}
    images = draw_images()
    ours, keras = openvino_network.load(how(made)).compute(images), network.compute(images)
    for layer in LAYERS:
        assert ours[layer].dtype == np.float32
        assert ours[layer].shape == (2, 64)
        np.testing.assert_allclose(ours[layer], keras[layer], rtol=1e-4, atol=1e-4)


def test_other_sizes_are_kerass(made: tuple[str, NetworkFile]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 32, 3), np.uint8)
    ours, keras = openvino_network.load(how(made)), Network(SPEC)
    for pixels in (images, draw_images(), images):
        found, expected = ours.compute(pixels), keras.compute(pixels)
        for layer in LAYERS:
            np.testing.assert_allclose(found[layer], expected[layer], rtol=1e-4, atol=1e-4)
    assert made[1].activation_bytes == pytest.approx(keras.description.activation_bytes, rel=0.01)
    at_least = converted.estimate_memory(made[1], 64, ((448, 448),))
    assert at_least > 64 * 4 * made[1].activation_bytes


def test_results_outlive_the_next_batch_and_part_of_one_has_its_bits(
    made: tuple[str, NetworkFile],
) -> None:
    network, images = openvino_network.load(how(made)), draw_images()
    whole = network.compute(images)["block1_pool"]
    before = whole.copy()
    one = network.compute(images[:1])["block1_pool"]
    assert one.shape == (1, 64)
    np.testing.assert_array_equal(one, whole[:1])
    network.compute(images[::-1])
    np.testing.assert_array_equal(whole, before)


@pytest.mark.parametrize("precision", processors.list_precisions()[-2:])
def test_bits_are_the_same_with_any_number_of_threads(
    made: tuple[str, NetworkFile], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, found = draw_images(), []
    for n_threads in (1, 2, 3):
        monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", str(n_threads))
        model = openvino_network.read_model(made[0], made[1].sha256)
        found.append(OpenVinoNetwork(model, "", precision, 2).compute(images)["block1_pool"])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    exact = openvino_network.load(how(made)).compute(images)["block1_pool"]
    np.testing.assert_allclose(found[0], exact, rtol=0.05, atol=0.02 * exact.max())


def test_the_same_network_has_the_same_bytes(made: tuple[str, NetworkFile], tmp_path: Path) -> None:
    model = openvino_network.read_model(made[0], made[1].sha256)
    again = openvino_network.write_model(model, tmp_path / "a", "", {})
    assert again.sha256 == made[1].sha256
    assert again.weights_bytes == made[1].weights_bytes
    graph = (tmp_path / "a.xml").read_bytes()
    assert graph == Path(f"{made[0]}.xml").read_bytes()
    assert b"rt_info" not in graph
    assert openvino.__version__.encode() not in graph
    other = conversion.convert(replace(SPEC, seed=6), {}, tmp_path / "b")
    assert other.sha256 != again.sha256


def test_one_network_per_process(made: tuple[str, NetworkFile]) -> None:
    loaded: list[object] = []
    started = [
        threading.Thread(target=lambda: loaded.append(openvino_network.load(how(made, n=3))))
        for _ in range(3)
    ]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert len({*map(id, loaded)}) == 1


SIGNALLED = """
import gc, signal, sys, threading
from pathlib import Path
from dtl.features.network.openvino_network import OpenVinoNetwork, read_files

def load():
    model = read_files(*(Path(sys.argv[1] + suffix) for suffix in (".xml", ".bin")))
    made = OpenVinoNetwork(model, "", "float32", 2)
    made.prepare([(32, 32)])
    return made

networks = [load(), load()]
networks.pop(0)
networks.append(load())
thread = threading.Thread(target=networks.clear)
thread.start()
thread.join()
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_networks_that_come_and_go_leave_signals_as_they_were(
    made: tuple[str, NetworkFile],
) -> None:
    """OpenVINO takes the stack away on which a thread handles signals."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, made[0]], capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "interrupted\n", (done.returncode, done.stderr)


def test_files_that_are_gone_damaged_or_exchanged(
    made: tuple[str, NetworkFile], tmp_path: Path
) -> None:
    url = str(tmp_path / "float32")
    network_file.put(Path(made[0]), url, made[1])
    assert network_file.find(url) == network_file.find(url, {"a": 1}, check=True) == made[1]
    assert network_file.find(url, {"a": 2}) is None
    weights = (tmp_path / "float32.bin").read_bytes()
    (tmp_path / "float32.bin").write_bytes(weights[:-1] + b"?")
    message = r"float32\.xml and \.bin are damaged, or those of another .*Put back copies .*repair"
    with pytest.raises(UserError, match=message):
        openvino_network.load(FileSpec(url, made[1].sha256, "float32", 1))
    assert network_file.find(url) == made[1]
    assert network_file.find(url, check=True) is None
    (tmp_path / "float32.bin").unlink()
    with pytest.raises(UserError, match=r"No such file: .*float32\.bin\. It is of a converted"):
        openvino_network.load(FileSpec(url, made[1].sha256, "float32", 1))
    (tmp_path / "float32.json").write_text('{"sha256": 3}')
    with pytest.raises(UserError, match=r"float32\.json is damaged: it lacks the field"):
        network_file.find(url)
    assert network_file.find(url, check=True) is None
    (tmp_path / "float32.json").unlink()
    assert network_file.find(url) is None


def test_a_network_of_another_form_is_refused(tmp_path: Path) -> None:
    floats = openvino.opset13.parameter([-1, 8, 8, 3], np.float32, name="images")
    summed = openvino.opset13.reduce_sum(floats, np.array([1, 2]), False)
    summed.output(0).get_tensor().set_names({"sum"})
    model = openvino.Model([summed], [floats], "other")
    with pytest.raises(ValueError, match="has not the form"):
        openvino_network.write_model(model, tmp_path / "a", "", {})
