"""Variational inference: exact where the answer is known, near the best where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from coursepkg import networks
from coursepkg._lbfgs import minimize
from coursepkg.guides import FullRankNormal, MeanFieldNormal
from coursepkg.variational import fit


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
    mean = torch.randn(64, posterior.dim, generator=generator(1))
    start = MeanFieldNormal(mean, torch.full_like(mean, 0.1))
    found = fit(posterior, start, generator=generator(1), progress=False)
    elbo, error = float(found.elbo.value[0]), float(found.elbo.standard_error[0])
    assert reference["best_mean_field_elbo"] - 1 - 4 * error < elbo < reference["log_evidence"]
    richer = FullRankNormal(found.q.mean, found.q.scale.diag_embed())
    full = fit(posterior, richer, 2048, num_steps=200, generator=generator(2), progress=False)
    assert float(full.elbo.value[0]) > elbo + 5
    # A single restart ends in whatever optimum is near: the race is what finds a good one.
    alone = fit(posterior, MeanFieldNormal(mean[:1], start.scale[:1]), progress=False)
    assert float(alone.elbo.value[0]) < elbo


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
