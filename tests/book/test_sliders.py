"""The figures to play with say, for every setting, what numpy computes from the bare formulas."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
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
