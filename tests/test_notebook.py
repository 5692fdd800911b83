"""colab_demo.ipynb: every cell runs in a real kernel, with hardly any training; what is committed has its outputs."""

import os
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from stand_ins import ROOT

NOTEBOOK = ROOT / "colab_demo.ipynb"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the notebook, some of its cells' text replaced, in a folder that looks like a clone -> its code cells."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for file in ROOT.iterdir():
        if not file.name.startswith(".") and file.name not in ("runs", "wandb"):
            (clone / file.name).symlink_to(file)
    monkeypatch.setenv("PALMER_DEMO", "short")
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def execute(folder=clone, **replaced):
        notebook = nbformat.read(NOTEBOOK, 4)
        for cell in notebook.cells:
            for old, new in replaced.items():
                cell.source = cell.source.replace(old, new)
        kernel = {"kernel_name": "python3", "resources": {"metadata": {"path": str(folder)}}}
        NotebookClient(notebook, timeout=None, **kernel).execute()
        return [cell for cell in notebook.cells if cell.cell_type == "code"]

    return execute


def text(cells):
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def test_every_cell_runs(run):
    cells = run()
    kinds = [kind for cell in cells for output in cell.outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 6, "three of training, two of a look inside, one of the study"
    assert kinds.count("text/html") == 2, "a film and a page"
    said = text(cells)
    assert "success rate" in said and "--cut transformer" in said and said.count("answered") == 3
    assert "rror" not in said and "arning" not in said


def test_a_failing_cell_fails(run):
    with pytest.raises(CellExecutionError, match="--seed -1: must be from 0"):
        run(**{'"--seed", "1"': '"--seed", "-1"'})


def test_without_a_clone_it_asks_for_one(run, tmp_path):
    with pytest.raises(CellExecutionError, match="REPOSITORY: must be the address"):
        run(folder=tmp_path)


def test_what_is_committed_was_run_from_top_to_bottom():
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "short" not in text(cells) and NOTEBOOK.stat().st_size < 5_000_000
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
