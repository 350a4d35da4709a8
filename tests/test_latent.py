"""Bounds beside quadrature: in order, with honest errors, and wrong estimators are found."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import ppca
import pytest
import torch
from bad_input import bad_input
from torch import Tensor, nn
from torch.distributions import Normal

from coursepkg import latent, vae
from coursepkg._random import normal
from coursepkg.divergence import Estimate, mean_with_error

ROWS, FEATURES = 6, 5


def model(latent_dim: int, likelihood: str) -> vae.VAE:
    """A small VAE with a bent decoder, in float64; its guide is no posterior, and no prior."""
    torch.manual_seed(latent_dim)
    noise = vae.bernoulli if likelihood == "bernoulli" else vae.GaussianNoise(0.8)
    found = vae.dense(
        FEATURES, latent_dim, hidden=(7,), likelihood=noise, activation=nn.Tanh
    ).double()
    for parameter in found.decoder.parameters():
        parameter.data *= 2  # a posterior that differs from the prior
    found.encoder[-1].bias.data[latent_dim:] -= 0.5
    assert isinstance(found, vae.VAE)
    return found


def rows(likelihood: str) -> Tensor:
    source = torch.Generator().manual_seed(8)
    x = torch.randn(ROWS, FEATURES, generator=source, dtype=torch.float64)
    return (x > 0).double() if likelihood == "bernoulli" else x


class Truth:
    """What sums over a fine grid of latent vectors give, by formulas of torch.distributions."""

    @torch.no_grad()
    def __init__(self, m: vae.VAE, x: Tensor, points: int = 161) -> None:
        q = m.encode(x)
        latent_dim = q.mean.shape[1]
        line = torch.linspace(-8, 8, points, dtype=torch.float64)
        z = torch.cartesian_prod(*[line] * latent_dim).reshape(-1, 1, latent_dim)
        cell = latent_dim * (line[1] - line[0]).log()
        joint = m.decode(z).log_prob(x) + Normal(0, 1).log_prob(z).sum(dim=-1)  # (grid, rows)
        guide = q.log_prob(z).sum(dim=-1)
        self.log_likelihood = (joint + cell).logsumexp(dim=0)
        self.ratio, self.weight = joint - guide, (guide + cell).exp()
        torch.testing.assert_close(self.weight.sum(dim=0), torch.ones(ROWS).double())
        self.elbo = (self.weight * self.ratio).sum(dim=0)

    def of_two(self) -> Tensor:
        """The bound with K = 2, a sum over pairs."""
        bound = torch.logaddexp(self.ratio[:, None], self.ratio[None]) - math.log(2)
        return (self.weight[:, None] * self.weight[None] * bound).sum(dim=(0, 1))


KINDS = [(1, "bernoulli"), (1, "normal"), (2, "bernoulli"), (2, "normal")]


def off(found: Estimate, truth: Tensor) -> float:
    """How many standard errors the worst row is off."""
    assert found.value.shape == found.standard_error.shape == truth.shape
    return float(((found.value - truth).abs() / found.standard_error).max())


@pytest.mark.parametrize(("latent_dim", "likelihood"), KINDS)
def test_estimates_and_quadrature_agree(
    latent_dim: int, likelihood: str, generator: torch.Generator
) -> None:
    m, x = model(latent_dim, likelihood), rows(likelihood)
    truth = Truth(m, x)
    found = latent.log_likelihood(m, x, num_draws=20_000, generator=generator)
    assert off(found, truth.log_likelihood) < 4.5
    assert (found.standard_error < 0.1).all()  # or else anything would agree
    one = latent.importance_bound(m, x, num_importance=1, num_draws=5000, generator=generator)
    assert off(one, truth.elbo) < 4.5
    with torch.no_grad():
        bound = vae.elbo(m, x, num_draws=5000, generator=generator).elbo
    assert off(one._replace(value=bound), truth.elbo) < 4.5
    if latent_dim == 1:
        two = latent.importance_bound(m, x, num_importance=2, num_draws=5000, generator=generator)
        assert off(two, truth.of_two()) < 4.5
        assert off(two, truth.elbo) > 10
        assert off(two, truth.log_likelihood) > 10


Ratios = Callable[..., Tensor]


def wrong_ratios(kind: str) -> Ratios:
    """log p(x, z) - log q(z|x), with a mistake in it."""

    def ratios(m: Any, x: Tensor, condition: Any, num_draws: int, generator: Any) -> Tensor:
        q = m.encode(x, condition)
        noise = normal((num_draws, *q.mean.shape), q.mean, generator)
        z = q.mean + q.stddev * noise
        prior, guide = Normal(0, 1).log_prob(z), q.log_prob(z)
        if kind == "no prior":
            prior = torch.zeros_like(prior)
        if kind == "no scale of the guide":
            guide = Normal(0, 1).log_prob(noise)
        if kind == "no guide":
            guide = torch.zeros_like(guide)
        if kind == "variance for scale":
            z = q.mean + q.variance * noise
        if kind == "mean over dimensions":
            return m.decode(z).log_prob(x) + (prior - guide).mean(dim=-1)
        return m.decode(z).log_prob(x) + (prior - guide).sum(dim=-1)

    return ratios


WRONG = [
    "no prior",
    "no scale of the guide",
    "no guide",
    "variance for scale",
    "mean over dimensions",
]


@pytest.mark.parametrize("kind", ["none", *WRONG])
def test_wrong_ratios_are_found(
    kind: str, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    m, x = model(2, "bernoulli"), rows("bernoulli")
    truth = Truth(m, x)
    monkeypatch.setattr(latent, "_log_ratios", wrong_ratios(kind))
    found = latent.log_likelihood(m, x, num_draws=20_000, generator=generator)
    one = latent.importance_bound(m, x, num_importance=1, num_draws=5000, generator=generator)
    if kind == "none":
        assert off(found, truth.log_likelihood) < 4.5
        assert off(one, truth.elbo) < 4.5
    else:
        assert off(found, truth.log_likelihood) > 10
        assert off(one, truth.elbo) > 10


def test_a_mean_of_logarithms_is_no_log_likelihood(generator: torch.Generator) -> None:
    m, x = model(2, "normal"), rows("normal")
    truth = Truth(m, x)
    ratios = latent._log_ratios(m, x, None, 20_000, generator).detach()
    logs = mean_with_error(ratios)
    assert off(logs, truth.elbo) < 4.5
    assert off(logs, truth.log_likelihood) > 10


@pytest.mark.parametrize(("latent_dim", "likelihood"), KINDS)
def test_bounds_rise_to_the_log_likelihood(
    latent_dim: int, likelihood: str, generator: torch.Generator
) -> None:
    m, x = model(latent_dim, likelihood), rows(likelihood)
    bounds = [
        latent.importance_bound(m, x, num_importance=size, num_draws=10_000, generator=generator)
        for size in (1, 4, 16)
    ]
    exact = Estimate(Truth(m, x).log_likelihood, torch.zeros(ROWS).double())
    # Strictly, and more than by chance.
    for low, high in zip(bounds, [*bounds[1:], exact], strict=True):
        error = (low.standard_error.square() + high.standard_error.square()).sum().sqrt()

        assert (high.value - low.value).sum() > 4.5 * error


def test_the_standard_error_tells_the_scatter(generator: torch.Generator) -> None:
    m, x = model(1, "normal"), rows("normal")
    for estimate in (
        lambda: latent.log_likelihood(m, x, num_draws=500, generator=generator),
        lambda: latent.importance_bound(m, x, num_importance=5, num_draws=50, generator=generator),
    ):
        runs = [estimate() for _ in range(300)]
        scatter = torch.stack([each.value for each in runs]).std(dim=0)
        told = torch.stack([each.standard_error for each in runs]).square().mean(dim=0).sqrt()
        # A standard deviation of 300 numbers is sure to 1 / (2 · 300)^1/2.
        assert ((scatter / told).log().abs() < 4.5 / 600**0.5).all()


def test_at_the_optimum_of_pca_each_draw_is_exact() -> None:
    m = ppca.optimum()
    assert isinstance(m, vae.VAE)
    expected = ppca.exact(m)[1]
    for found in (
        latent.importance_bound(m, ppca.X, num_importance=1, num_draws=2),
        latent.importance_bound(m, ppca.X, num_importance=3, num_draws=2),
        latent.log_likelihood(m, ppca.X, num_draws=250),
    ):
        torch.testing.assert_close(found.value, expected)
        assert found.standard_error.max() < 1e-12
    assert latent.active_units(m, ppca.X).all()


def test_draws_are_made_in_parts_and_each_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    m, x = model(1, "normal"), rows("normal")
    monkeypatch.setattr(latent, "AT_ONCE", 4 * ROWS + 1)
    decoded, decode = [], m.decode

    def spy(z: Tensor, condition: Any) -> Any:
        decoded.append(len(z))
        return decode(z, condition)

    monkeypatch.setattr(m, "decode", spy)
    found = latent.log_likelihood(m, x, num_draws=9, generator=torch.Generator().manual_seed(1))
    assert decoded == [4, 4, 1]
    weights = latent._log_ratios(m, x, None, 9, torch.Generator().manual_seed(1)).exp().detach()
    torch.testing.assert_close(found.value, weights.mean(dim=0).log())
    error = weights.std(dim=0) / 3 / weights.mean(dim=0)
    torch.testing.assert_close(found.standard_error, error)
    monkeypatch.setattr(latent, "AT_ONCE", ROWS - 1)  # too few for all rows: one draw at a time
    latent.importance_bound(m, x, num_importance=2, num_draws=3)
    assert decoded[6:] == [1] * 6


def test_a_condition_and_a_generator_are_used() -> None:
    torch.manual_seed(1)
    m = vae.dense(FEATURES, 2, hidden=(7,), num_conditions=2)
    assert isinstance(m, vae.VAE)
    x, first = rows("bernoulli").float(), torch.tensor([1.0, 0.0]).expand(ROWS, -1)
    before = torch.get_rng_state()

    def values(condition: Tensor, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        options = {"num_draws": 9, "generator": generator}
        return [
            latent.importance_bound(m, x, condition, num_importance=3, **options).value,
            latent.log_likelihood(m, x, condition, **options).value,
        ]

    for mine, again, other, flipped in zip(
        values(first, 1), values(first, 1), values(first, 2), values(first.flip(1), 1), strict=True
    ):
        assert torch.equal(mine, again)
        assert not torch.isclose(mine, other, rtol=1e-6).any()
        assert not torch.isclose(mine, flipped, rtol=1e-6).any()
        assert mine.dtype == torch.float32
        assert not mine.requires_grad
    assert (torch.get_rng_state() == before).all()
    means = [latent.active_units(m, x, condition) for condition in (first, first.flip(1))]
    assert [each.dtype for each in means] == [torch.bool, torch.bool]


@pytest.mark.parametrize(("variance", "active"), [(0.0099, False), (0.0101, True)])
def test_a_unit_is_active_where_its_mean_varies_enough(variance: float, active: bool) -> None:
    identity = nn.Linear(2, 4, bias=False)
    m = vae.VAE(identity, nn.Linear(2, 2), vae.bernoulli)
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(2))
    x = (x - x.mean(dim=0)) / x.std(dim=0) * torch.tensor([variance**0.5, 0.0])
    # The mean is of the first feature, and far from zero, which must not matter; so does the
    # variance of the guide vary, which must not matter either.
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
    identity.weight = nn.Parameter(weights)
    identity.bias = nn.Parameter(torch.tensor([5.0, 5.0, 0.0, 0.0]))
    assert latent.active_units(m, x).tolist() == [active, False]


def test_traversal_and_interpolation() -> None:
    z = torch.tensor([3.0, 4.0, 5.0])
    found = latent.traverse(z, 2, torch.tensor([-1.0, 0.0]).double())
    assert found.tolist() == [[3, 4, -1], [3, 4, 0]]
    assert found.dtype == torch.float32
    assert z.tolist() == [3, 4, 5]
    line = latent.interpolate(z.double(), z.double() + 8, 5)
    assert line.tolist() == [[3 + i, 4 + i, 5 + i] for i in (0, 2, 4, 6, 8)]
    assert line.dtype == torch.float64
    decoded = copy.deepcopy(model(2, "normal")).decode(torch.zeros(4, 2).double())
    assert decoded.mean.shape == (4, FEATURES)


# --- Bad input ------------------------------------------------------------------------------------

VAE = model(1, "normal")
X = rows("normal")
PLAIN = vae.dense(FEATURES, 2, kind=vae.Autoencoder).double()
Z = torch.zeros(3)
CONDITION = torch.ones(ROWS, 2).double()


def common(call: Callable[..., Any]) -> list[Any]:
    """What all functions of a model and rows refuse."""
    return [
        (lambda: call(PLAIN, X), TypeError, ("model", "VAE", "Autoencoder")),
        (lambda: call("vae", X), TypeError, ("model", "VAE", "str")),
        (lambda: call(VAE, X.tolist()), TypeError, ("x", "Tensor", "list")),
        (lambda: call(VAE, X.float()), ValueError, ("x", "dtype", "float32")),
        (lambda: call(VAE, X, CONDITION[:2]), ValueError, ("condition", "as many rows")),
        (lambda: call(VAE, X, CONDITION[:, 0]), ValueError, ("condition", "2 dimensions")),
    ]


def bound(*arguments: Any, **options: Any) -> Estimate:
    return latent.importance_bound(*arguments, **{"num_importance": 2, **options})


test_bad_input_is_refused_kindly = bad_input(
    [
        *common(bound),
        *common(latent.log_likelihood),
        *common(latent.active_units),
        (lambda: bound(VAE, X, num_importance=0), ValueError, ("num_importance", "at least 1")),
        (lambda: bound(VAE, X, num_draws=1), ValueError, ("num_draws", "at least 2")),
        (lambda: bound(VAE, X, generator=3), TypeError, ("generator", "int")),
        (lambda: latent.log_likelihood(VAE, X, num_draws=1), ValueError, ("num_draws", "2")),
        (lambda: latent.log_likelihood(VAE, X, generator=3), TypeError, ("generator", "int")),
        (lambda: latent.active_units(VAE, X[:1]), ValueError, ("x", "at least 2 rows", "1")),
        (lambda: latent.traverse(Z[None], 0, Z), ValueError, ("z", "1 dimension", "(1, 3)")),
        (lambda: latent.traverse(Z, 0, [1.0]), TypeError, ("values", "Tensor", "list")),
        (lambda: latent.traverse(Z, 3, Z), ValueError, ("dimension", "below 3", "3")),
        (lambda: latent.traverse(Z, -1, Z), ValueError, ("dimension", "at least 0")),
        (lambda: latent.traverse(Z, 0.5, Z), TypeError, ("dimension", "whole")),
        (lambda: latent.interpolate(Z[None], Z, 3), ValueError, ("start", "1 dimension")),
        (lambda: latent.interpolate(Z, None, 3), TypeError, ("end", "Tensor", "NoneType")),
        (lambda: latent.interpolate(Z, Z[:2], 3), ValueError, ("start", "end", "(3,)", "(2,)")),
        (lambda: latent.interpolate(Z, Z, 1), ValueError, ("num_points", "at least 2")),
    ]
)


def test_greys_are_no_bernoulli() -> None:
    m = model(1, "bernoulli")
    for call in (bound, latent.log_likelihood):
        with pytest.raises(ValueError, match="support"):
            call(m, X.sigmoid())
