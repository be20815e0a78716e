"""The notebook of the documentation: on a fake trainer in the gate, and with real training among the long tests."""

from __future__ import annotations

import ast
import builtins
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "tutorials" / "notebook.ipynb"
PAGE = ROOT / "docs" / "tutorials" / "notebook.md"
SETTINGS = {
    "priorPreservation": {"numClassImages": 4, "sampler": {"steps": 2}},
    "training": {"steps": 2},
    "evaluation": {"enabled": False},
}
FAKE = f"""
import sys
from dreambooth import Job, process
process.COMMAND = (sys.executable, {str(Path(__file__).parent / "dreambooth_fake.py")!r})

class Pipeline:
    images = ["image"]

    def __call__(self, prompt, num_inference_steps):
        return self

Job.load_pipeline = lambda self: Pipeline()
"""


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_of(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def executed(folder: Path, injected: str) -> nbformat.NotebookNode:
    """The notebook after all cells ran in `folder`, with code injected behind its cell of parameters."""
    notebook = read()
    (position,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    notebook.cells.insert(position + 1, nbformat.v4.new_code_cell(injected))
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def outputs(notebook: nbformat.NotebookNode, source: str) -> str:
    (cell,) = [cell for cell in notebook.cells if cell.source.startswith(source)]
    return str(cell.outputs)


def test_the_notebook_is_clean_and_uses_names_that_exist() -> None:
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), "commit the notebook without outputs"
    tree = ast.parse("\n".join(code_of(notebook)))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {node.id for node in names} <= assigned | imported | set(dir(builtins))


def test_the_page_shows_the_cells_of_the_notebook() -> None:
    assert re.findall(r"```python\n(.*?)\n```", PAGE.read_text(), re.DOTALL) == code_of(read())


def test_all_cells_run_on_a_fake_trainer(tmp_path: Path) -> None:
    notebook = executed(tmp_path, FAKE)
    shown = outputs(notebook, "job.wait()")
    assert shown.count("data:image/png") == 1
    assert "10/10 steps" in shown and "data:image/png" in shown
    assert "0.75" in outputs(notebook, "job.scores")
    assert "PublishCompleted" in outputs(notebook, "for event")
    assert "completed" in outputs(notebook, "*_, last")
    assert "[]" in outputs(notebook, "job.delete()")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.long
def test_all_cells_run_with_real_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMBOOTH_STORE", str(tmp_path / "store"))
    notebook = executed(tmp_path, f"settings = {SETTINGS!r}")
    shown = outputs(notebook, "job.wait()")
    assert "2/2 steps" in shown and "data:image/png" in shown
    assert "image/png" in outputs(notebook, "pipeline")
    assert list((tmp_path / "out").iterdir()) == []
