"""The Gaussian nearest to a mixture of two, in one dimension, by the reverse KL.

The loop is the one that tutorials share: 1,000 steps of Adam at its default learning rate, with
50 draws a step, made and scored one by one by distributions that are built anew for each. Beside it
stands the same with its draws as one batch, which tells what comes from batching and what from a
better method. All start from the same Gaussian, of mean 1.5 and scale 2.

The exact optimum is found by other means: adaptive quadrature, and a simplex search.

The seconds are CPU time, in one process on one core. Torch loads a part of itself when the first
optimizer of a process is made; everybody needs that, and it stands apart.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

from harness import Row, digits, interleave, one_core, versions

MEANS, SCALES = (0.0, 3.0), (0.4, 1.0)
STEPS, DRAWS, ROUNDS = 1000, 50, 3
Gaussian = tuple[float, float]  # mean and scale
START: Gaussian = (1.5, 2.0)


def coursepkg() -> Gaussian:
    """Ours, with nothing tuned."""
    import torch
    from torch.distributions import Categorical, MixtureSameFamily, Normal

    from coursepkg.kl_fit import fit_normal

    parts = Normal(torch.tensor(MEANS).double(), torch.tensor(SCALES).double())
    mixture = MixtureSameFamily(Categorical(torch.ones(2)), parts)
    start, scale = torch.tensor([[START[0]]]), START[1]
    fit = fit_normal(lambda theta: mixture.log_prob(theta[..., 0]), start, start_scale=scale)
    return float(fit.mean), float(fit.scale_tril)


def loop(*, batched: bool = False) -> Gaussian:
    """Draws one by one, a new graph of them in each step; no scale is kept positive."""
    import torch
    from torch.distributions import Categorical, MixtureSameFamily, Normal

    torch.manual_seed(0)
    mean, scale = (torch.tensor(value, requires_grad=True) for value in START)
    optimizer = torch.optim.Adam([mean, scale])

    def term(shape: tuple[int, ...]) -> torch.Tensor:
        q = Normal(mean, scale)
        parts = Normal(torch.tensor(MEANS), torch.tensor(SCALES))
        p = MixtureSameFamily(Categorical(torch.tensor([0.5, 0.5])), parts)
        x = q.rsample(shape)
        return q.log_prob(x) - p.log_prob(x)

    for _ in range(STEPS):
        optimizer.zero_grad()
        if batched:
            loss = term((DRAWS,)).mean()
        else:
            loss = torch.stack([term(()) for _ in range(DRAWS)]).mean()
        loss.backward()
        optimizer.step()
    return float(mean.detach()), float(scale.detach())


def exact() -> Gaussian:
    """The optimum by scipy, from the densities as formulas."""
    from scipy.integrate import quad
    from scipy.optimize import minimize

    def log_p(x: float) -> float:
        heights = [
            -(((x - m) / s) ** 2) / 2 - math.log(s) for m, s in zip(MEANS, SCALES, strict=True)
        ]
        top = max(heights)
        return top + math.log(sum(math.exp(h - top) for h in heights))

    def objective(parameters: Gaussian) -> float:
        mean, log_scale = parameters
        scale = math.exp(log_scale)

        def integrand(z: float) -> float:
            return math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * log_p(mean + scale * z)

        inner = quad(integrand, -9, 9, epsabs=1e-12, limit=200)[0]
        return -float(inner) - log_scale

    found = minimize(
        objective, (2.0, 0.3), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-13}
    )
    return float(found.x[0]), math.exp(found.x[1])


def race() -> tuple[dict[str, float], dict[str, Gaussian], float]:
    """Median seconds and the answer of each, and the seconds of torch's first optimizer."""
    import torch

    start = time.process_time()
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    loading = time.process_time() - start
    answers: dict[str, Gaussian] = {}

    def timed(name: str, work: Callable[[], Gaussian]) -> Callable[[], float]:
        def measure() -> float:
            start = time.process_time()
            answers[name] = work()
            return time.process_time() - start

        return measure

    contenders = {
        "coursepkg": coursepkg,
        "loop": loop,
        "loop-batched": lambda: loop(batched=True),
    }
    times = interleave({name: timed(name, work) for name, work in contenders.items()}, ROUNDS)
    return times, answers, loading


def measure() -> Iterator[Row]:
    """Seconds of each, with the distance from the exact optimum."""
    spawn = multiprocessing.get_context("spawn")
    with one_core(), ProcessPoolExecutor(1, spawn) as worker:
        times, answers, loading = worker.submit(race).result()
    best = exact()
    for name, value in times.items():
        mean, scale = answers[name]
        quality = (
            f"mean {mean:.3f}, off by {abs(mean - best[0]):.1g}; scale {scale:.3f}, off by "
            f"{abs(scale - best[1]):.1g}; the first optimizer of a process: {digits(loading)} s"
        )
        ratio = None if name == "coursepkg" else value / times["coursepkg"]
        yield Row("kl-fit", name, "s a fit", value, ratio, quality, versions("torch"))
