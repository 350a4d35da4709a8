"""Annealing: known evidences, modes of unequal weight, and the sine network's reference posterior.

Statistical tests allow 4 standard errors; their seeds are fixed, and a wrong way of doing it fails
each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from coursepkg import annealing, bayes_linear, data, diagnostics, mcmc, networks
from coursepkg.annealing import anneal

LOW, HIGH = 0.25, 0.75  # the weights of two modes


def two_modes(theta: Tensor) -> Tensor:
    """A mixture of a heavy narrow mode and a light wide one, in two dimensions."""
    heavy = MultivariateNormal(torch.tensor([2.0, 2.0]), 0.2**2 * torch.eye(2)).log_prob(theta)
    light = MultivariateNormal(torch.tensor([-2.0, -1.0]), 0.5**2 * torch.eye(2)).log_prob(theta)
    return torch.logaddexp(math.log(HIGH) + heavy, math.log(LOW) + light)


def runs(count: int = 10, **options: Any) -> list[annealing.Population]:
    return [
        anneal(two_modes, 2, 256, start_scale=3.0, generator=generator(seed), **options)
        for seed in range(count)
    ]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def z_score(values: Tensor, truth: float) -> float:
    """How many standard errors the mean of independent values is from the truth."""
    return float((values.mean() - truth).abs() / (values.std() / len(values) ** 0.5))


def light_share(populations: list[annealing.Population]) -> Tensor:
    return torch.stack([(p.position[:, 0] < 0).double().mean() for p in populations])


def test_modes_get_the_particles_that_they_deserve() -> None:
    populations = runs()
    assert z_score(light_share(populations), LOW) < 4
    # The density is normalized. The estimate is unbiased for the evidence, not for its logarithm.
    evidence = torch.tensor([p.log_evidence for p in populations]).exp()
    assert z_score(evidence, 1.0) < 4


def test_without_resampling_the_modes_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annealing, "_resample", lambda weights, _: torch.arange(len(weights)))
    assert z_score(light_share(runs(6)), LOW) > 8


def test_a_start_that_is_not_normalized_shows_in_the_evidence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        annealing._Tempered, "start", lambda self, theta: -theta.square().sum(-1) / 18
    )
    evidence = torch.tensor([p.log_evidence for p in runs(6)]).exp()
    assert z_score(evidence, 1.0) > 8


def test_the_evidence_of_a_linear_model_is_the_exact_one() -> None:
    sensor = data.sine_sensor()
    features = torch.stack([torch.ones_like(sensor.x), sensor.x], dim=1)
    prior = bayes_linear.normal_prior(2, scale=1.0)
    exact = bayes_linear.log_evidence(features, sensor.y, prior, noise_scale=0.5)

    def log_joint(theta: Tensor) -> Tensor:
        log_likelihood = Normal(theta @ features.T, 0.5).log_prob(sensor.y).sum(-1)
        return log_likelihood + Normal(0.0, 1.0).log_prob(theta).sum(-1)

    found = torch.tensor(
        [
            anneal(log_joint, 2, 256, dtype=torch.float64, generator=generator(seed)).log_evidence
            for seed in range(12)
        ]
    )
    assert z_score((found - exact).exp(), 1.0) < 4


def test_the_path_and_the_family_tree_are_told(generator: torch.Generator) -> None:
    population = anneal(two_modes, 2, 64, start_scale=3.0, generator=generator)
    path = torch.tensor(population.temperatures)
    assert path[0] == 0
    assert path[-1] == 1
    assert (path.diff() > 0).all()
    assert (population.ancestors.diff() >= 0).all()  # neighbours are relatives
    assert len(population.ancestors.unique()) < 64
    assert population.position.dtype == torch.float32
    again = anneal(two_modes, 2, 64, start_scale=3.0, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(again.position, population.position)


def test_a_temperature_leaves_half_of_the_particles_worth(generator: torch.Generator) -> None:
    log_ratio = 10 * torch.randn(1000, generator=generator, dtype=torch.float64)
    beta = annealing._next_temperature(log_ratio, 0.0)
    weights = (beta * log_ratio).softmax(dim=0)
    assert float(1 / weights.square().sum()) == pytest.approx(500, rel=1e-6)
    assert annealing._next_temperature(log_ratio / 100, 0.0) == 1.0


def test_resampling_follows_the_weights_up_to_rounding(generator: torch.Generator) -> None:
    weights = torch.rand(50, generator=generator, dtype=torch.float64)
    weights /= weights.sum()
    counts = torch.bincount(annealing._resample(weights, generator), minlength=50)
    assert ((counts - 50 * weights).abs() < 1).all()


@pytest.fixture(scope="module")
def sine_run() -> tuple[annealing.Population, mcmc.Chains]:
    """What a user does with the network's posterior; nothing is tuned by hand."""
    posterior, random = networks.sine_posterior(), generator(0)
    population = anneal(posterior, posterior.dim, generator=random)
    chains = mcmc.sample(
        population.kernel, population.position, 100, 10, generator=random, progress=False
    )
    return population, chains


def test_the_sine_network_agrees_with_its_reference(
    sine_run: tuple[annealing.Population, mcmc.Chains], truth: Callable[[str], Any]
) -> None:
    _, chains = sine_run
    reference = truth("sine_network")
    posterior = networks.sine_posterior()
    f = posterior.network(chains.draws.double(), torch.tensor(reference["x_test"]).double())
    f = f[..., 0]
    mean, sd = torch.tensor(reference["f_mean"]).double(), torch.tensor(reference["f_sd"]).double()
    mean_se = torch.tensor(reference["f_mean_se"]).double()
    sd_se = torch.tensor(reference["f_sd_se"]).double()

    # Chains of one ancestor are no independent witnesses: the groups of neighbours are.
    groups = f.reshape(32, -1, 10)
    own_mean_se = groups.mean(dim=1).std(dim=0) / 32**0.5
    own_sd_se = groups.std(dim=1).std(dim=0) / 32**0.5
    assert ((f.mean((0, 1)) - mean).abs() < 4 * (mean_se**2 + own_mean_se**2).sqrt()).all()
    assert ((f.flatten(0, 1).std(0) - sd).abs() < 4 * (sd_se**2 + own_sd_se**2).sqrt()).all()
    # The test is sharp: a fortieth of a posterior sd more would not pass.
    assert (4 * (mean_se**2 + own_mean_se**2).sqrt() < 0.1 * sd).all()

    log_density = chains.info.log_density
    assert (diagnostics.nested_rhat(f, 16) < 1.01).all()
    assert diagnostics.nested_rhat(log_density, 16) < 1.01
    assert (log_density.mean(dim=1) > reference["log_joint_mean"] - 10).all()  # no chain is lost
    se = float(log_density.double().reshape(32, -1).mean(dim=1).std()) / 32**0.5
    assert abs(float(log_density.double().mean()) - reference["log_joint_mean"]) < 4 * se + 0.02


def test_the_sine_network_has_the_evidence_of_its_reference(truth: Callable[[str], Any]) -> None:
    posterior, reference = networks.sine_posterior(), truth("sine_network")
    found = torch.tensor(
        [
            anneal(posterior, posterior.dim, 2048, generator=generator(seed)).log_evidence
            for seed in range(6)
        ],
        dtype=torch.float64,
    )
    evidence = (found - reference["log_evidence"]).exp()
    se = (float(evidence.var()) / len(found) + reference["log_evidence_se"] ** 2) ** 0.5
    assert abs(float(evidence.mean()) - 1) < 4 * se
    assert se < 0.15


@pytest.mark.slow
def test_no_chain_is_lost_in_forty_runs(truth: Callable[[str], Any]) -> None:
    posterior, floor = networks.sine_posterior(), truth("sine_network")["log_joint_mean"] - 10
    for seed in range(40):
        random = generator(1000 + seed)
        population = anneal(posterior, posterior.dim, generator=random)
        chains = mcmc.sample(
            population.kernel, population.position, 100, 10, generator=random, progress=False
        )
        assert (chains.info.log_density.mean(dim=1) > floor).all(), seed
        assert diagnostics.nested_rhat(chains.info.log_density, 16) < 1.01, seed


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"log_density": 3}, TypeError, ("log_density", "function")),
        ({"dim": 0}, ValueError, ("dim", "at least 1")),
        ({"num_particles": 1}, ValueError, ("num_particles", "at least 2")),
        ({"num_moves": 0}, ValueError, ("num_moves", "at least 1")),
        ({"start_scale": 0.0}, ValueError, ("start_scale", "positive")),
        ({"generator": 7}, TypeError, ("generator", "torch.Generator")),
        (
            {"log_density": lambda theta: theta.sum(-1) * torch.nan},
            ValueError,
            ("log_density", "finite at some"),
        ),
        (
            {"log_density": lambda theta: -1e9 * (theta - 5).square().sum(-1)},
            ValueError,
            ("log_density", "within reach", "start_scale"),
        ),
    ],
)
def test_bad_input_is_named(
    arguments: dict[str, Any],
    error: type[Exception],
    words: tuple[str, ...],
    kind_error: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(annealing, "MAX_TEMPERATURES", 10)
    given = {"log_density": two_modes, "dim": 2, "num_particles": 16, **arguments}
    with kind_error(error, *words):
        anneal(**given)
