"""A whole run on a running HDFS, and what happens to it when parts of that fail."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray
from helpers import COLOURS, CUT, THREADS, Run, command, draw, in_session, put, wait_until
from minicluster import MiniCluster

from dtl import storage
from dtl.features.store import FeatureStore
from dtl.pipeline.results import Results
from dtl.storage import lock


def stored(url: str) -> dict[str, bytes]:
    return {f.path: storage.read_bytes(f"{url}/{f.path}") for f in storage.walk(url)}


@pytest.fixture(scope="module")
def places(
    hadoop: MiniCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """Pictures on a disk, with the results of a run on them; and the same pictures on HDFS."""
    folder = tmp_path_factory.mktemp("places")
    draw(folder / "pictures", COLOURS, 20)
    done = command("run", "--images", folder / "pictures", "--out", folder / "out", *CUT)
    assert done.returncode == 0, done.stderr
    put(folder / "pictures", f"{hadoop.url}/pictures")
    yield folder, f"{hadoop.url}/pictures"
    storage.remove(f"{hadoop.url}/pictures")


def same_results(folder: Path, out: str) -> None:
    """The same features, bit for bit, the same head and the same scores as on the disk."""
    local = FeatureStore.open(str(folder / "out" / "features.zarr"))
    there = FeatureStore.open(f"{out}/features.zarr")
    assert not there.pending_chunks()
    for name in ("block1_pool", "path", "label", "split", "status", "error", "content_hash"):
        assert np.array_equal(local.read(name), there.read(name)), name
    for name in ("head.npz", "evaluation.json"):
        assert storage.read_bytes(f"{out}/{name}") == (folder / "out" / name).read_bytes()


def test_a_whole_run_from_hdfs_to_hdfs(
    hadoop: MiniCluster, places: tuple[Path, str], here: Run
) -> None:
    folder, images = places
    out = f"{hadoop.url}/whole"
    done = command("run", "--images", images, "--out", out, *CUT)
    assert done.returncode == 0, done.stderr
    assert f"Report: {out}/report.html" in done.stdout
    same_results(folder, out)
    before = stored(out)
    again = here("run", "--images", images, "--out", out, *CUT)
    assert "report: done before" in again.stderr
    assert stored(out) == before
    with xarray.open_zarr(f"{out}/features.zarr", consolidated=False) as opened:
        local = FeatureStore.open(str(folder / "out" / "features.zarr"))
        assert np.array_equal(opened["block1_pool"], local.read("block1_pool"))


def test_images_through_webhdfs(hadoop: MiniCluster, places: tuple[Path, str], here: Run) -> None:
    folder, _ = places
    out = f"{hadoop.url}/from_webhdfs"
    images = f"{hadoop.webhdfs_url}/pictures"
    done = here("run", "--images", images, "--out", out, *CUT, *THREADS)
    assert done.returncode == 0, done.stderr
    same_results(folder, out)


@contextmanager
def once_stored(out: str, chunk: int, action: Callable[[], None]) -> Iterator[None]:
    """Do something while the block runs, once a chunk is stored."""
    thread = threading.Thread(target=lambda: (wait_for_chunk(out, chunk), action()))
    thread.start()
    yield
    thread.join()


def wait_for_chunk(out: str, chunk: int) -> None:
    deadline = time.monotonic() + 600
    while not storage.exists(f"{out}/features.zarr/status/c/{chunk}"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("daemon", "action"), [("datanode-0", MiniCluster.kill), ("namenode", MiniCluster.restart)]
)
def test_what_passes_is_waited_for(
    breakable_hadoop: MiniCluster, places: tuple[Path, str], here: Run, daemon: str,
    action: Callable[[MiniCluster, str], None],
) -> None:  # fmt: skip
    folder, images = places
    out = f"{breakable_hadoop.url}/without-{daemon}"
    with once_stored(out, 2, lambda: action(breakable_hadoop, daemon)):
        done = here("run", "--images", images, "--out", out, *CUT, *THREADS)
    assert done.returncode == 0, done.stderr
    same_results(folder, out)


def impatient(hadoop: MiniCluster, folder: Path) -> str:
    """Configuration of a client that soon gives up a NameNode: each of its pauses is longer."""
    shutil.copytree(hadoop.conf_dir, folder / "conf")
    file, name = folder / "conf" / "hdfs-site.xml", "dfs.client.failover.max.attempts"
    text, n = re.subn(rf"({name}</name>\s*<value>)\d+", r"\g<1>3", file.read_text())
    assert n == 1
    file.write_text(text)
    return str(folder / "conf")


def test_the_namenode_gone_for_good(
    breakable_hadoop: MiniCluster, places: tuple[Path, str], here: Run, tmp_path: Path
) -> None:
    folder, images = places
    out = f"{breakable_hadoop.url}/gone"
    with once_stored(out, 3, lambda: breakable_hadoop.kill("namenode")):
        done = command(
            "run", "--images", images, "--out", out, *CUT,
            HADOOP_CONF_DIR=impatient(breakable_hadoop, tmp_path),
        )  # fmt: skip
    assert done.returncode == 1
    assert "the NameNode does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    breakable_hadoop.start_daemon("namenode")
    breakable_hadoop.wait_ready()
    n_kept = len([p for p in stored(f"{out}/features.zarr") if p.startswith("status/c/")])
    assert n_kept >= 3  # two chunks are computed at a time
    done = here("run", "--images", images, "--out", out, *CUT, *THREADS)
    assert done.returncode == 0, done.stderr
    assert "images are done; going on" in done.stderr
    same_results(folder, out)


def test_the_driver_killed_while_chunks_are_written(
    hadoop: MiniCluster, places: tuple[Path, str]
) -> None:
    folder, images = places
    out = f"{hadoop.url}/driver"
    for chunk in (1, 4):
        process = subprocess.Popen(
            [sys.executable, "-m", "dtl.pipeline", "run", "--images", images, "--out", out, *CUT],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for_chunk(out, chunk)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda session=process.pid: not in_session(session), "its workers to end")
    done = command("run", "--images", images, "--out", out, *CUT)
    assert done.returncode == 0, done.stderr
    same_results(folder, out)
    assert not [found for found in storage.walk(out) if ".partial" in found.path]


def refused(here: Run, images: str, out: str) -> str:
    """Return the message of a run that ends before a cluster is started."""
    done = here("run", "--images", images, "--out", out, *CUT)
    assert done.returncode == 1
    assert "dashboard" not in done.stderr
    return done.stderr


def test_two_drivers_on_one_output(
    hadoop: MiniCluster, places: tuple[Path, str], here: Run
) -> None:
    out = f"{hadoop.url}/two"
    storage.check_writable(out)
    with lock.hold(out):
        said = refused(here, places[1], out)
    assert f"Another driver writes to {out}: process {os.getpid()} on" in said


def test_a_class_that_may_not_be_listed_is_an_error(
    hadoop: MiniCluster, places: tuple[Path, str]
) -> None:
    _, images = places
    fs, path = storage.filesystem(images)
    (closed, *_) = storage.list_names(images)
    fs.client.set_permission(f"{path}/{closed}", 0o700)
    out = f"{hadoop.url}/of-somebody"
    done = command("featurize", "--images", images, "--out", out, HADOOP_USER_NAME="somebody")
    examined = command("doctor", "--images", images, "--out", out, *CUT, *THREADS,
                       HADOOP_USER_NAME="somebody")  # fmt: skip
    fs.client.set_permission(f"{path}/{closed}", 0o755)
    assert done.returncode == 1
    assert "Permission denied: user=somebody" in done.stderr
    unlisted = f"{images}/{closed} may not be listed, and its files would be missed"
    assert unlisted in done.stderr
    assert re.search(r"images +driver +WRONG +hdfs", examined.stdout)
    assert unlisted in examined.stdout


def test_what_hdfs_refuses_is_said_before_the_work(
    hadoop: MiniCluster, places: tuple[Path, str], here: Run
) -> None:
    _, images = places
    fs, _ = fsspec.core.url_to_fs(hadoop.url)
    fs.makedirs("/closed", exist_ok=True)
    fs.client.set_permission("/closed", 0o555)
    out = f"{hadoop.url}/closed/out"
    done = command("run", "--images", images, "--out", out, *CUT, HADOOP_USER_NAME="somebody")
    assert done.returncode == 1
    assert f"Cannot write to {out}" in done.stderr
    assert "Permission denied: user=somebody" in done.stderr
    assert "dashboard" not in done.stderr
    done = command("doctor", "--images", images, "--out", out, *CUT, *THREADS,
                   HADOOP_USER_NAME="somebody")  # fmt: skip
    assert done.returncode == 1
    assert re.search(rf"output +driver +WRONG +Cannot write to {out}: .*user=somebody", done.stdout)

    fs.makedirs("/small", exist_ok=True)
    admin(hadoop, "-setQuota", "1", "/small")
    said = refused(here, images, f"{hadoop.url}/small/out")
    assert "The quota of names is used up" in said
    assert "/small" in said
    admin(hadoop, "-clrQuota", "/small")

    admin(hadoop, "-setSpaceQuota", "1k", "/small")
    small = f"{hadoop.url}/small/out"
    assert "The quota of space is used up" in refused(here, images, small)
    done = here("doctor", "--images", images, "--out", small, *CUT, *THREADS)
    assert done.returncode == 1
    assert re.search(r"output +driver +WRONG +.*The quota of space is used up", done.stdout)
    broken = f"{hadoop.url}/broken"
    for name in ("one", "two"):
        for k in range(8):
            storage.write_bytes(f"{broken}/{name}/{k}.jpg", b"\xff\xd8\xff cut off")
    done = here("doctor", "--images", broken, "--out", f"{hadoop.url}/out", *CUT, *THREADS)
    assert re.search(r"sample +driver +WRONG +16 of 16 images of a sample cannot", done.stdout)
    admin(hadoop, "-clrSpaceQuota", "/small")
    well = f"{hadoop.url}/small/well"
    done = here("doctor", "--images", images, "--out", well, *CUT, *THREADS)
    assert done.returncode == 0, done.stdout
    assert not storage.exists(well)

    admin(hadoop, "-safemode", "enter")
    said = refused(here, images, f"{hadoop.url}/safe")
    admin(hadoop, "-safemode", "leave")
    assert "Name node is in safe mode" in said

    said = refused(here, f"{hadoop.url}/none", f"{hadoop.url}/out")
    assert f"No such folder: {hadoop.url}/none" in said


def admin(hadoop: MiniCluster, *arguments: str) -> None:
    subprocess.run(
        [str(hadoop.home / "bin" / "hdfs"), "dfsadmin", *arguments],
        env=os.environ | hadoop.environment, check=True, capture_output=True,
    )  # fmt: skip


def test_names_with_odd_characters(hadoop: MiniCluster) -> None:
    url = f"{hadoop.url}/odd/a #1 %20 ä?.jpg"
    storage.write_bytes(url, b"odd")
    assert [found.path for found in storage.walk(f"{hadoop.url}/odd")] == ["a #1 %20 ä?.jpg"]
    assert storage.read_bytes(url) == b"odd"


def test_real_photographs_from_hdfs_to_hdfs(
    hadoop: MiniCluster, data: Path, real_options: list[str], real_run: tuple[Path, str]
) -> None:
    """A run that was done on a disk but for its last chunk goes on here."""
    put(data / "caltech256", f"{hadoop.url}/photographs")
    out, local = f"{hadoop.url}/photographs_out", Results(str(real_run[0]))
    put(real_run[0] / "features.zarr", f"{out}/features.zarr")
    for name in ("status", "block5_pool"):
        storage.remove(f"{out}/features.zarr/{name}/c/{local.store().n_chunks - 1}")
    images = f"{hadoop.url}/photographs"
    done = command("run", "--images", images, "--out", out, *real_options)
    assert done.returncode == 0, done.stderr
    on_hdfs = Results(out)
    for name in ("block5_pool", "split", "content_hash"):
        assert np.array_equal(local.store().read(name), on_hdfs.store().read(name))
    head, same = local.head(), on_hdfs.head()
    assert head is not None
    assert same is not None
    assert head.to_bytes() == same.to_bytes()
    scores = on_hdfs.evaluation()
    assert scores is not None
    assert scores.scores["test"].accuracy >= 0.93
    assert scores == local.evaluation()
