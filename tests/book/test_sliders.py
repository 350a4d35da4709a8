"""The figures to play with say, for every setting, what numpy computes from the bare formulas."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
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
