"""Does a sampler fit the model that made the data? Simulation-based calibration, and Geweke's test.

Both need no known answer. A parameter is drawn from the prior and data from the parameter; then the
parameter is one more draw from the posterior of its data. All data sets are one batch: each chain
has data of its own.

- Simulation-based calibration: the parameter's rank among posterior draws is uniform (Talts,
  Betancourt, Simpson, Vehtari and Gelman 2018, "Validating Bayesian inference algorithms with
  simulation-based calibration").
- Geweke's joint test: steps of the kernel, each followed by new data for the new parameter, leave
  the prior as it is (Geweke 2004, "Getting it right", Journal of the American Statistical
  Association 99).

False alarms: a right sampler fails each test with a probability of 1e-4 (the smallest of several p
values, times their number). A wrong one must fail by far: below 1e-8. The seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from kernel_checks import PlantedMetropolis, planted_hmc, z_scores
from torch import Tensor
from torch.distributions import Gamma, Normal
from torch.distributions import constraints as c

from coursepkg.density import LogDensity, Space
from coursepkg.hmc import hmc
from coursepkg.mcmc import random_walk_metropolis

NUM_POINTS = 5
SPACE = Space({"mean": c.real, "scale": c.positive})
FALSE_ALARM, BY_FAR = 1e-4, 1e-8


class Model:
    """Normal data with an unknown mean and scale: not conjugate, the posterior skewed.

    Each row of parameters has data of its own, a row of ``y``.
    """

    def __init__(self, bug: str = "none") -> None:
        self.bug = bug
        self.y = torch.empty(0, NUM_POINTS)
        self.log_density: LogDensity = SPACE.log_density(self.log_joint)
        if bug == "missing Jacobian":
            self.log_density = lambda theta: self.log_joint(SPACE.constrain(theta))

    def log_joint(self, v: dict[str, Tensor]) -> Tensor:
        likelihood = Normal(v["mean"][..., None], v["scale"][..., None])
        if self.bug == "prior forgotten":
            return likelihood.log_prob(self.y).sum(-1)
        prior = Normal(0, 1).log_prob(v["mean"]) + Gamma(10.0, 10.0).log_prob(v["scale"])
        return prior + likelihood.log_prob(self.y).sum(-1)

    @staticmethod
    def draw_prior(count: int, generator: torch.Generator) -> Tensor:
        """Unconstrained parameters; the Gamma variable is a sum of exponential ones."""
        waits = torch.empty(count, 10, dtype=torch.float64).exponential_(10.0, generator=generator)
        mean = torch.randn(count, generator=generator, dtype=torch.float64)
        return SPACE.unconstrain({"mean": mean, "scale": waits.sum(1)})

    def draw_data(self, theta: Tensor, generator: torch.Generator) -> None:
        v = SPACE.constrain(theta)
        noise = torch.randn(len(theta), NUM_POINTS, generator=generator, dtype=theta.dtype)
        self.y = v["mean"][:, None] + v["scale"][:, None] * noise

    def quantities(self, theta: Tensor) -> Tensor:
        """Mean, log scale, and the likelihood, in which the two depend on one another."""
        v = SPACE.constrain(theta)
        noise = (self.y - v["mean"][:, None]) / v["scale"][:, None]
        likelihood = -noise.square().sum(1) / 2 - NUM_POINTS * theta[:, 1]
        return torch.stack([theta[:, 0], theta[:, 1], likelihood], 1)


MakeKernel = Callable[[LogDensity], Any]
KERNELS: dict[str, tuple[MakeKernel, int]] = {  # and how many steps make draws independent
    "Metropolis": (lambda log_density: random_walk_metropolis(log_density, 0.8), 25),
    "HMC": (lambda log_density: hmc(log_density, step_size=0.2, trajectory_length=1.2), 5),
}
WRONG: dict[str, tuple[MakeKernel, int]] = {
    "Metropolis, inverted ratio": (
        lambda log_density: PlantedMetropolis(log_density, 0.8, "inverted ratio"),
        25,
    ),
    "Metropolis, drift not corrected": (
        lambda log_density: PlantedMetropolis(log_density, 0.8, "drift, not corrected"),
        25,
    ),
} | {
    f"HMC, {bug}": (
        lambda log_density, bug=bug: planted_hmc(log_density, bug, 0.3, num_steps=2),
        10,
    )
    for bug in (
        "inverted ratio",
        "always accepted",
        "half step forgotten",
        "kinetic energy forgotten",
        "momentum not refreshed",
    )
}


def calibration(
    model: Model, make: MakeKernel, thinning: int, *, seed: int = 1, count: int = 2000
) -> float:
    """Smallest p value of the uniformity of the ranks among 19 draws, over the quantities."""
    generator = torch.Generator().manual_seed(seed)
    truth = model.draw_prior(count, generator)
    model.draw_data(truth, generator)
    kernel = make(model.log_density)
    state = kernel.init(truth)  # a draw from the posterior, too: there is nothing to warm up …
    truth, ranks = model.quantities(truth), torch.zeros(count, 3, dtype=torch.int64)
    for i in range(3 + 19):  # … but the chains must forget it
        for _ in range(thinning):
            state, _ = kernel.step(state, generator=generator)
        ranks += (model.quantities(state.position) < truth) * (i >= 3)
    counts = [torch.bincount(column, minlength=20).numpy() for column in ranks.T]
    return min(1.0, 3 * min(scipy.stats.chisquare(column).pvalue for column in counts))


def geweke(
    model: Model, make: MakeKernel, *, seed: int = 1, count: int = 10_000, rounds: int = 20
) -> float:
    """Smallest p value of the moments of parameters after the rounds, against before."""
    generator = torch.Generator().manual_seed(seed)
    first = model.draw_prior(count, generator)
    model.draw_data(first, generator)
    kernel, theta = make(model.log_density), first
    for _ in range(rounds):
        theta = kernel.step(kernel.init(theta), generator=generator)[0].position
        model.draw_data(theta, generator)

    def functions(theta: Tensor) -> Tensor:
        both = torch.cat([theta, theta.square(), theta.tanh()], 1)
        return torch.cat([both, theta.prod(1)[:, None]], 1)

    # The same replications before and after: what they have in common cancels.
    z = z_scores(functions(theta) - functions(first))
    return min(1.0, len(z) * float(2 * scipy.stats.norm.sf(z.max())))


@pytest.mark.parametrize("name", KERNELS)
def test_ranks_are_uniform(name: str) -> None:
    assert calibration(Model(), *KERNELS[name]) > FALSE_ALARM


@pytest.mark.parametrize("bug", ["missing Jacobian", "prior forgotten"])
@pytest.mark.parametrize("name", KERNELS)
def test_ranks_tell_a_wrong_model(name: str, bug: str) -> None:
    assert calibration(Model(bug), *KERNELS[name]) < BY_FAR


@pytest.mark.parametrize("name", WRONG)
def test_ranks_tell_a_wrong_kernel(name: str) -> None:
    assert calibration(Model(), *WRONG[name]) < BY_FAR


@pytest.mark.parametrize("name", KERNELS)
def test_the_joint_distribution_stays(name: str) -> None:
    assert geweke(Model(), KERNELS[name][0]) > FALSE_ALARM


@pytest.mark.parametrize("bug", ["missing Jacobian", "prior forgotten"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_joint_distribution_tells_a_wrong_model(name: str, bug: str) -> None:
    assert geweke(Model(bug), KERNELS[name][0]) < BY_FAR


@pytest.mark.parametrize("name", WRONG)
def test_the_joint_distribution_tells_a_wrong_kernel(name: str) -> None:
    assert geweke(Model(), WRONG[name][0]) < BY_FAR
