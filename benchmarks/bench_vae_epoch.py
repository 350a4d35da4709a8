"""A variational autoencoder of 4,000 digits: seconds an epoch, and seconds to ten epochs.

An epoch is all that it takes, the order of the rows and Adam's moves among it; compilation counts
for the ten. All run from the same weights at the same learning rate; the quality is the ELBO of
1,000 other digits after the ten epochs, judged from outside.

The seconds are CPU time, in one process for each contender, with one thread on one core, in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from harness import Row, digits, race, versions
from vae_contenders import CONTENDERS, Contender, elbo, start
from vae_contenders import digits as images

ROUNDS, EPOCHS = 3, 10


class Run(NamedTuple):
    """What one training cost, and what it bought.

    Attributes:
        seconds: CPU time, without compilation ahead of it.
        compilation: CPU time of that, once for all runs.
        elbo: Of a test digit, in nats.
    """

    seconds: float
    compilation: float
    elbo: float


@cache
def prepared(name: str) -> tuple[Contender, float]:
    """Import and compile, once in a process."""
    contender = CONTENDERS[name][0]()
    contender.load(start(0), 0)
    return contender, contender.compile(EPOCHS)


def run(name: str, seed: int) -> Run:
    """Train once, and judge the weights."""
    contender, compilation = prepared(name)
    contender.load(start(seed), seed)
    begin = time.process_time()
    contender.train(EPOCHS)
    seconds = time.process_time() - begin
    return Run(seconds, compilation, elbo(contender.network(), images()[1])[0])


def describe(runs: list[Run]) -> str:
    """What the seconds bought."""
    elbos = [each.elbo for each in runs]
    return (
        f"ELBO of a test digit {statistics.median(elbos):.1f} ({min(elbos):.1f} to "
        f"{max(elbos):.1f}) after {EPOCHS} epochs; {digits(runs[0].compilation)} s compilation"
    )


def measure() -> Iterator[Row]:
    """Two rows for each contender."""
    ours: dict[str, float] = {}
    for name, runs in race(run, dict.fromkeys(CONTENDERS, ROUNDS)).items():
        known = versions(*CONTENDERS[name][1])
        if isinstance(runs, str):
            yield Row("vae-epoch", name, "-", None, None, runs, known)
            continue
        seconds = statistics.median(each.seconds for each in runs)
        for metric, value in {
            "s an epoch": seconds / EPOCHS,
            f"s to {EPOCHS} epochs": seconds + runs[0].compilation,
        }.items():
            if name == "coursepkg":
                ours[metric] = value
            ratio = value / ours[metric] if ours and name != "coursepkg" else None
            yield Row("vae-epoch", name, metric, value, ratio, describe(runs), known)
