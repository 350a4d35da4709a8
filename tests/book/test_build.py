"""The build publishes what the package computes now, or says what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import build_book
import pytest


def run_nbval(root: Path) -> subprocess.CompletedProcess[str]:
    """Re-run a book's published notebooks and compare their outputs, as `make test` does."""
    notebooks = build_book.published_notebooks(root)
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "-c", os.devnull, "--rootdir", root, *notebooks],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_changed_package_changes_the_page_and_a_drift_is_seen(
    small_book, capsys: pytest.CaptureFixture[str]
) -> None:
    small_book.build()
    assert "the answer is 41" in small_book.page()
    stale = small_book.root / "_build" / "html" / "_images" / "left_over.png"
    stale.parent.mkdir(exist_ok=True)
    stale.touch()

    assert run_nbval(small_book.root).returncode == 0

    # The notebook is the same, so its old execution must not be taken from the cache.
    small_book.answer(42)
    drift = run_nbval(small_book.root)
    assert drift.returncode == 1, drift.stdout
    assert "the answer is 42" in drift.stdout
    assert "M0 0h42" in drift.stdout, "a figure that differs was not seen"

    small_book.build()
    assert "the answer is 42" in small_book.page()
    assert "M0 0h42" in small_book.page()
    assert "the answer is 41" not in small_book.page()
    assert not stale.exists(), "a file of an earlier build was published"
    assert run_nbval(small_book.root).returncode == 0

    capsys.readouterr()
    small_book.build()
    assert "Nothing has changed" in capsys.readouterr().out


def test_a_failing_cell_is_named_with_chapter_and_error(small_book) -> None:
    small_book.answer("not 0")
    small_book.chapter.write_text(
        small_book.chapter.read_text() + "\n```{code-cell} ipython3\n1 / len([])\n```\n"
    )
    with pytest.raises(build_book.BuildError) as caught:
        small_book.build()
    report = str(caught.value)
    assert "book/small.md: code cell 4 of 4 failed" in report
    assert "1 / len([])" in report
    assert "ZeroDivisionError: division by zero" in report
    assert not build_book.is_current(small_book.root)


def test_warnings_of_all_kinds_stop_the_build(small_book) -> None:
    cells = {
        "a reference to nowhere": "[](no_such_page.md)\n",
        "a citation of nothing": "{cite}`nobody1900`\n",
        "a figure without alt text": "```{code-cell} ipython3\nFigure()\n```\n",
        "a cell that warns": "```{code-cell} ipython3\nimport sys\nsys.stderr.write('!')\n```\n",
    }
    picture = (
        "```{code-cell} ipython3\nclass Figure:\n    def _repr_svg_(self):\n"
        "        return '<svg viewBox=\"0 0 1 1\"></svg>'\n```\n"
    )
    small_book.chapter.write_text(
        small_book.chapter.read_text() + picture + "\n".join(cells.values())
    )
    with pytest.raises(build_book.BuildError) as caught:
        small_book.build()
    report = str(caught.value)
    for words in ("no_such_page", "nobody1900", "no alt text", "stderr was found"):
        assert words in report, report


def test_two_chapters_with_the_same_code_are_refused(small_book) -> None:
    twin = small_book.root / "book" / "twin.md"
    twin.write_text(small_book.chapter.read_text())
    toc = small_book.root / "_toc.yml"
    toc.write_text(toc.read_text() + "  - file: book/twin\n")
    with pytest.raises(build_book.BuildError, match="same code cells"):
        small_book.build()


def test_a_mended_alt_text_reaches_the_page_although_the_code_is_cached(small_book) -> None:
    cell = "```{{code-cell}} ipython3\n:mystnb: {{'image': {{'alt': {alt}}}}}\n{code}\n```\n"
    code = (
        "class Figure:\n    def _repr_svg_(self):\n"
        '        return \'<svg viewBox="0 0 3 1" fill="#1A1A1B"></svg>\'\nFigure()'
    )
    start = small_book.chapter.read_text()
    for alt in ("first words", "better words"):
        small_book.chapter.write_text(start + cell.format(alt=alt, code=code))
        small_book.build()
        assert f'aria-label="{alt}"' in small_book.page()
        assert 'fill="currentColor"' in small_book.page()
        assert 'class="cell-figure wide"' in small_book.page()


def test_published_notebooks_are_those_of_the_contents(small_book) -> None:
    (small_book.root / "book" / "draft.md").write_text(small_book.chapter.read_text())
    names = [path.name for path in build_book.published_notebooks(small_book.root)]
    assert names == ["small.ipynb"]


def test_outputs_are_stored_in_what_nbval_compares(html: Path) -> None:
    """Without stored outputs nbval would compare nothing and pass."""
    notebooks = build_book.published_notebooks(html.parents[1])
    assert notebooks
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        assert any(cell.get("outputs") for cell in cells), path.name
