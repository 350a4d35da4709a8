"""Posteriors that others sampled: means and sds agree with the references of posteriordb.

Each model is written as one would write it, and sampled from random starts with nothing tuned by
hand. A number agrees when it is within 4 standard errors of the reference, with the Monte Carlo
errors of both; where the answer is known exactly, also within 4.5 of ours of that. Some seventy
numbers with a limit of 4 raise a false alarm in about 1 of 100 seeds. The seeds are fixed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, HalfCauchy, HalfNormal, MultivariateNormal, Normal
from torch.distributions import constraints as c
from torch.nn.functional import pad

from coursepkg import diagnostics, summaries
from coursepkg.density import Space
from coursepkg.hmc import HMC, hmc
from coursepkg.mcmc import Chains, sample

TRUTH = Path(__file__).parent / "truth" / "posteriordb"
CHAINS, WARMUP, DRAWS = 64, 150, 100

Values = dict[str, Tensor]


class Model(NamedTuple):
    """A space, a log joint density over it, and the reported quantities if they are others."""

    space: Space
    log_joint: Callable[[Values], Tensor]
    report: Callable[[Values], Tensor] = lambda values: torch.cat(
        [v if v.ndim == 3 else v[..., None] for v in values.values()], dim=-1
    )


def eight_schools(data: Values) -> Model:
    """Non-centred: the schools' effects in units of their spread."""
    space = Space({"z": (c.real, 8), "mu": c.real, "tau": c.positive})

    def theta(v: Values) -> Tensor:
        return v["mu"][..., None] + v["tau"][..., None] * v["z"]

    def log_joint(v: Values) -> Tensor:
        return (
            Normal(0, 5).log_prob(v["mu"])
            + HalfCauchy(5.0).log_prob(v["tau"])
            + Normal(0, 1).log_prob(v["z"]).sum(-1)
            + Normal(theta(v), data["sigma"]).log_prob(data["y"]).sum(-1)
        )

    def report(v: Values) -> Tensor:
        return torch.cat([theta(v), v["mu"][..., None], v["tau"][..., None]], -1)

    return Model(space, log_joint, report)


def eight_schools_centred(data: Values) -> Model:
    """The same posterior in coordinates in which it has a funnel."""
    space = Space({"theta": (c.real, 8), "mu": c.real, "tau": c.positive})

    def log_joint(v: Values) -> Tensor:
        spread = Normal(v["mu"][..., None], v["tau"][..., None])
        return (
            Normal(0, 5).log_prob(v["mu"])
            + HalfCauchy(5.0).log_prob(v["tau"])
            + spread.log_prob(v["theta"]).sum(-1)
            + Normal(v["theta"], data["sigma"]).log_prob(data["y"]).sum(-1)
        )

    return Model(space, log_joint)


def regression(x: Tensor, y: Tensor, log_prior: Callable[[Values], Tensor | float]) -> Model:
    space = Space({"beta": (c.real, x.shape[1]), "sigma": c.positive})

    def log_joint(v: Values) -> Tensor:
        likelihood = Normal(v["beta"] @ x.T, v["sigma"][..., None])
        return likelihood.log_prob(y).sum(-1) + log_prior(v)

    return Model(space, log_joint)


def flat(v: Values) -> float:
    return 0.0


def kidiq(data: Values) -> Model:
    iq = data["mom_iq"]
    x = torch.stack([torch.ones_like(iq), iq], 1)
    return regression(x, data["kid_score"], lambda v: HalfCauchy(2.5).log_prob(v["sigma"]))


def kidiq_interaction(data: Values) -> Model:
    hs, iq = data["mom_hs"], data["mom_iq"]
    x = torch.stack([torch.ones_like(iq), hs, iq, hs * iq], 1)
    return regression(x, data["kid_score"], lambda v: HalfCauchy(2.5).log_prob(v["sigma"]))


def earnings(data: Values) -> Model:
    x = torch.stack([torch.ones_like(data["height"]), data["height"]], 1)
    return regression(x, data["earn"].log(), flat)


def mesquite(data: Values) -> Model:
    volume = data["diam1"] * data["diam2"] * data["canopy_height"]
    return regression(
        torch.stack([torch.ones_like(volume), volume.log()], 1), data["weight"].log(), flat
    )


def sblri(data: Values) -> Model:
    def log_prior(v: Values) -> Tensor:
        beta = Normal(0, 10).log_prob(v["beta"]).sum(-1)
        return beta + HalfNormal(10.0).log_prob(v["sigma"])

    return regression(data["X"], data["y"], log_prior)


def gaussian_process(data: Values) -> Model:
    space = Space({"rho": c.positive, "alpha": c.positive, "sigma": c.positive})
    distance, one = data["x"][:, None] - data["x"], torch.eye(len(data["x"])).double()

    def log_joint(v: Values) -> Tensor:
        rho, alpha, sigma = (v[name][..., None, None] for name in ("rho", "alpha", "sigma"))
        covariance = alpha**2 * torch.exp(-((distance / rho) ** 2) / 2) + sigma * one
        return (
            Gamma(25.0, 4.0).log_prob(v["rho"])
            + HalfNormal(2.0).log_prob(v["alpha"])
            + HalfNormal(1.0).log_prob(v["sigma"])
            + MultivariateNormal(torch.zeros_like(data["y"]), covariance).log_prob(data["y"])
        )

    return Model(space, log_joint)


def arma(data: Values) -> Model:
    space = Space({"mu": c.real, "phi": c.real, "theta": c.real, "sigma": c.positive})
    y = data["y"]

    def log_joint(v: Values) -> Tensor:
        mu, phi, theta, sigma = (v[name][..., None] for name in space.names)
        before = torch.cat([mu, y[:-1].expand(*mu.shape[:-1], -1)], -1)
        # Each error has θ times the last one taken off: errors = (1 + θ shift)⁻¹ rest. With
        # q = -θ shift that is 1 + q + q² + … = (1 + q)(1 + q²)(1 + q⁴)…: 8 factors for 200 times.
        errors = y - mu - phi * before
        for power in (2**k for k in range(len(y).bit_length())):
            errors = errors + (-theta) ** power * pad(errors[..., :-power], (power, 0))
        return (
            Normal(0, 10).log_prob(v["mu"])
            + Normal(0, 2).log_prob(v["phi"])
            + Normal(0, 2).log_prob(v["theta"])
            + HalfCauchy(2.5).log_prob(v["sigma"])
            + Normal(0.0, sigma).log_prob(errors).sum(-1)
        )

    return Model(space, log_joint)


MODELS = {
    "arma-arma11": arma,
    "earnings-logearn_height": earnings,
    "eight_schools-eight_schools_noncentered": eight_schools,
    "gp_pois_regr-gp_regr": gaussian_process,
    "kidiq-kidscore_interaction": kidiq_interaction,
    "kidiq-kidscore_momiq": kidiq,
    "mesquite-logmesquite_logvolume": mesquite,
    "sblri-blr": sblri,
}


def load(name: str) -> Any:
    truth = json.loads((TRUTH / f"{name}.json").read_text())
    truth["data"] = {k: torch.tensor(v, dtype=torch.float64) for k, v in truth["data"].items()}
    return truth


def run(model: Model, kernel: HMC | None = None, *, seed: int = 1) -> tuple[Chains, Tensor]:
    """Sample from random starts; the chains, and the reported quantities of each draw."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(CHAINS, model.space.dim, generator=generator, dtype=torch.float64)
    kernel = kernel or hmc(model.space.log_density(model.log_joint))
    chains = sample(kernel, 4 * start - 2, DRAWS, WARMUP, generator=generator, progress=False)
    return chains, model.report(model.space.constrain(chains.draws))


def compare(draws: Tensor, truth: Any) -> tuple[Tensor, Tensor]:
    """Z scores of means and sds: against the reference, and against the exact answer or zeros."""
    flat = draws.flatten(0, 1)
    ours = torch.cat([flat.mean(0), flat.std(0)])
    error = torch.cat([diagnostics.mcse_mean(draws), diagnostics.mcse_sd(draws)])

    def column(table: Any, *names: str) -> Tensor:
        return torch.tensor([row[n] for n in names for row in table.values()]).to(ours)

    reference = column(truth["reference"], "mean", "sd")
    reference_error = column(truth["reference"], "mcse_mean", "mcse_sd")
    z = (ours - reference) / (error.square() + reference_error.square()).sqrt()
    second = truth["second_computation"]
    exact = torch.tensor([*second["mean"].values(), *second["sd"].values()]).to(ours)
    return z, (ours - exact) / error * second["exact"]


@pytest.mark.parametrize("name", MODELS)
def test_means_and_sds_agree_with_the_reference(name: str) -> None:
    truth = load(name)
    chains, draws = run(MODELS[name](truth["data"]))
    z, z_exact = compare(draws, truth)
    assert len(z) == 2 * len(truth["reference"])
    assert z.abs().max() < 4
    assert z_exact.abs().max() < 4.5
    assert not chains.info.diverged.any()
    assert diagnostics.rank_rhat(draws).max() < 1.1  # of 64 short chains; of independent draws 1.01
    # An error bar so wide that everything agrees would prove nothing.
    assert (diagnostics.mcse_mean(draws) / draws.flatten(0, 1).std(0)).max() < 0.05


def test_without_the_log_jacobian_eight_schools_do_not_agree() -> None:
    truth = load("eight_schools-eight_schools_noncentered")
    model = eight_schools(truth["data"])
    # Not tuned: without the Jacobian tau has no proper posterior, and paths grow without end.
    for log_density, agrees in (
        (model.space.log_density(model.log_joint), True),
        (lambda theta: model.log_joint(model.space.constrain(theta)), False),
    ):
        kernel = hmc(log_density, step_size=0.3, trajectory_length=1.2)
        z = compare(run(model, kernel)[1], truth)[0].abs().max()
        assert z < 4 if agrees else z > 8


def test_the_centred_eight_schools_are_in_trouble_and_the_diagnosis_says_so() -> None:
    truth = load("eight_schools-eight_schools_noncentered")
    model = eight_schools_centred(truth["data"])
    # A length is given, since the funnel would ask for paths of hundreds of steps.
    kernel = hmc(model.space.log_density(model.log_joint), trajectory_length=1.5)
    chains, draws = run(model, kernel)
    summary = summaries.summary(chains._replace(draws=draws), names=list(truth["reference"]))
    assert not summary.trusted
    doubts = " ".join(summary.warnings)
    assert "Divergent" in doubts or "E-BFMI" in doubts
    # What the funnel hides: where tau is small, its neck is too narrow for the common step size.
    log_tau = draws[..., -1].log()
    assert diagnostics.rank_rhat(log_tau) > 1.1


def test_the_non_centred_eight_schools_are_trusted() -> None:
    truth = load("eight_schools-eight_schools_noncentered")
    chains, draws = run(eight_schools(truth["data"]))
    assert not chains.info.diverged.any()
    assert (diagnostics.e_bfmi(chains.info.energy) < 0.3).double().mean() < 0.05
    assert diagnostics.rank_rhat(draws[..., -1].log()) < 1.1
