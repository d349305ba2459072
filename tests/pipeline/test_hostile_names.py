"""Every page of every command, with names that a folder or a table can hold, in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CUT, THREADS, jpeg

from dtl.pipeline import command_line

CLASSES = {
    "<img src=x onerror=pwned=1>" + "x" * 3973: (20, 20, 200),
    "</script><script>pwned=1</script>\nnew line\u202e{{ 7 * 7 }}'\"": (20, 180, 20),
    "花 ängström $$\\frac{1}{2}$$ <b onmouseover=pwned=1>": (200, 20, 20),
}
FILES = "{}\"'><svg onload=pwned=1>\n<b>&amp;{{{{ 7 * 7 }}}}花" + "y" * 180 + ".jpg"
PAGES = (
    "report.html", "side-by-side.html", "check.html", "similar.html", "probe.html", "suggest.html",
    "compare.html", "tune.html",
)  # fmt: skip
WIDTH = 390

LOOK = """<script>
const errors = [], note = text => errors.push(String(text));
addEventListener("error", event => note(event.message));
addEventListener("unhandledrejection", event => note(event.reason));
addEventListener("securitypolicyviolation", event => note(event.blockedURI));
setTimeout(() => {
  for (const dot of document.querySelectorAll(".map circle"))
    dot.dispatchEvent(new PointerEvent("pointerenter"));
  const root = document.documentElement;
  parent.postMessage({page: "PAGE", errors, pwned: typeof pwned, width: innerWidth,
                      scrollWidth: root.scrollWidth, text: root.textContent.length,
                      ran: document.querySelectorAll("[onerror], [onload], [onmouseover]").length},
                     "*");
}, 4000);
</script>"""
FRAMES = """<!DOCTYPE html><meta charset="utf-8"><body><script>
const found = [];
addEventListener("message", event => {
  found.push(event.data);
  document.body.dataset.found = JSON.stringify(found);
});
</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of each page, of photographs and classes with such names."""
    folder = tmp_path_factory.mktemp("hostile")
    photos, out, other = folder / "photos", folder / "out", folder / "other"
    photos.mkdir()
    rng, labels = np.random.default_rng(0), []
    for k, (name, colour) in enumerate(CLASSES.items()):
        for n in range(10):
            path = FILES.format(10 * k + n)
            pixels = np.clip(rng.normal(colour, 60, (40, 40, 3)), 0, 255)
            (photos / path).write_bytes(jpeg(pixels.astype(np.uint8)))
            labels += [json.dumps({"path": path, "label": name}) + "\n"] if n < 8 else []
    (folder / "labels.jsonl").write_text("".join(labels))

    def run(*arguments: object) -> None:
        assert command_line.main([*map(str, arguments), *THREADS]) == 0

    given = ["--images.labels", folder / "labels.jsonl", "--images.unlabelled", "keep"]
    run("run", "--images", photos, "--out", out, *given, *CUT, "--check")
    shutil.copytree(out, other)
    run("compare", "--out", out, "--compare.shards", 1, "--compare.sklearn-mib", 0)
    run("tune", "--out", out, "--tune.learning-rates", "0.01,0.02", "--tune.l2s", "0.01")
    run("probe", "--out", out)
    run("suggest", "--out", out, "--n", 3)
    run("similar", photos / FILES.format(3), "--model", out)
    # With one unit it cannot tell three classes: there are mistakes to show.
    run("train", "--out", other, "--train.hidden-units", 1)
    run("evaluate", "--out", other)
    run("report", other, "--occlusion", 1)
    run("report", other, out, "--page", out / "side-by-side.html")
    shutil.copy(other / "report.html", out)
    return {name: (out / name).read_text() for name in PAGES}


class Handlers(HTMLParser):
    """Attributes that would run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]


@pytest.mark.slow
def test_no_page_has_markup_of_a_name(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        assert Handlers(text).found == [], name
        assert "{{ 7 * 7 }}" in text or name in ("compare.html", "tune.html", "probe.html"), name
        assert "\u202e" not in text, name
        assert len(text) < 5e6, name


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_a_phone_shows_every_page(pages: dict[str, str], tmp_path: Path) -> None:
    frames = "".join(
        f'<iframe style="width: {WIDTH}px; height: 800px; border: 0" srcdoc="'
        + html.escape(text.replace("<head>", "<head>" + LOOK.replace("PAGE", name), 1))
        + '"></iframe>'
        for name, text in pages.items()
    )
    file = tmp_path / "frames.html"
    file.write_text(FRAMES + frames, encoding="utf-8")
    dom = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,900",
         "--virtual-time-budget=20000", "--dump-dom", file.as_uri()],
        capture_output=True, check=True, timeout=300,
    ).stdout.decode()  # fmt: skip
    reported = re.search(r'data-found="([^"]*)"', dom)
    assert reported, "no page finished loading"
    found: list[dict[str, Any]] = json.loads(html.unescape(reported[1]))
    assert {page["page"] for page in found} == {*PAGES}
    for page in found:
        assert page["errors"] == [], page
        assert page["pwned"] == "undefined", page
        assert page["ran"] == 0, page
        assert page["width"] == WIDTH, page
        assert page["scrollWidth"] <= WIDTH, page
