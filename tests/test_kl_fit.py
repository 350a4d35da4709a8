"""The nearest Gaussian: against scipy's quadratures and optimizers, and in closed form.

Statistical tests allow 4.5 standard errors; their seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import scipy.integrate
import scipy.optimize
import torch
import torch.distributions as td
from torch import Tensor

from coursepkg import divergence, kl_fit
from coursepkg.kl_fit import fit_normal

FAR_STARTS = torch.linspace(-5, 8, 9, dtype=torch.float64)[:, None]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(ours: Tensor, truth: Any, rtol: float = 0, atol: float = 1e-6) -> None:
    truth = torch.as_tensor(truth, dtype=torch.float64)
    torch.testing.assert_close(ours, truth, rtol=rtol, atol=atol)


HALVES = td.Categorical(torch.ones(2, dtype=torch.float64))
ON_A_LINE = td.MixtureSameFamily(HALVES, td.Normal(tensor([0.0, 3.0]), tensor([0.4, 1.0])))
IN_A_PLANE = td.MixtureSameFamily(
    HALVES,
    td.MultivariateNormal(
        tensor([[-1.0, 0.0], [1.5, 1.0]]),
        tensor([[[0.5, 0.3], [0.3, 0.6]], [[1.0, -0.4], [-0.4, 0.5]]]),
    ),
)


def on_a_line(theta: Tensor) -> Tensor:
    return ON_A_LINE.log_prob(theta[..., 0])


def in_a_plane(theta: Tensor) -> Tensor:
    return IN_A_PLANE.log_prob(theta)


# --- One dimension --------------------------------------------------------------------------------


def by_scipy(start: tuple[float, float]) -> tuple[float, float, float]:
    """An optimum of KL(q‖p) by adaptive quadrature and a simplex search: mean, scale, value."""

    def log_normal(x: float, mean: float, scale: float) -> float:
        return -(((x - mean) / scale) ** 2) / 2 - math.log(scale) - math.log(2 * math.pi) / 2

    def integrand(x: float, mean: float, scale: float) -> float:
        log_q = log_normal(x, mean, scale)
        log_p = math.log((math.exp(log_normal(x, 0, 0.4)) + math.exp(log_normal(x, 3, 1))) / 2)
        return math.exp(log_q) * (log_q - log_p)

    def objective(parameters: tuple[float, float]) -> float:
        mean, scale = parameters
        edges = (mean - 9 * scale, mean + 9 * scale)
        q = (mean, scale)
        return float(scipy.integrate.quad(integrand, *edges, q, epsabs=1e-12, limit=200)[0])

    options = {"xatol": 1e-8, "fatol": 1e-13}
    found = scipy.optimize.minimize(objective, start, method="Nelder-Mead", options=options)
    return (*found.x, found.fun)


def test_both_optima_of_the_reverse_direction_are_found_the_best_first() -> None:
    fit = fit_normal(on_a_line, FAR_STARTS)
    assert fit.converged.tolist() == [True, True]
    found = torch.stack([fit.mean[:, 0], fit.scale_tril[:, 0, 0], fit.kl.value], dim=1)
    close(found, [[2.180, 1.465, 0.422], [0.044, 0.446, 0.653]], atol=5e-4)  # as published
    close(found, [by_scipy((2.0, 1.5)), by_scipy((0.0, 0.5))])
    assert fit.kl.standard_error.tolist() == [0, 0]
    q = td.Normal(fit.mean[:, 0], fit.scale_tril[:, 0, 0])
    close(fit.kl.value, divergence.kl_quadrature(q, ON_A_LINE), atol=1e-12)


def test_the_one_optimum_of_the_forward_direction_has_the_moments() -> None:
    fit = fit_normal(on_a_line, FAR_STARTS, "forward")
    assert fit.converged.tolist() == [True]
    found = torch.stack([fit.mean[0, 0], fit.scale_tril[0, 0, 0], fit.kl.value[0]])
    close(found, [1.500, 1.682, 0.331], atol=5e-4)  # as published
    close(found[:2], torch.stack([ON_A_LINE.mean, ON_A_LINE.stddev]), atol=1e-9)
    q = td.Normal(found[0], found[1])
    close(found[2], divergence.kl_quadrature(ON_A_LINE, q), atol=1e-9)
    # The two directions do not stand for one another.
    assert abs(float(found[0]) - float(fit_normal(on_a_line, FAR_STARTS).mean[0, 0])) > 0.5


def test_a_density_need_not_be_normalized() -> None:
    for direction, shift in (("reverse", -7.0), ("forward", 0.0)):
        fit = fit_normal(on_a_line, FAR_STARTS, direction)
        scaled = fit_normal(lambda theta: on_a_line(theta) + 7, FAR_STARTS, direction)
        close(scaled.mean, fit.mean)
        close(scaled.kl.value, fit.kl.value + shift)


def test_one_dimension_asks_for_no_random_numbers() -> None:
    before = torch.get_rng_state()
    fit_normal(on_a_line, FAR_STARTS)
    assert torch.equal(torch.get_rng_state(), before)


# --- More dimensions ------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gaussians_are_met_exactly(which: int, truth: Callable[[str], Any]) -> None:
    """A diagonal q has one over the precisions in one direction, the variances in the other."""
    case = truth("kl")["multivariate_normal"][which]
    mean, covariance = tensor(case["p_mean"]), tensor(case["p_cov"])
    p = td.MultivariateNormal(mean, covariance)
    starts = torch.stack([mean + 1, mean - 1])
    for direction in ("reverse", "forward"):
        full = fit_normal(p.log_prob, starts, direction, generator=generator(0), start_scale=2.0)
        assert full.converged.tolist() == [True]
        close(full.mean[0], mean)
        close(full.scale_tril[0], torch.linalg.cholesky(covariance), atol=1e-5)
        close(full.kl.value, [0.0])

        field = case["mean_field_of_p"]
        diagonal = fit_normal(
            p.log_prob,
            starts,
            direction,
            family="diagonal",
            generator=generator(0),
            start_scale=2.0,
        )
        close(diagonal.mean[0], mean)
        scales = tensor(field[f"{direction}_kl_variances"]).sqrt()
        close(diagonal.scale_tril[0], scales.diag())
        error = diagonal.kl.value - field[f"min_{direction}_kl"]
        assert (error.abs() < 4.5 * diagonal.kl.standard_error).all()
        assert (diagonal.kl.standard_error < 0.05).all()
        other = tensor(field[f"{'forward' if direction == 'reverse' else 'reverse'}_kl_variances"])
        assert (diagonal.scale_tril[0].diag() - other.sqrt()).abs().max() > 0.01


@cache
def grid() -> tuple[Tensor, Tensor]:
    """Nodes and weights in the plane for a standard normal, by the trapezoidal rule.

    Gauss and Hermite's 60 by 60 nodes would be off by 0.004: the mixture's logarithm has a ridge.
    """
    z = torch.linspace(-8.5, 8.5, 101, dtype=torch.float64)
    weights = td.Normal(0, 1).log_prob(z).exp() * (z[1] - z[0])
    return torch.cartesian_prod(z, z), torch.outer(weights, weights).flatten()


def reverse_kl(mean: Tensor, scale_tril: Tensor) -> Tensor:
    nodes, weights = grid()
    q = td.MultivariateNormal(mean, scale_tril=scale_tril)
    theta = mean + nodes @ scale_tril.T
    return weights @ (q.log_prob(theta) - in_a_plane(theta))


def test_the_reverse_fit_in_a_plane_is_the_optimum_within_its_noise() -> None:
    def unpack(u: Any) -> tuple[Tensor, Tensor]:
        u = tensor(u)
        zero = torch.zeros((), dtype=u.dtype)
        rows = [torch.stack([u[2].exp(), zero]), torch.stack([u[3], u[4].exp()])]
        return u[:2], torch.stack(rows)

    found = scipy.optimize.minimize(
        lambda u: float(reverse_kl(*unpack(u))),
        [-0.2, 0.5, 0.1, 0.5, -0.4],
        method="Nelder-Mead",
        options={"xatol": 1e-5, "fatol": 1e-10},
    )
    mean, scale_tril = unpack(found.x)
    fits = [fit_normal(in_a_plane, mean[None], generator=generator(seed)) for seed in range(30)]
    for truth, runs in (
        (mean, torch.stack([f.mean[0] for f in fits])),
        (scale_tril, torch.stack([f.scale_tril[0] for f in fits])),
    ):
        error = runs.std(dim=0) / len(runs) ** 0.5
        # With 1,000 draws the bias, of order 1/N, is below a twentieth of the noise of a fit.
        assert ((runs.mean(dim=0) - truth).abs() <= 4.5 * error + 0.05 * runs.std(dim=0)).all()
        assert (runs.std(dim=0) < 0.02).all()


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_the_reported_divergence_comes_from_fresh_draws(direction: Any) -> None:
    """From the draws of the fit it would be too low: the fit has leaned on them."""
    start, z = tensor([[0.3, 0.5]]), []
    count = 100 if direction == "reverse" else 1024
    for seed in range(40):
        fit = fit_normal(in_a_plane, start, direction, num_samples=count, generator=generator(seed))
        mean, scale_tril = fit.mean[0], fit.scale_tril[0]
        if direction == "reverse":
            truth = reverse_kl(mean, scale_tril)
        else:
            truth = forward_kl(mean, scale_tril)
        z.append((fit.kl.value[0] - truth) / fit.kl.standard_error[0])
    scores = torch.stack(z)
    assert abs(float(scores.mean())) * len(z) ** 0.5 < 4.5
    assert 0.5 < float(scores.std()) < 1.3


def forward_kl(mean: Tensor, scale_tril: Tensor) -> Tensor:
    """Under each component of the mixture in turn."""
    nodes, weights = grid()
    parts = IN_A_PLANE.component_distribution
    assert isinstance(parts, td.MultivariateNormal)
    theta = parts.mean[:, None] + nodes @ parts.scale_tril.mT
    q = td.MultivariateNormal(mean, scale_tril=scale_tril)
    return ((in_a_plane(theta) - q.log_prob(theta)) @ weights).mean()


def test_the_forward_fit_in_a_plane_has_the_moments_within_its_noise() -> None:
    centers = IN_A_PLANE.component_distribution.mean
    spread = centers - centers.mean(dim=0)
    parts = IN_A_PLANE.component_distribution
    assert isinstance(parts, td.MultivariateNormal)
    covariance = parts.covariance_matrix.mean(dim=0) + spread.T @ spread / 2
    runs = [
        fit_normal(in_a_plane, tensor([[0.0, 0.0]]), "forward", generator=generator(seed))
        for seed in range(30)
    ]
    means = torch.stack([f.mean[0] for f in runs])
    covariances = torch.stack([f.scale_tril[0] @ f.scale_tril[0].T for f in runs])
    for found, truth in ((means, centers.mean(dim=0)), (covariances, covariance)):
        assert ((found.mean(0) - truth).abs() < 4.5 * found.std(0) / 30**0.5).all()
        assert (found.std(dim=0) < 0.05).all()


class Supplied:
    """A Gaussian with a gradient of its own, whose value autograd cannot see through."""

    def __call__(self, theta: Tensor) -> Tensor:
        return -((theta.detach() - 1) ** 2).sum(-1) / 8

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self(theta), (1 - theta) / 4


def test_a_supplied_gradient_is_used() -> None:
    fit = fit_normal(Supplied(), torch.zeros(1, 3), generator=generator(0))
    close(fit.mean, torch.ones(1, 3))
    close(fit.scale_tril[0], 2 * torch.eye(3))
    close(fit.kl.value, [-1.5 * math.log(8 * math.pi)])  # minus the log of its integral


def test_draws_repeat_with_their_generator_and_leave_the_global_state_alone() -> None:
    before, start = torch.get_rng_state(), tensor([[0.0, 0.0]])
    first, again, other = (
        fit_normal(in_a_plane, start, generator=generator(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first.mean, again.mean)
    assert not torch.equal(first.mean, other.mean)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_a_search_that_was_cut_short_says_so(direction: Any) -> None:
    cut = fit_normal(on_a_line, tensor([[6.0]]), direction, num_steps=1)
    assert cut.converged.tolist() == [False]


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"log_density": 3}, TypeError, ("log_density", "function")),
        ({"starts": torch.zeros(2)}, ValueError, ("starts", "2 dimensions", "(2,)")),
        ({"starts": [[0.0]]}, TypeError, ("starts", "list")),
        ({"direction": "back"}, ValueError, ("direction", "'reverse'", "'back'")),
        ({"family": "mean"}, ValueError, ("family", "'diagonal'", "'mean'")),
        ({"start_scale": 0.0}, ValueError, ("start_scale", "positive")),
        ({"num_samples": 99}, ValueError, ("num_samples", "at least 100")),
        ({"num_steps": 0}, ValueError, ("num_steps", "at least 1")),
        ({"generator": 7}, TypeError, ("generator", "int")),
        (
            {"log_density": lambda theta: theta[..., 0].log()},
            ValueError,
            ("log_density", "finite", "density.Space"),
        ),
        (
            {"direction": "forward", "log_density": lambda theta: -1e9 * (theta[..., 0] - 50) ** 2},
            ValueError,
            ("starts", "start_scale", "overlap"),
        ),
    ],
)
def test_bad_input_is_named(
    arguments: dict[str, Any],
    error: type[Exception],
    words: tuple[str, ...],
    kind_error: Callable[..., Any],
) -> None:
    given = {"log_density": on_a_line, "starts": torch.zeros(1, 1), **arguments}
    with kind_error(error, *words):
        fit_normal(**given)


def test_the_quadrature_is_standard_normal_to_rounding() -> None:
    nodes, weights = kl_fit._quadrature(200)
    close(weights.sum(), 1.0, atol=1e-12)
    close(weights @ nodes, torch.zeros(1), atol=1e-12)
    close((weights[:, None] * nodes).T @ nodes, torch.eye(1), atol=1e-12)
