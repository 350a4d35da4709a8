"""Langevin kernels: against variances in closed form, which wrong noise does not have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from coursepkg import density, langevin, mcmc
from coursepkg.langevin import Langevin, Minibatch

PRECISION, MEAN = 4.0, 1.5
STEP_SIZE = 0.2
CHAINS, DRAWS = 2000, 60
Y = torch.linspace(-1, 2, 12, dtype=torch.float64)


def gaussian(theta: Tensor) -> Tensor:
    return -PRECISION / 2 * (theta - MEAN).square().sum(-1)


def log_prior(theta: Tensor) -> Tensor:
    return -theta.square().sum(-1) / 2


def log_likelihood(theta: Tensor, rows: Tensor) -> Tensor:
    return -(Y[rows] - theta).square() / 2


def last_draws(kernel: Any, generator: torch.Generator) -> Tensor:
    """One draw a chain, long after the start: as independent as the chains are."""
    start = torch.full((CHAINS, 1), MEAN, dtype=torch.float64)
    chains = mcmc.sample(kernel, start, 1, DRAWS, generator=generator, progress=False)
    return chains.draws.flatten()


def z_of_mean(draws: Tensor, truth: float) -> float:
    return abs(float(draws.mean()) - truth) / float(draws.std()) * len(draws) ** 0.5


def z_of_variance(draws: Tensor, truth: float) -> float:
    """For Gaussian draws, whose variance estimate has a relative variance of 2 / (n - 1)."""
    return abs(float(draws.var()) / truth - 1) / (2 / (len(draws) - 1)) ** 0.5


# --- Stationary distributions in closed form ------------------------------------------------------


@dataclass(frozen=True)
class NoiseIsStep(Langevin):
    """Planted bug: the noise has standard deviation, not variance, equal to the step size."""

    def step(self, state: Any, *, generator: torch.Generator | None = None) -> Any:
        value, gradient = self.estimate(state.position, generator)
        noise = mcmc.normal_like(state.position, generator)
        position = state.position + self.step_size / 2 * gradient + self.step_size * noise
        return mcmc.State(position, value), mcmc.Info(value, torch.ones_like(value))


@dataclass(frozen=True)
class WholeGradient(Langevin):
    """Planted bug: the gradient comes with the whole step size, not with half of it."""

    def step(self, state: Any, *, generator: torch.Generator | None = None) -> Any:
        value, gradient = self.estimate(state.position, generator)
        noise = mcmc.normal_like(state.position, generator)
        position = state.position + self.step_size * gradient + self.step_size**0.5 * noise
        return mcmc.State(position, value), mcmc.Info(value, torch.ones_like(value))


def test_unadjusted_langevin_has_its_variance_and_wrong_noise_has_not(
    generator: torch.Generator,
) -> None:
    """From x' - m = (1 - ελ/2)(x - m) + noise of variance ε: V = ε / (1 - (1 - ελ/2)²)."""
    truth = STEP_SIZE / (1 - (1 - STEP_SIZE * PRECISION / 2) ** 2)
    assert math.isclose(truth, 1 / PRECISION / (1 - STEP_SIZE * PRECISION / 4))
    kernel = langevin.unadjusted_langevin(gaussian, STEP_SIZE)
    draws = last_draws(kernel, generator)
    assert z_of_mean(draws, MEAN) < 4
    assert z_of_variance(draws, truth) < 4 < z_of_variance(draws, 1 / PRECISION)
    for wrong in (NoiseIsStep, WholeGradient):
        assert z_of_variance(last_draws(wrong(kernel.estimate, STEP_SIZE), generator), truth) > 6


def test_sgld_has_the_variance_of_both_noises_and_wrong_ones_have_not(
    generator: torch.Generator,
) -> None:
    """With the mean of a Gaussian as parameter the minibatch's noise is the same everywhere."""
    size, batch, step = len(Y), 3, 0.05
    precision = size + 1.0
    mean = float(Y.sum()) / precision
    noise = size**2 / batch * float(Y.var(correction=0))
    truth = (1 + step * noise / 4) / (1 - step * precision / 4) / precision
    kernel = langevin.sgld(
        log_prior, log_likelihood, dataset_size=size, batch_size=batch, step_size=step
    )
    draws = last_draws(kernel, generator)
    assert z_of_mean(draws, mean) < 4
    assert z_of_variance(draws, truth) < 4
    without = 1 / (1 - step * precision / 4) / precision
    assert z_of_variance(draws, without) > 8
    unscaled = Minibatch(log_prior, log_likelihood, batch, batch)  # N / B forgotten, or so
    for wrong in (
        NoiseIsStep(kernel.estimate, step),
        WholeGradient(kernel.estimate, step),
        Langevin(unscaled, step),
    ):
        assert z_of_variance(last_draws(wrong, generator), truth) > 6


# --- The minibatch's estimate ---------------------------------------------------------------------


def test_a_minibatch_estimates_the_log_joint_and_its_gradient_without_bias(
    generator: torch.Generator,
) -> None:
    def log_joint(theta: Tensor) -> Tensor:
        everything = torch.arange(len(Y)).expand(len(theta), -1)
        return log_prior(theta) + log_likelihood(theta, everything).sum(-1)

    theta = torch.full((20_000, 1), 0.3, dtype=torch.float64)
    value, gradient = Minibatch(log_prior, log_likelihood, len(Y), 2)(theta, generator)
    true_value, true_gradient = density.value_and_grad(log_joint, theta[:1])
    assert z_of_mean(value, float(true_value)) < 4
    assert z_of_mean(gradient.flatten(), float(true_gradient)) < 4


def test_each_chain_has_a_minibatch_of_its_own_that_its_generator_repeats(
    generator: torch.Generator,
) -> None:
    asked: list[Tensor] = []

    def watched(theta: Tensor, rows: Tensor) -> Tensor:
        asked.append(rows)
        return theta.expand(rows.shape)

    estimate = Minibatch(log_prior, watched, 1000, 5)
    for seed in (1, 1, 2):
        estimate(torch.zeros(4, 1), torch.Generator().manual_seed(seed))
    first, again, other = asked
    assert first.shape == (4, 5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique(dim=0)) == 4
    assert 0 <= first.min() < 300 < 700 < first.max() < 1000


def test_runs_repeat_with_their_generator_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    kernel = langevin.sgld(log_prior, log_likelihood, dataset_size=12, batch_size=2, step_size=0.01)
    start = torch.zeros(3, 1, dtype=torch.float64)
    first, again, other = (
        mcmc.sample(
            kernel, start, 5, 2, generator=torch.Generator().manual_seed(seed), progress=False
        )
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.draws, again.draws)
    assert not torch.equal(first.draws, other.draws)
    assert torch.equal(torch.get_rng_state(), before)
    assert bool((first.info.acceptance == 1).all())


# --- Kind errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "got"),
    [
        (lambda theta, rows: log_likelihood(theta, rows).sum(-1), "(3,)"),
        (lambda theta, rows: log_likelihood(theta, rows).mean(), "()"),
        (lambda theta, rows: 1.0, "float"),
    ],
    ids=["summed over rows", "mean of all", "no tensor"],
)
def test_a_likelihood_that_sums_is_refused(terms: Any, got: str, kind_error: Any) -> None:
    kernel = langevin.sgld(log_prior, terms, dataset_size=12, batch_size=4, step_size=0.1)
    start = torch.zeros(3, 1, dtype=torch.float64)
    with kind_error(ValueError, "log_likelihood", "(3, 4)", got, "do not sum", "do not scale"):
        mcmc.sample(kernel, start, 1, progress=False)


SGLD = {
    "log_prior": log_prior,
    "log_likelihood": log_likelihood,
    "dataset_size": 12,
    "batch_size": 4,
    "step_size": 0.1,
}


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"log_prior": 1.0}, TypeError, ("log_prior", "function")),
        ({"log_likelihood": None}, TypeError, ("log_likelihood", "function")),
        ({"dataset_size": 0}, ValueError, ("dataset_size", "at least 1", "0")),
        ({"dataset_size": 12.0}, TypeError, ("dataset_size", "whole number")),
        ({"batch_size": 0}, ValueError, ("batch_size", "at least 1", "0")),
        ({"step_size": 0.0}, ValueError, ("step_size", "positive", "0")),
        ({"step_size": "small"}, TypeError, ("step_size", "real number")),
    ],
)
def test_bad_arguments_of_sgld_are_named(
    wrong: dict[str, Any], error: type[Exception], words: tuple[str, ...], kind_error: Any
) -> None:
    with kind_error(error, *words):
        langevin.sgld(**(SGLD | wrong))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((3, 0.1), TypeError, ("log_density", "function")),
        ((gaussian, -0.1), ValueError, ("step_size", "positive", "-0.1")),
        ((gaussian, None), TypeError, ("step_size", "real number")),
    ],
)
def test_bad_arguments_of_unadjusted_langevin_are_named(
    arguments: Any, error: type[Exception], words: tuple[str, ...], kind_error: Any
) -> None:
    with kind_error(error, *words):
        langevin.unadjusted_langevin(*arguments)
