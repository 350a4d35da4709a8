"""The benchmarks count what they say they count."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import bbb_contenders
import bench_bbb_predict
import bench_bbb_step
import bench_kl_fit
import bench_sine_vi
import bench_vae_epoch
import harness
import numpy as np
import pytest
import torch
import vae_contenders
from bench_sine_mcmc import delivered, relative_error
from sine_contenders import REFERENCE, X, Y, log_posterior
from torch.distributions import Normal

from coursepkg import data, layers, networks, uncertainty, vae
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


# Those whose library is here; the benchmark says of the others that they are not.
MODULES = {"blitz-bayesian-pytorch": "blitz", "pyro-ppl": "pyro"}
CONTENDERS = [
    name
    for name, (_, packages) in bbb_contenders.CONTENDERS.items()
    if all(find_spec(MODULES.get(each, each.replace("-", "_"))) for each in packages)
]


def narrow_guide() -> bbb_contenders.Guide:
    """Small standard deviations, all different: little noise in a loss."""
    rng = np.random.default_rng(4)
    means = [table[0] for table in bbb_contenders.start(3)]
    return [np.stack([mean, 0.01 * np.exp(rng.normal(size=mean.shape) / 3)]) for mean in means]


def test_the_judge_knows_the_network_and_its_elbo() -> None:
    guide = narrow_guide()
    ours = bbb_contenders.Coursepkg()
    ours.load(guide)
    assert bbb_contenders.kl(guide) == pytest.approx(
        float(layers.kl_divergence(ours.model).detach())
    )
    x = torch.linspace(-1, 1, 7)
    for layer in ours.model[::2]:
        layer.free.data.fill_(-torch.inf)
    still = [np.stack([table[0], 0 * table[0]]) for table in guide]
    outputs = bbb_contenders.functions(still, x.double().numpy(), 1)
    expected = ours.model(x[:, None]).detach()
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-4, atol=1e-6)
    noise = uncertainty.heteroscedastic(torch.tensor(outputs))
    y = np.linspace(-3, 3, 7)
    found = bbb_contenders.log_likelihood(outputs, y)
    np.testing.assert_allclose(found, noise.log_prob(torch.tensor(y)))


@pytest.mark.parametrize("name", CONTENDERS)
def test_all_maximize_the_same_elbo(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contender, guide = bbb_contenders.CONTENDERS[name][0](), narrow_guide()
    contender.load(guide)
    contender.seed(0)
    for mine, theirs in zip(guide, contender.guide(), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-6)
    for rows in (8, 92):
        expected, error = bbb_contenders.elbo(guide, rows)
        elbos = [-contender.loss(rows) for _ in range(100)]
        scatter = (np.var(elbos) / 100 + error**2) ** 0.5
        assert abs(np.mean(elbos) - expected) < 4.5 * scatter
    monkeypatch.setattr(bbb_contenders, "EPOCHS", 3)
    contender.train()
    assert bbb_contenders.elbo(contender.guide())[0] > bbb_contenders.elbo(guide)[0] + 1000


INPUTS = np.array([-0.7, 0.4, 0.4])
EXACT = bbb_contenders.functions(bbb_contenders.start(0), INPUTS, 20_000)


@pytest.mark.parametrize("name", CONTENDERS)
def test_all_draw_the_same_functions(name: str) -> None:
    contender = bbb_contenders.CONTENDERS[name][0]()
    contender.load(bbb_contenders.start(0))
    contender.seed(1)
    outputs = contender.predict(INPUTS, 400)
    assert outputs.shape == (400, 3, 2)
    np.testing.assert_allclose(outputs[:, 1], outputs[:, 2], rtol=1e-4, atol=1e-5)
    off = (outputs.mean(0) - EXACT.mean(0)) / (EXACT.std(0) / 400**0.5)
    assert np.abs(off).max() < 4.5
    # The variance of 400 normal draws scatters by (2 / 399)^1/2.
    assert outputs.var(0) == pytest.approx(EXACT.var(0), rel=4.5 * (2 / 399) ** 0.5)


def test_what_is_not_installed_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = harness.race(import_module, {"no_such_library": 1})  # type: ignore[arg-type]
    assert found == {"no_such_library": "not installed: no_such_library"}
    missing = {"blitz": "not installed: blitz"}
    run = bench_bbb_step.Run(2.4, 0.5, -360.0, 0.5, 2.9)
    runs = {"coursepkg": [run], "loop": [run._replace(seconds=4.8, compilation=0.0)], **missing}
    monkeypatch.setattr(bench_bbb_step, "race", lambda *_: runs)
    rows = list(bench_bbb_step.measure())
    assert [row.value for row in rows] == pytest.approx([1.0, 2.9, 2.0, 4.8, None])
    assert [row.ratio for row in rows] == [None, None, 2.0, pytest.approx(4.8 / 2.9), None]
    assert rows[-1].quality == "not installed: blitz"
    assert "ELBO -360 " in rows[0].quality
    outputs = bbb_contenders.functions(bbb_contenders.start(0), bench_bbb_predict.POINTS, 100)
    call = bench_bbb_predict.Run(3.0, 10.0, outputs)
    rows_apart = outputs + np.random.default_rng(0).normal(size=outputs.shape)
    scattered = call._replace(milliseconds=30.0, outputs=rows_apart)
    calls = {"coursepkg": [call], "loop": [scattered], **missing}
    monkeypatch.setattr(bench_bbb_predict, "race", lambda *_: calls)
    ours, theirs, absent = bench_bbb_predict.measure()
    assert (ours.value, theirs.ratio, absent.value) == (3.0, 10.0, None)
    assert "one function a draw" in ours.quality
    assert "not functions" in theirs.quality


DIGITS = (np.random.default_rng(0).random((300, 784)) < 0.2).astype(np.float32)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_contenders, "digits", lambda: (DIGITS, DIGITS))


@pytest.mark.usefixtures("few_digits")
def test_the_judge_knows_the_bound_of_a_digit() -> None:
    start = vae_contenders.start(0)
    expected, error = vae_contenders.elbo(start, DIGITS, num_draws=100)
    ours = vae_contenders.Coursepkg()
    ours.load(start, seed=0)
    with torch.no_grad():
        each = [vae.elbo(ours.model, ours.x).elbo.mean() for _ in range(100)]
    found = mean_with_error(torch.stack(each))
    scatter = (error**2 + float(found.standard_error) ** 2) ** 0.5
    assert abs(float(found.value) - expected) < 4.5 * scatter


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize(
    "name",
    [
        each
        for each in vae_contenders.CONTENDERS
        if each in ("coursepkg", "torch") or find_spec(each)
    ],
)
def test_all_maximize_the_same_bound_of_digits(name: str) -> None:
    contender, start = vae_contenders.CONTENDERS[name][0](), vae_contenders.start(0)
    contender.load(start, seed=0)
    for mine, theirs in zip(start, contender.network(), strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])
    expected, error = vae_contenders.elbo(start, DIGITS, num_draws=30)
    losses = [contender.loss() for _ in range(30)]
    scatter = (np.var(losses, ddof=1) / 30 + error**2) ** 0.5
    assert abs(np.mean(losses) + expected) < 4.5 * scatter
    contender.train(3)
    assert vae_contenders.elbo(contender.network(), DIGITS)[0] > expected + 20


def test_an_epoch_is_a_tenth_and_compilation_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench_vae_epoch.Run(2.0, 0.0, -128.0)
    runs = {
        "coursepkg": [run],
        "numpyro": [run._replace(seconds=1.0, compilation=11.0)],
        "pyro": "not installed: pyro",
    }
    monkeypatch.setattr(bench_vae_epoch, "race", lambda *_: runs)
    rows = list(bench_vae_epoch.measure())
    assert [row.value for row in rows] == pytest.approx([0.2, 2.0, 0.1, 12.0, None])
    assert [row.ratio for row in rows] == [None, None, 0.5, 6.0, None]
    assert "-128.0" in rows[0].quality
