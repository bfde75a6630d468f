"""The notebooks in examples/ run from the first to the last cell, and their committed outputs are small."""

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
MAX_BYTES = 100_000


def read(name: str) -> Any:
    return nbformat.read(EXAMPLES / name, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow, *([pytest.mark.cluster] if "servers" in name else [])]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in NOTEBOOKS])
def test_notebook_runs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # As when Jupyter was started by its path: the folder of the environment's commands is not searched.
    here = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != here))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = read(name)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    for cell, committed in zip(code_cells(notebook), code_cells(read(name)), strict=True):
        assert bool(cell.outputs) == bool(committed.outputs), cell.source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_outputs_are_small_and_complete(name: str) -> None:
    assert (EXAMPLES / name).stat().st_size <= MAX_BYTES
    cells = code_cells(read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert "/home/" not in text
    assert "/root/" not in text
