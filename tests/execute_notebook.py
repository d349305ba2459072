"""Execute the notebook of the examples: ``DTL_OUT=results python tests/execute_notebook.py``."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

from dtl import storage

NOTEBOOK = Path(__file__).parents[1] / "examples" / "look_at_a_run.ipynb"


def read() -> nbformat.NotebookNode:
    """Read the notebook as it is stored."""
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook: nbformat.NotebookNode) -> None:
    """Execute the cells, in the notebook's folder, as Jupyter does; a cell that fails raises."""
    with tempfile.TemporaryDirectory() as folder:
        # Over TCP, others on this machine could listen.
        sockets = {"transport": "ipc", "ip": str(Path(folder, "kernel"))}
        NotebookClient(
            notebook, timeout=600, record_timing=False, config=Config({"KernelManager": sockets}),
            resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        ).execute()  # fmt: skip
    notebook.metadata.language_info = {"name": "python"}  # without the version of this one
    notebook.metadata.executed = hash_code(notebook)


def hash_code(notebook: nbformat.NotebookNode) -> str:
    """Return the SHA-256 of all code, which tells whether the outputs are of it."""
    code = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


if __name__ == "__main__":
    if "DTL_OUT" in os.environ:
        os.environ["DTL_OUT"] = storage.absolute(os.environ["DTL_OUT"])
    notebook = read()
    execute(notebook)
    nbformat.write(notebook, NOTEBOOK)
