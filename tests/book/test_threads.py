"""What the prose says does not hang on the number of threads. Slow: it runs every chapter again."""

from __future__ import annotations

from pathlib import Path

import build_book
import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
GLUED = "application/papermill.record/text/plain"


def said(notebook: NotebookNode) -> list[str]:
    """What the cells print, and the numbers that they hand to the prose."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [
        output.text if output.output_type == "stream" else output.data[GLUED]
        for output in outputs
        if output.output_type == "stream" or GLUED in output.get("data", {})
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", build_book.published_notebooks(ROOT), ids=lambda path: path.stem)
def test_rounded_numbers_are_the_same_on_two_threads(
    path: Path, html: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = nbformat.read(path, as_version=4)
    expected = said(published)
    assert len(expected) > 5
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "TQDM_DISABLE": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for cell in published.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(published, timeout=120).execute()
    assert said(published) == expected
