"""Diagnostics: against R, against ArviZ, and against chains whose truth is known."""

from __future__ import annotations

import builtins
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from draws import autoregressive, close, normals, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coursepkg import diagnostics, summaries

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # once a day it announces its next version
    import arviz

# Where numba is installed ArviZ uses it, and some results get one dimension more.
arviz.Numba.disable_numba()

NAN, INF = math.nan, math.inf
exact = settings(deadline=None, derandomize=True, max_examples=60)


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


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("arviz", lambda draws: summaries.to_arviz(draws)),
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
    "summary": summaries.summary,
    "to_arviz": summaries.to_arviz,
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
        lambda k: summaries.summary(draws, num_superchains=k),
    ):
        with kind_error(ValueError, "num_superchains must divide the number of chains, 6, got 4"):
            function(4)
        with kind_error(ValueError, "num_superchains must be at least 2, got 1"):
            function(1)
        with kind_error(TypeError, "num_superchains must be a whole number"):
            function(2.0)


def test_energy_is_named_in_its_errors(kind_error: Any) -> None:
    with kind_error(ValueError, "energy must have 2 dimensions", "(10,)"):
        diagnostics.e_bfmi(torch.ones(10))
    with kind_error(ValueError, "energy must hold at least 4 draws a chain, got 2"):
        diagnostics.e_bfmi(torch.ones(3, 2))
    with kind_error(ValueError, "energy must be finite"):
        diagnostics.e_bfmi(tensor([[1.0, 2, NAN, 4]]))
