"""Scores: quadrature, pairs counted one by one, and whether honesty pays.

A score is proper where no prediction has a smaller expected score than the truth. The expectation
is computed by sums and quadrature; widely used scores that are not proper are rejected by the same
test. Statistical tests allow 4.5 standard errors, their seeds are fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from bad_input import bad_input
from close import close, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal, StudentT

from coursepkg import scores, uncertainty

DTYPES = (torch.float32, torch.float64)
exact = settings(deadline=None, derandomize=True, max_examples=50)


def mixture(shares: Any, means: Any, scales: Any) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(tensor(shares)), Normal(tensor(means), tensor(scales)))


# --- CRPS of a distribution ----------------------------------------------------------------------

TARGETS = [-3.0, 0.2, 1.0, 8.0]
SHARES, MEANS, SCALES = [0.2, 0.5, 0.3], [-1.0, 0.5, 3.0], [0.3, 1.0, 2.0]


def integrated(cdf: Callable[[float], float], y: float) -> float:
    """The definition: the squared distance of two distribution functions."""

    def piece(low: float, high: float, step: int) -> float:
        return scipy.integrate.quad(lambda x: (cdf(x) - step) ** 2, low, high, limit=500)[0]

    return piece(-50, y, 0) + piece(y, 50, 1)


@pytest.mark.parametrize("y", TARGETS)
def test_crps_is_the_integral_of_its_definition(y: float) -> None:
    truth = integrated(lambda x: scipy.stats.norm.cdf(x, 0.4, 1.7), y)
    close(scores.crps(Normal(tensor(0.4), 1.7), tensor(y)), truth, rtol=1e-7)
    truth = integrated(lambda x: np.dot(SHARES, scipy.stats.norm.cdf(x, MEANS, SCALES)), y)
    close(scores.crps(mixture(SHARES, MEANS, SCALES), tensor(y)), truth, rtol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_crps_of_a_mixture_of_equals_is_the_gaussian_s(dtype: torch.dtype) -> None:
    mean, y = torch.arange(6, dtype=dtype).reshape(2, 3), torch.zeros(2, 3, dtype=dtype)
    one = Normal(mean, 1.5)
    many = uncertainty.mixture(Normal(mean.expand(4, 2, 3), 1.5))
    assert scores.crps(one, y).dtype == dtype
    torch.testing.assert_close(scores.crps(many, y), scores.crps(one, y))


def test_crps_has_the_target_s_unit_and_becomes_the_absolute_error() -> None:
    y = tensor([2.0, -1.0])
    sure = scores.crps(Normal(tensor([0.5, 0.5]), 1e-9), y)
    close(sure, [1.5, 1.5], rtol=1e-8)
    close(scores.crps(Normal(tensor([5.0, 5.0]), 1e-8), 10 * y), (10 * sure).tolist(), rtol=1e-7)


def test_crps_is_differentiable() -> None:
    def of_normal(mean: Tensor, scale: Tensor) -> Tensor:
        return scores.crps(Normal(mean, scale), tensor([0.5, 2.0]))

    def of_mixture(mean: Tensor, scale: Tensor) -> Tensor:
        return scores.crps(uncertainty.mixture(Normal(mean, scale)), tensor([0.5, 2.0]))

    one = tensor([0.0, 1.0]), tensor([0.3, 2.0])
    three = tensor([[0.0, 1.0], [1.0, -1.0], [2.0, 2.0]]), tensor([[0.3, 2.0]] * 3)
    assert torch.autograd.gradcheck(of_normal, [x.requires_grad_() for x in one])
    assert torch.autograd.gradcheck(of_mixture, [x.requires_grad_() for x in three])


# --- CRPS of draws -------------------------------------------------------------------------------


def unfair(draws: Tensor, y: Tensor) -> Tensor:
    """All pairs, those of a draw and itself included: what many take."""
    num_draws = len(draws)
    spread = (draws - y).abs().mean(0) - scores.crps(draws, y)
    return (draws - y).abs().mean(0) - spread * (num_draws - 1) / num_draws


@exact
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_crps_of_draws_counts_each_pair_once(seed: int, num_draws: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(num_draws, 2, 3, generator=generator, dtype=torch.float64).round(decimals=1)
    y = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    pairs = [(draws[i] - draws[j]).abs() for i, j in itertools.combinations(range(num_draws), 2)]
    truth = (draws - y).abs().mean(0) - torch.stack(pairs).mean(0) / 2
    close(scores.crps(draws, y), truth.tolist())


def largest_bias(estimate: Callable[[Tensor, Tensor], Tensor], generator: torch.Generator) -> float:
    """Of scores from 4 draws of a mixture, in standard errors."""
    prediction = mixture(SHARES, MEANS, SCALES).expand((20_000,))
    parts = torch.multinomial(tensor(SHARES), 80_000, True, generator=generator).reshape(4, -1)
    noise = torch.randn(parts.shape, generator=generator, dtype=torch.float64)
    draws = tensor(MEANS)[parts] + tensor(SCALES)[parts] * noise
    z = []
    for y in TARGETS:
        target = torch.full((20_000,), y, dtype=torch.float64)
        error = estimate(draws, target) - scores.crps(prediction, target)
        z.append(error.mean() / (error.std() / len(error) ** 0.5))
    return float(torch.stack(z).abs().max())


def test_crps_of_few_draws_is_unbiased_and_that_of_all_pairs_is_not(
    generator: torch.Generator,
) -> None:
    assert largest_bias(scores.crps, generator) < 4.5
    assert largest_bias(unfair, generator) > 4.5


def test_all_pairs_reward_few_draws_that_are_too_narrow(generator: torch.Generator) -> None:
    """The claim of the docstring, for two draws of a Gaussian of 0.6, 1 and 1.6 times the width."""
    y, *noise = torch.randn(3, 200_000, generator=generator, dtype=torch.float64)
    draws = torch.stack(noise)

    def worse(score: Callable[[Tensor, Tensor], Tensor], scale: float) -> float:
        excess = score(scale * draws, y) - score(draws, y)
        return float(excess.mean() / (excess.std() / len(excess) ** 0.5))

    assert worse(scores.crps, 0.6) > 4.5
    assert worse(scores.crps, 1.6) > 4.5
    assert worse(unfair, 0.6) < -4.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_crps_of_many_draws_is_that_of_their_distribution(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    draws = torch.randn(100_000, 3, generator=generator).to(dtype)
    y = torch.tensor([-1.0, 0.0, 2.0], dtype=dtype)
    ours = scores.crps(draws, y)
    assert ours.dtype == dtype
    parts = (draws - y).abs()
    error = parts.std(0) / len(draws) ** 0.5  # of the larger of both means
    assert ((ours - scores.crps(Normal(torch.zeros_like(y), 1.0), y)).abs() < 4.5 * error).all()


# --- Honesty -------------------------------------------------------------------------------------

NODES, WEIGHTS = (tensor(values) for values in np.polynomial.hermite_e.hermegauss(80))
CANDIDATES = [(m, s) for m in (-0.5, 0.0, 0.5) for s in (0.5, 0.8, 1.0, 1.25, 2.0)]
NumberScore = Callable[[Normal, Tensor], Tensor]


def honesty_pays(score: NumberScore) -> bool:
    """Whether N(0, 1) has the smallest expected score where N(0, 1) is true; by quadrature."""

    def expected(mean: float, scale: float) -> float:
        q = Normal(torch.full_like(NODES, mean), scale)
        return float(score(q, NODES) @ WEIGHTS / WEIGHTS.sum())

    honest = expected(0.0, 1.0)
    others = [expected(*other) for other in CANDIDATES if other != (0.0, 1.0)]
    return all(other > honest + 1e-3 for other in others)


def interval_score(q: Normal, y: Tensor) -> Tensor:
    ends = (q.icdf(torch.full_like(y, level)) for level in (0.1, 0.9))
    return scores.interval_score(*ends, y, 0.8)


def interval_score_with_half_the_fine(q: Normal, y: Tensor) -> Tensor:
    width = 2 * q.stddev * 1.2815515655446004
    return width + (interval_score(q, y) - width) / 2


PROPER: dict[str, NumberScore] = {
    "crps": scores.crps,
    "interval": interval_score,
    "nll": lambda q, y: uncertainty.gaussian_nll(y, q.mean, q.variance),
    "twice the nll": lambda q, y: q.variance.log() + (y - q.mean) ** 2 / q.variance,
}
IMPROPER: dict[str, NumberScore] = {
    "squared error": lambda q, y: (q.mean - y) ** 2,
    "standardized": lambda q, y: ((q.mean - y) / q.stddev) ** 2,
    "minus the density": lambda q, y: -q.log_prob(y).exp(),
    "half the fine": interval_score_with_half_the_fine,
    "sign of the log variance": lambda q, y: ((q.mean - y) / q.stddev) ** 2 - q.variance.log(),
    "times the variance": lambda q, y: ((q.mean - y) * q.stddev) ** 2 + q.variance.log(),
}


@pytest.mark.parametrize("name", PROPER)
def test_the_scores_of_numbers_are_proper(name: str) -> None:
    assert honesty_pays(PROPER[name])


@pytest.mark.parametrize("name", IMPROPER)
def test_scores_that_are_not_proper_are_seen(name: str) -> None:
    assert not honesty_pays(IMPROPER[name])


ClassScore = Callable[[Tensor, Tensor], Tensor]


def honesty_pays_for_classes(score: ClassScore, truth: Tensor, other: Tensor) -> bool:
    """Whether the truth has the smaller expected score, summed over the labels."""

    def expected(q: Tensor) -> Tensor:
        return truth @ score(q.expand(len(q), -1), torch.arange(len(q)))

    return bool(expected(other) > expected(truth))


def log_score(q: Tensor, labels: Tensor) -> Tensor:
    return -uncertainty.log_predictive(Categorical(probs=q[None]), labels)


def linear_score(q: Tensor, labels: Tensor) -> Tensor:
    return 1 - q.gather(-1, labels[..., None]).squeeze(-1)


@exact
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_the_scores_of_classes_are_proper(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2, classes, generator=generator, dtype=torch.float64)
    truth, other = draws.softmax(-1)
    assert honesty_pays_for_classes(scores.brier, truth, other)
    assert honesty_pays_for_classes(log_score, truth, other)


def test_the_linear_score_of_classes_rewards_exaggeration() -> None:
    truth, exaggerated = tensor([0.7, 0.3]), tensor([1.0, 0.0])
    assert not honesty_pays_for_classes(linear_score, truth, exaggerated)
    assert honesty_pays_for_classes(scores.brier, truth, exaggerated)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_brier_score_is_a_squared_distance(dtype: torch.dtype) -> None:
    logits = torch.arange(24, dtype=dtype).reshape(2, 4, 3).sin() * 3
    labels = torch.arange(8, dtype=torch.int32).reshape(2, 4) % 3
    q = logits.softmax(-1)
    ours = scores.brier(q, labels)
    assert ours.dtype == dtype
    for place in itertools.product(range(2), range(4)):
        truth = torch.eye(3, dtype=dtype)[int(labels[place])]
        torch.testing.assert_close(ours[place], (q[place] - truth).square().sum())


def test_the_interval_score_on_paper() -> None:
    lower, upper, y = tensor([[0.0, 0.0, 0.0]]), tensor([[2.0, 2.0, 2.0]]), tensor([[-1, 1.0, 5]])
    close(scores.interval_score(lower, upper, y, 0.9), [[2 + 20.0, 2.0, 2 + 60.0]])


# --- Bad input -----------------------------------------------------------------------------------

V, HALF = tensor([1.0, 2.0]), tensor([[0.5, 0.5]])
LABEL = torch.tensor([1])
test_bad_input_is_named = bad_input(
    [
        (lambda: scores.crps(V[None], V), ValueError, ("draws", "at least 2")),
        (lambda: scores.crps(Normal(V, 1.0), V[:1]), ValueError, ("y", "(2,)", "(1,)")),
        (lambda: scores.crps(torch.ones(5, 3), V), ValueError, ("y", "(3,)", "(2,)")),
        (lambda: scores.crps(StudentT(V), V), TypeError, ("prediction", "StudentT")),
        (
            lambda: scores.crps(uncertainty.mixture(StudentT(V)), V[0]),
            TypeError,
            ("mixture of Nor",),
        ),
        (lambda: scores.interval_score(V, -V, V), ValueError, ("lower", "upper")),
        (lambda: scores.interval_score(V, V, V, 95), ValueError, ("probability", "95")),
        (lambda: scores.brier(HALF, V), TypeError, ("labels", "whole", "float64")),
        (lambda: scores.brier(HALF, LABEL + 1), ValueError, ("labels", "0 to 1", "2")),
        (lambda: scores.brier(HALF, LABEL[0]), ValueError, ("labels", "(1,)", "()")),
        (lambda: scores.brier(-HALF, LABEL), ValueError, ("probabilities", "softmax")),
    ]
)
