"""Runs that are killed, suspended and cut off end in the bytes of an undisturbed run.

A seed draws what is done and when: `--seed 7`, or `--seed 0-19` as `make chaos` does. Each kind of
place has every third seed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from events import CI_SEEDS, STAGES, Event, draw_events
from helpers import COLOURS, CUT, all_files, draw, make_once, put
from lives import Life, time_stages
from minicluster import MiniCluster
from places import Disk, Hdfs, Place, Scheduler, mount_small_disk, unmount

from dtl import storage

PLACES: dict[str, type[Place]] = {
    "test_local_cluster_on_a_small_disk": Disk,
    "test_scheduler_that_runs_already": Scheduler,
    "test_hdfs_that_loses_daemons": Hdfs,
}
"""Tests, in the order in which they get the seeds."""

OPTIONS = [
    *CUT, "--train.epochs", "240", "--train.batch-size", "4", "--train.averaging-frequency", "4",
    "--train.n-shards", "3",
]  # fmt: skip
"""Six chunks; 120 rounds, with two checkpoints."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        first, _, last = metafunc.config.getoption("--seed").partition("-")
        seeds = range(int(first), int(last or first) + 1)
        turn = [*PLACES].index(metafunc.function.__name__)
        metafunc.parametrize("seed", [seed for seed in seeds if seed % len(PLACES) == turn])


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing was done to."""

    pictures: Path
    files: dict[str, bytes]
    durations: dict[str, float]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    def make(folder: Path) -> Undisturbed:
        pictures, out = folder / "pictures", str(folder / "out")
        draw(pictures, COLOURS, 16)
        arguments = ["run", "--images", str(pictures), *OPTIONS, "--out", out, *Disk.cluster]
        life = Life(arguments, out, folder / "log")
        try:
            durations = time_stages(life)
        finally:
            life.close()
        assert life.process.returncode == 0, life.said()
        return Undisturbed(pictures, comparable(out, str(pictures)), durations)

    return make_once(tmp_path_factory, "undisturbed", make)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder for a small disk, and why none could be mounted there; empty if it could."""
    folder = tmp_path / "disk"
    folder.mkdir()
    problem = mount_small_disk(folder)
    yield folder, problem
    if not problem:
        unmount(folder)


def comparable(out: str, images: str) -> dict[str, bytes]:
    """Return the files of a run, without what differs from run to run and from place to place."""
    vary = {
        "config.toml", "timings.json", "timeline.json", "history.parquet", "report.html",
        "features.zarr/modified/c/0",
    }  # fmt: skip
    return {
        name: b"" if name in vary else data.replace(images.encode(), b"IMAGES")
        for name, data in all_files(out).items()
    }


def disturb(place: Place, events: Sequence[Event], durations: Mapping[str, float]) -> Iterator[str]:
    """Give a command until it ends well, with each event at its moment; yield what happens."""
    waiting, lives = deque(events), list[Life]()
    # Each event costs a life at most, or two where it finds the work done; a recovery some more.
    most = 2 * len(events) + 3
    try:
        for number in range(1, most + 1):
            life = place.start()
            lives.append(life)
            while waiting and not life.is_to_end and life.wait_for(waiting[0], durations):
                event = waiting.popleft()
                yield f"life {number}: {event}"
                getattr(place, event.kind)(life, event)
            status = life.end()
            yield f"life {number}: ended with {status}: {life.said().strip().splitlines()[-1:]}"
            life.check_end()
            place.mend()
            if status == 0 and not waiting:
                break
            if status == 0:
                yield "done before all events had come: begun again"
                storage.remove(place.out)
        else:
            raise AssertionError(f"The command has not come to its end in {most} lives.")
        for life in lives:
            life.wait_for_orphans()
    finally:
        for life in lives:
            life.close()


def check(
    place: Place, seed: int, images: str, undisturbed: Undisturbed, request: pytest.FixtureRequest
) -> None:
    """Disturb a run as a seed says, and compare its results with the undisturbed one's."""
    happened = [f"seed {seed} on {type(place).__name__}"]
    events = draw_events(seed, place.kinds)
    try:
        happened += disturb(place, events, undisturbed.durations)
        found = comparable(place.out, images)
        assert found.keys() == undisturbed.files.keys()
        for name, data in undisturbed.files.items():
            assert found[name] == data, f"{name} differs"
    except BaseException as error:
        error.add_note("\n".join([*happened, f"Again: pytest tests/chaos --seed {seed}"]))
        raise
    finally:
        place.close()
        print("\n".join(happened))
    request.node.user_properties += [("event", (event.kind, event.stage)) for event in events]


@pytest.mark.slow
def test_local_cluster_on_a_small_disk(
    seed: int,
    undisturbed: Undisturbed,
    small_disk: tuple[Path, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    disk, problem = small_disk
    place = Disk(tmp_path, ["--images", str(undisturbed.pictures), *OPTIONS], disk)
    check(place, seed, str(undisturbed.pictures), undisturbed, request)
    if problem:
        pytest.skip(f"all but a full and a read-only disk, for none can be mounted: {problem}")


@pytest.mark.slow
def test_scheduler_that_runs_already(
    seed: int,
    undisturbed: Undisturbed,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    place = Scheduler(tmp_path, ["--images", str(undisturbed.pictures), *OPTIONS])
    check(place, seed, str(undisturbed.pictures), undisturbed, request)


@pytest.mark.slow
def test_hdfs_that_loses_daemons(
    seed: int,
    undisturbed: Undisturbed,
    breakable_hadoop: MiniCluster,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    url = f"{breakable_hadoop.url}/chaos-{seed}"
    put(undisturbed.pictures, f"{url}/pictures")
    arguments = ["--images", f"{url}/pictures", *OPTIONS]
    place = Hdfs(tmp_path, arguments, f"{url}/out", breakable_hadoop)
    check(place, seed, f"{url}/pictures", undisturbed, request)
    storage.remove(url)


def test_seeds_of_ci_have_every_kind_in_every_stage_somewhere() -> None:
    drawn = [
        event
        for seed, place in zip(CI_SEEDS, PLACES.values(), strict=True)
        for event in draw_events(seed, place.KINDS)
    ]
    assert {event.kind for event in drawn} == {k for p in PLACES.values() for k in p.KINDS}
    assert {event.stage for event in drawn} == {*STAGES}
