"""The build stays within its budget of time. Slow: it builds the book from nothing."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import build_book
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_cold_under_two_minutes_and_warm_under_fifteen_seconds(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", "_build", ".git"))
    start = time.monotonic()
    build_book.build(copy, workers=2)
    built = time.monotonic()
    build_book.build(copy, workers=2)
    assert built - start < 120
    assert time.monotonic() - built < 15
