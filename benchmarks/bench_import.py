"""How long our modules take to import, beside `import torch`, which they cannot go below."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from harness import Row, interleave, seconds, versions

ROUNDS = 7
STATEMENTS = {
    "coursepkg": "from coursepkg import bayes_linear, data, diagnostics, hmc, networks",
    "torch": "import torch",
}


def measure() -> Iterator[Row]:
    """Start a fresh interpreter for each import."""

    def start(statement: str) -> float:
        command = [sys.executable, "-c", statement]
        return seconds(partial(subprocess.run, command, check=True))

    turns = {name: partial(start, statement) for name, statement in STATEMENTS.items()}
    found = interleave(turns, ROUNDS)
    for name, value in found.items():
        ratio = None if name == "coursepkg" else value / found["coursepkg"]
        yield Row("import", name, "s", value, ratio, f"median of {ROUNDS}", versions("torch"))
