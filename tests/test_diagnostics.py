"""Diagnostics: against R, against ArviZ, and against chains whose truth is known."""

from __future__ import annotations

import builtins
import math
import re
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coursepkg import diagnostics
from coursepkg.hmc import HMCInfo
from coursepkg.mcmc import Chains, Info

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # once a day it announces its next version
    import arviz

NAN, INF = math.nan, math.inf
exact = settings(deadline=None, derandomize=True, max_examples=60)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(ours: Tensor, truth: Any, rtol: float = 1e-10) -> None:
    truth = tensor(np.asarray(truth))
    torch.testing.assert_close(ours, truth, rtol=rtol, atol=0, equal_nan=True)


def normals(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def autoregressive(correlation: float, *shape: int, seed: int = 0) -> Tensor:
    """Stationary AR(1) chains of variance 1; their autocorrelation time is known."""
    noise = normals(*shape, seed=seed)
    draws = noise.clone()
    for i in range(1, shape[1]):
        draws[:, i] = correlation * draws[:, i - 1] + math.sqrt(1 - correlation**2) * noise[:, i]
    return draws


# --- Truth from outside ---------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rhat_rank": diagnostics.rank_rhat,
    "rhat_raw": lambda draws: diagnostics.split_rhat(draws, split=False),
    "ess_bulk": diagnostics.bulk_ess,
    "ess_tail": diagnostics.tail_ess,
    "ess_mean": diagnostics.effective_sample_size,
    "ess_sd": diagnostics.sd_ess,
    "ess_median": lambda draws: diagnostics.quantile_ess(draws, 0.5),
    "ess_raw": lambda draws: diagnostics.effective_sample_size(draws, split=False),
    "ess_quantile01": lambda draws: diagnostics.quantile_ess(draws, 0.01),
    "ess_quantile10": lambda draws: diagnostics.quantile_ess(draws, 0.1),
    "ess_quantile30": lambda draws: diagnostics.quantile_ess(draws, 0.3),
    "mcse_mean": diagnostics.mcse_mean,
    "mcse_sd": diagnostics.mcse_sd,
    "mcse_median": lambda draws: diagnostics.mcse_quantile(draws, 0.5),
    "mcse_quantile01": lambda draws: diagnostics.mcse_quantile(draws, 0.01),
    "mcse_quantile10": lambda draws: diagnostics.mcse_quantile(draws, 0.1),
    "mcse_quantile30": lambda draws: diagnostics.mcse_quantile(draws, 0.3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_number_of_r_s_posterior_package(name: str, truth: Any) -> None:
    """On draws that R printed; all five quantities at once."""
    stored = truth("posterior_r")
    assert all(set(numbers) == set(FUNCTIONS) for numbers in stored["reference"].values())
    draws = tensor(list(stored["draws"].values())).permute(1, 2, 0)
    expected = [numbers[name] for numbers in stored["reference"].values()]
    close(FUNCTIONS[name](draws), expected)


ARVIZ: dict[str, tuple[Callable[[np.ndarray], float], Callable[[Tensor], Tensor]]] = {
    "rank": (arviz.rhat, diagnostics.rank_rhat),
    "split": (lambda x: arviz.rhat(x, method="split"), diagnostics.split_rhat),
    "raw": (lambda x: arviz.rhat(x, method="identity"), FUNCTIONS["rhat_raw"]),
    "bulk": (arviz.ess, diagnostics.bulk_ess),
    "tail": (lambda x: arviz.ess(x, method="tail"), diagnostics.tail_ess),
    "mean": (lambda x: arviz.ess(x, method="mean"), diagnostics.effective_sample_size),
    "unsplit": (lambda x: arviz.ess(x, method="identity"), FUNCTIONS["ess_raw"]),
    "sd": (lambda x: arviz.ess(x, method="sd"), diagnostics.sd_ess),
    "mcse_mean": (arviz.mcse, diagnostics.mcse_mean),
    "mcse_sd": (lambda x: arviz.mcse(x, method="sd"), diagnostics.mcse_sd),
}


def heavy_tails(*shape: int, seed: int) -> Tensor:
    return normals(*shape, seed=seed) / normals(*shape, seed=seed + 1)


def few_values(*shape: int, seed: int) -> Tensor:
    """Ties everywhere."""
    return normals(*shape, seed=seed).round().clamp(-1, 1)


def apart(*shape: int, seed: int) -> Tensor:
    return normals(*shape, seed=seed) + torch.arange(shape[0])[:, None, None]


def one_stuck(*shape: int, seed: int) -> Tensor:
    draws = normals(*shape, seed=seed)
    draws[0] = draws[0, 0]
    return draws


KINDS: dict[str, Callable[..., Tensor]] = {
    "independent": normals,
    "slow": lambda *shape, seed: autoregressive(0.95, *shape, seed=seed),
    "antithetic": lambda *shape, seed: autoregressive(-0.9, *shape, seed=seed),
    "heavy tails": heavy_tails,
    "few values": few_values,
    "apart": apart,
    "one stuck": one_stuck,
}


@pytest.mark.parametrize("kind", KINDS)
@exact
@given(
    seed=st.integers(0, 10_000),
    num_chains=st.sampled_from([2, 3, 4, 30, 64]),
    num_draws=st.sampled_from([4, 5, 6, 7, 8, 9, 11, 20, 37, 101]),
    prob=st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5, 0.9, 0.995]),
)
def test_arviz_gives_the_same_numbers(
    kind: str, seed: int, num_chains: int, num_draws: int, prob: float
) -> None:
    """Few and many chains, odd and even draws, two quantities at once; ArviZ takes one."""
    draws = KINDS[kind](num_chains, num_draws, 2, seed=seed)
    columns = draws.movedim(2, 0).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):  # a chain of ties has no variance
        for theirs, ours in ARVIZ.values():
            close(ours(draws), [theirs(column) for column in columns])
    expected = [arviz.ess(column, method="quantile", prob=prob) for column in columns]
    close(diagnostics.quantile_ess(draws, prob), expected)
    expected = [arviz.mcse(column, method="quantile", prob=prob) for column in columns]
    close(diagnostics.mcse_quantile(draws, prob), expected)


def test_autocorrelation_equals_arviz_and_its_own_sum() -> None:
    draws = autoregressive(0.7, 3, 31, 2, seed=1)
    ours = diagnostics.autocorrelation(draws)
    close(ours, arviz.autocorr(draws.numpy(), axis=1))
    centered = draws - draws.mean(dim=1, keepdim=True)
    lag = 5
    by_hand = (centered[:, :-lag] * centered[:, lag:]).sum(dim=1) / centered.square().sum(dim=1)
    close(ours[:, lag], by_hand)


def test_antithetic_chains_beat_independent_draws_up_to_the_cap() -> None:
    draws = autoregressive(-0.3, 4, 200)
    assert 1000 < diagnostics.effective_sample_size(draws) < 800 * math.log10(800)
    alternating = torch.ones(4, 200).cumsum(dim=1).remainder(2) + 1e-3 * normals(4, 200)
    close(diagnostics.effective_sample_size(alternating), 800 * math.log10(800))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 2)])
def test_every_dimension_is_answered_at_once_and_by_itself(shape: tuple[int, ...]) -> None:
    draws = normals(4, 10, *shape)
    for function in (*FUNCTIONS.values(), lambda x: diagnostics.nested_rhat(x, 2)):
        answer = function(draws)
        assert answer.shape == shape
        assert answer.dtype == torch.float64
        alone = [function(column) for column in draws.flatten(2).unbind(2)] if shape else answer
        close(answer.flatten(), torch.stack(list(alone)) if shape else answer.reshape(1))
    assert diagnostics.autocorrelation(draws).shape == draws.shape


def test_float32_draws_are_answered_in_float64() -> None:
    draws = normals(4, 20).float()
    for function in FUNCTIONS.values():
        close(function(draws), function(draws.double()), rtol=0)


# --- Chains whose truth is known ------------------------------------------------------------------


def all_lags(draws: Tensor) -> Tensor:
    """A wrong autocorrelation time: the noise of all lags, added up."""
    rho = diagnostics.autocorrelation(draws).mean(dim=0)
    return -1 + 2 * rho.sum(dim=0)


def first_lag(draws: Tensor) -> Tensor:
    """Another: only the first neighbour."""
    return 1 + 2 * diagnostics.autocorrelation(draws)[:, 1].mean(dim=0)


@pytest.mark.parametrize("correlation", [-0.5, 0.5, 0.8, 0.9])
def test_autocorrelation_time_of_ar1_chains(correlation: float) -> None:
    """It is (1 + r) / (1 - r); 100 repetitions stand side by side as quantities."""
    draws = autoregressive(correlation, 4, 4000, 100)
    truth = (1 + correlation) / (1 - correlation)

    def z_score(time: Tensor) -> float:
        return float((time.mean() - truth) / (time.std() / 10))

    assert abs(z_score(16_000 / diagnostics.effective_sample_size(draws))) < 4
    assert abs(z_score(all_lags(draws))) > 10
    assert abs(z_score(first_lag(draws))) > 10


@pytest.mark.parametrize("correlation", [0.5, 0.8, 0.9])
def test_the_mean_misses_by_as_much_as_mcse_says(correlation: float) -> None:
    """Squared errors in units of the MCSE average to 1; their standard error is sqrt(2 / 400)."""
    draws = autoregressive(correlation, 4, 500, 400)
    means = draws.mean(dim=(0, 1))
    squares = (means / diagnostics.mcse_mean(draws)) ** 2
    independent = means**2 * 2000 / draws.var(dim=(0, 1))
    assert abs(squares.mean() - 1) < 4 * math.sqrt(2 / 400)
    assert abs(independent.mean() - 1) > 10 * math.sqrt(2 / 400)


def test_sd_and_median_miss_by_as_much_as_their_mcse_says() -> None:
    draws = autoregressive(0.5, 4, 500, 400, seed=1)
    errors = {
        "sd": (draws.std(dim=(0, 1)) - 1, diagnostics.mcse_sd(draws)),
        "median": (draws.flatten(0, 1).quantile(0.5, dim=0), diagnostics.mcse_quantile(draws, 0.5)),
    }
    for error, mcse in errors.values():
        # The interval of an order statistic is itself noisy: room for a tenth.
        assert abs((error / mcse).square().mean() - 1) < 4 * math.sqrt(2 / 400) + 0.1


def test_a_chain_that_jumps_once_is_found_only_when_split() -> None:
    draws = normals(4, 1000)
    draws[:, 500:] += 3
    assert diagnostics.split_rhat(draws) > 1.5
    assert diagnostics.split_rhat(draws, split=False) < 1.01
    assert diagnostics.effective_sample_size(draws) < 12


def test_one_chain_is_compared_with_itself() -> None:
    """ArviZ says NaN here."""
    drift = normals(1, 1000) + torch.linspace(0, 3, 1000)
    for rhat in (diagnostics.split_rhat, diagnostics.rank_rhat):
        assert rhat(normals(1, 1000)) < 1.01 < rhat(drift)


def test_ranks_see_what_the_classic_rhat_does_not() -> None:
    wide = normals(4, 1000) * tensor([1.0, 1, 1, 4])[:, None]
    assert diagnostics.split_rhat(wide) < 1.01 < diagnostics.rank_rhat(wide)
    shifted = heavy_tails(4, 1000, seed=2)
    shifted[0] += 2
    assert diagnostics.split_rhat(shifted) < 1.01 < diagnostics.rank_rhat(shifted)


def test_what_is_constant_has_no_rhat_and_full_size() -> None:
    """0.1 is no binary number: rounding must not make up a spread."""
    draws = torch.full((3, 11, 2), 0.1, dtype=torch.float64)
    for rhat in (
        diagnostics.split_rhat,
        diagnostics.rank_rhat,
        FUNCTIONS["rhat_raw"],
        lambda x: diagnostics.nested_rhat(x, 3),
    ):
        assert rhat(draws).isnan().all()
    for ess in (diagnostics.effective_sample_size, diagnostics.bulk_ess, diagnostics.tail_ess):
        close(ess(draws), [30, 30])  # as ArviZ; the middle of 11 draws is left out
    close(FUNCTIONS["ess_raw"](draws), [33, 33])
    assert diagnostics.autocorrelation(draws).isnan().all()
    levels = torch.arange(3.0)[:, None].expand(3, 10)
    assert diagnostics.split_rhat(levels) == diagnostics.rank_rhat(levels) == INF


def test_two_values_half_and_half_keep_the_rhat_of_their_ranks() -> None:
    """Their distances from the median are all equal, and say nothing."""
    draws = tensor([-1.0, 1]).repeat(4, 50)
    close(diagnostics.rank_rhat(draws), arviz.rhat(draws.numpy(), method="z_scale"))


# --- Nested R-hat ---------------------------------------------------------------------------------


def nested_by_loops(draws: Tensor, num_superchains: int) -> float:
    """The definition, number by number."""
    size = len(draws) // num_superchains
    superchain_means, within = [], []
    for k in range(num_superchains):
        chains = [draws[k * size + m].tolist() for m in range(size)]
        means = [sum(chain) / len(chain) for chain in chains]
        superchain_means.append(sum(means) / size)
        variances = [
            sum((x - mean) ** 2 for x in chain) / (len(chain) - 1)
            for chain, mean in zip(chains, means, strict=True)
        ]
        between = sum((mean - superchain_means[-1]) ** 2 for mean in means)
        within.append(sum(variances) / size + (between / (size - 1) if size > 1 else 0))
    overall = sum(superchain_means) / num_superchains
    spread = sum((mean - overall) ** 2 for mean in superchain_means) / (num_superchains - 1)
    return math.sqrt(1 + spread / (sum(within) / num_superchains))


@exact
@given(
    seed=st.integers(0, 10_000),
    num_superchains=st.integers(2, 5),
    size=st.integers(1, 4),
    num_draws=st.integers(4, 9),
)
def test_nested_rhat_equals_its_definition_in_loops(
    seed: int, num_superchains: int, size: int, num_draws: int
) -> None:
    draws = apart(num_superchains * size, num_draws, 2, seed=seed)
    loops = [nested_by_loops(column, num_superchains) for column in draws.unbind(2)]
    close(diagnostics.nested_rhat(draws, num_superchains), loops)


def test_one_chain_a_superchain_is_the_unsplit_rhat_but_for_one_over_n() -> None:
    draws = apart(5, 20, 3, seed=0)
    nested, raw = diagnostics.nested_rhat(draws, 5), diagnostics.split_rhat(draws, split=False)
    close(nested**2, raw**2 + 1 / 20)


def test_superchains_in_different_modes_are_found_and_the_order_of_chains_matters() -> None:
    modes = torch.arange(4.0).repeat_interleave(16)[:, None]
    draws = normals(64, 10) + modes
    # Superchain means 0 ... 3 have variance 5 / 3, and draws variance 1.
    assert diagnostics.nested_rhat(draws, 4) == pytest.approx(math.sqrt(1 + 5 / 3), rel=0.05)
    mixed_up = draws.view(4, 16, 10).transpose(0, 1).reshape(64, 10)
    assert diagnostics.nested_rhat(mixed_up, 4) < 1.01


def test_short_converged_chains_pass_nested_and_fail_split() -> None:
    draws = autoregressive(0.8, 256, 40, seed=3)
    assert diagnostics.nested_rhat(draws, 4) < 1.01 < diagnostics.split_rhat(draws)
    ranks = diagnostics.rank_rhat(draws, num_superchains=4)
    assert ranks < 1.01 < diagnostics.rank_rhat(draws)


def test_ranks_of_superchains_see_what_their_means_do_not() -> None:
    wide = normals(64, 20) * tensor([1.0, 1, 1, 4]).repeat_interleave(16)[:, None]
    assert diagnostics.nested_rhat(wide, 4) < 1.01
    assert diagnostics.rank_rhat(wide, num_superchains=4) > 1.1


# --- Energy ---------------------------------------------------------------------------------------


def test_e_bfmi_by_hand_and_by_arviz() -> None:
    energy = tensor([[1.0, 3, 2, 6], [0, 1, 0, 1]])
    close(diagnostics.e_bfmi(energy), [(4 + 1 + 16) / (4 + 0 + 1 + 9), 3 / 1])
    slow = autoregressive(0.9, 3, 1000)
    close(diagnostics.e_bfmi(slow), arviz.bfmi(slow.numpy()))
    assert diagnostics.e_bfmi(torch.ones(1, 4)).isnan()


def test_e_bfmi_of_independent_energies_is_two() -> None:
    values = diagnostics.e_bfmi(normals(400, 500))
    assert abs(values.mean() - 2) < 4 * values.std() / 20


# --- Summary --------------------------------------------------------------------------------------


def good_chains(num_chains: int = 4, num_draws: int = 400) -> Chains:
    draws = normals(num_chains, num_draws, 2, seed=5)
    log_density = -draws.square().sum(dim=2) / 2
    shape = num_chains, num_draws
    energy = normals(*shape, seed=6).square() - log_density
    info = HMCInfo(log_density, torch.full(shape, 0.8), energy, torch.zeros(shape).bool())
    return Chains(draws, info, None)


def with_info(chains: Chains, **changed: Tensor) -> Chains:
    return chains._replace(info=chains.info._replace(**changed))


@pytest.mark.parametrize(("num_chains", "num_superchains"), [(4, None), (100, None), (100, 5)])
def test_well_mixed_chains_are_trusted(num_chains: int, num_superchains: int | None) -> None:
    chains = good_chains(num_chains)
    for given_ in (chains, chains.draws):
        summary = diagnostics.summary(given_, num_superchains=num_superchains)
        assert summary.warnings == ()
        assert summary.trusted


def test_summary_holds_the_numbers_of_the_functions() -> None:
    chains = good_chains()
    summary = diagnostics.summary(chains, names=["a", "b"])
    draws = torch.cat([chains.draws, chains.info.log_density[..., None]], dim=2)
    assert summary.names == ("a", "b", "log density")
    flat = draws.flatten(0, 1)
    close(summary.mean, flat.mean(dim=0))
    close(summary.sd, flat.std(dim=0))
    close(summary.quantile_05, flat.quantile(0.05, dim=0))
    close(summary.quantile_95, flat.quantile(0.95, dim=0))
    close(summary.mcse, diagnostics.mcse_mean(draws), rtol=0)
    close(summary.bulk_ess, diagnostics.bulk_ess(draws), rtol=0)
    close(summary.tail_ess, diagnostics.tail_ess(draws), rtol=0)
    close(summary.rhat, diagnostics.rank_rhat(draws), rtol=0)
    nested = diagnostics.summary(chains, num_superchains=2)
    close(nested.rhat, diagnostics.rank_rhat(draws, num_superchains=2), rtol=0)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((), ("theta",)),
        ((2,), ("theta[0]", "theta[1]")),
        ((1, 2), ("theta[0, 0]", "theta[0, 1]")),
    ],
)
def test_quantities_without_names_are_numbered(
    shape: tuple[int, ...], names: tuple[str, ...]
) -> None:
    assert diagnostics.summary(normals(2, 10, *shape)).names == names


def _apart() -> Chains:
    chains = good_chains()
    return chains._replace(draws=chains.draws + tensor([0.0, 0, 0, 3])[:, None, None])


def _slow() -> Chains:
    return good_chains()._replace(draws=autoregressive(0.97, 4, 400, 2, seed=2))


def _short() -> Chains:
    return good_chains(4, 60)


def _not_finite() -> Chains:
    chains = good_chains()
    chains.draws[1, 7, 1] = NAN
    chains.draws[2, 9, 1] = INF
    return chains


def _constant() -> Chains:
    chains = good_chains()
    chains.draws[..., 0] = 0.1
    return chains


def _stuck() -> Chains:
    chains = good_chains()
    chains.draws[3] = chains.draws[3, 0].clone()
    return chains


def _diverged() -> Chains:
    chains = good_chains()
    chains.info.diverged[0, :3] = True
    return chains


def _refused() -> Chains:
    chains = good_chains()
    chains.info.acceptance[2] = 0.01
    return chains


def _all_accepted() -> Chains:
    return with_info(good_chains(), acceptance=torch.full((4, 400), 0.999))


def _slow_energy() -> Chains:
    return with_info(good_chains(), energy=autoregressive(0.97, 4, 400))


def _lost() -> Chains:
    chains = good_chains(20)
    chains.info.log_density[11] -= 8
    return chains


WARNINGS: dict[str, tuple[Callable[[], Chains], tuple[str, ...]]] = {
    "R-hat": (_apart, ("above 1.01: theta[0], theta[1].",)),
    "Effective sample size (bulk)": (_slow, ("below 400: theta[0], theta[1].",)),
    "Effective sample size (tail)": (_short, ("below 400: theta[0], theta[1], log density.",)),
    "Draws that are NaN or infinite": (_not_finite, ("theta[1].",)),
    "All draws are equal": (_constant, ("theta[0].",)),
    "Stuck chains": (_stuck, ("1 of 4 (number 3)",)),
    "Divergent transitions": (_diverged, ("3 of 1600",)),
    "Acceptance near 0": (_refused, ("1 of 4 (number 2)",)),
    "Acceptance near 1": (_all_accepted, ("larger",)),
    "E-BFMI": (_slow_energy, ("below 0.3", "4 of 4 (number 0, 1, 2 and 1 more)")),
    "Lost chains": (_lost, ("1 of 20 (number 11)",)),
}


@pytest.mark.parametrize("start", WARNINGS)
def test_each_doubt_is_put_into_words(start: str) -> None:
    """It appears where it should, with its numbers; well mixed chains above give none."""
    make, words = WARNINGS[start]
    summary = diagnostics.summary(make())
    (sentence,) = (warning for warning in summary.warnings if warning.startswith(start))
    assert all(word in sentence for word in words), sentence
    assert not summary.trusted


ALONE = ["Divergent transitions", "Acceptance near 0", "Acceptance near 1", "E-BFMI"]


@pytest.mark.parametrize("start", ["All draws are equal", "Draws that are NaN or infinite", *ALONE])
def test_a_doubt_about_one_thing_accuses_nothing_else(start: str) -> None:
    (only,) = diagnostics.summary(WARNINGS[start][0]()).warnings
    assert only.startswith(start)


def starts(summary: diagnostics.Summary) -> set[str]:
    return {start for start in WARNINGS if any(w.startswith(start) for w in summary.warnings)}


def test_rows_that_are_not_finite_are_empty_and_the_others_are_not() -> None:
    summary = diagnostics.summary(_not_finite())
    others = diagnostics.summary(good_chains())
    for name in ("mean", "sd", "quantile_05", "mcse", "bulk_ess", "tail_ess", "rhat"):
        values, expected = getattr(summary, name), getattr(others, name)
        assert values[1].isnan()
        close(values[[0, 2]], expected[[0, 2]], rtol=0)


def test_a_log_density_that_is_not_finite_is_reported_and_not_searched_for_lost_chains() -> None:
    chains = good_chains()
    chains.info.log_density[0, 0] = -INF
    chains.info.energy[0, 0] = INF
    assert starts(diagnostics.summary(chains)) == {"Draws that are NaN or infinite"}


def test_many_short_chains_are_judged_by_superchains() -> None:
    """The same draws: split R-hat accuses them, and says how to do better; nested does not."""
    draws = autoregressive(0.8, 256, 40, seed=3)
    plain, nested = diagnostics.summary(draws), diagnostics.summary(draws, num_superchains=4)
    assert starts(plain) == {"R-hat"}
    assert "num_superchains" in plain.warnings[0]
    assert nested.trusted
    modes = draws + torch.arange(4.0).repeat_interleave(64)[:, None]
    assert "R-hat" in starts(diagnostics.summary(modes, num_superchains=4))


def test_few_chains_are_not_sent_to_superchains() -> None:
    assert "num_superchains" not in str(diagnostics.summary(_apart()))


def test_400_effective_draws_are_enough_however_many_the_chains() -> None:
    draws = normals(256, 8)
    assert "Effective sample size (bulk)" not in starts(diagnostics.summary(draws))


def test_one_slow_energy_among_many_short_chains_is_noise_and_one_of_four_is_not() -> None:
    slow = autoregressive(0.97, 1, 400)[0]
    for num_chains, accused in ((4, True), (100, False)):
        chains = good_chains(num_chains)
        chains.info.energy[0] = slow
        summary = diagnostics.summary(chains, num_superchains=2)
        assert ("E-BFMI" in starts(summary)) == accused


@pytest.mark.parametrize("num_chains", [3, 4, 128])
@pytest.mark.parametrize("dim", [2, 16])
def test_chains_of_one_distribution_are_not_called_lost(num_chains: int, dim: int) -> None:
    """10 repetitions of correlated chains, of skewed log densities."""
    for seed in range(10):
        draws = autoregressive(0.8, num_chains, 100, dim, seed=seed)
        log_density = -draws.square().sum(dim=2) / 2
        chains = Chains(draws, Info(log_density, torch.full_like(log_density, 0.5)), None)
        assert "Lost chains" not in starts(diagnostics.summary(chains))


@pytest.mark.parametrize(("num_chains", "num_lost"), [(4, 1), (256, 1), (256, 80)])
def test_lost_chains_are_found_among_few_and_many(num_chains: int, num_lost: int) -> None:
    chains = good_chains(num_chains)
    chains.info.log_density[:num_lost] -= 6
    (found,) = (w for w in diagnostics.summary(chains).warnings if w.startswith("Lost chains"))
    assert f"{num_lost} of {num_chains} " in found
    chains.info.log_density[:num_lost] += 12
    assert "Lost chains" not in starts(diagnostics.summary(chains)), "a higher density is no loss"


@pytest.mark.parametrize(
    ("means", "spread"),
    [
        ([0.0, -1, -2, -3, -4, -5, -6, -7], 0.1),  # all differ: no chain stands out
        ([0.001, 0.0, -0.001, -0.5], 1.0),  # three agree by chance
    ],
)
def test_a_chain_is_lost_only_when_it_stands_out_by_both_measures(
    means: list[float], spread: float
) -> None:
    chains = good_chains(len(means))
    noise = normals(len(means), 400)
    noise = spread * (noise - noise.mean(dim=1, keepdim=True))
    for lowest, lost in ((means[-1], False), (-40.0, True)):
        levels = tensor([*means[:-1], lowest])[:, None]
        summary = diagnostics.summary(with_info(chains, log_density=noise + levels))
        assert ("Lost chains" in starts(summary)) == lost


def test_more_than_three_names_are_counted() -> None:
    draws = normals(4, 200, 5) + 5 * torch.arange(4)[:, None, None]
    assert "theta[0], theta[1], theta[2] and 2 more." in diagnostics.summary(draws).warnings[0]


class Table(HTMLParser):
    """Collects the elements of a page, their attributes, and the text of the cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        assert not self.open, "all elements are closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1], []).append(data)


def test_the_table_can_be_read_by_a_screen_reader() -> None:
    summary = diagnostics.summary(_apart(), names=["<b>", "c & d"])
    table = Table(summary._repr_html_())
    scopes = [attributes.get("scope") for tag, attributes in table.elements if tag == "th"]
    assert scopes == ["col"] * 9 + ["row"] * 3
    assert table.texts["caption"] == ["4 chains of 400 draws, mean acceptance 0.80"]
    assert table.texts["th"][9:] == ["<b>", "c & d", "log density"]
    assert len(table.texts["td"]) == 3 * 8
    assert tuple(table.texts["li"]) == summary.warnings
    assert "style" not in summary._repr_html_()
    good = Table(diagnostics.summary(good_chains())._repr_html_())
    assert good.texts["p"] == ["Nothing speaks against these draws."]
    assert "li" not in good.texts


def test_the_printed_table_has_a_row_a_quantity_and_says_what_is_wrong() -> None:
    summary = diagnostics.summary(_apart(), names=["a", "long name"])
    assert str(summary) == repr(summary)
    caption, header, *rows = str(summary).splitlines()
    assert caption == "4 chains of 400 draws, mean acceptance 0.80"
    assert re.split(r"  +", header) == [
        *("quantity", "mean", "sd", "5 %", "95 %", "MCSE", "bulk ESS", "tail ESS", "R-hat")
    ]
    assert [row[:11] for row in rows[:3]] == ["a          ", "long name  ", "log density"]
    assert len({len(line) for line in (header, *rows[:3])}) == 1, "the columns are aligned"
    assert rows[0].endswith(f"{summary.rhat[0]:.3f}")
    assert rows[3] == "Do not trust these draws:"
    assert rows[4:] == [f"- {warning}" for warning in summary.warnings]
    assert str(diagnostics.summary(normals(1, 10))).startswith("1 chain of 10 draws\n")
    nested = diagnostics.summary(normals(6, 10), num_superchains=3)
    assert nested.caption == "6 chains of 10 draws in 3 superchains"


# --- Export ---------------------------------------------------------------------------------------


def test_arviz_gets_the_draws_and_its_own_names_and_finds_the_same_numbers() -> None:
    chains = good_chains(20, 10)  # more chains than draws, which ArviZ finds odd
    data = diagnostics.to_arviz(chains)
    close(torch.from_numpy(data.posterior["theta"].to_numpy()), chains.draws)
    stats = data.sample_stats
    assert set(stats) == {"lp", "acceptance_rate", "energy", "diverging"}
    close(torch.from_numpy(stats["lp"].to_numpy()), chains.info.log_density)
    close(torch.from_numpy(stats["energy"].to_numpy()), chains.info.energy)
    close(torch.tensor(stats["acceptance_rate"].to_numpy()).double(), chains.info.acceptance)
    assert not stats["diverging"].any()
    close(torch.from_numpy(arviz.bfmi(data)), diagnostics.e_bfmi(chains.info.energy))
    table = arviz.summary(data, round_to="none")
    ours = diagnostics.summary(chains)
    close(ours.bulk_ess[:2], table["ess_bulk"].to_numpy())
    close(ours.tail_ess[:2], table["ess_tail"].to_numpy())
    close(ours.mcse[:2], table["mcse_mean"].to_numpy())
    close(ours.rhat[:2], table["r_hat"].to_numpy())


def test_arviz_gets_named_quantities_and_only_what_the_sampler_told() -> None:
    chains = good_chains()
    told = Chains(chains.draws, Info(chains.info.log_density, chains.info.acceptance), None)
    data = diagnostics.to_arviz(told, names=["a", "b"])
    assert set(data.posterior.data_vars) == {"a", "b"}
    close(torch.from_numpy(data.posterior["b"].to_numpy()), chains.draws[..., 1])
    assert set(data.sample_stats) == {"lp", "acceptance_rate"}
    assert diagnostics.to_arviz(normals(4, 9, 2, 3)).posterior["theta"].shape == (4, 9, 2, 3)
    assert diagnostics.to_arviz(normals(4, 9)).groups() == ["posterior"]


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("arviz", lambda draws: diagnostics.to_arviz(draws)),
        ("scipy.special", lambda draws: diagnostics.mcse_quantile(draws, 0.5)),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(
    package: str, call: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(name)
        return load(name, *rest)

    draws = normals(4, 10)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=re.escape('pip install "coursepkg[arviz]"')):
        call(draws)


# --- Bad input ------------------------------------------------------------------------------------

EVERY = {
    **FUNCTIONS,
    "autocorrelation": diagnostics.autocorrelation,
    "split_rhat": diagnostics.split_rhat,
    "nested_rhat": lambda draws: diagnostics.nested_rhat(draws, 2),
    "nested ranks": lambda draws: diagnostics.rank_rhat(draws, num_superchains=2),
    "summary": diagnostics.summary,
    "to_arviz": diagnostics.to_arviz,
}


@pytest.mark.parametrize("name", EVERY)
def test_draws_that_cannot_be_used_are_refused_kindly(name: str, kind_error: Any) -> None:
    function = EVERY[name]
    with kind_error(TypeError, "draws must be a torch.Tensor", "list"):
        function([[1.0, 2.0, 3.0, 4.0]])
    with kind_error(TypeError, "draws must have a floating-point dtype", "int64"):
        function(torch.ones(4, 10).long())
    with kind_error(ValueError, "(chains, draws, ...)", "(10,)", "draws[None]"):
        function(torch.ones(10))
    with kind_error(ValueError, "at least 4 draws a chain", "got 3", "(10, 3)"):
        function(torch.ones(10, 3))
    with kind_error(ValueError, "draws must not be empty", "(4, 10, 0)"):
        function(torch.ones(4, 10, 0))
    if name not in ("summary", "to_arviz"):
        for value in (NAN, INF):
            draws = normals(4, 10)
            draws[0, 0] = value
            with kind_error(ValueError, "draws must be finite", "1 NaN or infinite value"):
                function(draws)


def test_unsplit_rhat_wants_two_chains(kind_error: Any) -> None:
    with kind_error(ValueError, "at least 2 chains", "got 1"):
        diagnostics.split_rhat(normals(1, 10), split=False)


@pytest.mark.parametrize("prob", [0.0, 1.0, -0.1, 1.5])
def test_a_probability_lies_between_0_and_1(prob: float, kind_error: Any) -> None:
    for function in (diagnostics.quantile_ess, diagnostics.mcse_quantile):
        with kind_error(ValueError, "prob must be between 0 and 1", str(prob)):
            function(normals(4, 10), prob)
        with kind_error(TypeError, "prob must be a real number"):
            function(normals(4, 10), "half")
        with kind_error(ValueError, "prob must be finite"):
            function(normals(4, 10), NAN)


def test_superchains_divide_the_chains(kind_error: Any) -> None:
    draws = normals(6, 10)
    for function in (
        lambda k: diagnostics.nested_rhat(draws, k),
        lambda k: diagnostics.rank_rhat(draws, num_superchains=k),
        lambda k: diagnostics.summary(draws, num_superchains=k),
    ):
        with kind_error(ValueError, "num_superchains must divide the number of chains, 6, got 4"):
            function(4)
        with kind_error(ValueError, "num_superchains must be at least 2, got 1"):
            function(1)
        with kind_error(TypeError, "num_superchains must be a whole number"):
            function(2.0)


def test_names_fit_the_quantities(kind_error: Any) -> None:
    for function in (diagnostics.summary, diagnostics.to_arviz):
        with kind_error(ValueError, "names must hold 2", "got 3"):
            function(normals(4, 10, 2), names=["a", "b", "c"])
        with kind_error(TypeError, "names must be a sequence", "'ab'"):
            function(normals(4, 10, 2), names="ab")


def test_energy_is_named_in_its_errors(kind_error: Any) -> None:
    with kind_error(ValueError, "energy must have 2 dimensions", "(10,)"):
        diagnostics.e_bfmi(torch.ones(10))
    with kind_error(ValueError, "energy must hold at least 4 draws a chain, got 2"):
        diagnostics.e_bfmi(torch.ones(3, 2))
    with kind_error(ValueError, "energy must be finite"):
        diagnostics.e_bfmi(tensor([[1.0, 2, NAN, 4]]))


def test_a_divergence_in_thousands_is_counted_and_no_reason_for_distrust() -> None:
    chains = good_chains()
    chains.info.diverged[0, 0] = True  # 1 of 1600
    summary = diagnostics.summary(chains)
    assert summary.trusted
    assert summary.caption.endswith("1 divergent")
    chains.info.diverged[0, :2] = True
    assert not diagnostics.summary(chains).trusted
