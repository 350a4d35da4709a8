"""Outputs of 100 networks drawn from a guide, at 500 points: milliseconds.

All draw from the same guide of the network 1-20-20-2. The quality says how far the mean of the
draws is from the mean of 2,000 draws, in standard errors (near one, up or down, is what chance
does), what the standard deviation is of theirs, and whether a draw is one function: the points are
250 inputs, each there twice, and one function has one value for both.

The milliseconds are CPU time, in one process for each contender, with one thread on one core, in
turns; what a compiler needs before the first call stands apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from bbb_contenders import CONTENDERS, Array, Contender, functions, start
from harness import Row, digits, race, versions

DRAWS, ROUNDS, CALLS = 100, 7, 10
POINTS = np.repeat(np.linspace(-1, 1, 250), 2)


class Run(NamedTuple):
    """What a turn found.

    Attributes:
        milliseconds: CPU time of a call, median over some.
        first: How much longer the first call took, in milliseconds.
        outputs: Of the last call.
    """

    milliseconds: float
    first: float
    outputs: Array


@cache
def prepared(name: str) -> tuple[Contender, float]:
    """Load the guide and make the first calls; return how much longer the very first took."""
    contender = CONTENDERS[name][0]()
    contender.load(start(0))
    contender.seed(0)
    first, *others = (milliseconds(contender)[0] for _ in range(5))
    return contender, first - statistics.median(others)


def milliseconds(contender: Contender) -> tuple[float, Array]:
    """Time one call; return its outputs, too."""
    begin = time.process_time()
    outputs = contender.predict(POINTS, DRAWS)
    return 1000 * (time.process_time() - begin), outputs


def run(name: str, _: int) -> Run:
    """The median of some calls."""
    contender, first = prepared(name)
    times, outputs = zip(*(milliseconds(contender) for _ in range(CALLS)), strict=True)
    return Run(statistics.median(times), first, outputs[-1])


def describe(run: Run, reference: Array) -> str:
    """Moments of the draws, and whether each is a function."""
    outputs = run.outputs
    scale = reference.std(0)
    off = (outputs.mean(0) - reference.mean(0)) / (scale / len(outputs) ** 0.5)
    pairs = np.abs(outputs[:, ::2] - outputs[:, 1::2]).max()
    return (
        f"mean off by {np.sqrt((off**2).mean()):.1f} standard errors, "
        f"standard deviation {np.median(outputs.std(0) / scale):.2f} of the exact; "
        f"{'one function a draw' if pairs < 1e-4 * scale.max() else 'not functions'}; "
        f"the first call took {digits(run.first / 1000)} s longer"
    )


def measure() -> Iterator[Row]:
    """One row for each contender."""
    found = race(run, dict.fromkeys(CONTENDERS, ROUNDS))
    reference = functions(start(0), POINTS, 2000)
    metric, ours = f"ms for {DRAWS} draws at {len(POINTS)} points", 0.0
    for name, runs in found.items():
        known = versions(*CONTENDERS[name][1])
        if isinstance(runs, str):
            yield Row("bbb-predict", name, metric, None, None, runs, known)
            continue
        value = statistics.median(each.milliseconds for each in runs)
        ours = value if name == "coursepkg" else ours
        ratio = value / ours if ours and name != "coursepkg" else None
        quality = describe(runs[-1], reference)
        yield Row("bbb-predict", name, metric, value, ratio, quality, known)
