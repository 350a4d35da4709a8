"""The ELBO: exact identities of Bayesian linear regression, unbiased gradients, ordered bounds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from bad_input import bad_input
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from coursepkg import bayes_linear, networks
from coursepkg.divergence import Estimate
from coursepkg.elbo import elbo, gap, importance_bound, minibatch, parts
from coursepkg.guides import FullRankNormal, LowRankNormal, MeanFieldNormal

NOISE, PRIOR = 0.5, 2.0
EXACT = {"dtype": torch.float64}


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    """A linear regression of 12 points and 3 weights, solved exactly."""
    source = torch.Generator().manual_seed(3)
    x = torch.randn(12, 3, generator=source, dtype=torch.float64)
    x = x @ torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.4, 0.3], [0.0, 0.0, 1.0]]).double()
    y = x @ torch.tensor([1.0, -0.5, 0.3]).double()
    y = y + NOISE * torch.randn(12, generator=source, dtype=torch.float64)
    prior = bayes_linear.normal_prior(3, PRIOR)
    posterior = bayes_linear.posterior(x, y, prior, NOISE)

    def pointwise(theta: Tensor, rows: Tensor) -> Tensor:
        return Normal(theta @ x[rows].T, torch.tensor(NOISE, **EXACT)).log_prob(y[rows])

    def log_prior(theta: Tensor) -> Tensor:
        return (
            Normal(torch.zeros(3, **EXACT), torch.tensor(PRIOR, **EXACT))
            .log_prob(theta)
            .sum(dim=-1)
        )

    return {
        "pointwise": pointwise,
        "log_prior": log_prior,
        "log_joint": lambda theta: pointwise(theta, torch.arange(12)).sum(-1) + log_prior(theta),
        "posterior": MultivariateNormal(posterior.mean, posterior.covariance),
        "log_evidence": float(bayes_linear.log_evidence(x, y, prior, NOISE)),
        "x": x,
        "y": y,
    }


def guides(model: dict[str, Any]) -> dict[str, Any]:
    """Far from the posterior, and the posterior itself."""
    mean = torch.tensor([0.5, 0.1, -1.0]).double()
    scale = torch.tensor([0.3, 0.2, 0.6]).double()
    exact = model["posterior"]
    return {
        "mean field": MeanFieldNormal(mean, scale),
        "low rank": LowRankNormal(mean, scale, torch.ones(3, 1).double() / 4),
        "posterior": FullRankNormal(exact.mean, exact.scale_tril),
    }


def as_torch(q: Any) -> MultivariateNormal:
    units = torch.eye(q.num_noise).double()
    root = (q.transform(units) - q.mean).mT
    return MultivariateNormal(q.mean, root @ root.mT)


@pytest.mark.parametrize("name", ["mean field", "low rank", "posterior"])
@pytest.mark.parametrize("estimator", ["log_ratio", "entropy", "path_derivative"])
def test_elbo_and_kl_to_the_posterior_make_the_evidence(
    model: dict[str, Any], name: str, estimator: Any, generator: torch.Generator
) -> None:
    q = guides(model)[name]
    exact_gap = float(kl_divergence(as_torch(q), model["posterior"]))
    bound = elbo(model["log_joint"], q, 4000, estimator=estimator, generator=generator)
    found, error = gap(bound, model["log_evidence"])
    assert abs(float(found) - exact_gap) <= 4.5 * float(error) + 1e-9
    if name == "posterior" and estimator != "entropy":
        assert float(error) < 1e-9  # each draw alone knows the evidence
    # The other direction of the divergence is far off, and would be seen.
    if name != "posterior":
        other = float(kl_divergence(model["posterior"], as_torch(q)))
        assert abs(float(found) - other) > 10 * float(error)


@pytest.mark.parametrize("name", ["mean field", "low rank", "posterior"])
def test_the_identity_holds_to_rounding_where_the_likelihood_is_integrated(
    model: dict[str, Any], name: str
) -> None:
    # The expected log likelihood of a linear model in closed form: no draws at all.
    q = guides(model)[name]
    x, y, covariance = model["x"], model["y"], as_torch(q).covariance_matrix
    spread = (x @ covariance * x).sum(dim=1)
    squares = (y - x @ q.mean).square() + spread
    expected = (-squares / (2 * NOISE**2) - math.log(NOISE * math.sqrt(2 * math.pi))).sum()
    bound = expected - q.kl(prior_scale=PRIOR)
    exact = bound + kl_divergence(as_torch(q), model["posterior"])
    assert float(exact) == pytest.approx(model["log_evidence"], abs=1e-9)


@pytest.mark.parametrize("batch", [12, 4])
def test_parts_are_the_elbo_and_the_scale_counts_once(
    model: dict[str, Any], batch: int, generator: torch.Generator
) -> None:
    q = guides(model)["mean field"]
    kwargs = {"dataset_size": 12, "num_draws": 60_000, "prior_scale": PRIOR, "generator": generator}
    # Batches that together are the data: the mean over them is the whole.
    found = [parts(model["pointwise"], q, rows, **kwargs) for rows in torch.arange(12).split(batch)]
    mean = torch.stack([p.elbo.value for p in found]).mean()
    error = torch.stack([p.elbo.standard_error for p in found]).square().sum().sqrt() / len(found)
    exact = model["log_evidence"] - kl_divergence(as_torch(q), model["posterior"])
    assert abs(float(mean - exact)) < 4.5 * float(error)
    prior = MultivariateNormal(torch.zeros(3).double(), PRIOR**2 * torch.eye(3).double())
    for part in found:
        torch.testing.assert_close(part.kl, kl_divergence(as_torch(q), prior))
        torch.testing.assert_close(part.elbo.value, part.log_likelihood.value - part.kl)
        assert torch.equal(part.elbo.standard_error, part.log_likelihood.standard_error)
    # A KL scaled along with the batch, or a likelihood that is not, would be seen.
    assert float(found[0].kl) > 20 * float(error)


def test_minibatches_are_unbiased(model: dict[str, Any], generator: torch.Generator) -> None:
    noisy = minibatch(
        model["pointwise"], model["log_prior"], dataset_size=12, batch_size=4, generator=generator
    )
    theta = torch.tensor([[0.5, 0.1, -1.0], [0.0, 0.0, 0.0]]).double()
    values = torch.stack([noisy(theta) for _ in range(2000)])
    error = values.std(dim=0) / len(values) ** 0.5
    exact = model["log_joint"](theta)
    assert ((values.mean(dim=0) - exact).abs() < 4.5 * error).all()
    # Unscaled, or scaled by the batch alone, it would be far off.
    assert (exact.abs() > 100 * error).all()
    whole = minibatch(model["pointwise"], model["log_prior"], dataset_size=12, batch_size=12)
    torch.testing.assert_close(whole(theta), exact)


def gradients(
    model: dict[str, Any], q: Any, estimator: Any, generator: torch.Generator, runs: int = 2000
) -> Tensor:
    """Gradients of the ELBO in the free numbers, from runs of two draws each."""
    free = q.flatten().expand(runs, -1).clone().requires_grad_()
    many = type(q).unflatten(free, 3)
    bound = elbo(model["log_joint"], many, 2, estimator=estimator, generator=generator)
    (gradient,) = torch.autograd.grad(bound.value.sum(), free)
    return gradient


@pytest.mark.parametrize("estimator", ["log_ratio", "entropy", "path_derivative"])
@pytest.mark.parametrize("name", ["mean field", "low rank", "posterior"])
def test_gradients_are_unbiased(
    model: dict[str, Any], name: str, estimator: Any, generator: torch.Generator
) -> None:
    q = guides(model)[name]
    free = q.flatten().clone().requires_grad_()
    exact_q = as_torch(type(q).unflatten(free, 3))
    (exact,) = torch.autograd.grad(-kl_divergence(exact_q, model["posterior"]), free)
    draws = gradients(model, q, estimator, generator)
    error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - exact).abs() < 4.5 * error + 1e-9).all()
    if name != "posterior":  # a gradient with the wrong sign of the entropy would be seen
        assert (exact.abs() > 10 * error).any()


def test_at_the_posterior_the_path_derivative_alone_has_no_variance(
    model: dict[str, Any], generator: torch.Generator
) -> None:
    q = guides(model)["posterior"]
    spread = {
        estimator: float(gradients(model, q, estimator, generator).std(dim=0).max())
        for estimator in ("log_ratio", "entropy", "path_derivative")
    }
    assert spread["path_derivative"] < 1e-9
    assert spread["log_ratio"] > 0.1
    assert spread["entropy"] > 0.1


def test_the_elbo_uses_the_gradient_that_a_density_supplies(generator: torch.Generator) -> None:
    posterior = networks.sine_posterior()
    free = MeanFieldNormal.initial(16, 3, generator=generator).flatten().double().requires_grad_()

    def gradient(log_density: Any) -> Tensor:
        source = torch.Generator().manual_seed(1)
        bound = elbo(log_density, MeanFieldNormal.unflatten(free, 16), 8, generator=source)
        return torch.autograd.grad(bound.value.sum(), free)[0]

    torch.testing.assert_close(gradient(posterior), gradient(lambda theta: posterior(theta)))


def test_bounds_rise_with_the_number_of_draws_up_to_the_evidence(
    model: dict[str, Any], generator: torch.Generator
) -> None:
    q = guides(model)["mean field"]
    numbers = (1, 2, 8, 64, 512)
    bounds = [
        importance_bound(model["log_joint"], q, k, 2000, generator=generator) for k in numbers
    ]
    for lower, higher in itertools.pairwise(bounds):
        error = math.hypot(float(lower.standard_error), float(higher.standard_error))
        assert float(higher.value - lower.value) > 3 * error
    # One draw is the ELBO; many come close to the evidence and stay below it.
    exact = model["log_evidence"] - float(kl_divergence(as_torch(q), model["posterior"]))
    assert abs(float(bounds[0].value) - exact) < 4.5 * float(bounds[0].standard_error)
    left, error = gap(bounds[-1], model["log_evidence"])
    assert -4.5 * float(error) < float(left) < 0.1 * (model["log_evidence"] - exact)


def test_importance_weights_find_the_evidence_of_a_density_without_scale(
    generator: torch.Generator,
) -> None:
    # E log(mean of K ratios) is log Z - var / (2K) + O(1/K^2), with var that of one ratio over Z:
    # a Gaussian target of scale 1 under a guide of scale 2 has E (ratio / Z)^2 = 4 / sqrt(7).
    q = MeanFieldNormal(torch.zeros(1).double(), torch.full((1,), 2.0).double())
    bound = importance_bound(
        lambda theta: -theta.square().sum(-1) / 2, q, 100, 4000, generator=generator
    )
    expected = math.log(2 * math.pi) / 2 - (4 / math.sqrt(7) - 1) / 200
    assert abs(float(bound.value) - expected) < 4.5 * float(bound.standard_error) + 1e-4


def test_gap_adds_errors_of_both() -> None:
    bound = Estimate(torch.tensor([-5.0, -4.0]), torch.tensor([0.3, 0.0]))
    evidence = Estimate(torch.tensor(1.0), torch.tensor(0.4))
    found = gap(bound, evidence)
    torch.testing.assert_close(found.value, torch.tensor([6.0, 5.0]))
    torch.testing.assert_close(found.standard_error, torch.tensor([0.5, 0.4]))


def test_where_the_density_is_zero_the_bound_is_minus_infinity() -> None:
    half_line = lambda theta: torch.where(theta[..., 0] > 0, -theta[..., 0], -torch.inf)  # noqa: E731
    bound = elbo(half_line, MeanFieldNormal(torch.zeros(1), torch.ones(1)))
    assert float(bound.value) == -math.inf
    assert float(bound.standard_error) == 0


def flat(theta: Tensor) -> Tensor:
    return theta.sum(dim=-1)


def each(theta: Tensor, rows: Tensor) -> Tensor:
    return theta.sum(dim=-1, keepdim=True) * torch.ones(len(rows))


Q = MeanFieldNormal(torch.zeros(2), torch.ones(2))
ROWS = torch.arange(3)


test_bad_input_is_named = bad_input(
    [
        (lambda: elbo(3, Q), TypeError, ("log_density", "function")),  # type: ignore[arg-type]
        (lambda: elbo(flat, Normal(0, 1)), TypeError, ("q", "guide", "Normal")),  # type: ignore[arg-type]
        (lambda: elbo(flat, Q, 1), ValueError, ("num_draws", "at least 2")),
        (lambda: elbo(flat, Q, estimator="other"), ValueError, ("estimator", "path_derivative")),  # type: ignore[arg-type]
        (
            lambda: elbo(flat, MeanFieldNormal(torch.full((2,), torch.nan), torch.ones(2))),
            ValueError,
            ("q", "finite"),
        ),
        (lambda: elbo(lambda theta: theta, Q), ValueError, ("log_density", "one value for each")),
        (lambda: importance_bound(flat, Q, 0), ValueError, ("num_importance", "at least 1")),
        (lambda: importance_bound(flat, Q, 2, 1), ValueError, ("num_draws", "at least 2")),
        (lambda: parts(flat, Q, ROWS, dataset_size=0), ValueError, ("dataset_size", "at least 1")),  # type: ignore[arg-type]
        (
            lambda: parts(lambda theta, rows: flat(theta), Q, ROWS, dataset_size=9),
            ValueError,
            ("log_likelihood", "(1000, 3)", "do not sum"),
        ),
        (
            lambda: minibatch(each, flat, dataset_size=3, batch_size=4),
            ValueError,
            ("batch_size", "at most 3"),
        ),
        (
            lambda: minibatch(each, flat, dataset_size=3, batch_size=0),
            ValueError,
            ("batch_size", "at least 1"),
        ),
        (lambda: gap(elbo(flat, Q), "x"), TypeError, ("log_evidence", "str")),  # type: ignore[arg-type]
    ]
)
