"""Bayes by Backprop of a small network: milliseconds a step, and seconds to a trained network.

A step is a minibatch's ELBO, its gradient and Adam's move, with all that an epoch needs around it;
a training is 2,400 of them, and compilation counts for it. All run from the same starts with the
same optimizer at the same learning rate; the quality is the ELBO that the median run reached,
judged from outside, and the log score of new points.

The seconds are CPU time, in one process for each contender, with one thread on one core, in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from bbb_contenders import CONTENDERS, STEPS, Contender, elbo, start, surprise
from harness import Row, digits, race, versions

ROUNDS = 3


class Run(NamedTuple):
    """What one training cost, and what it bought.

    Attributes:
        seconds: CPU time, without compilation ahead of it.
        compilation: CPU time of that, once for all runs.
        elbo: The ELBO of its guide, in nats.
        error: Its standard error.
        surprise: Minus the log predictive density of a new point, in nats.
    """

    seconds: float
    compilation: float
    elbo: float
    error: float
    surprise: float


@cache
def prepared(name: str) -> tuple[Contender, float]:
    """Import and compile, once in a process."""
    contender = CONTENDERS[name][0]()
    contender.load(start(0))
    return contender, contender.compile()


def run(name: str, seed: int) -> Run:
    """Train once, and judge the guide."""
    contender, compilation = prepared(name)
    contender.load(start(seed))
    contender.seed(seed)
    begin = time.process_time()
    contender.train()
    seconds = time.process_time() - begin
    guide = contender.guide()
    return Run(seconds, compilation, *elbo(guide), surprise(guide))


def describe(runs: list[Run]) -> str:
    """What the seconds bought."""
    elbos = [each.elbo for each in runs]
    return (
        f"ELBO {statistics.median(elbos):.0f} ({min(elbos):.0f} to {max(elbos):.0f}, SE "
        f"{statistics.median(each.error for each in runs):.1f}), log score of a new point "
        f"{-statistics.median(each.surprise for each in runs):.2f}; "
        f"{digits(runs[0].compilation)} s compilation"
    )


def measure() -> Iterator[Row]:
    """Two rows for each contender."""
    ours: dict[str, float] = {}
    for name, runs in race(run, dict.fromkeys(CONTENDERS, ROUNDS)).items():
        known = versions(*CONTENDERS[name][1])
        if isinstance(runs, str):
            yield Row("bbb-step", name, "-", None, None, runs, known)
            continue
        seconds = statistics.median(each.seconds for each in runs)
        for metric, value in {
            "ms a step": 1000 * seconds / STEPS,
            f"s to a trained network, {STEPS:,} steps": seconds + runs[0].compilation,
        }.items():
            if name == "coursepkg":
                ours[metric] = value
            ratio = value / ours[metric] if ours and name != "coursepkg" else None
            yield Row("bbb-step", name, metric, value, ratio, describe(runs), known)
