"""Coordinate ascent: held against quadrature over the noise, and against any other guide."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, MultivariateNormal, kl_divergence

from coursepkg import bayes_linear
from coursepkg.coordinate_ascent import FactorizedFit, fit_linear

SHAPE, RATE = 2.0, 0.5
PRIOR = bayes_linear.normal_prior(3, 2.0)


def data(num_points: int = 15) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(num_points, 3, generator=source, dtype=torch.float64)
    noise = 0.4 * torch.randn(num_points, generator=source, dtype=torch.float64)
    return x, x @ torch.tensor([1.0, -0.5, 0.2]).double() + noise


def elbo_by_quadrature(
    x: Tensor, y: Tensor, weights: MultivariateNormal, precision: Gamma
) -> float:
    """E_q log p(y, w, tau) - E_q log q, over tau by the trapezoidal rule in its logarithm."""
    log_tau = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    tau = log_tau.exp()
    density = (precision.log_prob(tau) + log_tau).exp() * (log_tau[1] - log_tau[0])
    spread = (x @ weights.covariance_matrix * x).sum()
    squares = (y - x @ weights.mean).square().sum() + spread
    likelihood = len(y) / 2 * (log_tau - math.log(2 * math.pi)) - tau * squares / 2
    inner = likelihood + Gamma(SHAPE, RATE).log_prob(tau) - precision.log_prob(tau)
    prior = MultivariateNormal(PRIOR.mean, PRIOR.covariance)
    return float((density * inner).sum() - kl_divergence(weights, prior))


def as_torch(fit: FactorizedFit) -> MultivariateNormal:
    return MultivariateNormal(fit.weights.mean, scale_tril=fit.weights.scale_tril)


@pytest.fixture(scope="module")
def fit() -> FactorizedFit:
    return fit_linear(*data(), PRIOR, SHAPE, RATE)


def test_the_elbo_is_that_of_quadrature(fit: FactorizedFit) -> None:
    expected = elbo_by_quadrature(*data(), as_torch(fit), fit.precision)
    assert fit.elbo == pytest.approx(expected, abs=1e-6)


def test_each_update_gains_and_the_end_is_a_fixed_point(fit: FactorizedFit) -> None:
    assert fit.converged
    assert (fit.history.diff() > -1e-9).all()
    assert float(fit.history[-1] - fit.history[0]) > 0.01  # from which the first update is far
    assert fit.history[-1] == fit.elbo
    stopped = fit_linear(*data(), PRIOR, SHAPE, RATE, num_steps=1)
    assert not stopped.converged
    assert len(stopped.history) == 1


def test_no_guide_of_the_same_shape_is_better(fit: FactorizedFit) -> None:
    q, best = as_torch(fit), fit.elbo
    mean, factor = fit.weights.mean, fit.weights.scale_tril
    others = [
        (MultivariateNormal(mean + step, scale_tril=factor), fit.precision)
        for step in 0.02 * torch.cat([torch.eye(3), -torch.eye(3)]).double()
    ]
    others += [(MultivariateNormal(mean, scale_tril=s * factor), fit.precision) for s in (0.9, 1.1)]
    for shape, rate in ((1.1, 1.0), (0.9, 1.0), (1.0, 1.1), (1.0, 0.9)):
        moved = Gamma(shape * fit.precision.concentration, rate * fit.precision.rate)
        others.append((q, moved))
    for weights, precision in others:
        assert elbo_by_quadrature(*data(), weights, precision) < best - 1e-5


def exact(x: Tensor, y: Tensor) -> tuple[float, Tensor, Tensor]:
    """Log evidence, and the posterior of log tau on a grid: given tau all is in closed form."""
    log_tau = torch.linspace(-4, 6, 801, dtype=torch.float64)
    prior = Gamma(SHAPE, RATE).log_prob(log_tau.exp()) + log_tau
    given = torch.stack([bayes_linear.log_evidence(x, y, PRIOR, math.exp(-t / 2)) for t in log_tau])
    joint = prior + given + math.log(float(log_tau[1] - log_tau[0]))
    return float(joint.logsumexp(dim=0)), log_tau, joint.softmax(dim=0)


def test_it_stays_below_the_evidence_and_is_too_sure_of_the_noise(fit: FactorizedFit) -> None:
    x, y = data()
    log_evidence, log_tau, posterior = exact(x, y)
    assert 0 < log_evidence - fit.elbo < 1
    mean = float((posterior * log_tau.exp()).sum())
    variance = float((posterior * log_tau.exp().square()).sum()) - mean**2
    assert float(fit.precision.mean) == pytest.approx(mean, rel=0.05)
    # What it leaves out, that wrong weights would go with more noise, makes it too narrow.
    assert float(fit.precision.variance) < variance


def test_with_many_points_nothing_is_lost() -> None:
    x, y = data(2000)
    fit = fit_linear(x, y, PRIOR, SHAPE, RATE)
    log_evidence, *_ = exact(x, y)
    assert 0 < log_evidence - fit.elbo < 0.01


def test_residuals_alone_would_be_another_answer(fit: FactorizedFit) -> None:
    # The trace term forgotten: the noise would come out too small.
    x, y = data()
    rate = RATE + (y - x @ fit.weights.mean).square().sum() / 2
    forgotten = Gamma(fit.precision.concentration, rate)
    assert elbo_by_quadrature(x, y, as_torch(fit), forgotten) < fit.elbo - 0.01


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"targets": torch.ones(14)}, ValueError, ("features and targets", "15", "14")),
        ({"prior": 3}, TypeError, ("prior", "GaussianWeights")),
        ({"precision_shape": 0.0}, ValueError, ("precision_shape", "positive")),
        ({"precision_rate": -1.0}, ValueError, ("precision_rate", "positive")),
        ({"num_steps": 0}, ValueError, ("num_steps", "at least 1")),
        ({"tolerance": 0.0}, ValueError, ("tolerance", "positive")),
    ],
)
def test_bad_input_is_named(
    arguments: dict[str, Any],
    error: type[Exception],
    words: tuple[str, ...],
    kind_error: Callable[..., Any],
) -> None:
    x, y = data()
    given = {
        "features": x,
        "targets": y,
        "prior": PRIOR,
        "precision_shape": SHAPE,
        "precision_rate": RATE,
        **arguments,
    }
    with kind_error(error, *words):
        fit_linear(**given)
