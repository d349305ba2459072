"""A run whose options have secrets in them: nothing that it writes or prints has."""

from __future__ import annotations

import base64
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import CUT, THREADS, Run, contents

PASSWORD, TOKEN = "correct-horse", "battery-staple"


class _Asking(http.server.SimpleHTTPRequestHandler):
    """A server of files that asks for a password."""

    def do_GET(self) -> None:
        if self._knows():
            super().do_GET()

    def do_HEAD(self) -> None:
        if self._knows():
            super().do_HEAD()

    def _knows(self) -> bool:
        wanted = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") == f"Basic {wanted}":
            return True
        self.send_error(401)
        return False

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    shapes = [(3, 3, 3, 64), (64,), (3, 3, 64, 64), (64,)]
    rng = np.random.default_rng(0)
    np.savez(folder / "w.npz", *(rng.normal(0, 0.1, s).astype("f4") for s in shapes))
    handler = functools.partial(_Asking, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"127.0.0.1:{running.server_port}/w.npz"
        running.shutdown()
        thread.join()


@pytest.mark.slow
def test_nothing_secret_is_written_or_printed(
    here: Run, pictures: Path, tmp_path: Path, server: str
) -> None:
    out, url = tmp_path / "out", f"http://me:{PASSWORD}@{server}"
    typed = ["run", "--images", pictures, "--out", out, *CUT, *THREADS, "--features.weights", url,
             "--yarn.env", f"TOKEN={TOKEN}"]  # fmt: skip
    done = here(*typed)
    assert done.returncode == 0, done.stderr
    written = contents(out)
    for name, content in written.items():
        assert PASSWORD.encode() not in content, name
        assert TOKEN.encode() not in content, name
    assert PASSWORD not in done.stdout + done.stderr
    assert f'weights = "http://me:***@{server}"' in written["config.toml"].decode()
    assert 'env = [\n    "TOKEN=***",\n]' in written["config.toml"].decode()

    # The same command finds all of it done, and changes nothing.
    again = here(*typed)
    assert again.returncode == 0, again.stderr
    assert "features: done before" in again.stderr
    assert "report: done before" in again.stderr
    assert contents(out) == written

    # A stage alone takes its options from config.toml, and asks for what it needs and is not there.
    assert here("evaluate", "--out", out).returncode == 0
    assert here("report", "--out", out).returncode == 0
    assert PASSWORD.encode() not in contents(out)["report.html"]
    model = ["predict", "--model", out, "--images", pictures, "--out", tmp_path / "p", *THREADS]
    lacking = here(*model)
    assert lacking.returncode == 1
    assert f"http://me:***@{server} lacks its password or key" in lacking.stderr
    assert here(*model, "--features.weights", url).returncode == 0


def test_errors_do_not_show_what_is_secret(
    here: Run, pictures: Path, tmp_path: Path, server: str
) -> None:
    wrong = f"http://me:{TOKEN}@{server}"
    done = here("run", "--images", pictures, "--out", tmp_path / "out", *CUT, *THREADS,
                "--features.weights", wrong)  # fmt: skip
    assert done.returncode == 1
    assert TOKEN not in done.stdout + done.stderr
    assert f"http://me:***@{server}" in done.stderr
    done = here("run", "--images", f"nowhere://me:{TOKEN}@host/a", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: Unknown scheme nowhere:// in 'nowhere://me:***@host/a'")


def test_arguments_that_no_command_has_are_shown_without_secrets(
    here: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        here("run", f"https://me:{TOKEN}@host/photos")
    said = capsys.readouterr().err
    assert TOKEN not in said
    assert "https://me:***@host/photos" in said
