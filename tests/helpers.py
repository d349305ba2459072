"""Functions that several test files share."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dtl import storage
from dtl.feature_store import FeatureStore

MakeStore = Callable[..., FeatureStore]

COLOURS = {"blue": (20, 20, 200), "green": (20, 180, 20), "red": (200, 20, 20)}

CUT = [
    "--features.layers", "block1_pool", "--features.weights", "random", "--features.chunk-images",
    "8", "--features.batch-images", "4", "--features.precision", "float32", "--train.epochs", "10",
    "--split.validation", "0.25", "--split.test", "0.25",
]  # fmt: skip
"""VGG16 after its first block: real, and quick to compute."""


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a user types, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "dtl.pipeline", *map(str, arguments)],
        capture_output=True, text=True, timeout=1800, check=False, env=os.environ | environment,
    )  # fmt: skip


def draw(folder: Path, colours: dict[str, tuple[int, int, int]], n: int) -> None:
    rng = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(rng.normal(colour, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
            (folder / name / f"{i}.jpg").write_bytes(jpeg(pixels))


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def all_files(url: str) -> dict[str, bytes]:
    """All files below a URL."""
    return {path: storage.read_bytes(storage.join(url, path)) for path, _ in storage.walk(url)}
