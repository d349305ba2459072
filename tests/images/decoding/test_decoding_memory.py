"""Memory of decoding: bounded whatever is read side by side, and never damage where it lacks."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="limits and peaks as Linux has them"
)


def run(script: str, *arguments: object) -> str:
    """Run a script in a process of its own, which has a memory of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


PRELUDE = """
import io, resource, sys
import numpy as np
from PIL import Image
from dtl.cluster import memory
from dtl.config import ImagesConfig
from dtl.images.decoding import formats
from dtl.images.decoding.reading import open_images

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

def limit(more_mib):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + (more_mib << 20), hard))

def unlimit():
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

def read(files, **options):
    with open_images(files, [(32, 32)], ImagesConfig(**options), n_ahead=16) as images:
        return list(images)
"""


@pytest.mark.slow
def test_costly_images_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    """Eight of 25 MP side by side would take 3.4 GB."""
    found = run(
        """
        buffer = io.BytesIO()
        Image.new("RGB", (5000, 5000), (9, 200, 40)).save(buffer, "WEBP", lossless=True, method=0)
        files = []
        for k in range(8):
            files.append(f"{sys.argv[1]}/{k}.webp")
            with open(files[-1], "wb") as file:
                file.write(buffer.getvalue())
        del buffer
        memory.DECODING.resize(500 << 20)
        before = peak_mib()
        images = read(files)
        assert all((image.pixels[0] == (9, 200, 40)).all() for image in images), images
        print(peak_mib() - before)
        """,
        tmp_path,
    )
    assert int(found) < 700


@pytest.mark.slow
def test_the_webp_of_40_bytes(cases: Path) -> None:
    """100 MP, of which three side by side would take 5 GB."""
    costly = cases / "files" / "costly-webp-9984-40-bytes.webp"
    found = run(
        """
        before = peak_mib()
        images = read(sys.argv[1:] * 3)
        assert all((image.pixels[0] == (1, 2, 3)).all() for image in images), images
        print(peak_mib() - before)
        """,
        costly,
    )
    assert int(found) < 2400
    refused = "{} pixels, more than images.max_pixels = 1000000"
    found = run("print(read(sys.argv[1:], max_pixels=1000000)[0].error)", costly)
    assert found.strip() == refused.format("9984 x 9984")


FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_good_image_is_not_damaged_where_memory_lacks(tmp_path: Path, kind: str) -> None:
    options = {"JPEG": {"progressive": True}, "TIFF": {"compression": "tiff_lzw"}}
    for name, size in (("large", (3000, 2000)), ("small", (8, 8))):
        picture = Image.new("RGB", size, (9, 200, 40))
        picture.save(tmp_path / name, kind, **options.get(kind, {}))
    run(
        """
        data, small = (open(f"{sys.argv[1]}/{name}", "rb").read() for name in ("large", "small"))
        formats.decode(small, (32, 32))
        outcomes = set()
        for more_mib in (1, 4, 12, 30, 60, 120, 300):
            limit(more_mib)
            try:
                pixels = formats.decode(data, (32, 32)).astype(int)
                assert np.abs(pixels - (9, 200, 40)).max() < 5
                outcomes.add("read")
            except MemoryError as error:
                outcomes.add("no memory")
        unlimit()
        assert outcomes == {"read", "no memory"}, outcomes
        """,
        tmp_path,
    )
