"""Diffusion: against Gaussian data, of which all is known; bounds that must be bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from bad_input import bad_input
from close import z
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from coursepkg import diffusion, noise_schedules
from coursepkg.diffusion import DDPM, Denoiser
from coursepkg.discretized import DiscretizedNormal

MEAN = torch.tensor([0.5, -0.3]).double()
COVARIANCE = torch.tensor([[1.2, 0.7], [0.7, 0.8]]).double()
DATA = MultivariateNormal(MEAN, COVARIANCE)
GREYS = torch.linspace(-1, 1, 5).double()
EYE = torch.eye(2).double()


class Exact(nn.Module):
    """The noise to expect of Gaussian data, by conditioning: nothing has a smaller error."""

    def __init__(self, betas: Tensor, sign: float = 1.0) -> None:
        super().__init__()
        self.alpha_squared = torch.cat([torch.ones(1).double(), (1 - betas).cumprod(0)])
        self.sign = sign

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a = self.alpha_squared[t][:, None]
        covariance = a[..., None] * COVARIANCE + (1 - a)[..., None] * EYE
        offset = (x - a.sqrt() * MEAN)[..., None]
        return self.sign * (1 - a).sqrt() * torch.linalg.solve(covariance, offset)[..., 0]


def exact(num_steps: int, sign: float = 1.0, **ends: float) -> DDPM:
    betas = noise_schedules.log_snr(num_steps, **ends)
    return DDPM(Exact(betas, sign), betas)


def untrained(num_steps: int = 6, levels: Tensor | None = None) -> DDPM:
    """A model whose network is nothing in particular."""
    torch.manual_seed(3)
    betas = noise_schedules.log_snr(num_steps, 3.0, 0.0)
    return diffusion.dense(2, betas, hidden=(8,), levels=levels).double()


class Wide(DDPM):
    """Planted bug: the encoder's variance, not that of its posterior."""

    def reverse(self, x_t: Tensor, t: int, s: int, eta: float = 1.0) -> tuple[Tensor, Tensor]:
        mean, _ = super().reverse(x_t, t, s, 1.0)
        ratio = (self.signal_scale[t] / self.signal_scale[s]) ** 2
        return mean, eta * (1 - ratio).sqrt()[None]


def z_pair(first: Tensor, second: Tensor) -> float:
    variance = first.var() / len(first) + second.var() / len(second)
    return float((first.mean() - second.mean()).abs() / variance.sqrt())


def z_moments(draws: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Of Gaussian draws: of the means, and of the products, whose expectation is the covariance."""
    offsets = draws - mean
    products = offsets[:, :, None] * offsets[:, None, :]
    return torch.stack([z(draws, mean), z(products.flatten(1), covariance.flatten())]).max()


# --- Scales ---------------------------------------------------------------------------------------


def test_scales_add_up_over_the_steps() -> None:
    betas = noise_schedules.linear(100)
    model = DDPM(nn.Identity(), betas)
    alpha, variance = 1.0, 0.0
    for t, beta in enumerate(betas.tolist(), start=1):
        alpha, variance = alpha * (1 - beta) ** 0.5, variance * (1 - beta) + beta
        assert math.isclose(float(model.signal_scale[t]), alpha, rel_tol=1e-12)
        assert math.isclose(float(model.noise_scale[t]), variance**0.5, rel_tol=1e-12)
    even = DDPM(nn.Identity(), noise_schedules.log_snr(40, 5.0, -4.0))
    torch.testing.assert_close(even.weight[2:], torch.full((39,), math.expm1(9 / 39) / 2).double())
    assert model.num_steps == 100
    assert (model.signal_scale[0], model.noise_scale[0]) == (1, 0)


# --- The chain and its reverse --------------------------------------------------------------------


def posterior(model: DDPM, x_0: Tensor, x_t: Tensor, t: int, s: int) -> tuple[Tensor, Tensor]:
    """q(x_s | x_t, x_0) by Bayes' rule, from precisions."""
    ratio = model.signal_scale[t] / model.signal_scale[s]
    precision = ratio**2 / (1 - ratio**2) + 1 / model.noise_scale[s] ** 2
    natural = ratio * x_t / (1 - ratio**2)
    natural = natural + model.signal_scale[s] * x_0 / model.noise_scale[s] ** 2
    return natural / precision, precision.rsqrt()


@pytest.mark.parametrize(("t", "s"), [(2, 1), (12, 11), (20, 19), (20, 1), (15, 6)])
def test_the_reverse_step_is_the_encoders_posterior(
    t: int, s: int, generator: torch.Generator
) -> None:
    model = exact(20)
    x_t = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    found = model.reverse(x_t, t, s)
    expected = posterior(model, model.denoised(x_t, t), x_t, t, s)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][0], expected[1])
    wrong = Wide(model.network, noise_schedules.log_snr(20)).reverse(x_t, t, s)
    assert s > 15 or wrong[1] / expected[1] > 1.01  # in much noise both variances are near 1


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_eta_leads_to_the_encoders_marginal(eta: float, generator: torch.Generator) -> None:
    """With the true noise as the prediction, x_s is α x_0 + σ ε again."""
    betas = noise_schedules.cosine(20)
    x, noise = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)

    class Oracle(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return noise

    model = DDPM(Oracle(), betas)
    mean, scale = model.reverse(model.noised(x, 14, noise), 14, 9, eta)
    alpha, sigma = model.signal_scale[9], model.noise_scale[9]
    rest = (sigma**2 - scale**2).sqrt()
    torch.testing.assert_close(mean, alpha * x + rest * noise)
    at_end, none = model.reverse(model.noised(x, 1, noise), 1, 0, eta)
    torch.testing.assert_close(at_end, x)
    assert none == 0


def test_rows_may_have_times_of_their_own(generator: torch.Generator) -> None:
    model = untrained()
    x, noise = torch.randn(2, 6, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([1, 6, 3, 3, 2, 5])
    for name, arguments in (("noised", (noise,)), ("predicted_noise", ()), ("denoised", ())):
        method = getattr(model, name)
        together = method(x, t, *arguments)
        for row, time in enumerate(t.tolist()):
            torch.testing.assert_close(together[row], method(x, time, *arguments)[row])


def test_the_score_is_the_gradient_of_the_log_density(generator: torch.Generator) -> None:
    model = exact(30)
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    for t in (1, 14, 30):
        alpha, sigma = model.signal_scale[t], model.noise_scale[t]
        noised = MultivariateNormal(alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * EYE)
        (truth,) = torch.autograd.grad(noised.log_prob(x).sum(), x)
        torch.testing.assert_close(diffusion.score(model, x, t), truth)
        assert not torch.allclose(diffusion.score(exact(30, sign=-1), x, t), truth)
    t = torch.tensor([1, 2, 30, 4, 5, 6, 7, 8])
    assert torch.equal(diffusion.score(model, x, t)[2], diffusion.score(model, x, 30)[2])


def test_a_denoiser_is_its_formula(generator: torch.Generator) -> None:
    torch.manual_seed(4)
    betas = noise_schedules.log_snr(10)
    network = Denoiser(2, betas, (5,), num_waves=3).double()
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([1, 10, 4, 4])
    alpha = (1 - betas).cumprod(0)[t - 1].sqrt()[:, None]
    sigma = (1 - alpha**2).sqrt()
    inputs = torch.cat([x, (x @ network.waves).sin(), (x @ network.waves).cos()], dim=1)
    times = torch.cos(torch.arange(16) * math.pi * t[:, None] / 10).double()
    hidden = network.layers[0](inputs) + network.times[0](times)
    outputs = network.out(hidden * hidden.sigmoid())
    found = network(x, t)
    torch.testing.assert_close(found, sigma * x + alpha * outputs, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        network.out.weight.zero_()
        network.out.bias.zero_()
    torch.testing.assert_close(network(x, t), sigma * x)  # right for nothing but noise


# --- The bound ------------------------------------------------------------------------------------


def expected_terms(model: DDPM, x: Tensor) -> Tensor:
    """The terms of Gaussian data in closed form: the prediction is linear in x_0 and the noise."""
    columns = []
    for t in range(1, model.num_steps + 1):
        alpha, sigma = model.signal_scale[t], model.noise_scale[t]
        inverse = torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * EYE)
        bias = alpha * sigma * (x - MEAN) @ inverse
        spread = (EYE - sigma**2 * inverse).square().sum()
        error = bias.square().sum(dim=1) + spread  # E‖ε - ε̂‖²
        if t == 1:  # the data are off by σ / α times the error of the noise
            scale = (sigma / alpha) ** 2 / sigma**2
            columns.append(-scale * error / 2 - (2 * math.pi * sigma**2).log())
            continue
        ratio = (model.signal_scale[t - 1] * sigma / (alpha * model.noise_scale[t - 1])) ** 2
        columns.append(-(ratio - 1) / 2 * error)
    alpha, sigma = model.signal_scale[-1], model.noise_scale[-1]
    last = Independent(Normal(alpha * x, sigma), 1)
    standard = Independent(Normal(torch.zeros(2).double(), 1.0), 1)
    columns.append(-torch.distributions.kl_divergence(last, standard.expand((len(x),))))
    return torch.stack(columns, dim=1)


def test_each_term_has_its_expectation(generator: torch.Generator) -> None:
    model = exact(12, highest=5.0, lowest=-5.0)
    x = torch.tensor([[1.5, -0.8]]).double().expand(20_000, 2)
    truth = expected_terms(model, x[:1])[0]
    terms = diffusion.elbo_terms(model, x, generator=generator)
    assert terms.shape == (20_000, 13)
    assert torch.allclose(terms[:, -1], truth[-1])  # no noise in this one
    assert z(terms[:, :-1], truth[:-1]) < 4.5
    model.weight *= 2  # planted bug: without the half
    assert z(diffusion.elbo_terms(model, x, generator=generator)[:, :-1], truth[:-1]) > 20


def test_the_terms_add_up_to_the_log_likelihood_in_the_limit(generator: torch.Generator) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        x = DATA.sample((4000,))
    truth, gaps = DATA.log_prob(x), []
    for num_steps in (10, 100, 1000):
        model = exact(num_steps, highest=9.0, lowest=-9.0)
        gap = truth - diffusion.elbo_terms(model, x, generator=generator).sum(dim=1)
        expected = float((truth - expected_terms(model, x).sum(dim=1)).mean())
        assert z(gap, expected) < 4
        gaps.append((expected, float(gap.std()) / len(x) ** 0.5))
    (coarse, _), (fine, _), (finest, error) = gaps
    assert coarse > 8 * fine > 64 * finest > 0
    assert finest < 0.1
    assert error < 0.03
    # Planted bug: the reconstruction left out of the sum.
    terms = diffusion.elbo_terms(model, x, generator=generator)[:, 1:]
    assert z(truth - terms.sum(dim=1), finest) > 20


def direct_bound(model: DDPM, x: Tensor, generator: torch.Generator) -> Tensor:
    """log p(x_0, …, x_T) - log q(x_1, …, x_T | x_0), written with Bayes' rule for the steps."""
    log_ratio, before = torch.zeros(len(x)).double(), x
    for t in range(1, model.num_steps + 1):
        ratio = model.signal_scale[t] / model.signal_scale[t - 1]
        beta = 1 - ratio**2
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        after = ratio * before + beta.sqrt() * noise
        log_ratio += (noise.square() / 2 + (2 * math.pi * beta).log() / 2).sum(dim=1)
        with torch.no_grad():
            denoised = model.denoised(after, t)
        if t > 1:
            mean, scale = posterior(model, denoised, after, t, t - 1)
            log_ratio += Normal(mean, scale).log_prob(before).sum(dim=1)
        elif model.levels is None:
            log_ratio += Normal(denoised, model.noise_scale[1]).log_prob(before).sum(dim=1)
        else:
            p = Normal(denoised, model.noise_scale[1])
            lower, upper = before - 0.25, before + 0.25
            below = torch.where(before == -1, 0, p.cdf(lower))
            log_ratio += (torch.where(before == 1, 1, p.cdf(upper)) - below).log().sum(dim=1)
        before = after
    return log_ratio + Normal(0, 1).log_prob(before).sum(dim=1)


@pytest.mark.parametrize("levels", [None, GREYS], ids=["continuous", "levels"])
def test_the_terms_add_up_to_a_direct_estimate_of_the_bound(
    levels: Tensor | None, generator: torch.Generator
) -> None:
    model = untrained(levels=levels)
    x = torch.tensor([[0.5, -1.0]]).double().expand(40_000, 2)
    truth = direct_bound(model, x, generator)
    by_terms = diffusion.elbo_terms(model, x, generator=generator).sum(dim=1)
    by_chain = diffusion.chain_elbo(model, x, generator=generator)
    assert z_pair(by_terms, truth) < 4
    assert z_pair(by_chain, truth) < 4
    betas = noise_schedules.log_snr(6, 3.0, 0.0)
    wrong = Wide(model.network, betas, levels).double()
    assert z_pair(diffusion.chain_elbo(wrong, x, generator=generator), truth) > 8
    model.weight[1:] = model.weight[1:].roll(1)  # planted bug: weights of the neighbours
    model.weight[-1] *= 1.1
    assert z_pair(diffusion.elbo_terms(model, x, generator=generator).sum(1), truth) > 8


@pytest.mark.parametrize("levels", [None, GREYS], ids=["continuous", "levels"])
def test_one_step_a_row_is_an_unbiased_bound(
    levels: Tensor | None, generator: torch.Generator
) -> None:
    """Seven rows for six steps: the mean of a call is one draw, since the rows share a shift."""
    model = untrained(levels=levels)
    x = torch.tensor([[0.5, -1.0]]).double()
    terms = diffusion.elbo_terms(model, x.expand(40_000, 2), generator=generator)
    prior_kl = -float(terms[0, -1])
    with torch.no_grad():
        found = torch.stack(
            [diffusion.loss(model, x.expand(7, 2), generator=generator).mean() for _ in range(1500)]
        )
    truth = -terms.sum(dim=1)
    assert z_pair(found, truth) < 4
    assert z_pair((found - prior_kl) / 6 + prior_kl, truth) > 20  # planted bug: not times T
    assert z_pair(found - prior_kl, truth) > 4  # planted bug: without the prior's KL


def test_the_simple_loss_is_the_bound_with_other_weights(generator: torch.Generator) -> None:
    model = exact(12, highest=5.0, lowest=-5.0)
    x = torch.tensor([[1.5, -0.8]]).double()
    expected = expected_terms(model, x)[0]
    alpha, sigma = model.signal_scale[1], model.noise_scale[1]
    first = -2 * alpha**2 * (expected[0] + (2 * math.pi * sigma**2).log())
    errors = torch.cat([first[None], -expected[1:-1] / model.weight[2:]])
    found = torch.stack(
        [
            diffusion.loss(model, x.expand(7, 2), "simple", generator=generator).mean()
            for _ in range(1500)
        ]
    )
    assert z(found, errors.mean()) < 4
    assert z(found, -expected[:-1].mean()) > 10


def test_times_are_drawn_evenly(generator: torch.Generator) -> None:
    seen = []

    class Watch(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            seen.append(t)
            return x_t

    model = DDPM(Watch(), noise_schedules.log_snr(8))
    for _ in range(1000):
        diffusion.loss(model, torch.zeros(4, 2), "simple", generator=generator)
    times = torch.stack(seen)
    for row in range(4):  # each row by itself has every time equally often
        counts = times[:, row].bincount(minlength=9)
        assert counts[0] == 0
        assert (counts[1:] - 125).square().sum() / 125 < 30  # chi-squared, 7 degrees of freedom
    spread = times.sort(dim=1).values.diff(dim=1)  # together they are two steps apart
    assert spread.min() >= 1
    assert spread.max() <= 3


@pytest.mark.parametrize("weights", ["elbo", "simple"])
def test_gradients_reach_every_parameter(weights: Any, generator: torch.Generator) -> None:
    for levels in (None, GREYS.float()):
        model = untrained(levels=levels).float()
        x = GREYS.float()[torch.randint(5, (64, 2), generator=generator)]
        diffusion.loss(model, x, weights, generator=generator).mean().backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
            assert parameter.grad.abs().max() > 0


# --- Data on levels -------------------------------------------------------------------------------


def exact_levels(num_steps: int, prior: Tensor) -> DDPM:
    """One feature whose levels have these probabilities, and a network that knows them."""
    betas = noise_schedules.log_snr(num_steps, 7.0, -7.0)
    model = diffusion.dense(1, betas, hidden=(1,), levels=GREYS).double()
    network = model.network
    assert isinstance(network, Denoiser)
    with torch.no_grad():
        network.out.weight.zero_()
        network.out.bias.copy_(prior.log() + 3)  # a constant makes no difference
    return model


def test_levels_with_a_known_prior_are_denoised_by_bayes_rule(generator: torch.Generator) -> None:
    prior = torch.tensor([0.5, 0.1, 0.1, 0.25, 0.05]).double()
    model = exact_levels(20, prior)
    x_t = torch.linspace(-2, 2, 9).double()[:, None]
    for t in (1, 10, 20):
        joint = (
            prior * Normal(model.signal_scale[t] * GREYS, model.noise_scale[t]).log_prob(x_t).exp()
        )
        truth = (joint * GREYS).sum(1) / joint.sum(1)
        torch.testing.assert_close(model.denoised(x_t, t)[:, 0], truth)


def test_the_bound_on_levels_is_a_bound_and_nearly_met(generator: torch.Generator) -> None:
    """Over all levels exp(bound) sums to less than 1, and with the right network to hardly less."""
    prior = torch.tensor([0.5, 0.1, 0.1, 0.25, 0.05]).double()
    model = exact_levels(200, prior)
    x = GREYS.repeat_interleave(2000)[:, None]
    bounds = diffusion.elbo_terms(model, x, generator=generator).sum(dim=1).view(5, 2000)
    error = bounds.std(dim=1) / 2000**0.5
    value = bounds.mean(dim=1)
    assert float((prior * (prior.log() - value)).sum()) > -4 * float((prior * error).norm())
    assert 0.9 < float(value.exp().sum()) < 1 + 4 * float((value.exp() * error).norm())
    assert float((prior * (prior.log() - value)).sum()) < 0.1
    # Planted bug: with densities in the place of probabilities it is no bound.
    continuous = DDPM(model.network, noise_schedules.log_snr(200, 7.0, -7.0))
    wrong = diffusion.elbo_terms(continuous, x, generator=generator).sum(dim=1).view(5, 2000)
    assert float(wrong.mean(dim=1).exp().sum()) > 2


# --- Drawing --------------------------------------------------------------------------------------


def drawn_moments(model: DDPM, eta: float, times: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of draws with the exact network: every step is linear."""
    mean, covariance = torch.zeros(2).double(), EYE
    for t, s in pairwise(times):
        (at, st), (as_, ss) = (
            (float(model.signal_scale[k]), float(model.noise_scale[k])) for k in (t, s)
        )
        gain = st * torch.linalg.inv(at**2 * COVARIANCE + st**2 * EYE)  # noise by offset
        variance = eta**2 * ss**2 / st**2 * (1 - at**2 / as_**2)
        rest = (ss**2 - variance) ** 0.5
        step = as_ / at * (EYE - st * gain) + rest * gain
        mean = step @ (mean - at * MEAN) + as_ * MEAN
        covariance = step @ covariance @ step.T + variance * EYE
    return mean, covariance


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [None, 7])
def test_draws_have_the_moments_of_their_chain(
    eta: float, num_steps: int | None, generator: torch.Generator
) -> None:
    model = exact(21)
    start = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    path = diffusion.sample(model, start, eta=eta, num_steps=num_steps, generator=generator)
    times = list(range(21, -1, -3 if num_steps else -1))
    assert path.shape == (len(times), 20_000, 2)
    assert torch.equal(path[0], start)
    truth = drawn_moments(model, eta, times)
    assert z_moments(path[-1], *truth) < 4.5
    if eta == 1:
        wrong = Wide(model.network, noise_schedules.log_snr(21))
        draws = diffusion.sample(wrong, start, num_steps=num_steps, generator=generator)[-1]
        assert z_moments(draws, *truth) > 6


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_many_small_steps_draw_from_the_data(eta: float, generator: torch.Generator) -> None:
    model = exact(1000, highest=9.0, lowest=-9.0)
    start = torch.randn(2000, 2, generator=generator, dtype=torch.float64)
    draws = diffusion.sample(model, start, eta=eta, generator=generator)[-1]
    assert z_moments(draws, MEAN, COVARIANCE) < 4
    wrong = exact(1000, sign=-1, highest=9.0, lowest=-9.0)
    lost = diffusion.sample(wrong, start, eta=eta, num_steps=100, generator=generator)[-1]
    assert z_moments(lost, MEAN, COVARIANCE) > 8


@pytest.mark.parametrize(
    ("num_steps", "times"),
    [(None, list(range(10, 0, -1))), (5, [10, 8, 6, 4, 2]), (4, [10, 8, 5, 3]), (1, [10])],
)
def test_steps_are_spread_over_all_times(num_steps: int | None, times: list[int]) -> None:
    seen: list[int] = []

    class Watch(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            seen.append(int(t[0]))
            return x_t

    diffusion.sample(DDPM(Watch(), BETAS), ZEROS, num_steps=num_steps)
    assert seen == times


def test_without_noise_the_start_decides(generator: torch.Generator) -> None:
    model = exact(20)
    start = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    first, again = (diffusion.sample(model, start, eta=0, generator=generator) for _ in range(2))
    assert torch.equal(first, again)
    ways = [diffusion.sample(model, start, generator=generator)[-1] for _ in range(2)]
    assert not torch.allclose(*ways)


def langevin_moments(model: DDPM, num_steps: int, relative_step: float) -> tuple[Tensor, Tensor]:
    """Of Langevin chains on Gaussians, level by level, and of the last denoising."""
    alphas, sigmas = model.signal_scale.tolist(), model.noise_scale.tolist()
    mean, covariance = torch.zeros(2).double(), EYE / alphas[-1] ** 2
    for t in range(model.num_steps, 0, -1):
        variance = (sigmas[t] / alphas[t]) ** 2
        precision = torch.linalg.inv(COVARIANCE + variance * EYE)
        step = EYE - relative_step * variance / 2 * precision
        for _ in range(num_steps):
            mean = step @ (mean - MEAN) + MEAN
            covariance = step @ covariance @ step.T + relative_step * variance * EYE
    last = COVARIANCE @ precision
    return last @ (mean - MEAN) + MEAN, last @ covariance @ last.T


def test_annealed_langevin_ends_where_its_steps_lead(generator: torch.Generator) -> None:
    model = exact(40, highest=2.0)  # much is left for the last step to take away
    start = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    draws = diffusion.annealed_langevin(
        model, start, num_steps=5, relative_step=0.3, generator=generator
    )
    truth = langevin_moments(model, 5, 0.3)
    assert z_moments(draws, *truth) < 4.5
    assert (truth[1] / COVARIANCE - 1).abs().max() < 0.5  # near the data, with few steps
    few = langevin_moments(exact(400), 20, 0.05)
    assert (few[1] / COVARIANCE - 1).abs().max() < 0.05  # nearer with more and smaller ones
    lost = diffusion.annealed_langevin(
        exact(40, sign=-1, highest=2.0),
        start[:1000],
        num_levels=4,
        num_steps=1,
        generator=generator,
    )
    assert z_moments(lost, *truth) > 8


# --- Training -------------------------------------------------------------------------------------


def test_a_trained_network_finds_the_gaussian(generator: torch.Generator) -> None:
    torch.manual_seed(20260101)
    x = DATA.sample((4000,)).float()
    betas = noise_schedules.log_snr(60, 6.0, -6.0)
    model = diffusion.dense(2, betas, hidden=(64,))
    before = diffusion.elbo_terms(model, x, generator=generator).sum(dim=1).mean()
    history = diffusion.fit(model, x, num_epochs=30, generator=generator, progress=False)
    assert history.shape == (30,)
    after = diffusion.elbo_terms(model, x, generator=generator).sum(dim=1)
    best = expected_terms(exact(60, highest=6.0, lowest=-6.0), x.double()).sum(dim=1).mean()
    error = 4 * float(after.std()) / len(x) ** 0.5
    assert before + 1 < best
    assert -error - 0.02 < best - after.mean() < 0.1 + error
    other = diffusion.dense(2, betas, hidden=(64,))
    diffusion.fit(other, x, "simple", num_epochs=2, generator=generator, progress=False)
    assert diffusion.elbo_terms(other, x, generator=generator).sum(dim=1).mean() > before


def bits(log_probs: Tensor) -> float:
    return -float(log_probs.mean()) / 64 / math.log(2)


def gaussian_bits(train: Tensor, test: Tensor, levels: Tensor, floor: float) -> float:
    """A full Gaussian on levels: each feature given those before it, gathered on the levels."""
    mean, covariance = train.mean(dim=0), train.T.cov() + floor**2 * torch.eye(64).double()
    factor = torch.linalg.cholesky(covariance)
    noise = torch.linalg.solve_triangular(factor, (test - mean).T, upper=False).T
    scale = factor.diagonal()
    return bits(DiscretizedNormal(test - noise * scale, scale, levels).log_prob(test).sum(1))


def test_digits_take_fewer_bits_than_under_a_gaussian(generator: torch.Generator) -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(20260101)
    x = torch.tensor(load_digits().data) / 8 - 1
    x = x[torch.randperm(len(x), generator=generator)]
    train, test = x[:1500], x[1500:]
    levels = torch.linspace(-1, 1, 17).double()
    # The floor that is best on the test data itself: better than a Gaussian can know.
    gaussian = min(gaussian_bits(train, test, levels, floor) for floor in (0.01, 0.02, 0.04, 0.08))
    betas = noise_schedules.log_snr(150, 8.0, -5.0)
    model = diffusion.dense(64, betas, hidden=(128,), levels=levels.float())
    diffusion.fit(
        model,
        train.float(),
        num_epochs=40,
        make_optimizer=lambda p: torch.optim.Adam(p, lr=5e-3, fused=True),
        generator=generator,
        progress=False,
    )
    terms = diffusion.elbo_terms(model, test.float(), generator=generator)
    assert 1 < bits(terms.sum(dim=1)) < gaussian < 3


def test_runs_repeat_with_their_generator_and_leave_the_global_state_alone() -> None:
    model, x = untrained(), torch.zeros(5, 2).double()
    before = torch.get_rng_state()
    calls: list[Callable[..., Tensor]] = [
        diffusion.elbo_terms,
        diffusion.loss,
        diffusion.chain_elbo,
        diffusion.sample,
        diffusion.annealed_langevin,
    ]
    for call in calls:
        first, again, other = (
            call(model, x, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
        )
        assert torch.equal(first, again), call
        assert not torch.equal(first, other), call
    assert torch.equal(torch.get_rng_state(), before)


def test_models_move_as_modules_do() -> None:
    model = untrained(levels=GREYS)
    state = model.state_dict()
    assert {"signal_scale", "noise_scale", "weight", "levels"} <= set(state)
    x = GREYS[[0, 3]][None]
    low = diffusion.elbo_terms(model.float(), x.float())
    assert low.dtype == torch.float32
    assert torch.isfinite(low).all()


# --- Kind errors ----------------------------------------------------------------------------------

BETAS = noise_schedules.log_snr(10)
ZEROS = torch.zeros(3, 2)
MODEL = diffusion.dense(2, BETAS)
ON_LEVELS = diffusion.dense(2, BETAS, levels=GREYS.float())


class Short(nn.Module):
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t[:, 0]


test_bad_input_is_named = bad_input(
    [
        (lambda: noise_schedules.linear(20), ValueError, ("num_steps", "at least 21")),
        (lambda: noise_schedules.cosine(1), ValueError, ("num_steps", "at least 2")),
        (lambda: noise_schedules.log_snr(9, 1.0, 1.0), ValueError, ("highest", "above")),
        (lambda: noise_schedules.log_snr(9.0), TypeError, ("num_steps", "whole")),
        (lambda: DDPM(3, BETAS), TypeError, ("network", "function")),
        (lambda: DDPM(nn.Identity(), BETAS + 1), ValueError, ("betas", "between 0 and 1")),
        (lambda: DDPM(nn.Identity(), BETAS[:1]), ValueError, ("betas", "at least 2", "got 1")),
        (lambda: DDPM(nn.Identity(), BETAS, -GREYS), ValueError, ("levels", "rise")),
        (lambda: Denoiser(2, BETAS, (0,)), ValueError, ("each of hidden", "at least 1")),
        (lambda: Denoiser(2, BETAS, num_waves=-1), ValueError, ("num_waves", "at least 0")),
        (lambda: Denoiser(0, BETAS), ValueError, ("num_features", "at least 1")),
        (lambda: Denoiser(2, -BETAS), ValueError, ("betas", "between 0 and 1")),
        (lambda: Denoiser(2, BETAS, levels=GREYS[:1]), ValueError, ("levels", "at least 2")),
        (lambda: MODEL.predicted_noise(ZEROS, 0), ValueError, ("times", "from 1 to 10", "0")),
        (lambda: MODEL.noised(ZEROS, 11, ZEROS), ValueError, ("times", "from 0 to 10", "11")),
        (
            lambda: MODEL.denoised(ZEROS, torch.tensor([1, 0, 4])),
            ValueError,
            ("times", "from 1 to 10", "0 to 4"),
        ),
        (
            lambda: DDPM(Short(), BETAS).denoised(ZEROS, 3),
            ValueError,
            ("network", "(3, 2)", "(3,)"),
        ),
        (lambda: diffusion.elbo_terms(nn.Identity(), ZEROS), TypeError, ("model", "DDPM")),
        (lambda: diffusion.elbo_terms(MODEL, ZEROS[0]), ValueError, ("x", "2 dimensions")),
        (lambda: diffusion.chain_elbo(MODEL, ZEROS / 0), ValueError, ("x", "finite")),
        (lambda: diffusion.loss(ON_LEVELS, ZEROS + 0.1), ValueError, ("x", "5 levels")),
        (lambda: diffusion.loss(MODEL, ZEROS, "none"), ValueError, ("weights", "'simple'")),
        (
            lambda: diffusion.fit(MODEL, ZEROS, "none", num_epochs=1),
            ValueError,
            ("weights", "'simple'"),
        ),
        (lambda: diffusion.fit(ON_LEVELS, ZEROS + 9, num_epochs=1), ValueError, ("x", "levels")),
        (lambda: diffusion.loss(MODEL, ZEROS, generator=3), TypeError, ("generator", "int")),
        (lambda: diffusion.sample(MODEL, ZEROS[0]), ValueError, ("start", "2 dimensions")),
        (lambda: diffusion.sample(MODEL, ZEROS, eta=2.0), ValueError, ("eta", "from 0 to 1")),
        (lambda: diffusion.sample(MODEL, ZEROS, num_steps=11), ValueError, ("at most", "11")),
        (lambda: diffusion.sample(nn.Identity(), ZEROS), TypeError, ("model", "DDPM")),
        (lambda: diffusion.annealed_langevin(MODEL, ZEROS, num_levels=0), ValueError, ("least 1",)),
        (
            lambda: diffusion.annealed_langevin(MODEL, ZEROS, relative_step=4.0),
            ValueError,
            ("relative_step", "below 4"),
        ),
        (
            lambda: diffusion.annealed_langevin(MODEL, ZEROS, num_steps=0),
            ValueError,
            ("num_steps", "at least 1"),
        ),
    ]
)
