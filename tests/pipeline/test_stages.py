from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import COLOURS, CUT, THREADS, Run, contents, draw, jpeg

from dtl.features.store import FeatureStore
from dtl.storage.local import Local

RESULTS = ("head.npz", "evaluation.json", "features.zarr")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pictures, and the results of a run on them."""
    from dtl.pipeline import command_line

    folder = tmp_path_factory.mktemp("whole")
    draw(folder / "pictures", COLOURS, 8)
    run = ["run", "--images", str(folder / "pictures"), "--out", str(folder / "out")]
    assert command_line.main([*run, *CUT, *THREADS]) == 0
    return folder / "pictures", folder / "out"


def without_timeline(out: Path) -> dict[str, bytes]:
    """All files of a run but the one in which each command that has begun is noted."""
    return {name: data for name, data in contents(out).items() if name != "timeline.json"}


def kept(out: Path) -> dict[str, bytes]:
    """Files of a run that never differ."""
    return {name: data for name, data in contents(out).items() if name.startswith(RESULTS)}


@pytest.fixture
def copied(whole: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(whole[1], tmp_path / "out")
    return whole[0], tmp_path / "out"


def test_featurize_asks_for_no_split_yet_and_run_does(tmp_path: Path, here: Run) -> None:
    draw(tmp_path / "pictures", COLOURS, 4)
    for path in (tmp_path / "pictures" / "red").glob("[1-9].jpg"):
        path.unlink()
    options = ("--images", tmp_path / "pictures", "--out", tmp_path / "out", *CUT, *THREADS)
    refused = here("run", *options)
    assert refused.returncode == 1
    assert "red" in refused.stderr
    assert not (tmp_path / "out").exists()
    done = here("featurize", *options)
    assert done.returncode == 0, done.stderr
    assert here("train", "--out", tmp_path / "out", *THREADS).returncode == 1


@pytest.mark.parametrize("name", ["block1_pool/c/1/0", "label/c/0", "split/c/0", "label/zarr.json"])
def test_a_lost_file_is_named_and_repaired_to_the_same_bytes(
    copied: tuple[Path, Path], here: Run, name: str
) -> None:
    pictures, out = copied
    before = kept(out)
    (out / "features.zarr" / name).unlink()
    for result in ("head.npz", "evaluation.json"):
        (out / result).unlink()
    lost = here("train", "--out", out, *THREADS)
    assert lost.returncode == 1
    assert f"{out}/features.zarr/{name} is missing." in lost.stderr
    assert "Run the featurize stage with --repair: it makes again just what is" in lost.stderr
    run = ("--images", pictures, "--out", out, *CUT, *THREADS)
    repaired = here("featurize", *run, "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert name in repaired.stderr
    assert here("run", *run).returncode == 0
    assert kept(out) == before


@pytest.mark.slow
def test_images_that_were_skipped_are_tried_again_if_asked(
    whole: tuple[Path, Path], tmp_path: Path, here: Run
) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(whole[0], pictures)
    good = (pictures / "red" / "3.jpg").read_bytes()
    (pictures / "red" / "3.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(len(good) - 4))
    run = ("run", "--images", pictures, "--out", out, *CUT, *THREADS, "--images.max-skipped", "0.1")
    done = here(*run)
    assert done.returncode == 0, done.stderr
    store = FeatureStore.open(str(out / "features.zarr"))
    assert [path for path, _ in store.list_skipped()] == ["red/3.jpg"]
    before = without_timeline(out)
    again = here(*run, "--retry-skipped")
    assert again.returncode == 0, again.stderr
    assert "no skipped image can be read now" in again.stderr
    assert without_timeline(out) == before
    (pictures / "red" / "3.jpg").write_bytes(good)
    assert here(*run, "--exact").returncode == 0
    assert without_timeline(out) == before  # a skipped image stays skipped unless it is asked for
    again = here(*run, "--retry-skipped")
    assert again.returncode == 0, again.stderr
    assert "1 chunks are computed again, with images that can be read now" in again.stderr
    assert "training: done before" not in again.stderr
    expected = kept(whole[1])
    for files in (found := kept(out), expected):
        del files["features.zarr/zarr.json"]  # which has the place of the pictures
        del files["features.zarr/modified/c/0"]
    assert found == expected
    assert "retry_skipped = true" not in (out / "config.toml").read_text()


def test_an_image_that_changed_beside_a_skipped_one_is_not_computed_again(
    whole: tuple[Path, Path], tmp_path: Path, here: Run
) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(whole[0], pictures)
    good = (pictures / "red" / "3.jpg").read_bytes()
    (pictures / "red" / "3.jpg").write_bytes(bytes(len(good)))
    run = ("--images", pictures, "--out", out, *CUT, *THREADS, "--images.max-skipped", "0.1")
    assert here("featurize", *run).returncode == 0
    store = FeatureStore.open(str(out / "features.zarr"))
    row = int((store.read("error") != "").argmax())
    beside = str(store.read("path", row // 8)[(row + 1) % 8])
    (pictures / "red" / "3.jpg").write_bytes(good)
    data = (pictures / beside).read_bytes()
    (pictures / beside).write_bytes(jpeg_of(data))
    before = without_timeline(out)
    refused = here("featurize", *run, "--retry-skipped")
    assert refused.returncode == 1
    assert f"{beside} is not the file that features were made of" in refused.stderr
    assert without_timeline(out) == before


def jpeg_of(data: bytes) -> bytes:
    """Another picture of as many bytes."""
    import numpy as np

    other = jpeg(np.zeros((40, 40, 3), np.uint8))
    return other + bytes(len(data) - len(other))


@pytest.mark.parametrize("failing", [3, 10_000])
def test_storage_that_fails_never_makes_a_finished_store_absent(
    copied: tuple[Path, Path], here: Run, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    pictures, out = copied
    before = kept(out)
    left = [failing]
    for name in ("info", "cat_file"):
        method = getattr(Local, name)

        def fail(self: Any, path: str, *args: Any, method: Any = method, **kwargs: Any) -> Any:
            if "features.zarr" in str(path) and left[0]:
                left[0] -= 1
                raise OSError(errno.EIO, "Input/output error", path)
            return method(self, path, *args, **kwargs)

        monkeypatch.setattr(Local, name, fail)
    done = here("run", "--images", pictures, "--out", out, *CUT, *THREADS, "--overwrite")
    assert done.returncode == (0 if failing == 3 else 1), done.stderr
    assert ("features: done before" in done.stderr) == (failing == 3)
    assert "fault of dtl" not in done.stderr
    assert kept(out) == before


def test_storage_that_says_absent_for_a_moment_removes_nothing(
    copied: tuple[Path, Path], here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, out = copied
    before = kept(out)
    opened: list[str] = []
    real = FeatureStore.open

    def blink(url: str) -> FeatureStore:
        opened.append(url)
        if len(opened) < 3:
            raise FileNotFoundError(url)
        return real(url)

    for flags in ((), ("--overwrite",)):
        opened.clear()
        monkeypatch.setattr(FeatureStore, "open", blink)
        done = here("featurize", "--images", pictures, "--out", out, *CUT, *THREADS, *flags)
        assert done.returncode == 1
        assert "which was not there a moment ago. Nothing was changed" in done.stderr
        assert kept(out) == before
