"""How long the book takes to build: notebooks in parallel, one by one, and what a change costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harness import Row, interleave, seconds, versions

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 3
WORKERS = os.cpu_count() or 1


def measure() -> Iterator[Row]:
    """Build a copy of the book, so that the real one stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".venv*", "_build", ".git")
        shutil.copytree(ROOT, copy, ignore=ignored)

        def build(workers: int, *, cold: bool = False, edit: bool = False) -> float:
            if cold:
                shutil.rmtree(copy / "_build", ignore_errors=True)
            if edit:
                with (copy / "book" / "intro.md").open("a", encoding="utf-8") as page:
                    page.write("\nOne more sentence.\n")
            command = [sys.executable, copy / "tools" / "build_book.py", "--workers", str(workers)]
            quiet = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
            return seconds(quiet)

        found = interleave(
            {
                "one notebook at a time": partial(build, 1, cold=True),
                "coursepkg": partial(build, WORKERS, cold=True),
                "a sentence more": partial(build, WORKERS, edit=True),
                "unchanged": partial(build, WORKERS),
            },
            ROUNDS,
        )
    known = versions("jupyter-book", "jupyter-cache", "torch")
    ours, serial = found["coursepkg"], found["one notebook at a time"]
    note = f"median of {ROUNDS}"
    yield Row("book-build", "coursepkg", "s cold", ours, None, note, known, WORKERS)
    yield Row(
        "book-build", "one notebook at a time", "s cold", serial, serial / ours, note, known, 1
    )
    for change in ("a sentence more", "unchanged"):
        metric = f"s warm, {change}"
        yield Row("book-build", "coursepkg", metric, found[change], None, note, known, WORKERS)
