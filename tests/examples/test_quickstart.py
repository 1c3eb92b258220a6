"""The notebook runs from top to bottom, and its kept outputs are what it prints."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.paths import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
LARGEST_FIGURE = 150_000  # bytes of a figure as the file holds it


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """Return what the cells show of a MIME type, or printed as ``text``."""
    cells = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if kind == "text":
        return [output.text for output in cells if output.output_type == "stream" and output.name == "stdout"]
    return [output.data[kind] for output in cells if kind in output.get("data", {})]


def numbers(table: str) -> dict[str, list[float]]:
    """Return the percentages in each row of a Markdown table."""
    rows = [line.strip("| ").split("|") for line in table.splitlines() if re.search(r"\d", line)]
    return {row[0].strip(): [float(cell.split()[0]) for cell in row[1:]] for row in rows}


def test_the_notebook_runs_and_shows_what_it_showed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kept = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    for cell in fresh.cells:
        cell.get("outputs", []).clear()
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(fresh, timeout=300, kernel_name="python3", resources=resources, coalesce_streams=True).execute()

    (figure,) = outputs(fresh, "image/png")
    assert base64.b64decode(figure).startswith(b"\x89PNG")
    ((table,), (expected,)) = outputs(fresh, "text/markdown"), outputs(kept, "text/markdown")
    found = numbers(table)
    assert list(found) == list(numbers(expected)) and len(found) == 7
    for row, values in numbers(expected).items():  # rounding elsewhere moves some documents
        assert found[row] == pytest.approx(values, abs=6), row
    assert [text.split()[0] for text in outputs(fresh, "text")[-1].splitlines()] == [
        text.split()[0] for text in outputs(kept, "text")[-1].splitlines()
    ]
    assert (tmp_path / "quickstart" / "eng.safetensors").is_file()


def test_the_kept_outputs_are_small_and_of_this_run_alone() -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(kept)
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    (figure,) = outputs(kept, "image/png")
    assert len(figure) < LARGEST_FIGURE
    assert str(Path.home()) not in NOTEBOOK.read_text(encoding="utf-8")
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
