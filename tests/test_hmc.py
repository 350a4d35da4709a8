"""HMC: exact properties of leapfrog, invariance from exact draws, and a warm-up that tunes itself.

The target is skewed: on a Gaussian many sign errors hide. False alarms: z scores have a limit of 5
where some sixty are looked at and of 4.5 where few are; a right sampler fails less than 1 test of
10,000. The seeds are fixed.
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
    exact_draws,
    largest_z,
    planted_hmc,
    skewed,
    z_scores,
)
from torch import Tensor

from coursepkg import diagnostics, mcmc
from coursepkg import hmc as module
from coursepkg.adaptation import DualAveraging, harmonic_mean, pooled_covariance
from coursepkg.hmc import HMCState, hmc, leapfrog

NAN = math.nan
DIAGONAL = torch.tensor([0.5, 2.0], dtype=torch.float64)
DENSE = torch.tensor([[0.5, -0.6], [-0.6, 2.0]], dtype=torch.float64)
MASSES = [None, DIAGONAL, DENSE]
masses = pytest.mark.parametrize("inverse_mass", MASSES, ids=["identity", "diagonal", "dense"])


def normal(theta: Tensor) -> Tensor:
    return -theta.square().sum(-1) / 2


def quiet(*arguments: Any, **options: Any) -> mcmc.Chains:
    return mcmc.sample(*arguments, progress=False, **options)


def energy(state: HMCState, momentum: Tensor, inverse_mass: Tensor | None) -> Tensor:
    whole = torch.eye(2).to(momentum) if inverse_mass is None else inverse_mass
    whole = whole.diag() if whole.ndim == 1 else whole
    return torch.einsum("ci,ij,cj->c", momentum, whole, momentum) / 2 - state.log_density


def start(count: int = 50) -> tuple[HMCState, Tensor]:
    generator = torch.Generator().manual_seed(5)
    position = exact_draws(count, generator)
    momentum = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return hmc(skewed).init(position), momentum


# --- Leapfrog -------------------------------------------------------------------------------------


@masses
def test_leapfrog_comes_back_when_the_momentum_is_reversed(inverse_mass: Tensor | None) -> None:
    state, momentum = start()
    end, p = leapfrog(skewed, state, momentum, 0.1, 25, inverse_mass)
    assert (end.position - state.position).abs().min(0).values.max() > 1e-3
    back, p = leapfrog(skewed, end, -p, 0.1, 25, inverse_mass)
    for ours, truth in zip((*back, -p), (*state, momentum), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


@masses
def test_leapfrog_keeps_volumes(inverse_mass: Tensor | None) -> None:
    state, momentum = start(5)

    class WithGraph:  # the gradient written out, so that autograd can go through the path
        def __call__(self, theta: Tensor) -> Tensor:
            return (theta - theta.exp()).sum(-1)

        def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
            return self(theta), 1 - theta.exp()

    def path(both: Tensor) -> Tensor:
        here = HMCState(both[None, :2], *WithGraph().value_and_grad(both[None, :2]))
        end, p = leapfrog(WithGraph(), here, both[None, 2:], 0.3, 4, inverse_mass)
        return torch.cat([end.position[0], p[0]])

    for both in torch.cat([state.position, momentum], 1):
        jacobian = torch.autograd.functional.jacobian(path, both)
        assert (jacobian - torch.eye(4)).abs().max() > 0.1
        assert float(torch.linalg.det(jacobian)) == pytest.approx(1, rel=1e-11)


@masses
def test_the_energy_error_is_quadratic_in_the_step(inverse_mass: Tensor | None) -> None:
    state, momentum = start(500)
    before = energy(state, momentum, inverse_mass)
    errors = []
    for num_steps in (100, 200, 400):
        end, p = leapfrog(skewed, state, momentum, 1 / num_steps, num_steps, inverse_mass)
        errors.append((energy(end, p, inverse_mass) - before).square().mean().sqrt())
    assert float(errors[0] / errors[1]) == pytest.approx(4, rel=0.05)
    assert float(errors[1] / errors[2]) == pytest.approx(4, rel=0.05)
    assert errors[2] < 0.01


@masses
def test_leapfrog_is_its_formula(inverse_mass: Tensor | None) -> None:
    state, p = start(3)
    whole = torch.eye(2).double() if inverse_mass is None else inverse_mass
    whole = whole.diag() if whole.ndim == 1 else whole
    end, end_p = leapfrog(skewed, state, p, 0.2, 3, inverse_mass)
    x = state.position
    for _ in range(3):
        p = p + 0.1 * hmc(skewed).init(x).gradient
        x = x + 0.2 * p @ whole
        p = p + 0.1 * hmc(skewed).init(x).gradient
    torch.testing.assert_close((end.position, end_p), (x, p))
    torch.testing.assert_close(end.log_density, skewed(x))
    torch.testing.assert_close(end.gradient, hmc(skewed).init(x).gradient)


# --- The right distribution -----------------------------------------------------------------------


@masses
@pytest.mark.parametrize("step_size", [0.4, 0.9])
def test_hmc_leaves_the_target_invariant_and_is_reversible(
    inverse_mass: Tensor | None, step_size: float, generator: torch.Generator
) -> None:
    kernel = hmc(skewed, step_size=step_size, trajectory_length=2.0, inverse_mass=inverse_mass)
    before = exact_draws(100_000, generator)
    for _ in range(3):  # of random lengths
        invariant, reversible = largest_z(kernel, before, generator)
        assert invariant < 5
        assert reversible < 5
    assert float(kernel.step(kernel.init(before), generator=generator)[1].acceptance.mean()) < 0.97


BUGS = [
    "inverted ratio",
    "always accepted",
    "half step forgotten",
    "kinetic energy forgotten",
    "mass ignored in the kinetic energy",
    "momentum not refreshed",
]


@pytest.mark.parametrize("bug", ["none", *BUGS[:-1]])
def test_a_wrong_kernel_is_not_invariant(bug: str, generator: torch.Generator) -> None:
    kernel = planted_hmc(skewed, bug, 0.3, inverse_mass=DIAGONAL)
    invariant, reversible = largest_z(kernel, exact_draws(200_000, generator), generator)
    if bug == "none":
        assert max(invariant, reversible) < 5
    else:
        assert invariant > 10


@pytest.mark.parametrize("bug", ["right", "none", *BUGS])
def test_chains_from_far_away_reach_the_target(bug: str, generator: torch.Generator) -> None:
    kernel: Any = hmc(skewed, step_size=0.3, trajectory_length=1.5, inverse_mass=DIAGONAL)
    if bug != "right":
        kernel = planted_hmc(skewed, bug, 0.3, inverse_mass=DIAGONAL)
    state = kernel.init(torch.zeros(4000, 2, dtype=torch.float64))
    for _ in range(60):
        state, _ = kernel.step(state, generator=generator)
    offset = state.position - EXACT_MEAN
    z = z_scores(torch.cat([offset, offset.square() - EXACT_VARIANCE], 1)).max()
    assert z < 4.5 if bug in ("right", "none") else z > 8


def test_info_belongs_to_the_draws(generator: torch.Generator) -> None:
    kernel = hmc(skewed, step_size=0.7, trajectory_length=2.0)
    chains = quiet(kernel, exact_draws(300, generator), 200, generator=generator)
    info = chains.info
    assert info._fields == ("log_density", "acceptance", "energy", "diverged")
    assert all(field.shape == (300, 200) for field in info)
    assert info.diverged.dtype == torch.bool
    torch.testing.assert_close(
        info.log_density, skewed(chains.draws.reshape(-1, 2)).reshape(300, 200)
    )
    moved = (chains.draws[:, 1:] != chains.draws[:, :-1]).any(-1).double()
    # A move is a coin with this probability: the difference is a martingale.
    assert z_scores((moved - info.acceptance[:, 1:]).reshape(-1, 1)).item() < 4.5
    # Energy less potential is kinetic energy, half a chi-square of 2 degrees: mean and variance 1.
    kinetic = (info.energy[:, 1:] + info.log_density[:, :-1]).reshape(-1, 1)
    assert (kinetic >= 0).all()
    assert z_scores(kinetic - 1).item() < 4.5
    assert z_scores((kinetic - 1).square() - 1).item() < 4.5


@pytest.mark.parametrize("inverse_mass", MASSES[1:], ids=["diagonal", "dense"])
def test_momenta_have_the_mass_for_covariance(
    inverse_mass: Tensor, generator: torch.Generator
) -> None:
    whole = inverse_mass.diag() if inverse_mass.ndim == 1 else inverse_mass
    # On a flat density a step of length 1 moves by M⁻¹p, whose covariance is M⁻¹ M M⁻¹ = M⁻¹.
    flat = hmc(lambda t: 0 * t.sum(-1), step_size=1.0, trajectory_length=0.1, inverse_mass=whole)
    moves = quiet(flat, torch.zeros(50_000, 2).double(), 1, generator=generator).draws[:, 0]
    products = (moves[:, :, None] * moves[:, None]).flatten(1)
    assert z_scores(products - whole.flatten()).max() < 4.5


@pytest.mark.parametrize(("cliff", "diverges"), [(500.0, False), (2000.0, True), (NAN, True)])
def test_divergences_are_seen_and_not_taken(
    cliff: float, diverges: bool, generator: torch.Generator
) -> None:
    class Wall:
        def __call__(self, theta: Tensor) -> Tensor:
            return torch.where(theta[..., 0] < 1, normal(theta), normal(theta) - cliff)

        def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
            return self(theta), -theta

    chains = quiet(hmc(Wall(), step_size=1.0), torch.zeros(500, 2), 20, generator=generator)
    assert bool(chains.info.diverged.any()) == diverges
    assert (chains.draws[..., 0] < 1).all()
    assert (chains.info.acceptance[chains.info.diverged] == 0).all()


# --- Tuning ---------------------------------------------------------------------------------------


def test_the_harmonic_mean_heeds_the_worst() -> None:
    assert harmonic_mean(torch.tensor([0.5, 1.0])) == pytest.approx(2 / 3)
    assert harmonic_mean(torch.tensor([1.0] * 9 + [0.0])) == pytest.approx(10 / 109)


@pytest.mark.parametrize("target", [0.6, 0.8])
@pytest.mark.parametrize("first", [0.1, 1.0, 10.0])
def test_dual_averaging_reaches_its_target(
    target: float, first: float, generator: torch.Generator
) -> None:
    averaging = DualAveraging(first, target)
    for _ in range(2000):
        noise = 0.1 * torch.randn(20, generator=generator)
        averaging.update((1 / (1 + averaging.step_size) + noise).clamp(0.02, 1))
    assert 1 / (1 + averaging.average) == pytest.approx(target, abs=0.03)


def test_the_pooled_covariance_is_that_of_the_draws_and_a_diagonal_where_they_are_few() -> None:
    draws = exact_draws(40_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(pooled_covariance(draws), draws.T.cov(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(pooled_covariance(draws[:19]), draws[:19].var(0))
    assert pooled_covariance(draws.float()).dtype == torch.float32


def test_the_length_of_paths_is_worth_most_on_a_gaussian() -> None:
    # On a normal the squared distance after n steps has the autocorrelation cos²(n ε).
    step_size, num_steps = 0.05, torch.arange(1, 100)
    rho = (step_size * num_steps).cos().square().cumsum(dim=0) / num_steps
    worth, gain = (1 - rho) / (1 + rho) / (num_steps + 1), (1 - rho) / (num_steps + 1)
    best, greedy = ((int(rate.argmax()) + 2) / 2 * step_size for rate in (worth, gain))
    found = []
    for seed in range(12):
        random = torch.Generator().manual_seed(seed)
        kernel = hmc(normal, step_size=step_size, inverse_mass=torch.ones(20))
        state = kernel.init(torch.randn(1024, 20, generator=random))
        found.append(kernel.best_length(state, generator=random))
    lengths = torch.tensor(found)
    error = float(lengths.std()) / len(found) ** 0.5 + step_size / 4  # lengths are half steps apart
    assert abs(float(lengths.mean()) - best) < 4 * error
    # Gain alone, which prefers shorter paths, is told apart.
    assert abs(float(lengths.mean()) - greedy) > 4 * error


def test_the_acceptance_is_on_target_after_the_warm_up(generator: torch.Generator) -> None:
    for dim in (2, 20):
        start = torch.randn(100, dim, generator=generator)
        chains = quiet(hmc(normal), start, 100, num_warmup=200, generator=generator)
        harmonic = [harmonic_mean(column) for column in chains.info.acceptance.T]
        assert sum(harmonic) / 100 == pytest.approx(DualAveraging(1.0).target, abs=0.1)


def ill_conditioned(dim: int = 10, condition: float = 1e4) -> tuple[Any, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    variances = torch.logspace(0, math.log10(condition), dim, dtype=torch.float64)
    mean = torch.arange(dim, dtype=torch.float64)
    covariance = turn * variances @ turn.T
    precision = turn / variances @ turn.T

    def log_density(theta: Tensor) -> Tensor:
        offset = theta - mean.to(theta)
        return -((offset @ precision.to(theta)) * offset).sum(-1) / 2

    return log_density, mean, covariance


@pytest.mark.parametrize(("chains", "draws"), [(64, 100), (8, 600)])
def test_an_ill_conditioned_gaussian_gets_its_means_and_sds(
    chains: int, draws: int, generator: torch.Generator
) -> None:
    log_density, mean, covariance = ill_conditioned()
    start = 4 * torch.rand(chains, 10, generator=generator, dtype=torch.float64) - 2
    result = quiet(hmc(log_density), start, draws, num_warmup=200, generator=generator)
    flat = result.draws.flatten(0, 1)
    assert ((flat.mean(0) - mean) / diagnostics.mcse_mean(result.draws)).abs().max() < 4.5
    sd = covariance.diag().sqrt()
    assert ((flat.std(0) - sd) / diagnostics.mcse_sd(result.draws)).abs().max() < 4.5
    assert diagnostics.effective_sample_size(result.draws).min() > 200
    assert result.kernel.inverse_mass.shape == (10, 10)


def test_chains_that_start_where_no_step_is_small_enough_do_not_stop_the_others(
    generator: torch.Generator,
) -> None:
    def steep(theta: Tensor) -> Tensor:
        return normal(theta) - theta.square().sum(-1) ** 10

    start = torch.rand(40, 2, generator=generator, dtype=torch.float64)
    start[:3] += 1e4  # a log density of -10⁸², and a gradient of 10⁷⁹
    chains = quiet(hmc(steep), start, 100, num_warmup=100, generator=generator)
    assert chains.draws.abs().max() < 2
    assert chains.kernel.step_size > 0.01
    z = chains.draws.mean((0, 1)) / diagnostics.mcse_mean(chains.draws)  # symmetric about zero
    assert z.abs().max() < 4.5


@masses
def test_what_is_given_stays(inverse_mass: Tensor | None, generator: torch.Generator) -> None:
    given = {"step_size": 0.3, "trajectory_length": 1.5}
    start = torch.zeros(8, 2, dtype=torch.float64)
    kernel = hmc(skewed, **given, inverse_mass=inverse_mass)
    tuned = quiet(kernel, start, 5, num_warmup=40, generator=generator).kernel
    assert tuned.step_size == 0.3
    assert tuned.trajectory_length == 1.5
    if inverse_mass is None:
        assert tuned.inverse_mass is not None
    else:
        assert tuned.inverse_mass is inverse_mass
    for name, number in given.items():
        kernel = hmc(skewed, **{name: number})
        tuned = quiet(kernel, start, 5, num_warmup=40, generator=generator).kernel
        assert getattr(tuned, name) == number
        assert tuned != kernel


def test_without_a_step_size_and_without_a_warm_up_there_is_nothing_to_go_by(
    kind_error: Callable[..., Any],
) -> None:
    with kind_error(ValueError, "step_size", "None", "warm up first"):
        quiet(hmc(normal), torch.zeros(2, 1), 5)


@pytest.mark.parametrize("num_warmup", [20, 30, 100])
def test_a_single_chain_tunes_itself(num_warmup: int, generator: torch.Generator) -> None:
    chains = quiet(hmc(skewed), torch.zeros(1, 2), 50, num_warmup=num_warmup, generator=generator)
    assert (chains.draws.diff(dim=1) != 0).any()


# --- One run, many chains -------------------------------------------------------------------------


class Supplied:
    def __call__(self, theta: Tensor) -> Tensor:
        raise AssertionError("the supplied gradient comes with the value")

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return (theta - theta.exp()).sum(-1), 1 - theta.exp()


def test_a_supplied_gradient_gives_the_chains_of_autograd() -> None:
    start = torch.zeros(5, 3, dtype=torch.float64)
    first, second = (
        quiet(hmc(log_density), start, 20, 30, generator=torch.Generator().manual_seed(1)).draws
        for log_density in (Supplied(), lambda theta: (theta - theta.exp()).sum(-1))
    )
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_draws_repeat_with_their_generator_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (
        quiet(hmc(skewed), torch.zeros(4, 2), 9, 30, generator=torch.Generator().manual_seed(s))
        for s in (3, 3, 4)
    )
    assert torch.equal(first.draws, again.draws)
    assert not torch.equal(first.draws, other.draws)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_goes_on_from_its_kernel_and_its_last_draws() -> None:
    start = torch.zeros(4, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    whole = quiet(hmc(skewed), start, 30, 20, generator=generator)
    generator = torch.Generator().manual_seed(1)
    first = quiet(hmc(skewed), start, 10, 20, generator=generator)
    rest = quiet(first.kernel, first.draws[:, -1], 20, generator=generator)
    torch.testing.assert_close(torch.cat([first.draws, rest.draws], 1), whole.draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (40, 1), (40, 3)])
def test_shapes_and_dtype(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    start = torch.zeros(shape, dtype=dtype, requires_grad=True)
    generator = torch.Generator().manual_seed(2)
    chains = quiet(hmc(normal), start, 7, 40, generator=generator)
    assert chains.draws.shape == (shape[0], 7, shape[1])
    assert chains.draws.dtype == chains.kernel.inverse_mass.dtype == dtype
    assert not chains.draws.requires_grad
    assert chains.draws.isfinite().all()
    assert (chains.draws.diff(dim=1) != 0).any()
    assert {field.dtype for field in chains.info} == {dtype, torch.bool}
    assert torch.equal(start, torch.zeros(shape, dtype=dtype))


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"log_density": 3}, TypeError, ["log_density", "function", "3"]),
        ({"step_size": -0.1}, ValueError, ["step_size", "positive", "-0.1"]),
        ({"step_size": "1"}, TypeError, ["step_size", "number", "'1'"]),
        ({"trajectory_length": 0}, ValueError, ["trajectory_length", "positive", "0"]),
        ({"inverse_mass": 2.0}, TypeError, ["inverse_mass", "torch.Tensor", "float"]),
        ({"inverse_mass": torch.ones(1, 2, 2)}, ValueError, ["inverse_mass", "(1, 2, 2)"]),
        ({"inverse_mass": torch.ones(2, 3)}, ValueError, ["inverse_mass", "(2, 3)"]),
        ({"inverse_mass": torch.tensor([1.0, 0.0])}, ValueError, ["inverse_mass", "positive"]),
        ({"inverse_mass": -torch.eye(2)}, ValueError, ["inverse_mass", "positive definite"]),
        (
            {"inverse_mass": torch.tensor([[1.0, 0.5], [0.0, 1.0]])},
            ValueError,
            ["inverse_mass", "symmetric"],
        ),
        ({"inverse_mass": torch.tensor([[NAN]])}, ValueError, ["inverse_mass", "finite"]),
    ],
)
def test_a_kernel_is_checked_when_it_is_made(
    options: Any, error: type[Exception], words: list[str], kind_error: Callable[..., Any]
) -> None:
    options = {"log_density": normal} | options
    with kind_error(error, *words):
        hmc(options.pop("log_density"), **options)


@pytest.mark.parametrize("mass", [torch.ones(3), torch.eye(3), torch.ones(2).double()])
def test_a_mass_of_another_dimension_or_dtype_is_refused(
    mass: Tensor, kind_error: Callable[..., Any]
) -> None:
    with kind_error(ValueError, "inverse_mass", str(len(mass)), str(mass.dtype), "2 and torch.fl"):
        quiet(hmc(normal, step_size=0.1, inverse_mass=mass), torch.zeros(4, 2), 5)


def test_a_warm_up_too_short_to_tune_in_is_refused(kind_error: Callable[..., Any]) -> None:
    with kind_error(ValueError, "num_warmup", "at least 20", "5"):
        quiet(hmc(normal), torch.zeros(4, 2), 5, num_warmup=5)
    with kind_error(ValueError, "step_size", "None", "warm up"):
        hmc(normal).step(hmc(normal).init(torch.zeros(4, 2)))


def test_no_path_is_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STEPS", 7)
    supplied, asked = Supplied(), []
    monkeypatch.setattr(
        Supplied,
        "value_and_grad",
        lambda self, theta: (asked.append(1), ((theta - theta.exp()).sum(-1), 1 - theta.exp()))[1],
    )
    quiet(hmc(supplied, step_size=0.01, trajectory_length=100.0), torch.zeros(4, 2), 3)
    assert 1 + 3 < len(asked) <= 1 + 3 * 7
