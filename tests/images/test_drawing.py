from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers import contents
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dtl.config import ImagesConfig
from dtl.images import drawing, listing


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "pictures"
    assert drawing.draw_pictures(str(folder), 0, 30) == 30 * len(drawing.CLASSES)
    return folder


def test_the_same_seed_gives_the_same_files(drawn: Path, tmp_path: Path) -> None:
    assert drawing.draw_pictures(str(tmp_path / "few"), 0, 2) == 2 * len(drawing.CLASSES)
    few, many = contents(tmp_path / "few"), contents(drawn)
    assert len(few) == 2 * len(drawing.CLASSES)
    assert few == {name: many[name] for name in few}
    assert len(set(many.values())) == len(many)
    drawing.draw_pictures(str(tmp_path / "other"), 1, 2)
    other = contents(tmp_path / "other")
    assert other.keys() == few.keys()
    assert all(other[name] != few[name] for name in few)


def test_pictures_lie_in_class_folders(drawn: Path) -> None:
    assert len(drawing.CLASSES) >= 8
    listed = listing.list_images(ImagesConfig(url=str(drawn)), 0)
    assert listed.class_names == tuple(sorted(drawing.CLASSES))
    assert np.bincount(listed.label).tolist() == [30] * len(drawing.CLASSES)
    assert listed.left_out == ()


def test_pictures_are_rgb_jpegs_of_one_size(drawn: Path) -> None:
    for data in contents(drawn).values():
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 256))
            assert np.asarray(image).std() > 10
    assert sum(map(len, contents(drawn).values())) < 20e6


def test_what_is_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    drawing.draw_pictures(str(folder), 0, 1)
    before = contents(folder)
    own, gone = sorted(before)[0], sorted(before)[1]
    (folder / own).write_bytes(b"my own")
    (folder / gone).unlink()
    drawing.draw_pictures(str(folder), 0, 1)
    assert contents(folder) == before | {own: b"my own"}


@pytest.mark.slow
def test_the_task_is_neither_trivial_nor_hopeless(drawn: Path) -> None:
    """To who sees only coarse colours."""
    pixels, labels = [], []
    for name, data in contents(drawn).items():
        with Image.open(io.BytesIO(data)) as image:
            pixels.append(np.asarray(image.resize((16, 16)), np.float32).ravel() / 255)
        labels.append(name.split("/")[0])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    accuracy = cross_val_score(model, np.array(pixels), labels, cv=3).mean()
    assert 2 / len(drawing.CLASSES) < accuracy < 0.95
