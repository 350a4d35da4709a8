"""Variational inference: exact where the answer is known, near the best where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from coursepkg import bayes_linear, networks
from coursepkg._lbfgs import minimize
from coursepkg.elbo import minibatch
from coursepkg.guides import FullRankNormal, LowRankNormal, MeanFieldNormal
from coursepkg.variational import fit, fit_stochastic


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_model(truth: Any, case: Any) -> Callable[[Tensor], Tensor]:
    data = truth("posteriordb/sblri-blr")["data"]
    x, y = (torch.tensor(data[name], dtype=torch.float64) for name in ("X", "y"))

    def log_joint(beta: Tensor) -> Tensor:
        prior = Normal(0.0, case["prior_sd"]).log_prob(beta).sum(dim=-1)
        return prior + Normal(beta @ x.T, case["noise_sd"]).log_prob(y).sum(dim=-1)

    return log_joint


def starts(dim: int, count: int = 8) -> MeanFieldNormal:
    mean = torch.randn(count, dim, generator=generator(3), dtype=torch.float64)
    return MeanFieldNormal(mean, torch.full_like(mean, 0.1))


@pytest.mark.parametrize("number", [0, 1])
def test_mean_field_finds_its_exact_optimum_on_a_linear_model(truth: Any, number: int) -> None:
    case = truth("sblri_fixed_noise")["cases"][number]
    found = fit(linear_model(truth, case), starts(5), generator=generator(), progress=False)
    optimum = {k: torch.tensor(v).double() for k, v in case["mean_field_optimum"].items()}
    sd = torch.tensor(case["posterior_sd"]).double()
    assert found.converged.all()
    assert ((found.q.mean[0] - optimum["mean"]) / sd).abs().max() < 1e-3
    torch.testing.assert_close(found.q.scale[0], optimum["sd"], rtol=1e-3, atol=0)
    assert float(found.fitted[0]) == pytest.approx(case["mean_field_optimum"]["elbo"], abs=1e-4)
    # Not the posterior's own sds, which only the other direction of KL would find.
    assert ((found.q.scale[0] - sd) / sd).abs().max() > 0.01


@pytest.mark.parametrize("number", [0, 1])
def test_full_rank_is_the_posterior_of_a_linear_model(truth: Any, number: int) -> None:
    case = truth("sblri_fixed_noise")["cases"][number]
    start = FullRankNormal(starts(5).mean, starts(5).scale.diag_embed())
    found = fit(linear_model(truth, case), start, generator=generator(), progress=False)
    covariance = torch.tensor(case["posterior_cov"]).double()
    ours = found.q.scale_tril[0] @ found.q.scale_tril[0].mT
    sd = covariance.diagonal().sqrt()
    assert ((found.q.mean[0] - torch.tensor(case["posterior_mean"])) / sd).abs().max() < 1e-3
    assert ((ours - covariance) / (sd * sd[:, None])).abs().max() < 1e-2
    # Every draw of the exact posterior tells the evidence, so that the error is next to nothing.
    assert float(found.fitted[0]) == pytest.approx(case["log_evidence"], abs=1e-4)
    assert float(found.elbo.value[0]) == pytest.approx(case["log_evidence"], abs=1e-4)


def test_the_sine_network_comes_near_the_best_that_was_found(truth: Any) -> None:
    posterior, reference = networks.sine_posterior(), truth("sine_network")
    start = MeanFieldNormal.initial(posterior.dim, generator=generator(1))
    found = fit(posterior, start, generator=generator(1), progress=False)
    elbo, error = float(found.elbo.value[0]), float(found.elbo.standard_error[0])
    assert reference["best_mean_field_elbo"] - 1 - 4 * error < elbo < reference["log_evidence"]
    richer = FullRankNormal(found.q.mean, found.q.scale.diag_embed())
    full = fit(posterior, richer, 4096, generator=generator(2), progress=False)
    elbo_full, error = float(full.elbo.value[0]), float(full.elbo.standard_error[0])
    assert reference["best_full_rank_elbo"] - 1 - 4 * error < elbo_full < reference["log_evidence"]
    # A single restart ends in whatever optimum is near: the race is what finds a good one.
    alone = fit(posterior, start[:1], progress=False)
    assert float(alone.elbo.value[0]) < elbo - 1


def valleys(theta: Tensor) -> Tensor:
    """Normals around -4 and 4, the second with nearly all of the mass."""
    weights = torch.tensor([0.01, 0.99], dtype=theta.dtype).log()
    return (Normal(theta.new_tensor([-4.0, 4.0]), 0.5).log_prob(theta) + weights).logsumexp(-1)


def test_the_race_keeps_the_best_quarter() -> None:
    # One start of sixteen is where the mass is: whatever round loses it, the fit does.
    mean = torch.full((16, 1), -4.0, dtype=torch.float64)
    mean[11] = 4.0
    start = MeanFieldNormal(mean, torch.full_like(mean, 0.5))
    found = fit(valleys, start, 160, generator=generator(), progress=False)
    assert [len(part) for part in found.history] == [16, 4, 1]
    assert float(found.q.mean) == pytest.approx(4, abs=1e-3)
    assert float(found.elbo.value[0]) == pytest.approx(math.log(0.99), abs=1e-3)
    few = fit(valleys, start[:3], 160, generator=generator(), progress=False)
    assert float(few.elbo.value[0]) == pytest.approx(math.log(0.01), abs=1e-3)


@pytest.mark.parametrize("family", ["mean_field", "full_rank", "low_rank"])
def test_a_fit_does_not_depend_on_the_units_of_the_target(family: str) -> None:
    # Coordinates that vary by a millionth and by a thousand: as quick as where all are alike.
    target, unit = correlated(), torch.logspace(-6, 3, 6, dtype=torch.float64)
    q = low_rank_start(1)
    guides: dict[str, Any] = {
        "mean_field": lambda u: MeanFieldNormal(q.mean * u, q.scale * u),
        "full_rank": lambda u: FullRankNormal(q.mean * u, (q.scale * u).diag_embed()),
        "low_rank": lambda u: LowRankNormal(q.mean * u, q.scale * u, q.factor * u[:, None]),
    }
    plain, scaled = (
        fit(
            lambda theta, u=u: target.log_prob(theta / u) - u.log().sum(),
            guides[family](u),
            256,
            num_steps=30,
            generator=generator(),
            progress=False,
        )
        for u in (torch.ones_like(unit), unit)
    )
    torch.testing.assert_close(scaled.q.mean / unit, plain.q.mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.elbo.value, plain.elbo.value, rtol=0, atol=1e-4)


def test_without_a_race_every_restart_is_kept_with_its_optimum() -> None:
    """Two hills far apart, of 3/4 and 1/4: a guide on either has their logarithms as its ELBO."""

    def hills(theta: Tensor) -> Tensor:
        heights = torch.tensor([0.75, 0.25], dtype=theta.dtype).log()
        centers = torch.tensor([-9.0, 9.0], dtype=theta.dtype)
        return (heights + Normal(centers, 1.0).log_prob(theta)).logsumexp(dim=-1)

    mean = torch.tensor([[8.0], [-8.0], [10.0], [-10.0]], dtype=torch.float64)
    start = MeanFieldNormal(mean, torch.full_like(mean, 0.5))
    every = fit(hills, start, race=False, generator=generator(), progress=False)
    exact = torch.tensor([0.75, 0.75, 0.25, 0.25], dtype=torch.float64).log()
    assert len(every.history) == 1
    torch.testing.assert_close(every.elbo.value, exact, rtol=0, atol=1e-3)
    torch.testing.assert_close(every.q.mean[:, 0].sign(), mean.new_tensor([-1, -1, 1, 1]))
    best = fit(hills, start, generator=generator(), progress=False)
    assert float(best.elbo.value) == pytest.approx(float(exact[0]), abs=1e-3)


def correlated(rank: int = 1) -> MultivariateNormal:
    """A normal of six dimensions whose covariance is of low rank and a diagonal."""
    factor = torch.randn(6, rank, generator=generator(5), dtype=torch.float64)
    covariance = factor @ factor.T + torch.rand(6, generator=generator(6)).double().add(0.5).diag()
    return MultivariateNormal(torch.arange(6.0).double(), covariance)


def low_rank_start(rank: int, count: int = 8) -> LowRankNormal:
    q = MeanFieldNormal.initial(6, count, generator=generator(7))
    factor = 0.1 * torch.randn(count, 6, rank, generator=generator(8))
    return LowRankNormal(q.mean.double(), q.scale.double(), factor.double())


def test_the_low_rank_that_suffices_finds_the_posterior_and_a_lower_one_does_not() -> None:
    target = correlated(rank=2)
    found = {
        rank: fit(
            target.log_prob,
            low_rank_start(rank),
            num_steps=100,
            generator=generator(),
            progress=False,
        )
        for rank in (1, 2)
    }
    q = found[2].q[0]
    covariance = q.factor @ q.factor.mT + q.scale.square().diag_embed()
    torch.testing.assert_close(covariance, target.covariance_matrix, rtol=0, atol=1e-2)
    torch.testing.assert_close(q.mean, target.mean, rtol=0, atol=1e-2)
    assert float(found[2].elbo.value[0]) == pytest.approx(0, abs=1e-3)
    exact = -divergence_to(found[1].q[0], target)
    assert exact < -0.01
    assert abs(float(found[1].elbo.value[0]) - exact) < 4.5 * float(found[1].elbo.standard_error[0])


def divergence_to(q: LowRankNormal, target: MultivariateNormal) -> float:
    covariance = q.factor @ q.factor.mT + q.scale.square().diag_embed()
    return float(kl_divergence(MultivariateNormal(q.mean, covariance), target))


@pytest.mark.parametrize("estimator", ["log_ratio", "entropy", "path_derivative"])
def test_stochastic_steps_find_the_mean_field_optimum(estimator: Any) -> None:
    target = correlated()
    start = MeanFieldNormal.initial(6, 4, generator=generator())
    found = fit_stochastic(
        target.log_prob,
        MeanFieldNormal(start.mean.double(), start.scale.double()),
        num_steps=2000,
        learning_rate=0.05,
        estimator=estimator,
        generator=generator(),
        progress=False,
    )
    optimum = target.precision_matrix.diagonal().rsqrt()
    exact = -float(kl_divergence(MultivariateNormal(target.mean, optimum.square().diag()), target))
    assert found.converged.all()
    assert ((found.q.mean - target.mean) / optimum).abs().max() < 0.1
    assert (found.q.scale / optimum - 1).abs().max() < 0.1
    # Second order around an optimum: small errors of the guide cost next to nothing.
    error = found.elbo.standard_error
    assert ((found.elbo.value - exact).abs() < 4.5 * error + 0.02).all()
    assert ((found.fitted - exact).abs() < 0.1).all()
    # The true standard deviations, which it must not find, are far off.
    assert (target.variance.sqrt() / optimum).max() > 1.2


def test_stochastic_steps_see_no_more_than_minibatches() -> None:
    x = torch.linspace(-1, 1, 200, dtype=torch.float64)
    y = 0.5 + 2 * x + 0.3 * torch.randn(200, generator=generator(1), dtype=torch.float64)
    features = torch.stack([torch.ones(200).double(), x], dim=1)
    prior = bayes_linear.normal_prior(2, 1.0)
    exact = bayes_linear.posterior(features, y, prior, 0.3)
    asked = []

    def pointwise(theta: Tensor, rows: Tensor) -> Tensor:
        asked.append(len(rows))
        return Normal(theta @ features[rows].T, 0.3).log_prob(y[rows])

    noisy = minibatch(
        pointwise,
        lambda theta: Normal(0.0, 1.0).log_prob(theta).sum(dim=-1),
        dataset_size=200,
        batch_size=20,
        generator=generator(2),
    )
    start = MeanFieldNormal(torch.zeros(3, 2).double(), torch.full((3, 2), 0.1).double())
    found = fit_stochastic(
        noisy, start, num_steps=3000, learning_rate=0.02, generator=generator(), progress=False
    )
    assert set(asked) == {20}
    optimum = (exact.covariance.inverse().diagonal()).rsqrt()
    assert ((found.q.mean - exact.mean) / exact.scale).abs().max() < 0.5
    # Without N / B the scale would be 10 ** 0.5 times as large, with it twice as much smaller.
    assert (found.q.scale / optimum - 1).abs().max() < 0.1


def test_a_fit_that_was_cut_short_says_so() -> None:
    start = MeanFieldNormal(torch.full((2, 6), 8.0).double(), torch.full((2, 6), 0.1).double())
    target = correlated().log_prob
    found = fit_stochastic(target, start, num_steps=100, generator=generator(), progress=False)
    assert not found.converged.any()
    assert found.history[0].shape == (2, 100)
    assert float(found.fitted[0]) >= float(found.fitted[1])
    assert not fit(target, start, num_steps=1, progress=False).converged.any()


def rosenbrock(points: Tensor) -> tuple[Tensor, Tensor]:
    x, y = points.T
    values = (1 - x).square() + 100 * (y - x.square()).square()
    slopes = torch.stack([-2 * (1 - x) - 400 * x * (y - x.square()), 200 * (y - x.square())], dim=1)
    return values, slopes


def test_each_row_of_a_batch_is_minimized_for_itself() -> None:
    start = torch.tensor([[-1.2, 1.0], [3.0, -2.0], [0.0, 0.0]], dtype=torch.float64)
    found = minimize(rosenbrock, start, 200)
    assert found.converged.all()
    torch.testing.assert_close(found.point, torch.ones(3, 2).double(), rtol=0, atol=1e-5)
    assert (found.history.diff(dim=1) <= 0).all()
    # Down the slope alone, with the same line search, would be far from there.
    torch.testing.assert_close(found.value, rosenbrock(found.point)[0])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"log_density": 3}, TypeError, ("log_density", "function")),
        (
            {"log_density": lambda theta: torch.full(theta.shape[:-1], -torch.inf)},
            ValueError,
            ("log_density", "finite", "density.Space"),
        ),
        ({"num_draws": 1}, ValueError, ("num_draws", "at least 2")),
        ({"num_steps": 0}, ValueError, ("num_steps", "at least 1")),
        ({"generator": 7}, TypeError, ("generator", "torch.Generator")),
        (
            {"start": MeanFieldNormal(torch.zeros(3), torch.ones(3))},
            ValueError,
            ("start", "2 dimensions"),
        ),
    ],
)
def test_bad_input_is_named(
    arguments: dict[str, Any],
    error: type[Exception],
    words: tuple[str, ...],
    kind_error: Callable[..., Any],
) -> None:
    given = {"log_density": lambda theta: -theta.square().sum(-1), "start": starts(3), **arguments}
    with kind_error(error, *words):
        fit(**given)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"log_density": 3}, TypeError, ("log_density", "function")),
        ({"start": Normal(0, 1)}, TypeError, ("start", "guide", "Normal")),
        ({"num_draws": 1}, ValueError, ("num_draws", "at least 2")),
        ({"num_steps": 19}, ValueError, ("num_steps", "at least 20")),
        ({"learning_rate": 0.0}, ValueError, ("learning_rate", "positive")),
        ({"estimator": "best"}, ValueError, ("estimator", "entropy")),
        ({"generator": 7}, TypeError, ("generator", "torch.Generator")),
    ],
)
def test_bad_input_of_the_stochastic_fit_is_named(
    arguments: dict[str, Any],
    error: type[Exception],
    words: tuple[str, ...],
    kind_error: Callable[..., Any],
) -> None:
    given = {"log_density": lambda theta: -theta.square().sum(-1), "start": starts(3), **arguments}
    with kind_error(error, *words):
        fit_stochastic(**given)
