from __future__ import annotations

import pytest

from dtl.config.errors import UserError
from dtl.features.network.files import declaration
from dtl.features.network.files.declaration import EXAMPLE, parse


def test_the_example_is_a_declaration() -> None:
    declared = parse(EXAMPLE.encode())
    assert declared.size == (224, 224)
    assert declared.order == "rgb"
    assert declared.offset == pytest.approx([255 * m for m in declared.mean])
    assert declared.divisor == pytest.approx([255 * d for d in declared.deviation])


def test_nothing_declared_is_pixels_as_they_are() -> None:
    declared = parse(b"")
    assert declared == declaration.Declaration()
    assert not declared.offset.any()
    assert (declared.divisor == 1).all()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            "deviations = [1, 1, 1]",
            r"Unknown key deviations\. Did you mean deviation\? Known: size",
        ),
        ("mean = [1, 2]", r"mean must be three numbers, one per channel\. Received: \[1, 2\]|\(1"),
        ("mean = [0, nan, 0]", "mean must be three numbers"),
        ("deviation = [1, 0, 1]", "deviation must be three numbers above 0"),
        ("scale = 0", r"scale must be above 0\. Received: 0"),
        ('scale = "1/255"', "scale must be a number"),
        ("size = 224", r"size must be height and width, as \[224, 224\]"),
        ("size = [224.5, 224]", "size must be a list of whole numbers"),
        ('order = "gbr"', r"order must be one of rgb, bgr\."),
        ("size = [", "Not valid TOML"),
        # Means and deviations of pixels of 0 to 1 for pixels of 0 to 255, and the reverse.
        ("mean = [0.5, 0.5, 0.5]\ndeviation = [0.5, 0.5, 0.5]", r"become -1 to 509, which no"),
        ("scale = 0.0039216\nmean = [104, 117, 123]", "which no network wants"),
        ("deviation = [58, 57, 57]\nscale = 0.0039216", "which no network wants"),
    ],
)
def test_a_wrong_declaration_is_refused(toml: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(toml.encode())
