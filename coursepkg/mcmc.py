r"""Markov chain Monte Carlo: kernels, many chains as one batch, and random-walk Metropolis.

A *kernel* moves every chain one step and leaves the target density invariant. It has three methods:
``init`` makes a state from positions, ``step`` moves a state, ``warm_up`` moves it while it tunes
the kernel. The *state* is what the next step needs, the *info* what a diagnosis needs.
:func:`sample` runs any kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from coursepkg import _checks
from coursepkg._random import normal
from coursepkg.density import LogDensity, value

__all__ = [
    "Chains",
    "Info",
    "Kernel",
    "Metropolis",
    "State",
    "accept",
    "normal_like",
    "random_walk_metropolis",
    "sample",
]

StateT = TypeVar("StateT", bound=tuple[Tensor, ...])


class State(NamedTuple):
    """Where the chains are.

    Attributes:
        position: Parameter vectors, shape ``(chains, dim)``.
        log_density: Their log densities, shape ``(chains,)``, in nats.
    """

    position: Float[Tensor, "chains dim"]
    log_density: Float[Tensor, " chains"]


class Info(NamedTuple):
    """What a step tells about itself.

    Attributes:
        log_density: Log density after the step, shape ``(chains,)``, in nats.
        acceptance: Probability with which the proposal was accepted, shape ``(chains,)``.
    """

    log_density: Float[Tensor, "*shape"]
    acceptance: Float[Tensor, "*shape"]


@runtime_checkable
class Kernel(Protocol):
    """What :func:`sample` runs: any frozen object with these three methods."""

    def init(self, position: Tensor) -> Any:
        """Make a state from positions of shape ``(chains, dim)``."""
        ...

    def step(self, state: Any, *, generator: torch.Generator | None = None) -> tuple[Any, Any]:
        """Move every chain once; return the new state and an info."""
        ...

    def warm_up(
        self,
        state: Any,
        num_steps: int,
        *,
        generator: torch.Generator | None = None,
        tick: Callable[[], object],
    ) -> tuple[Any, Any]:
        """Move every chain ``num_steps`` times, tuning; return the tuned kernel and the state."""
        ...


class Chains(NamedTuple):
    """What a sampler returns.

    Attributes:
        draws: Positions after each step, shape ``(chains, draws, dim)``.
        info: The kernel's info, each field of shape ``(chains, draws)``.
        kernel: The kernel that drew them, tuned. ``sample(chains.kernel, chains.draws[:, -1], …)``
            goes on from there without another warm-up.
    """

    draws: Float[Tensor, "chains draws dim"]
    info: Any
    kernel: Any


def sample(
    kernel: Kernel,
    initial: Float[Tensor, "chains dim"],
    num_draws: int,
    num_warmup: int = 0,
    *,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Chains:
    """Run a kernel from given positions: first a warm-up that tunes it, then the draws.

    The draws of the warm-up are thrown away: the chains were on their way, and a kernel that is
    still being tuned by its own past does not leave the target invariant.

    Args:
        kernel: Such as :func:`random_walk_metropolis` or :func:`coursepkg.hmc.hmc` makes.
        initial: Where each chain starts, shape ``(chains, dim)``. Chains that agree although they
            started far apart are the evidence that the draws can be trusted.
        num_draws: How many draws to keep of each chain, at least 1.
        num_warmup: How many steps to tune and throw away.
        generator: Source of randomness; torch's global one where it is ``None``.
        progress: Whether to show a progress bar.

    Returns:
        The chains, in the dtype and on the device of ``initial``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``initial`` is no finite matrix, ``num_draws`` is below 1, ``num_warmup`` is
            negative, or the target has no density at a starting point.

    Example:
        >>> standard_normal = lambda theta: -theta.square().sum(-1) / 2
        >>> kernel = random_walk_metropolis(standard_normal, step_size=1.5)
        >>> sample(kernel, torch.zeros(4, 2), num_draws=100, progress=False).draws.shape
        torch.Size([4, 100, 2])
    """
    _checks.array("initial", initial, ndim=2)
    num_draws = _checks.count("num_draws", num_draws, minimum=1)
    num_warmup = _checks.count("num_warmup", num_warmup, minimum=0)
    generator = _checks.generator_or_none(generator)
    # Stored column by column: what is done to one coordinate of all chains runs over neighbours.
    state = kernel.init(initial.detach().T.contiguous().T)
    infinite = int((~torch.isfinite(state.log_density)).sum())
    if infinite:
        raise ValueError(
            f"initial must have a finite log density in each of its {len(initial)} rows, got "
            f"{infinite} without; start where the density is positive"
        )
    draws = initial.new_empty(num_draws, *initial.shape)
    infos = []
    with tqdm(total=num_warmup + num_draws, disable=None if progress else True) as bar:
        kernel, state = kernel.warm_up(state, num_warmup, generator=generator, tick=bar.update)
        for i in range(num_draws):
            state, info = kernel.step(state, generator=generator)
            draws[i] = state.position
            infos.append(info)
            bar.update()
    info = type(infos[0])(*(torch.stack(field, dim=1) for field in zip(*infos, strict=True)))
    return Chains(draws.transpose(0, 1), info, kernel)


def accept(
    log_ratio: Float[Tensor, " chains"],
    proposal: StateT,
    state: StateT,
    *,
    generator: torch.Generator | None,
) -> tuple[StateT, Float[Tensor, " chains"]]:
    r"""Take each chain's proposal with probability :math:`\min(1, e^r)`, else stay.

    Staying counts as a draw. A ratio that is NaN is a proposal where the density cannot be
    computed; it is not taken.

    Args:
        log_ratio: :math:`r`, log of the ratio of densities (times proposal densities, where those
            are not symmetric), shape ``(chains,)``.
        proposal: The proposed states, a named tuple of tensors with ``chains`` first.
        state: The present ones.
        generator: Source of randomness.

    Returns:
        The next states, and the probabilities.
    """
    acceptance = log_ratio.nan_to_num(nan=-torch.inf).clamp(max=0).exp()
    uniform = torch.empty_like(acceptance).uniform_(generator=generator)
    accepted = uniform < acceptance
    chosen = (
        torch.where(accepted if new.ndim == 1 else accepted[:, None], new, old)
        for new, old in zip(proposal, state, strict=True)
    )
    return type(state)(*chosen), acceptance


def normal_like(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of a matrix's shape, dtype and device, stored column by column."""
    # Transposed afterwards, since torch fills seven times faster in the order of memory.
    return normal(tensor.mT.shape, tensor, generator).mT


@dataclass(frozen=True)
class Metropolis:
    """The kernel that :func:`random_walk_metropolis` makes.

    Attributes:
        log_density: The target.
        step_size: Standard deviation of a proposal in each coordinate; ``None`` until tuned.
    """

    log_density: LogDensity
    step_size: float | None

    def init(self, position: Float[Tensor, "chains dim"]) -> State:
        """Evaluate the density at the positions."""
        return State(position, value(self.log_density, position))

    def step(self, state: State, *, generator: torch.Generator | None = None) -> tuple[State, Info]:
        """Propose a move, and take it or stay."""
        if self.step_size is None:
            raise ValueError("step_size must be a number, got None: give one, or warm up first")
        noise = normal_like(state.position, generator)
        proposal = self.init(state.position + self.step_size * noise)
        log_ratio = proposal.log_density - state.log_density
        state, acceptance = accept(log_ratio, proposal, state, generator=generator)
        return state, Info(state.log_density, acceptance)

    def warm_up(
        self,
        state: State,
        num_steps: int,
        *,
        generator: torch.Generator | None = None,
        tick: Callable[[], object] = lambda: None,
    ) -> tuple[Metropolis, State]:
        """Move the chains; where no step size was given, tune it to the best acceptance rate."""
        dim = state.position.shape[1]
        target = 0.44 if dim == 1 else 0.234
        step_size = self.step_size or 2.38 / dim**0.5
        for i in range(num_steps):
            state, info = replace(self, step_size=step_size).step(state, generator=generator)
            if self.step_size is None:
                # Robbins and Monro: steps of the logarithm that shrink, so that it settles.
                error = float(info.acceptance.mean()) - target
                step_size *= math.exp(error / (1 + i) ** 0.5)
            tick()
        return replace(self, step_size=step_size if num_steps else self.step_size), state


def random_walk_metropolis(log_density: LogDensity, step_size: float | None = None) -> Metropolis:
    r"""Random-walk Metropolis: propose a random step, and take it or stay.

    The proposal :math:`\theta' = \theta + s\,\epsilon`, with standard normal :math:`\epsilon`, is
    taken with probability

    .. math::
        \min\Bigl(1, \frac{p(\theta')}{p(\theta)}\Bigr) .

    The proposal is symmetric, so that its density cancels.

    Args:
        log_density: The target.
        step_size: :math:`s`, the standard deviation of a proposal in each coordinate, in the units
            of the parameters. Where it is ``None``, the warm-up tunes it to an acceptance of 0.234
            (0.44 in one dimension).

    Returns:
        A kernel for :func:`sample`.

    Raises:
        TypeError: ``log_density`` cannot be called, or ``step_size`` is not a number.
        ValueError: ``step_size`` is not positive.

    Source:
        Metropolis, Rosenbluth, Rosenbluth, Teller and Teller (1953), "Equation of state
        calculations by fast computing machines", The Journal of Chemical Physics 21(6). The
        acceptance: Roberts, Gelman and Gilks (1997), "Weak convergence and optimal scaling of
        random walk Metropolis algorithms", The Annals of Applied Probability 7(1).

    Example:
        >>> random_walk_metropolis(lambda theta: -theta.square().sum(-1) / 2, 0.5).step_size
        0.5
    """
    _checks.function("log_density", log_density)
    if step_size is not None:
        step_size = _checks.positive("step_size", step_size)
    return Metropolis(log_density, step_size)
