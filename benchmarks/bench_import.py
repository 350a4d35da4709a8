"""How long `import coursepkg` takes, beside `import torch`, which it cannot go below."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from harness import Row, interleave, seconds, versions

ROUNDS = 7


def measure() -> Iterator[Row]:
    """Start a fresh interpreter for each import."""

    def start(module: str) -> float:
        command = [sys.executable, "-c", f"import {module}"]
        return seconds(partial(subprocess.run, command, check=True))

    found = interleave({name: partial(start, name) for name in ("coursepkg", "torch")}, ROUNDS)
    for name, value in found.items():
        ratio = None if name == "coursepkg" else value / found["coursepkg"]
        yield Row("import", name, "s", value, ratio, f"median of {ROUNDS}", versions("torch"))
