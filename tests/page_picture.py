"""Pictures of pages, for README: ``python tests/page_picture.py results/check.html FILE.png``.

A number after that is the height of the picture; a page may be an address. ``examples/live.png``
is 1230 pixels of what `dtl run` calls the live page, while it trains; ``examples/side-by-side.png``
is 1570 of ``side-by-side.html`` of the measured run and one with rows of unit length, by ``lbfgs``.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1280, 1440
_COLOURS = 128


def take(page: str, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """Return a small PNG of the upper part of a page, as a browser of this width shows it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={shot}",
             "--virtual-time-budget=3000", f"--window-size={width},{height}",
             page if "://" in page else Path(page).resolve().as_uri()],
            check=True, capture_output=True,
        )  # fmt: skip
        picture = Image.open(shot).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(take(sys.argv[1], height=int([*sys.argv, HEIGHT][3])))
