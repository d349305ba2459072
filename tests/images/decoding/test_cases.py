"""Image files of the field, each with its right value: one picture, 96 x 53, kept in many ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dtl.images.decoding.formats import decode

GREY = np.array([0.299, 0.587, 0.114])


def upright(picture: np.ndarray) -> np.ndarray:
    return picture


def turned(picture: np.ndarray) -> np.ndarray:
    """As the EXIF orientation 6 shows it."""
    return np.rot90(picture, -1)


def grey(picture: np.ndarray) -> np.ndarray:
    return np.repeat((picture @ GREY)[..., None], 3, axis=2)


# How each file shows the picture, and how far a pixel may be off on average.
RIGHT = {
    "adobe_rgb_transp_p.png": (upright, 16),  # the 216 colours of the web
    "anim.gif": (upright, 2),
    "anim.webp": (upright, 0),
    "apng.png": (upright, 0),
    "badcrc_idat.png": (upright, 0),
    "badcrc_iend.png": (upright, 0),
    "cielab.tif": (upright, 1),
    "cmyk_adobe.jpg": (upright, 2),
    "exif.avif": (turned, 2),
    "exif.png": (turned, 0),
    "exif.tif": (upright, 0),
    "exif.webp": (turned, 0),
    "exif_ascii_int.jpg": (turned, 2.5),
    "exif_bad_offset.jpg": (turned, 2.5),
    "exif_double_header.jpg": (turned, 2.5),
    "exif_empty.jpg": (upright, 2.5),
    "exif_ifd_loop.jpg": (turned, 2.5),
    "exif_long_huge.jpg": (turned, 2.5),
    "exif_makernote.jpg": (turned, 2.5),
    "exif_notiff.jpg": (upright, 2.5),
    "exif_ok.jpg": (turned, 2.5),
    "exif_orient_0.jpg": (upright, 2.5),
    "exif_orient_2x.jpg": (turned, 2.5),
    "exif_orient_9.jpg": (upright, 2.5),
    "exif_orient_rat.jpg": (turned, 2.5),
    "exif_orient_str.jpg": (upright, 2.5),
    "exif_rat_00.jpg": (turned, 2.5),
    "exif_short.jpg": (upright, 2.5),
    "exif_srat.jpg": (turned, 2.5),
    "exif_typ13.jpg": (turned, 2.5),
    "exif_xmp_orient.jpg": (turned, 2.5),
    "gray12in16.tif": (grey, 1),
    "gray16.png": (grey, 1),
    "gray16.tif": (grey, 1),
    "junk_after.jpg": (upright, 2.5),
    "junk_before.jpg": (upright, 2.5),
    "la.png": (grey, 1),
    "lab.tif": (upright, 0),
    "mpo.jpg": (upright, 2.5),
    "multi.tif": (upright, 0),
    "png_named.jpg": (upright, 0),
    "progressive.jpg": (upright, 2.5),
    "rgba.png": (upright, 0),
    "webp_named.jpg": (upright, 0),
    "ycbcr.tif": (upright, 2),
    "ztxt_big.png": (upright, 0),
    "ztxt_big_after.png": (upright, 0),
}

HEIC = r"^HEIC, .*convert it to JPEG"
REFUSED = {
    "float01.tif": r"^floating-point pixels have no known range$",
    "heic_named.jpg": HEIC,
    "trunc.png": r"^damaged: image file is truncated",
    "trunc_10.jpg": r"^damaged: image file is truncated",
    "trunc_half.jpg": r"^damaged: image file is truncated",
    "x.heic": HEIC,
    "zero.jpg": r"^empty file$",
}

BLACK = {"1x1.gif", "tall.jpg", "wide.png"}


@pytest.mark.filterwarnings("ignore")  # Pillow's, of metadata
@pytest.mark.parametrize("name", RIGHT)
def test_the_picture_is_upright_and_has_its_colours(cases: Path, name: str) -> None:
    show, tolerance = RIGHT[name]
    picture = decode((cases / "decode" / "png_named.jpg").read_bytes(), (53, 96)).astype(float)
    expected = show(picture)
    found = decode((cases / "decode" / name).read_bytes(), expected.shape[:2])
    # Turned otherwise, the picture would be 20 off or more; tolerances are for what codecs lose.
    assert np.abs(found - expected).mean() <= tolerance


def test_two_levels(cases: Path) -> None:
    """A dithered picture is the picture from afar."""
    size = (6, 12)
    picture = grey(decode((cases / "decode" / "png_named.jpg").read_bytes(), size).astype(float))
    assert (
        np.abs(decode((cases / "decode" / "bilevel.tif").read_bytes(), size) - picture).mean() < 8
    )


@pytest.mark.parametrize("name", sorted(BLACK))
def test_odd_shapes_are_read(cases: Path, name: str) -> None:
    assert not decode((cases / "decode" / name).read_bytes(), (4, 4)).any()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_says_why(cases: Path, name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        decode((cases / "decode" / name).read_bytes(), (53, 96))


def test_no_file_is_without_its_right_value(cases: Path) -> None:
    known = {*RIGHT, *REFUSED, *BLACK, "bilevel.tif"}
    assert {path.name for path in (cases / "decode").iterdir()} == known


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bypass-ico-18000x18000.ico", r"^18000 x 18000 pixels, more than images\.max_pixels"),
        ("bypass-tiff-tile-6000x6000.tif", r"^one tile of 6000 x 6000 pixels for 16 x 16"),
    ],
)
def test_what_is_inside_counts(cases: Path, name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode((cases / "files" / name).read_bytes(), (4, 4))


def test_a_tile_counts_as_its_pixels(cases: Path) -> None:
    data = (cases / "files" / "bypass-tiff-tile-6000x6000.tif").read_bytes()
    with pytest.raises(ValueError, match=r"^6000 x 6000 pixels, more than images\.max_pixels"):
        decode(data, (4, 4), max_pixels=1_000_000)
