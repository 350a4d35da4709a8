"""Effective draws a second that samplers deliver on the sine network's posterior.

*Delivered* effective draws are counted from outside: the posterior variance of f(x), known from the
reference, over the variance that the estimated mean of f(x) has between independent runs, the
smallest over the ten reference inputs. (30 runs know a variance to 26 %, and 60 runs, which the
closest rivals have, to 18 %; the smallest of ten is a little low for everybody.) What a run claims
of itself stands beside it.

The seconds are those of the whole run, warm-up and compilation included, in one process with one
thread on one core. They are seconds of that process, not of the clock on the wall: on an idle
machine the two are the same, on a busy one the first does not depend on the neighbours.

The variance is taken about the runs' own mean. About the reference's it would count the reference's
error (up to 0.008 posterior sds), which no run that delivers more than some 10,000 draws can beat.
So that a biased sampler gains nothing, the square of its bias is added wherever the bias is beyond
4 standard errors, those of the reference included.

BENCH_SLOW=1 also measures what takes minutes, once, by the effective draws that it claims.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from statistics import median
from typing import NamedTuple

import numpy as np
import sine_contenders
import torch
from harness import Row, digits, race, versions
from sine_contenders import REFERENCE, Array, Sampler

from coursepkg import diagnostics

RUNS, CLOSE = 30, 60
COUNTED = "delivered ESS/s, compilation counted"
UNCOUNTED = "delivered ESS/s, without compilation"
CLAIMED = "claimed ESS/s, compilation counted"
# By contender: how to prepare it, how many runs, and the packages whose versions matter.
CONTENDERS: dict[str, tuple[Callable[[], tuple[Sampler, float]], int, tuple[str, ...]]] = {
    "coursepkg": (sine_contenders.coursepkg, CLOSE, ("torch",)),
    "coursepkg-autograd": (partial(sine_contenders.coursepkg, supplied=False), RUNS, ("torch",)),
    "loop": (sine_contenders.loop, RUNS, ("torch",)),
    "numpyro": (sine_contenders.numpyro, RUNS, ("numpyro", "jax")),
    "blackjax-nuts": (sine_contenders.blackjax_nuts, RUNS, ("blackjax", "jax")),
    "blackjax-chees": (sine_contenders.blackjax_chees, CLOSE, ("blackjax", "jax")),
    "pyro": (sine_contenders.pyro, 1, ("pyro-ppl", "torch")),
}
SLOW = {"pyro"}


class Run(NamedTuple):
    """What one run is judged by.

    Attributes:
        seconds: CPU time of the run, without compilation.
        compilation: CPU time of compilation, once for all runs.
        chains: How many chains.
        draws: How many draws of each.
        means: Estimated mean of f at each reference input.
        claimed: The smallest bulk ESS of f(x).
        rhat_f: The largest nested R-hat of f(x).
        rhat_log: The nested R-hat of the log posterior.
        lost: How many chains are far below the posterior.
    """

    seconds: float
    compilation: float
    chains: int
    draws: int
    means: Array
    claimed: float
    rhat_f: float
    rhat_log: float
    lost: int


def nested_rhat(draws: Array) -> float:
    """The largest nested R-hat of (chains, draws, quantities), the chains in 16 groups at most.

    Neighbours in our population may share an ancestor, and stay together. One chain is split.
    """
    chains = draws.reshape(2, -1, draws.shape[-1]) if len(draws) == 1 else draws
    return float(diagnostics.nested_rhat(torch.from_numpy(chains), min(16, len(chains))).max())


@cache
def prepared(name: str) -> tuple[Sampler, float]:
    """Import and compile, once in a process."""
    return CONTENDERS[name][0]()


def run(name: str, seed: int) -> Run:
    """Let a contender do one whole run, and judge it."""
    sample, compilation = prepared(name)
    start = time.process_time()
    weights = sample(seed)
    seconds = time.process_time() - start
    chains, draws, _ = weights.shape
    f = sine_contenders.functions(weights, REFERENCE["x_test"])
    log_posterior = sine_contenders.log_posterior(weights)
    return Run(
        seconds,
        compilation,
        chains,
        draws,
        f.mean((0, 1)),
        float(diagnostics.bulk_ess(torch.from_numpy(f)).min()),
        nested_rhat(f),
        nested_rhat(log_posterior[..., None]),
        int((log_posterior.mean(1) < sine_contenders.LOST).sum()),
    )


def bias(means: Array) -> tuple[Array, Array]:
    """How far the runs' mean is from the reference at each input, and its standard error."""
    variance = means.var(0, ddof=1) / len(means) + REFERENCE["f_mean_se"] ** 2
    return means.mean(0) - REFERENCE["f_mean"], np.sqrt(variance)


def delivered(means: Array) -> float:
    """Effective draws a run, from the means of f(x) in each run, shape (runs, inputs)."""
    offset, error = bias(means)
    square_error = means.var(0, ddof=1) + np.where(np.abs(offset) > 4 * error, offset**2, 0)
    return float((REFERENCE["f_sd"] ** 2 / square_error).min())


def relative_error(means: Array) -> float:
    """The jackknife's standard error of log(delivered): one run left out at a time."""
    logs = np.log([delivered(np.delete(means, i, axis=0)) for i in range(len(means))])
    return float(np.sqrt((len(means) - 1) * logs.var()))


def rates(runs: list[Run]) -> tuple[float, float]:
    """Delivered effective draws a second, with compilation and without."""
    draws, seconds = delivered(np.array([r.means for r in runs])), median(r.seconds for r in runs)
    return draws / (seconds + runs[0].compilation), draws / seconds


def describe(runs: list[Run]) -> str:
    """What the figures bought."""
    means, lost = np.array([r.means for r in runs]), sum(r.lost for r in runs)
    seconds = digits(median(r.seconds for r in runs))
    told = f"{digits(median(r.claimed for r in runs))} claimed"
    if len(runs) > 1:
        offset, error = bias(means)
        told = (
            f"ESS {digits(delivered(means))} ±{relative_error(means):.0%} of {told}, "
            f"worst mean {np.abs(offset / error).max():.1f} SE"
        )
    return (
        f"{told}; R-hat f {median(r.rhat_f for r in runs):.4f}, "
        f"log density {median(r.rhat_log for r in runs):.4f}; {lost} chains lost in {len(runs)} "
        f"runs of {runs[0].chains} × {runs[0].draws}; {seconds} s a run "
        f"+ {digits(runs[0].compilation)} s compilation"
    )


def measure() -> Iterator[Row]:
    """A row with compilation and one without for each contender."""
    slow = set() if os.environ.get("BENCH_SLOW") else SLOW
    found = race(run, {name: runs for name, (_, runs, _) in CONTENDERS.items() if name not in slow})
    found |= dict.fromkeys(slow, "takes minutes: BENCH_SLOW=1 measures it")
    ours = found.get("coursepkg")
    for name in CONTENDERS:
        runs = found[name]
        known = versions(*CONTENDERS[name][2])
        if isinstance(runs, str):
            yield Row("sine-mcmc", name, COUNTED, None, None, runs, known)
        elif len(runs) == 1:
            claimed = runs[0].claimed / (runs[0].seconds + runs[0].compilation)
            yield Row("sine-mcmc", name, CLAIMED, claimed, None, describe(runs), known)
        else:
            for i, metric in enumerate((COUNTED, UNCOUNTED)):
                ratio, rate = None, rates(runs)[i]
                if isinstance(ours, list) and name != "coursepkg":
                    ratio = rates(ours)[i] / rate
                yield Row("sine-mcmc", name, metric, rate, ratio, describe(runs), known)
