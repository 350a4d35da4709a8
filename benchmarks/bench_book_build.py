"""How long the book takes to build: notebooks in parallel, one by one, and when nothing changed."""

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
        ignored = shutil.ignore_patterns(".venv", "_build", ".git")
        shutil.copytree(ROOT, copy, ignore=ignored)

        def build(workers: int, cold: bool) -> float:
            if cold:
                shutil.rmtree(copy / "_build", ignore_errors=True)
            command = [sys.executable, copy / "tools" / "build_book.py", "--workers", str(workers)]
            quiet = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
            return seconds(quiet)

        found = interleave(
            {
                "one notebook at a time": partial(build, 1, cold=True),
                "coursepkg": partial(build, WORKERS, cold=True),
                "warm": partial(build, WORKERS, cold=False),
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
    yield Row("book-build", "coursepkg", "s warm", found["warm"], None, note, known, WORKERS)
