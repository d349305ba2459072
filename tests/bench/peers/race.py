"""From the command to the end: dtl, Daft, Ray Data and bare loops, on the same photographs.

``python tests/bench/peers/race.py [CONTESTANT ...]`` prints a table of each contestant's wall and
processor time, peak memory and what it stored; then what a kill costs dtl, Daft and Ray Data, and
what becomes of five bad files among 105. The peers' packages are installed into a virtual
environment below ``build/`` at the first start.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet
from network import write_onnx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DATA = Path(os.environ.get("DTL_DATA", ROOT.parent / "shared" / "data"))
WEIGHTS = DATA / "vgg16_imagenet_conv.npz"
BUILD = ROOT / "build" / "peers"
PACKAGES = ("daft==0.7.26", "ray[data]==2.60.0", "onnxruntime", "torch")
ONNX = BUILD / "vgg16.onnx"
INT8 = BUILD / "out" / "dtl-OpenVINO-int8" / "network" / "int8.xml"
"""The network that dtl has quantized in the same turn."""
N_IMAGES, N_TURNS = 480, int(os.environ.get("DTL_BENCH_TURNS", "3"))
LAYER = ("--features.layers", "block5_pool", "--features.weights", str(WEIGHTS))


@dataclass
class Ended:
    """What one command took."""

    status: int
    wall_s: float
    loaded_s: float
    processor_s: float
    memory_mib: float
    said: str


@dataclass
class Contestant:
    """A command that makes features of IMAGES at OUT."""

    command: Callable[[Path, Path], list[str]]
    count: Callable[[Path], list[str]]
    ended: list[Ended] = field(default_factory=list)


def peers_python() -> str:
    """Python of an environment with the peers, and with the packages of this one behind them."""
    python = BUILD / "venv" / "bin" / "python"
    if not (BUILD / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", BUILD / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (site,) = (BUILD / "venv" / "lib").glob("python*/site-packages")
        (site / "dtl.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{ROOT}\n")
        (BUILD / "done").touch()
    return str(python)


def run(command: Sequence[str], during: Callable[[psutil.Process], None] | None = None) -> Ended:
    """Run a command; `during` is called with its process meanwhile."""
    started = time.time()
    log = BUILD / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, cwd=BUILD,
            env=os.environ | {"TF_NUM_INTRAOP_THREADS": "2", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    memory, times = 0.0, dict[tuple[int, float], float]()
    if during:
        threading.Thread(target=during, args=(psutil.Process(process.pid),)).start()
    while process.poll() is None:
        pss = 0
        for child in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if os.getsid(child.pid) == process.pid or _is_rays(child, started):
                    spent = child.cpu_times()
                    times[child.pid, child.create_time()] = spent.user + spent.system
                    pss += child.memory_full_info().pss
        memory = max(memory, pss / 2**20)
        time.sleep(0.2)
    wall_s = time.time() - started
    said = log.read_text(errors="replace")
    loaded = [float(line.split()[-1]) for line in said.splitlines() if "LOADED 1" in line]
    loaded_s = loaded[0] - started if loaded else float("nan")
    return Ended(process.returncode, wall_s, loaded_s, sum(times.values()), memory, said)


def _is_rays(process: psutil.Process, started: float) -> bool:
    """Ray's processes leave the session."""
    return process.create_time() >= started and any(
        "ray" in part for part in (process.name(), *process.cmdline()[:3])
    )


def photographs(folder: Path, n: int) -> Path:
    """A folder of `n` of the photographs."""
    shutil.rmtree(folder, ignore_errors=True)
    paths = sorted((DATA / "caltech256").glob("*/*.jpg"))
    for path in paths[:: len(paths) // n][:n]:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.parent.name / path.name)
    return folder


def count_parquet(out: Path) -> list[str]:
    """The photograph of each stored row."""
    if not out.is_dir() or not any(out.glob("*.parquet")):
        return []
    paths = pyarrow.parquet.read_table(out, columns=["path"])["path"].to_pylist()
    return [Path(path).name for path in paths]


def count_dtl(out: Path) -> list[str]:
    from dtl.features.store import FeatureStore
    from dtl.features.values import DONE

    store = FeatureStore.open(str(out / "features.zarr"))
    done = store.read("status") == DONE
    return [Path(path).name for path in store.read("path")[done]]


def count_loop(out: Path) -> list[str]:
    return [str(row) for row in range(len(np.load(f"{out}.npy")))] if out.parent.exists() else []


def contestants() -> dict[str, Contestant]:
    peers = peers_python()

    def dtl(*options: str) -> Contestant:
        return Contestant(
            lambda images, out: [
                sys.executable, "-m", "dtl.pipeline", "featurize", "--images", str(images),
                "--out", str(out), *LAYER, *options,
            ],
            count_dtl,
        )  # fmt: skip

    def peer(script: str, precision: str) -> Contestant:
        return Contestant(
            lambda images, out: [
                peers, str(HERE / script), str(images), str(out), str(WEIGHTS), precision,
            ],
            count_parquet,
        )  # fmt: skip

    def loop(engine: str, precision: str, network: str = "") -> Contestant:
        return Contestant(
            lambda images, out: [
                peers, str(HERE / "bare_loop.py"), engine, str(images), str(out), str(WEIGHTS),
                precision, network,
            ],
            count_loop,
        )  # fmt: skip

    openvino = ("--features.engine", "openvino", "--features.precision")
    return {
        "dtl, TensorFlow, bfloat16": dtl(),
        "dtl, TensorFlow, float32": dtl("--features.precision", "float32"),
        "dtl, OpenVINO, bfloat16": dtl(*openvino, "bfloat16"),
        "dtl, OpenVINO, int8": dtl(*openvino, "int8"),
        "dtl, OpenVINO, int8 made before": dtl(
            *openvino, "int8", "--features.network", str(INT8), "--features.weights", "imagenet"
        ),
        "Daft, Keras, bfloat16": peer("daft_features.py", "bfloat16"),
        "Ray Data, Keras, bfloat16": peer("ray_features.py", "bfloat16"),
        "loop, TensorFlow, bfloat16": loop("tensorflow", "bfloat16"),
        "loop, PyTorch, bfloat16": loop("torch", "bfloat16"),
        "loop, ONNX Runtime, float32": loop("onnxruntime", "float32", str(ONNX)),
        "loop, OpenVINO, bfloat16": loop("openvino", "bfloat16", str(ONNX)),
        "loop, OpenVINO, int8": loop("openvino", "int8", str(INT8)),
    }


def race(chosen: Sequence[str]) -> dict[str, Contestant]:
    """Let each contestant have its turn, N_TURNS times, and print a table of the medians."""
    images = photographs(BUILD / "photographs", N_IMAGES)
    field_ = {name: c for name, c in contestants().items() if not chosen or name in chosen}
    for turn in range(N_TURNS):
        for name, contestant in field_.items():
            out = BUILD / "out" / name.replace(", ", "-").replace(" ", "-")
            shutil.rmtree(out, ignore_errors=True)
            ended = run(contestant.command(images, out))
            assert ended.status == 0, ended.said
            n_rows = len(contestant.count(out))
            assert n_rows == N_IMAGES, f"{name}: {n_rows} rows"
            contestant.ended.append(ended)
            print(
                f"turn {turn}: {name}: {ended.wall_s:.1f} s, {ended.processor_s:.1f} s of processor"
            )
    print("\n| | wall, s | network loaded, s | processor, s | peak memory (PSS), MiB |")
    print("|---|---|---|---|---|")
    for name, contestant in field_.items():
        columns = [
            statistics.median(getattr(e, attribute) for e in contestant.ended)
            for attribute in ("wall_s", "loaded_s", "processor_s", "memory_mib")
        ]
        print(f"| {name} | " + " | ".join(map(_round, columns)) + " |")
    return field_


def _round(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1f}"  # dtl does not say when it has loaded


def race_with_kills(names: Sequence[str]) -> None:
    """Kill each contestant half-way, give the command again, and print what that cost."""
    images = photographs(BUILD / "photographs", N_IMAGES)
    print("\n| killed half-way, then the same command again | s, of undisturbed | rows | twice |")
    print("|---|---|---|---|")
    for name in names:
        contestant = contestants()[name]
        out = BUILD / "out" / "killed"
        shutil.rmtree(out, ignore_errors=True)
        whole = run(contestant.command(images, out))
        for victim in ("driver", "worker") if "Daft" not in name else ("its process",):
            shutil.rmtree(out, ignore_errors=True)

            def kill(
                process: psutil.Process, victim: str = victim, after: float = whole.wall_s / 2
            ) -> None:
                time.sleep(after)
                if victim == "worker":
                    biggest = max(_family(process), key=lambda p: p.memory_info().rss)
                    biggest.kill()
                else:
                    os.killpg(process.pid, signal.SIGKILL)

            first = run(contestant.command(images, out), kill)
            spent = first.wall_s
            subprocess.run(["pkill", "-9", "-f", "ray::|raylet|gcs_server"], check=False)
            if first.status:
                spent += run(contestant.command(images, out)).wall_s
            rows = contestant.count(out)
            twice = len(rows) - len(set(rows))
            times = f"{spent:.0f} of {whole.wall_s:.0f}"
            print(f"| {name}: {victim} | {times} | {len(set(rows))} | {twice} |")


def _family(process: psutil.Process) -> list[psutil.Process]:
    found = process.children(recursive=True)
    rays = [p for p in psutil.process_iter() if any("ray::" in part for part in p.cmdline()[:1])]
    return [p for p in found + rays if p.pid != process.pid]


def race_over_bad_files(names: Sequence[str]) -> None:
    """Give each contestant 100 good and 5 bad photographs, and print what it stored."""
    images = photographs(BUILD / "some_bad", 105)
    paths = sorted(images.glob("*/*.jpg"))
    bad = dict(
        zip(
            ("truncated", "text", "empty", "half zeros", "a folder's name"),
            paths[::21],
            strict=True,
        )
    )
    whole = {kind: path.read_bytes() for kind, path in bad.items()}
    bad["truncated"].write_bytes(whole["truncated"][: len(whole["truncated"]) // 2])
    bad["text"].write_text("This is no photograph.\n")
    bad["empty"].write_bytes(b"")
    half = len(whole["half zeros"]) // 2
    bad["half zeros"].write_bytes(whole["half zeros"][:half] + bytes(half))
    bad["a folder's name"].unlink()
    bad["a folder's name"].mkdir()
    wrong = {path.name: kind for kind, path in bad.items()}
    print("\n| 5 bad files among 105 | rows | good ones lost | bad ones stored | exit status |")
    print("|---|---|---|---|---|")
    for name in names:
        contestant = contestants()[name]
        out = BUILD / "out" / "bad"
        shutil.rmtree(out, ignore_errors=True)
        command = contestant.command(images, out)
        ended = run(
            [*command, "--images.max-skipped", "0.1"] if name.startswith("dtl") else command
        )
        rows = set(contestant.count(out))
        taken = [wrong[row] for row in rows if row in wrong]
        n_lost = 100 - len(rows - wrong.keys())
        print(
            f"| {name} | {len(rows)} | {n_lost} | {', '.join(taken) or 'none'} | {ended.status} |"
        )


if __name__ == "__main__":
    BUILD.mkdir(parents=True, exist_ok=True)
    write_onnx(str(WEIGHTS), str(ONNX))
    rivals = ["dtl, TensorFlow, bfloat16", "Daft, Keras, bfloat16", "Ray Data, Keras, bfloat16"]
    race(sys.argv[1:])
    if not sys.argv[1:]:
        race_with_kills(rivals)
        race_over_bad_files(rivals)
