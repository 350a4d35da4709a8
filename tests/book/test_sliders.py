"""The figures to play with say, for every setting, what numpy computes from the bare formulas."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from bs4 import BeautifulSoup

from coursepkg import data

Descriptions = dict[tuple[float, ...], str]


def described(html: Path, chapter: str, slider: str) -> Descriptions:
    """What each picture of the figure with this slider says, by setting."""
    page = BeautifulSoup((html / "book" / f"{chapter}.html").read_text("utf-8"), "html.parser")
    (figure,) = (f for f in page.select("figure.frames") if f.label.text.strip() == slider)
    return {
        tuple(float(value) for value in str(picture["data-value"]).split(", ")): str(
            picture["aria-label"]
        )
        for picture in figure.select(".frame")
    }


def numbers(text: str) -> list[float]:
    return [float(n.replace("−", "-")) for n in re.findall(r"[−-]?\d+(?:\.\d+)?", text)]


def line_predictive(
    x: np.ndarray, y: np.ndarray, prior: np.ndarray, noise: float, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a new reading of a line, by the textbook formulas."""
    phi, phi_at = np.stack([np.ones_like(x), x], 1), np.stack([np.ones_like(at), at], 1)
    covariance = np.linalg.inv(np.linalg.inv(prior) + phi.T @ phi / noise**2)
    mean = covariance @ phi.T @ y / noise**2
    return phi_at @ mean, np.sqrt(noise**2 + np.sum(phi_at @ covariance * phi_at, axis=1))


def test_degree(html: Path) -> None:
    found = described(html, "linear_regression", "degree")
    assert sorted(found) == [(float(degree),) for degree in range(16)]
    seen, new = data.sine_sensor(), data.sine_sensor(200, seed=1)
    for (degree,), text in found.items():
        fit = np.polynomial.Chebyshev.fit(seen.x.numpy(), seen.y.numpy(), int(degree))
        errors = [np.sqrt(np.mean((fit(s.x.numpy()) - s.y.numpy()) ** 2)) for s in (seen, new)]
        assert numbers(text)[:3] == pytest.approx([degree, *errors], abs=0.0051)


def test_noise_and_prior(html: Path) -> None:
    found = described(html, "bayesian_linear_regression", "noise scale")
    assert len(found) == 25
    x, y = np.array([2.0, -2.0]), np.array([0.0, -2.0])
    for (noise, scale), text in found.items():
        mean, sd = line_predictive(x, y, scale**2 * np.eye(2), noise, np.array([0.0, 8.0]))
        expected = [noise, scale, mean[0], sd[0], 0, mean[1], sd[1], 8]
        assert numbers(text) == pytest.approx(expected, abs=0.0051)


def test_prior_correlation(html: Path) -> None:
    found = described(html, "bayesian_linear_regression", "prior correlation")
    assert len(found) == 5
    for (rho,), text in found.items():
        prior = 25 * np.array([[1, rho], [rho, 1]])
        places = np.array([-6.0, 2.0, 8.0])
        _, sd = line_predictive(np.array([2.0]), np.array([0.0]), prior, 1.0, places)
        said = numbers(text)
        assert said[0] == rho
        assert said[1::2] == pytest.approx(list(sd), abs=0.051)
        assert said[2::2] == list(places)


def test_prior_functions(html: Path) -> None:
    """The chapter averages over 100,000 units that it has drawn; here is the integral."""
    found = described(html, "networks", "units")
    assert len(found) == 16
    sums = np.linspace(-8, 8, 100_001)  # fine enough for the steepest tanh
    weights = np.exp(-(sums**2) / 2)
    weights = weights / weights.sum()
    for (units, scale), text in found.items():
        squared = weights @ np.tanh(scale * np.sqrt(10) * sums) ** 2
        sd = scale * np.sqrt(1 + units * squared)
        reach = np.arctanh(0.99) / (scale * np.sqrt(1 + np.linspace(-3, 3, 13) ** 2))
        saturated = np.mean([math.erfc(z / math.sqrt(2)) for z in reach])
        *setting, at, said_sd, said_share = numbers(text)
        assert [*setting, at] == [units, scale, 3]
        # Of 100,000 draws; tanh squared has a standard deviation below 1/2, a share as well.
        error = 4 * 0.5 / math.sqrt(100_000)
        assert said_sd == pytest.approx(sd, abs=0.051 + scale**2 * units * error / (2 * sd))
        assert said_share / 100 == pytest.approx(saturated, abs=0.0051 + error)


def test_steps_of_one_chain(html: Path) -> None:
    """The chapter's chain once more, in numpy, from the same random numbers."""
    found = described(html, "mcmc", "step")
    generator = torch.Generator().manual_seed(5)
    place, refused, said = np.array([-1.5, 4.5]), 0, {}
    for step in range(201):
        said[(float(step),)] = [step, *place, refused]
        proposal = place + 0.7 * torch.randn(1, 2, generator=generator)[0].numpy()
        height = [-(x**2) / 2 - (y - x**2) ** 2 / 2 / 0.25 for x, y in (proposal, place)]
        if float(torch.rand(1, generator=generator)) < np.exp(height[0] - height[1]):
            place = proposal
        else:
            refused += 1
    assert len(found) == 14
    for setting, text in found.items():
        assert numbers(text) == pytest.approx(said[setting], abs=0.0051)


def test_proposal_scale(html: Path) -> None:
    """A step of length r from a draw of a standard normal is accepted with probability 2Φ(-r/2)."""
    found = described(html, "mcmc", "scale times √dimension")
    assert len(found) == 18
    random = np.random.default_rng(0)
    for (scale, dim), text in found.items():
        _, _, accepted, worth = numbers(text.replace("thousand steps", ""))
        sizes = (
            scale / dim**0.5 * np.linalg.norm(random.standard_normal((20_000, int(dim))), axis=1)
        )
        assert accepted == pytest.approx(200 * scipy.stats.norm.cdf(-sizes / 2).mean(), abs=1.5)
        if worth < 40:  # an autocorrelation as long as the run is not known well
            continue
        place = random.standard_normal((2000, int(dim)))
        sums = np.zeros(2000)
        for _ in range(300):
            proposal = place + scale / dim**0.5 * random.standard_normal(place.shape)
            log_ratio = (place**2 - proposal**2).sum(axis=1) / 2
            taken = np.log(random.random(2000)) < log_ratio
            place = np.where(taken[:, None], proposal, place)
            sums += place[:, 0]
        assert worth == pytest.approx(1000 / 300 / np.var(sums / 300), rel=0.25)


def test_leapfrog_step_size(html: Path) -> None:
    found = described(html, "mcmc", "leapfrog step size")
    assert len(found) == 6
    precision = np.array([1, 1 / 0.2**2])
    for (size,), text in found.items():
        place, momentum, energies = np.array([-1.8, 0.2]), np.array([0.4, 1.0]), []
        for _ in range(round(3 / size) + 1):
            energies.append((momentum @ momentum + place @ (precision * place)) / 2)
            momentum = momentum - size / 2 * precision * place
            place = place + size * momentum
            momentum = momentum - size / 2 * precision * place
        errors = np.abs(np.array(energies) - energies[0])
        expected = [size, round(3 / size), errors[-1], errors.max()]
        assert numbers(text) == pytest.approx(expected, rel=1e-3, abs=0.0011)


def normal_kl(q_mean: float, q_scale: float, p_mean: float, p_scale: float) -> float:
    """KL(q‖p) of two Gaussians, as textbooks write it."""
    squares = q_scale**2 + (q_mean - p_mean) ** 2
    return math.log(p_scale / q_scale) + squares / (2 * p_scale**2) - 0.5


def test_area_that_is_a_divergence(html: Path) -> None:
    found = described(html, "kl_and_elbo", "mean of q")
    assert len(found) == 9
    x = np.linspace(-30, 40, 100_001)
    for (mean, scale), text in found.items():
        log_ratio = x**2 / 2 - ((x - mean) / scale) ** 2 / 2 - np.log(scale)
        terms = scipy.stats.norm.pdf(x, mean, scale) * log_ratio
        areas = [np.trapezoid(np.maximum(sign * terms, 0), x) for sign in (1, -1)]
        both = [normal_kl(mean, scale, 0, 1), normal_kl(0, 1, mean, scale)]
        assert numbers(text) == pytest.approx([mean, scale, *areas, *both], abs=0.0051)


def two_hills_kl(parameters: np.ndarray, distance: float) -> float:
    """KL of a Gaussian, given by its mean and its log scale, from the two hills."""
    mean, scale = parameters[0], np.exp(parameters[1])
    x = np.linspace(mean - 10 * scale, mean + 10 * scale, 1001)
    log_p = np.logaddexp(
        scipy.stats.norm.logpdf(x, 0, 0.4), scipy.stats.norm.logpdf(x, distance, 1)
    ) - np.log(2)
    log_q = scipy.stats.norm.logpdf(x, mean, scale)
    return float(np.trapezoid(np.exp(log_q) * (log_q - log_p), x))


def test_distance_of_the_hills(html: Path) -> None:
    """Each optimum that the page names is one, by another optimizer from starts of our own."""
    found = described(html, "kl_and_elbo", "distance of the hills")
    assert len(found) == 6
    for (distance,), text in found.items():
        optima: list[list[float]] = []
        for start in itertools.product((0.0, distance / 2, distance), (-0.9, 0.0, 0.4)):
            end = scipy.optimize.minimize(two_hills_kl, start, (distance,), method="BFGS")
            optimum = [end.x[0], np.exp(end.x[1]), end.fun]
            if not any(np.allclose(optimum, other, atol=0.01) for other in optima):
                optima.append(optimum)
        moments = [distance / 2, math.sqrt((0.4**2 + 1) / 2 + (distance / 2) ** 2)]
        said_distance, *said = numbers(text)
        assert said_distance == distance
        assert said[-2:] == pytest.approx(moments, abs=0.0051)
        triples = sorted(said[i : i + 3] for i in range(0, len(said) - 2, 3))
        assert len(triples) == len(optima)
        for triple, optimum in zip(triples, sorted(optima), strict=True):
            assert triple == pytest.approx(optimum, abs=0.006)


def test_correlation_and_mean_field(html: Path) -> None:
    found = described(html, "kl_and_elbo", "correlation")
    assert len(found) == 5
    for (rho,), text in found.items():
        precision = np.linalg.inv([[1, rho], [rho, 1]])
        expected = [rho, 1, precision[0, 0] ** -0.5, 1]
        assert numbers(text) == pytest.approx(expected, abs=0.0051)


def test_shift_and_factor_of_a_guide(html: Path) -> None:
    """Fit, regulariser, bound and gap by numpy; their sum by the density of the data."""
    found = described(html, "kl_and_elbo", "shift in posterior sd")
    assert len(found) == 16
    features, y, identity = np.array([[1.0, 2], [1, -2]]), np.array([0.0, -2]), np.eye(2)
    covariance = np.linalg.inv(identity / 25 + features.T @ features)
    evidence = scipy.stats.multivariate_normal.logpdf(y, cov=identity + 25 * features @ features.T)

    def kl(mean: np.ndarray, spread: np.ndarray, to: np.ndarray, other: np.ndarray) -> float:
        inverse = np.linalg.inv(other)
        log_ratio = np.linalg.slogdet(other)[1] - np.linalg.slogdet(spread)[1]
        off = mean - to
        return float(np.trace(inverse @ spread) + off @ inverse @ off - 2 + log_ratio) / 2

    center = covariance @ features.T @ y
    for (shift, factor), text in found.items():
        mean = center + shift * np.sqrt(np.diag(covariance))
        spread = factor**2 * covariance
        misfit = np.sum((y - features @ mean) ** 2) + np.trace(features @ spread @ features.T)
        fit = -math.log(2 * math.pi) - misfit / 2
        regulariser = kl(mean, spread, np.zeros(2), 25 * identity)
        gap = kl(mean, spread, center, covariance)
        expected = [shift, factor, fit, regulariser, fit - regulariser, gap, evidence]
        assert numbers(text) == pytest.approx(expected, abs=0.0051)


def test_variance_of_gradient_estimators(html: Path) -> None:
    """f = z² under N(3, s²): moments by quadrature, in place of the chapter's closed forms."""
    found = described(html, "reparameterization", "scale s")
    assert len(found) == 5
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    for (scale,), text in found.items():
        z = 3 + scale * nodes
        mean = weights @ z**2
        each = [z**2 * nodes / scale, (z**2 - mean) * nodes / scale, 2 * z]
        assert [weights @ gradient for gradient in each] == pytest.approx([6] * 3)
        said_scale, *said = numbers(text)
        assert said_scale == scale
        for gradient, value, error in zip(each, said[::2], said[1::2], strict=True):
            variance = weights @ (gradient - 6) ** 2
            assert value == pytest.approx(variance, rel=1e-3, abs=4.5 * error)
            assert error < 0.1 * value


def mean_field_elbo(
    free: np.ndarray, noise: np.ndarray, x: np.ndarray, y: np.ndarray, units: int, scale: float
) -> tuple[float, np.ndarray, float]:
    """Minus the ELBO of a network with a ReLU layer, its gradient, and the mean sd of f(x)."""
    mean, log_scale = np.split(free, 2)
    w = mean + np.exp(log_scale) * noise
    into, bias, out = w[:, :units], w[:, units : 2 * units], w[:, 2 * units : 3 * units]
    hidden = np.maximum(x[:, None] * into[:, None] + bias[:, None], 0)
    f = (hidden @ out[:, :, None])[..., 0] + w[:, -1:]
    log_p = scipy.stats.norm.logpdf(y, f, 0.1).sum(1) + scipy.stats.norm.logpdf(w, 0, scale).sum(1)
    delta = (y - f) / 0.1**2
    back = delta[:, :, None] * out[:, None] * (hidden > 0)
    columns = [(back * x[:, None]).sum(1), back.sum(1), (delta[:, :, None] * hidden).sum(1)]
    slopes = np.concatenate([*columns, delta.sum(1, keepdims=True)], 1) - w / scale**2
    by_scale = (slopes * noise).mean(0) * np.exp(log_scale) + 1
    bound = log_p.mean() + np.sum(log_scale + math.log(2 * math.pi * math.e) / 2)
    return -bound, -np.concatenate([slopes.mean(0), by_scale]), float(f.std(0).mean())


@pytest.mark.parametrize(
    ("slider", "setting"),
    [
        ("hidden units", lambda value: (int(value), 20, 1.0)),
        ("readings", lambda value: (5, int(value), 1.0)),
        ("prior scale", lambda value: (5, 20, value)),
    ],
)
def test_variational_experiments(
    html: Path, slider: str, setting: Callable[[float], tuple[int, int, float]]
) -> None:
    """The best of many restarts is not much worse than the best of three by other code."""
    found = described(html, "reparameterization", slider)
    random, grid = np.random.default_rng(1), np.linspace(-3.2, 3.2, 50)
    for (value,), text in found.items():
        units, count, scale = setting(value)
        said, restarts, best, error, *singles = numbers(text)
        *singles, sd_middle, two, sd_outside, residual = singles
        assert (said, restarts, two, len(singles)) == (value, 16, 2, 4)
        readings, dim = data.sine_sensor(count), 3 * units + 1
        x, y = readings.x.numpy(), readings.y.numpy()
        given = x, y, units, scale
        bounds, judges = [], random.standard_normal((4000, dim))
        for _ in range(3):
            start = np.concatenate([min(scale, 1) * random.normal(size=dim), np.full(dim, -2.3)])
            noise = random.standard_normal((64, dim))
            noise = np.concatenate([noise, -noise]), *given
            end = scipy.optimize.minimize(mean_field_elbo, start, noise, jac=True).x
            sd = mean_field_elbo(end, judges, grid, 0 * grid, units, scale)[2]
            bounds.append((-mean_field_elbo(end, judges, *given)[0], sd))
        ours, our_sd = max(bounds)
        assert best > ours - 2 - 4.5 * error
        assert singles == sorted(singles, reverse=True)
        assert scale == 10 or singles[0] < best + 15  # a race can lose, but not by much
        # No bound is above the log likelihood of the mean function: squares are convex.
        at_mean = -((residual - 0.02) ** 2) / 2 / 0.1**2 - math.log(0.1 * math.sqrt(2 * math.pi))
        assert best < min(count * at_mean, 0.27 if (units, count, scale) == (5, 20, 1) else np.inf)
        middle = np.mean(np.abs(grid) < 2)
        said_sd = middle * sd_middle + (1 - middle) * sd_outside
        # With the widest prior a few draws of the poorer guides decide their sd.
        assert scale == 10 or our_sd / 2 < said_sd < our_sd * 2


def test_dropout_rate_and_points(html: Path) -> None:
    """Dropout as ridge regression with as many more rows as there are features."""
    found = described(html, "mc_dropout", "rate")
    assert len(found) == 15
    centers, at = np.linspace(-1.2, 1.2, 19), np.linspace(-1, 1, 61)

    def bumps(x: np.ndarray) -> np.ndarray:
        return np.insert(np.exp(-((x[:, None] - centers) ** 2) / 0.08), 0, 1, axis=1)

    for (rate, points), text in found.items():
        sample = data.wave(int(points))
        phi, y = bumps(2 * sample.x.numpy()), sample.y.numpy() / 4
        # Twice the squared errors, the noise of the masks, and the prior: all over two.
        penalty = rate * np.sum(phi**2, axis=0) / (1 - rate) + 1 / (4 * (1 - rate))
        rows, targets = np.vstack([phi, np.diag(np.sqrt(penalty))]), np.append(y, np.zeros(20))
        w = np.linalg.lstsq(rows, targets, rcond=None)[0]
        by_dropout = np.sqrt(rate / (1 - rate) * np.sum((bumps(at) * w) ** 2, axis=1))
        covariance = np.linalg.inv(np.eye(20) + phi.T @ phi / 0.25)
        exact = np.sqrt(np.sum(bumps(at) @ covariance * bumps(at), axis=1))
        expected = [rate, points, by_dropout.mean(), exact.mean()]
        assert numbers(text) == pytest.approx(expected, abs=0.0051)


def tanh_network(w: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden and output values of networks 1-10-1, a row of 31 weights each."""
    hidden = np.tanh(w[:, None, :10] * x[:, None] + w[:, None, 10:20])
    return hidden, (hidden @ w[:, 20:30, None])[..., 0] + w[:, 30:]


def tanh_joint(
    w: np.ndarray, x: np.ndarray, y: np.ndarray, variance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Log joint density under a standard normal prior, up to a constant, and its gradient."""
    hidden, f = tanh_network(w, x)
    delta = (y - f) / variance
    back = delta[..., None] * w[:, None, 20:30] * (1 - hidden**2)
    columns = [(back * x[:, None]).sum(1), back.sum(1), (delta[..., None] * hidden).sum(1)]
    gradient = np.concatenate([*columns, delta.sum(1, keepdims=True)], axis=1) - w
    return -((y - f) ** 2).sum(1) / 2 / variance - (w**2).sum(1) / 2, gradient


def test_tempering(html: Path) -> None:
    """Mean fields by L-BFGS with fixed draws, and the posterior by another HMC."""
    found = described(html, "bayes_by_backprop", "β")
    assert len(found) == 4
    wave, random = data.wave(), np.random.default_rng(0)
    x, y, grid = 4 * wave.x.numpy(), wave.y.numpy() / 10, np.linspace(-6, 6, 61)

    def spread(w: np.ndarray) -> tuple[float, float]:
        sd = tanh_network(w, grid)[1].std(axis=0)
        return float(sd[np.abs(grid) <= 2].mean()), float(sd[[0, -1]].mean())

    def negative_elbo(free: np.ndarray, noise: np.ndarray, variance: float) -> Any:
        mean, log_scale = np.split(free, 2)
        value, slope = tanh_joint(mean + np.exp(log_scale) * noise, x, y, variance)
        by_scale = (slope * noise).mean(0) * np.exp(log_scale) + 1
        return -value.mean() - log_scale.sum(), -np.concatenate([slope.mean(0), by_scale])

    mode = np.zeros((1, 31)) + random.normal(size=(64, 31))
    for _ in range(60):  # along the gradient, by its sign: into the hills
        mode += 0.03 * np.sign(tanh_joint(mode, x, y, 0.04)[1])
    draws, size = [], 0.012
    value, slope = tanh_joint(mode, x, y, 0.04)
    for step in range(40):
        momentum = random.normal(size=mode.shape)
        place, p, at = mode, momentum + size / 2 * slope, slope
        for _ in range(random.integers(30, 90)):
            place = place + size * p
            new_value, at = tanh_joint(place, x, y, 0.04)
            p = p + size * at
        p = p - size / 2 * at
        log_ratio = new_value - value + ((momentum**2).sum(1) - (p**2).sum(1)) / 2
        taken = np.log(random.random(64)) < log_ratio
        mode = np.where(taken[:, None], place, mode)
        value, slope = np.where(taken, new_value, value), np.where(taken[:, None], at, slope)
        draws += [mode] if step >= 20 else []
    truth = spread(np.concatenate(draws))

    for (beta,), text in found.items():
        said, *sds = numbers(text)
        assert said == beta
        ends = []
        for _ in range(2):
            start = np.concatenate([random.normal(size=31), np.full(31, -3.0)])
            noise = random.standard_normal((48, 31))
            noise = np.concatenate([noise, -noise])
            end = scipy.optimize.minimize(negative_elbo, start, (noise, 0.04 * beta), jac=True)
            ends.append((end.fun, end.x))
        mean, log_scale = np.split(min(ends, key=lambda end: end[0])[1], 2)
        field = spread(mean + np.exp(log_scale) * random.standard_normal((4000, 31)))
        # The chapter's networks are single fits of a few hundred steps.
        assert sds[0] == pytest.approx(field[0], rel=0.3)
        assert sds[1] == pytest.approx(field[1], rel=0.45)
        assert sds[2] == pytest.approx(truth[0], rel=0.15)
        assert sds[3] == pytest.approx(truth[1], rel=0.25)


def small_digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits from zero to four at half their size, in black and white, and their labels."""
    digits = data.mnist()
    few = digits.labels.numpy() < 5
    small = digits.pixels.numpy()[few].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    return (small.reshape(-1, 196) > 0.25).astype(float), digits.labels.numpy()[few]


def test_noise_of_a_linear_autoencoder(html: Path) -> None:
    """Shannon's reverse water-filling: components below the noise are not described at all."""
    found = described(html, "vae", "β σ²")
    assert len(found) == 7
    variances = np.linalg.eigvalsh(np.cov(small_digits()[0][:2000].T))
    for (noise,), text in found.items():
        above = variances[variances > noise]
        rate = np.sum(np.log(above / noise)) / 2
        error = len(above) * noise + np.sum(variances[variances <= noise])
        expected = [noise, len(above), rate, error, np.sum(variances)]
        assert numbers(text) == pytest.approx(expected, abs=0.051)


def test_places_in_a_latent_plane(html: Path) -> None:
    """What is decoded among codes of one digit has as much ink as that digit."""
    found = described(html, "vae", "first coordinate")
    assert len(found) == 25
    images, labels = small_digits()
    clear = 0
    for place, text in found.items():
        *said, ink, nearest, votes, digit = numbers(text)
        assert said == list(place)
        assert nearest == 9
        if votes >= 8:
            clear += 1
            low, high = np.quantile(images[labels == digit].sum(axis=1), [0.01, 0.99])
            assert low <= ink <= high
    assert clear >= 8
