"""Metropolis and `sample`: invariant and reversible from exact draws, which wrong kernels are not.

False alarms: each statistical test looks at some sixty z scores with a limit of 5, or at fewer with
a limit of 4.5; each passes a right kernel in all but 1 of 10,000 seeds. The seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_checks import (
    EXACT_MEAN,
    EXACT_VARIANCE,
    PlantedMetropolis,
    exact_draws,
    largest_z,
    skewed,
    z_scores,
)
from torch import Tensor

from coursepkg import mcmc
from coursepkg.mcmc import random_walk_metropolis, sample

NAN, INF = math.nan, math.inf


def normal(theta: Tensor) -> Tensor:
    return -theta.square().sum(-1) / 2


def quiet(*arguments: Any, **options: Any) -> mcmc.Chains:
    return sample(*arguments, progress=False, **options)


# --- The right distribution -----------------------------------------------------------------------


def test_the_exact_draws_are_of_the_target(generator: torch.Generator) -> None:
    draws = exact_draws(200_000, generator).requires_grad_()
    (score,) = torch.autograd.grad(skewed(draws).sum(), draws)
    draws = draws.detach()
    assert z_scores(draws - EXACT_MEAN).max() < 4.5
    assert z_scores((draws - EXACT_MEAN).square() - EXACT_VARIANCE).max() < 4.5
    # Integration by parts: E[score] = 0, and E[x score'] = -1, only for the density drawn from.
    assert z_scores(score).max() < 4.5
    products = (draws[:, :, None] * score[:, None]).flatten(1)
    assert z_scores(products + torch.eye(2).to(draws).flatten()).max() < 4.5


@pytest.mark.parametrize("step_size", [0.3, 1.0, 3.0])
def test_metropolis_leaves_the_target_invariant_and_is_reversible(
    step_size: float, generator: torch.Generator
) -> None:
    kernel = random_walk_metropolis(skewed, step_size)
    invariant, reversible = largest_z(kernel, exact_draws(200_000, generator), generator)
    assert invariant < 5
    assert reversible < 5


@pytest.mark.parametrize("bug", ["none", "drift, corrected"])
def test_the_kernels_that_carry_the_bugs_are_right_without(
    bug: str, generator: torch.Generator
) -> None:
    kernel = PlantedMetropolis(skewed, 1.0, bug)
    assert max(largest_z(kernel, exact_draws(200_000, generator), generator)) < 5


@pytest.mark.parametrize(
    "bug",
    [
        "inverted ratio",
        "always accepted",
        "square root of the ratio",
        "drift, not corrected",
        "rejected draws thrown away",
    ],
)
def test_a_wrong_kernel_is_not_invariant(bug: str, generator: torch.Generator) -> None:
    kernel = PlantedMetropolis(skewed, 1.0, bug)
    invariant, _ = largest_z(kernel, exact_draws(200_000, generator), generator)
    assert invariant > 10


@pytest.mark.parametrize("bug", ["right", "always accepted", "inverted ratio"])
def test_chains_from_far_away_reach_the_target(bug: str, generator: torch.Generator) -> None:
    kernel = random_walk_metropolis(skewed, 1.5)
    if bug != "right":
        kernel = PlantedMetropolis(skewed, 1.5, bug)
    far = torch.full((4000, 2), 3.0, dtype=torch.float64)
    end = quiet(kernel, far, 1, num_warmup=150, generator=generator).draws[:, -1]
    z = z_scores(torch.cat([end - EXACT_MEAN, (end - EXACT_MEAN).square() - EXACT_VARIANCE], 1))
    assert (z.max() < 4.5) == (bug == "right")


def test_acceptance_probability_and_log_density_belong_to_the_draws(
    generator: torch.Generator,
) -> None:
    chains = quiet(random_walk_metropolis(skewed, 1.0), torch.zeros(500, 2), 200, 50)
    torch.testing.assert_close(
        chains.info.log_density, skewed(chains.draws.reshape(-1, 2)).reshape(500, 200)
    )
    moved = (chains.draws[:, 1:] != chains.draws[:, :-1]).any(-1).double()
    acceptance = chains.info.acceptance
    assert (acceptance >= 0).all()
    assert (acceptance <= 1).all()
    # A move is a coin with this probability: the difference is a martingale.
    assert z_scores((moved - acceptance[:, 1:]).reshape(-1, 1)).item() < 4.5


def test_accept_takes_with_the_probability_of_the_ratio(generator: torch.Generator) -> None:
    ratios = torch.tensor([0.0, math.log(0.3), 7.0, -INF, NAN, INF]).repeat(20_000)
    zeros, ones = torch.zeros_like(ratios), torch.ones_like(ratios)
    old, new = mcmc.State(zeros[:, None], zeros), mcmc.State(ones[:, None], ones)
    state, acceptance = mcmc.accept(ratios, new, old, generator=generator)
    probabilities = torch.tensor([1.0, 0.3, 1.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(acceptance[:6], probabilities)
    taken = state.position[:, 0].reshape(-1, 6)
    assert torch.equal(state.position[:, 0], state.log_density)
    assert torch.equal(taken.mean(0)[probabilities != 0.3], probabilities[probabilities != 0.3])
    assert z_scores(taken[:, 1:2] - 0.3).item() < 4.5


def test_a_proposal_where_the_density_cannot_be_computed_is_not_taken(
    generator: torch.Generator,
) -> None:
    def half_line(theta: Tensor) -> Tensor:  # NaN below zero; an exponential variable above
        return theta.sqrt().square().neg().sum(-1)

    start = torch.empty(20_000, 1, dtype=torch.float64).exponential_(generator=generator)
    draws = quiet(random_walk_metropolis(half_line, 2.0), start, 5, generator=generator).draws
    assert (draws >= 0).all()
    assert z_scores(torch.cat([draws[:, -1] - 1, draws[:, -1].square() - 2], 1)).max() < 4.5


# --- Warm-up --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "target"), [(1, 0.44), (2, 0.234), (10, 0.234)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_warm_up_tunes_the_acceptance(
    dim: int, target: float, scale: float, generator: torch.Generator
) -> None:
    kernel = random_walk_metropolis(lambda theta: normal(theta / scale))
    start = scale * torch.randn(100, dim, generator=generator)
    chains = quiet(kernel, start, 100, num_warmup=400, generator=generator)
    assert float(chains.info.acceptance.mean()) == pytest.approx(target, rel=0.1)
    assert kernel.step_size is None
    if scale == 1.0 and dim == 10:  # where theory knows the best step: 2.38 / sqrt(dim)
        assert chains.kernel.step_size == pytest.approx(2.38 / 10**0.5, rel=0.15)


def test_a_step_size_that_is_given_stays(generator: torch.Generator) -> None:
    kernel = random_walk_metropolis(normal, step_size=0.1)
    assert quiet(kernel, torch.zeros(3, 2), 5, 50, generator=generator).kernel.step_size == 0.1


class Counting(mcmc.Metropolis):
    """Every step adds one to the position: positions say which draws were kept."""

    def step(self, state: Any, *, generator: torch.Generator | None = None) -> Any:
        state = self.init(state.position + 1)
        return state, mcmc.Info(state.log_density, torch.ones(len(state.position)))


def test_the_warm_up_is_thrown_away_and_every_draw_kept() -> None:
    chains = quiet(Counting(normal, 1.0), torch.tensor([[0.0], [100.0]]), 3, num_warmup=4)
    assert chains.draws[..., 0].tolist() == [[5, 6, 7], [105, 106, 107]]
    assert chains.info.log_density[0].tolist() == [-25 / 2, -36 / 2, -49 / 2]


# --- One run, many chains -------------------------------------------------------------------------


def test_draws_repeat_with_their_generator_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (
        quiet(
            random_walk_metropolis(normal),
            torch.zeros(3, 2),
            20,
            30,
            generator=torch.Generator().manual_seed(seed),
        ).draws
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_without_a_generator_follow_the_global_seed() -> None:
    kernel = random_walk_metropolis(normal, 1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = quiet(kernel, torch.zeros(3, 2), 20).draws
        assert not torch.equal(quiet(kernel, torch.zeros(3, 2), 20).draws, first)
        torch.manual_seed(0)
        assert torch.equal(quiet(kernel, torch.zeros(3, 2), 20).draws, first)


def test_chains_are_independent(generator: torch.Generator) -> None:
    draws = quiet(
        random_walk_metropolis(normal), torch.zeros(2000, 1), 1, 60, generator=generator
    ).draws
    assert z_scores(draws[::2, 0] * draws[1::2, 0]).item() < 4.5


def test_a_run_goes_on_from_its_kernel_and_its_last_draws() -> None:
    kernel = random_walk_metropolis(skewed)
    start = torch.zeros(4, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    whole = quiet(kernel, start, 30, 20, generator=generator)
    generator = torch.Generator().manual_seed(1)
    first = quiet(kernel, start, 10, 20, generator=generator)
    rest = quiet(first.kernel, first.draws[:, -1], 20, generator=generator)
    torch.testing.assert_close(torch.cat([first.draws, rest.draws], 1), whole.draws)
    assert rest.kernel == first.kernel == whole.kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (5, 1), (5, 3)])
def test_shapes_and_dtype(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    start = torch.zeros(shape, dtype=dtype, requires_grad=True)
    chains = quiet(random_walk_metropolis(normal, 1.0), start, 7, 2)
    assert chains.draws.shape == (shape[0], 7, shape[1])
    assert chains.draws.dtype == dtype
    assert not chains.draws.requires_grad
    assert chains.info._fields == ("log_density", "acceptance")
    assert all(field.shape == (shape[0], 7) for field in chains.info)
    assert all(field.dtype == dtype for field in chains.info)
    assert torch.equal(start, torch.zeros(shape, dtype=dtype))


def test_the_progress_bar_counts_every_step_and_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bars: list[Any] = []

    class Bar(mcmc.tqdm):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            bars.append(self)
            self.wanted = options["disable"]
            super().__init__(**options | {"disable": False, "leave": False})

    monkeypatch.setattr(mcmc, "tqdm", Bar)
    kernel = random_walk_metropolis(normal)
    sample(kernel, torch.zeros(2, 1), 5, 6)
    sample(kernel, torch.zeros(2, 1), 5, 6, progress=False)
    assert [(bar.total, bar.n) for bar in bars] == [(11, 11)] * 2
    assert [bar.wanted for bar in bars] == [None, True]  # None: only where someone looks


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("initial", "error", "words"),
    [
        (torch.zeros(3), ValueError, ["initial", "2 dimensions", "(3,)"]),
        (torch.zeros(0, 3), ValueError, ["initial", "empty"]),
        (torch.tensor([[NAN]]), ValueError, ["initial", "finite", "1 NaN"]),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, ["initial", "floating-point"]),
        ([[0.0]], TypeError, ["initial", "torch.Tensor", "list"]),
    ],
)
def test_starts_that_are_no_finite_matrix_are_refused(
    initial: Any, error: type[Exception], words: list[str], kind_error: Callable[..., Any]
) -> None:
    with kind_error(error, *words):
        quiet(random_walk_metropolis(normal, 1.0), initial, 5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_draws": 0}, ValueError, ["num_draws", "at least 1", "0"]),
        ({"num_draws": 2.5}, TypeError, ["num_draws", "whole number", "2.5"]),
        ({"num_warmup": -1}, ValueError, ["num_warmup", "at least 0", "-1"]),
        ({"generator": 3}, TypeError, ["generator", "torch.Generator", "int"]),
    ],
)
def test_counts_and_generators_are_checked(
    options: Any, error: type[Exception], words: list[str], kind_error: Callable[..., Any]
) -> None:
    with kind_error(error, *words):
        quiet(random_walk_metropolis(normal, 1.0), torch.zeros(2, 1), **{"num_draws": 5} | options)


def test_starts_without_a_density_are_refused(kind_error: Callable[..., Any]) -> None:
    def half_line(theta: Tensor) -> Tensor:
        return theta.log().sum(-1)

    with kind_error(ValueError, "initial", "3 rows", "2 without"):
        quiet(random_walk_metropolis(half_line, 1.0), torch.tensor([[1.0], [0.0], [-1.0]]), 5)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((3,), TypeError, ["log_density", "function", "3"]),
        ((normal, 0.0), ValueError, ["step_size", "positive", "0.0"]),
        ((normal, NAN), ValueError, ["step_size", "finite", "nan"]),
        ((normal, "1"), TypeError, ["step_size", "number", "'1'"]),
    ],
)
def test_a_kernel_is_checked_when_it_is_made(
    arguments: Any, error: type[Exception], words: list[str], kind_error: Callable[..., Any]
) -> None:
    with kind_error(error, *words):
        random_walk_metropolis(*arguments)


def test_without_a_step_size_and_without_a_warm_up_there_is_nothing_to_go_by(
    kind_error: Callable[..., Any],
) -> None:
    with kind_error(ValueError, "step_size", "None", "warm up first"):
        quiet(random_walk_metropolis(normal), torch.zeros(2, 1), 5)
