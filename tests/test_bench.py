"""The benchmarks count what they say they count."""

from __future__ import annotations

import bench_kl_fit
import numpy as np
import pytest
import torch
from bench_sine_mcmc import delivered, relative_error
from sine_contenders import REFERENCE, X, Y, log_posterior
from torch.distributions import Normal

from coursepkg import data

MEAN, SD = REFERENCE["f_mean"], REFERENCE["f_sd"]


def means_of_runs(draws: int, runs: int, seed: int) -> np.ndarray:
    """What runs of so many independent draws would estimate."""
    noise = np.random.default_rng(seed).standard_normal((runs, len(MEAN)))
    return MEAN + SD / draws**0.5 * noise


def test_the_posterior_is_the_one_of_the_course() -> None:
    sensor = data.sine_sensor()
    np.testing.assert_allclose(X, sensor.x, atol=1e-12)  # the file has twelve decimals
    np.testing.assert_allclose(Y, sensor.y, atol=1e-12)
    weights = torch.randn(3, 4, 16, dtype=torch.float64)
    w1, b1, w2 = weights[..., None, :15].split(5, dim=-1)
    f = ((w1 * sensor.x[:, None] + b1).relu() * w2).sum(-1) + weights[..., 15:]
    prior = Normal(0, 1).log_prob(weights).sum(-1)
    expected = prior + Normal(f, 0.1).log_prob(sensor.y).sum(-1)
    np.testing.assert_allclose(log_posterior(weights.numpy()), expected, rtol=1e-9)


def test_delivered_counts_independent_draws() -> None:
    # A variance from n runs has the relative sd (2 / (n - 1))^1/2; the smallest of ten inputs is
    # below the truth, by at most 5 of those.
    runs = 2000
    found = delivered(means_of_runs(400, runs, seed=0))
    assert 1 - 5 * (2 / (runs - 1)) ** 0.5 < found / 400 <= 1


def test_the_jackknife_tells_the_scatter_of_delivered() -> None:
    many = [means_of_runs(400, 30, seed) for seed in range(200)]
    scatter = np.std([np.log(delivered(means)) for means in many])
    told = np.median([relative_error(means) for means in many])
    assert 0.5 < told / scatter < 2


def test_a_bias_delivers_nothing() -> None:
    biased = means_of_runs(400, 30, seed=1) + SD
    assert delivered(biased) == pytest.approx(1, rel=0.3)


def test_the_fit_is_raced_to_the_right_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = bench_kl_fit.exact()
    assert exact == pytest.approx((2.180, 1.465), abs=5e-4)  # as published
    assert bench_kl_fit.coursepkg() == pytest.approx(exact, abs=1e-6)
    # The loop goes the same way, draw by draw or batched; it only needs far more steps.
    monkeypatch.setattr(bench_kl_fit, "STEPS", 20)
    for batched in (False, True):
        mean, scale = bench_kl_fit.loop(batched=batched)
        assert 0 < mean - bench_kl_fit.START[0] <= 0.021
        assert -0.021 <= scale - bench_kl_fit.START[1] < 0
