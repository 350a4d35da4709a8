"""The benchmarks count what they say they count."""

from __future__ import annotations

import bench_kl_fit
import bench_sine_vi
import numpy as np
import pytest
import torch
from bench_sine_mcmc import delivered, relative_error
from sine_contenders import REFERENCE, X, Y, log_posterior
from torch.distributions import Normal

from coursepkg import data, networks
from coursepkg.divergence import mean_with_error
from coursepkg.guides import FullRankNormal

MEAN, SD = REFERENCE["f_mean"], REFERENCE["f_sd"]
LOG_EVIDENCE = 0.27


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


def guide(seed: int) -> tuple[np.ndarray, FullRankNormal]:
    """The same guide, as an array and as ours."""
    generator = torch.Generator().manual_seed(seed)
    mean, below = torch.randn(17, 16, generator=generator, dtype=torch.float64).split([1, 16])
    factor = 0.1 * (below.tril(-1) + torch.eye(16))
    return bench_sine_vi.stacked(mean[0], factor), FullRankNormal(mean[0], factor)


def test_guides_are_judged_by_their_elbo() -> None:
    array, q = guide(seed=0)
    value, error = bench_sine_vi.elbo(array)
    draws = q.rsample(20_000, generator=torch.Generator().manual_seed(1))
    ours = mean_with_error(networks.sine_posterior()(draws) - q.log_prob(draws))
    scatter = (error**2 + float(ours.standard_error) ** 2) ** 0.5
    assert abs(value - float(ours.value)) < 4.5 * scatter
    assert error == pytest.approx(float(ours.standard_error), rel=0.2)
    # A vector of scales is a diagonal factor.
    scales = np.arange(1.0, 17)
    np.testing.assert_array_equal(bench_sine_vi.stacked(scales, scales)[1:], np.diag(scales))


def test_failures_are_paid_for_and_compilation_once() -> None:
    runs = [bench_sine_vi.Run(2.0, 3.0, value, 0.1) for value in (-24.0, -25.0, -23.0, -30.0)]
    # Half of the runs succeed: two of 2 s each, after 3 s of compilation.
    assert bench_sine_vi.time_to_success(runs, -24.4) == pytest.approx(7)
    assert bench_sine_vi.time_to_success(runs, -22.0) is None
    assert "2 of 4 runs" in bench_sine_vi.describe(runs, -24.4)
    assert bench_sine_vi.describe(runs, -22.0).startswith("not reached: ELBO -24.50")


@pytest.mark.parametrize("family", ["mean-field", "full-rank"])
@pytest.mark.parametrize("name", ["coursepkg", "adam-restarts", "loop"])
def test_contenders_climb_towards_the_posterior(
    monkeypatch: pytest.MonkeyPatch, name: str, family: bench_sine_vi.Family
) -> None:
    monkeypatch.setattr(bench_sine_vi, "STEPS", 100)
    if (name, family) == ("loop", "full-rank"):
        with pytest.raises(NotImplementedError):
            bench_sine_vi.CONTENDERS[name][0](family)
        return
    array = bench_sine_vi.CONTENDERS[name][0](family)[0](0)
    assert array.shape == (17, 16)
    assert (np.diag(array[1:]) > 0).all()
    off_diagonal = np.abs(np.tril(array[1:], -1)).max()
    assert (off_diagonal > 0) == (family == "full-rank")
    value, _ = bench_sine_vi.elbo(array)
    # Guides at random places are thousands of nats below.
    assert value < LOG_EVIDENCE
    assert value > (bench_sine_vi.BEST[family] - 1 if name == "coursepkg" else -700)
