"""Progress of a stage in a log, and as a bar."""

from __future__ import annotations

import logging
import sys

import pytest

from dtl.cluster import progress
from dtl.cluster.progress import track


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log, not a bar, also where the tests run on a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)


@pytest.mark.usefixtures("no_terminal")
class TestLog:
    def test_the_last_line_says_that_all_is_done(self, caplog: pytest.LogCaptureFixture) -> None:
        with (
            caplog.at_level(logging.INFO, "dtl.cluster.progress"),
            track("features", 3, "images") as more,
        ):
            more(1)
            more(2, "1 skipped")
        (line,) = caplog.messages
        assert line.startswith("features: 3 of 3 images, ")
        assert line.endswith("images/s; 1 skipped")
        assert "left" not in line

    def test_a_line_now_and_then(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
        with (
            caplog.at_level(logging.INFO, "dtl.cluster.progress"),
            track("features", 4, "images") as more,
        ):
            more(0)
            more(1)
            more(3)
        assert [line.split(",")[0] for line in caplog.messages] == [
            "features: 0 of 4 images",
            "features: 1 of 4 images",
            "features: 4 of 4 images",
        ]
        assert [line.endswith("s left") for line in caplog.messages] == [False, True, False]

    def test_few_lines(self, caplog: pytest.LogCaptureFixture) -> None:
        with (
            caplog.at_level(logging.INFO, "dtl.cluster.progress"),
            track("all", 1000, "rows") as more,
        ):
            for _ in range(1000):
                more(1)
        assert len(caplog.messages) < 10

    def test_silent_if_not_shown(self, caplog: pytest.LogCaptureFixture) -> None:
        with (
            caplog.at_level(logging.INFO, "dtl.cluster.progress"),
            track("features", 1, "images", show=False) as more,
        ):
            more(1)
        assert caplog.messages == []

    def test_an_error_passes_through(self) -> None:
        with pytest.raises(KeyError, match="inside"), track("features", 1, "images"):
            raise KeyError("inside")


def test_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    with track("features", 2, "images") as more:
        more(1)
        more(1, "1 skipped")
    shown = capsys.readouterr().err
    assert "features" in shown
    assert "2/2" in shown
    assert "1 skipped" in shown
