"""The notebook of the examples: what it computes is what dtl computed, whatever the rows are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import execute_notebook
import nbformat
import numpy as np
import pytest
from distributed import Client
from execute_notebook import NOTEBOOK, execute, hash_code, read
from helpers import COLOURS, CUT, THREADS, Run, jpeg, put

from dtl.evaluation.values import Evaluation
from dtl.features.store import FeatureStore
from dtl.features.values import REMOVED, SKIPPED
from dtl.images.values import UNLABELLED
from dtl.neighbours.search import find_neighbours

_RESULTS = """
print(json.dumps({
    "accuracy": accuracy["here"].to_dict(),
    "images": accuracy["images"].to_dict(),
    "confusion": [[t, p, int(n)] for (t, p), n in confusion.stack().items() if n],
    "mistakes": mistakes[["path", "probability"]].values.tolist(),
    "kinds": pd.Series(kind).value_counts().to_dict(),
    "skipped": skipped["path"].tolist(),
    "usable": images.index.tolist(),
    "query": int(query),
    "nearest": nearest.index.tolist(),
    "cosine": nearest.tolist(),
    "alike": float(alike.stack().min()),
}))
"""


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Executes the notebook on results, and returns what it found, and all that it printed."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))

    def execute_on(out: str | Path) -> tuple[dict[str, Any], str]:
        monkeypatch.setenv("DTL_OUT", str(out))
        notebook = read()
        notebook.cells.append(nbformat.v4.new_code_cell(_RESULTS))
        execute(notebook)
        *cells, last = (cell for cell in notebook.cells if cell.cell_type == "code")
        outputs = [output for cell in cells for output in cell.outputs]
        assert [o.text for o in outputs if o.get("name") == "stderr"] == []
        assert sum("image/jpeg" in output.get("data", ()) for output in outputs) == 5
        printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
        return json.loads(last.outputs[0].text), printed

    return execute_on


def check(found: dict[str, Any], out: Path, client: Client) -> None:
    """Hold what the notebook found against what dtl stored, and against its search."""
    scores = Evaluation.from_dict(json.loads((out / "evaluation.json").read_bytes()))
    assert found["accuracy"] == {name: s.accuracy for name, s in scores.scores.items()}
    assert found["images"] == {name: s.n_images for name, s in scores.scores.items()}
    expected: dict[tuple[str, str], int] = {}
    for part in ("validation", "test"):
        for true, predicted, n in scores.scores[part].confusion:
            pair = scores.class_names[true], scores.class_names[predicted]
            expected[pair] = expected.get(pair, 0) + n
    assert {(true, predicted): n for true, predicted, n in found["confusion"]} == expected
    listed = {m.path: m.probability for m in scores.mistakes}
    assert dict(found["mistakes"][: len(listed)]) == pytest.approx(listed, abs=1e-6)
    assert len(found["mistakes"]) == sum(n for (true, p), n in expected.items() if true != p)

    store = FeatureStore.open(str(out / "features.zarr"))
    usable = store.read_usable()
    assert found["usable"] == np.flatnonzero(usable).tolist()
    assert found["skipped"] == [path for path, _ in store.list_skipped()]
    one = np.arange(store.n_images) == found["query"]
    nearest = find_neighbours(store, "block1_pool", client, 5, rows=one, among=usable)
    assert found["nearest"] == nearest.index[0].tolist()
    assert found["cosine"] == pytest.approx(nearest.cosine[0], abs=1e-5)
    assert -1 <= found["alike"] < 1


@pytest.mark.slow
def test_what_it_computes_is_what_dtl_computed(
    tmp_path: Path, look: Any, here: Run, threads: Client, s3: str
) -> None:
    """Of float16 features of two layers, with images that are broken, unlabelled and removed.

    On a disk, and then, when the store has grown, on S3.
    """
    photos, out = tmp_path / "photos", tmp_path / "out"
    # So noisy that heads make mistakes.
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        draw_noisy(photos / name, colour, 24, rng)
    draw_noisy(photos, (90, 90, 90), 3, rng)
    (photos / "red" / "broken.jpg").write_bytes((photos / "red" / "0.jpg").read_bytes()[:300])
    options = [
        *CUT, "--features.layers", "block1_conv1,block1_pool", "--train.layer", "block1_pool",
        "--features.dtype", "float16", "--images.unlabelled", "keep", "--images.max-skipped", "0.1",
        *THREADS,
    ]  # fmt: skip
    run = ["run", "--images", photos, "--out", out, *options]
    assert (done := here(*run)).returncode == 0, done.stderr
    found, printed = look(out)
    check(found, out, threads)
    assert "1 images were skipped.\nred/broken.jpg: " in printed
    assert found["kinds"] == {
        "features and a label": 72, "features, no label": 3, "skipped": 1
    }  # fmt: skip

    (photos / "blue" / "0.jpg").unlink()
    draw_noisy(photos / "green", COLOURS["green"], 2, rng)  # in place of two others
    heads = ["--train.normalize", "sqrt-l2", "--train.hidden-units", "8"]
    assert (done := here(*run, *heads)).returncode == 0, done.stderr
    store = FeatureStore.open(str(out / "features.zarr"))
    assert {REMOVED, UNLABELLED} < {*store.read("label").tolist()}
    assert SKIPPED in store.read("status")
    put(out, f"{s3}/out")
    found, _ = look(f"{s3}/out")
    check(found, out, threads)
    assert found["kinds"]["removed"] == 3
    assert found["kinds"]["features and a label"] == 71


def draw_noisy(folder: Path, colour: tuple[int, int, int], n: int, rng: Any) -> None:
    """Draw pictures of nearly the same grey in all classes."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        shade = 0.1 * np.array(colour) + rng.normal(100, 12, 3)
        pixels = np.clip(rng.normal(shade, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
        (folder / f"{i}.jpg").write_bytes(jpeg(pixels))


def test_the_stored_outputs_are_of_the_stored_code() -> None:
    """`tests/execute_notebook.py` writes them; nothing of its machine is in them."""
    notebook = read()
    assert notebook.metadata.executed == hash_code(notebook), execute_notebook.__doc__
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell.outputs]
    for output in outputs:
        output.get("data", {}).pop("image/jpeg", None)
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
        assert not re.search(r"(?<!<)/\w+/|://|Warning|[\w.]+@", json.dumps(output))
    assert NOTEBOOK.stat().st_size < 400_000
