r"""Hamiltonian Monte Carlo that tunes itself: leapfrog, step size, mass and trajectory length.

A position :math:`\theta` gets a random momentum :math:`p \sim \mathcal N(0, M)` and moves along

.. math::
    \dot\theta = M^{-1} p , \qquad \dot p = \nabla \log p(\theta) ,

on which the energy :math:`H = -\log p(\theta) + \tfrac12 p^\top M^{-1} p` is constant. Leapfrog
steps follow the path nearly, run backwards exactly, and keep volumes, so that accepting the end
with probability :math:`\min(1, e^{-\Delta H})` corrects for the rest. All chains advance together:
each leapfrog step is a few operations on tensors of shape ``(chains, dim)``.

Source:
    Neal (2011), "MCMC using Hamiltonian dynamics", Handbook of Markov Chain Monte Carlo, chapter 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from coursepkg import _checks
from coursepkg.adaptation import DualAveraging, pooled_covariance
from coursepkg.density import LogDensity, gradient, value_and_grad
from coursepkg.mcmc import accept, normal_like

__all__ = ["HMC", "HMCInfo", "HMCState", "hmc", "leapfrog"]

# An energy error beyond this is no rounding: the path has left the region it can follow.
DIVERGENCE = 1000.0
# No trajectory takes more steps than this, whatever the tuning thinks.
MAX_STEPS = 1000
# This part of the paths has smaller steps, and by how much.
SMALL_STEPS, SMALLER = 0.2, 0.6
# How many steps a path has before a length is known.
FIRST_STEPS = 5
# How many it has in the mean, at most, before the last window.
EARLY_STEPS = 30
# A step size of 1024 halved so often is beyond what rounding leaves of a step.
MAX_HALVINGS = 60
# A chain this far below the median one, in nats, and ten more for each dimension, is lost.
LOST = 100.0
# Where the windows of the warm-up end, in parts of it.
WINDOW_ENDS = (0.1, 0.25, 0.5, 0.8)
# How many paths the choice of a length is based on.
PATHS = 256


class HMCState(NamedTuple):
    """Where the chains are, with the gradient that the next leapfrog step starts from.

    Attributes:
        position: Parameter vectors, shape ``(chains, dim)``.
        log_density: Their log densities, shape ``(chains,)``, in nats.
        gradient: Gradients of the log density, shape ``(chains, dim)``.
    """

    position: Float[Tensor, "chains dim"]
    log_density: Float[Tensor, " chains"]
    gradient: Float[Tensor, "chains dim"]


class HMCInfo(NamedTuple):
    """What a step tells about itself.

    Attributes:
        log_density: Log density after the step, shape ``(chains,)``, in nats.
        acceptance: Probability with which the end of the path was accepted, shape ``(chains,)``.
        energy: :math:`H` with the fresh momentum, shape ``(chains,)``, in nats.
        diverged: Whether the path's energy ran away, shape ``(chains,)``.
    """

    log_density: Float[Tensor, "*shape"]
    acceptance: Float[Tensor, "*shape"]
    energy: Float[Tensor, "*shape"]
    diverged: Bool[Tensor, "*shape"]


def _velocity(momentum: Tensor, inverse_mass: Tensor | None) -> Tensor:
    """M⁻¹p, where a vector is a diagonal and ``None`` the identity."""
    if inverse_mass is None:
        return momentum
    # M⁻¹ is symmetric; written this way the result keeps the layout that chains are stored in.
    return momentum * inverse_mass if inverse_mass.ndim == 1 else (inverse_mass @ momentum.T).T


def _kinetic(momentum: Tensor, inverse_mass: Tensor | None) -> Tensor:
    return (momentum * _velocity(momentum, inverse_mass)).sum(dim=-1) / 2


def leapfrog(
    log_density: LogDensity,
    state: HMCState,
    momentum: Float[Tensor, "chains dim"],
    step_size: float | Float[Tensor, "chains 1"],
    num_steps: int,
    inverse_mass: Float[Tensor, "..."] | None = None,
) -> tuple[HMCState, Float[Tensor, "chains dim"]]:
    r"""Follow the dynamics for ``num_steps`` leapfrog steps.

    .. math::
        p \leftarrow p + \tfrac{\varepsilon}{2} \nabla \log p(\theta) , \quad
        \theta \leftarrow \theta + \varepsilon M^{-1} p , \quad
        p \leftarrow p + \tfrac{\varepsilon}{2} \nabla \log p(\theta)

    Two half steps of the momentum that meet make a whole one, so that each step needs a single
    gradient. Started from the end with the momentum reversed, it comes back to the start.

    Args:
        log_density: The target.
        state: Where to start.
        momentum: :math:`p`, shape ``(chains, dim)``.
        step_size: :math:`\varepsilon`; one for each chain, shape ``(chains, 1)``, is possible.
        num_steps: How many steps, at least 1.
        inverse_mass: :math:`M^{-1}`, shape ``(dim, dim)``, its diagonal, shape ``(dim,)``, or the
            identity, ``None``.

    Returns:
        The state and the momentum at the end.

    Source:
        Neal (2011), equations 5.18 to 5.20.
    """
    step = torch.as_tensor(step_size, dtype=state.position.dtype, device=state.position.device)
    position = state.position
    momentum = torch.addcmul(momentum, step, state.gradient, value=0.5)
    for _ in range(num_steps - 1):
        position = torch.addcmul(position, step, _velocity(momentum, inverse_mass))
        momentum = torch.addcmul(momentum, step, gradient(log_density, position))
    position = torch.addcmul(position, step, _velocity(momentum, inverse_mass))
    end = HMCState(position, *value_and_grad(log_density, position))
    return end, torch.addcmul(momentum, step, end.gradient, value=0.5)


@dataclass(frozen=True)
class HMC:
    """The kernel that :func:`hmc` makes.

    Attributes:
        log_density: The target.
        step_size: Size of a leapfrog step; ``None`` until tuned.
        trajectory_length: Mean of step size times number of steps; 5 steps until tuned.
        inverse_mass: :math:`M^{-1}`, shape ``(dim, dim)``, or its diagonal, shape ``(dim,)``; the
            identity until tuned.
    """

    log_density: LogDensity
    step_size: float | None = None
    trajectory_length: float | None = None
    inverse_mass: Float[Tensor, "..."] | None = None

    def init(self, position: Float[Tensor, "chains dim"]) -> HMCState:
        """Evaluate density and gradient at the positions."""
        mass = self.inverse_mass
        if mass is not None and (mass.shape[-1], mass.dtype) != (
            position.shape[-1],
            position.dtype,
        ):
            raise ValueError(
                f"inverse_mass must have theta's dimension and dtype, {position.shape[-1]} and "
                f"{position.dtype}, got {mass.shape[-1]} and {mass.dtype}"
            )
        return HMCState(position, *value_and_grad(self.log_density, position))

    def step(
        self, state: HMCState, *, generator: torch.Generator | None = None
    ) -> tuple[HMCState, HMCInfo]:
        """Draw a momentum, follow the path for a random time, and take its end or stay.

        One path in five has steps of six tenths of ``step_size``.
        """
        step_size = self._known_step_size()
        mean_steps = self.trajectory_length / step_size if self.trajectory_length else FIRST_STEPS
        # Any number up to the longest: a fixed one can fall in with a period of the motion.
        longest = min(max(1, round(2 * mean_steps - 1)), MAX_STEPS)
        time, chance = torch.rand(2, generator=generator, device=state.position.device).tolist()
        num_steps = 1 + int(longest * time)
        # Smaller steps now and then free a chain from where the density is too steep for these.
        if chance < SMALL_STEPS:
            step_size *= SMALLER
        return self._move(state, step_size, num_steps, generator)

    def _move(
        self,
        state: HMCState,
        step_size: float | Tensor,
        num_steps: int,
        generator: torch.Generator | None,
    ) -> tuple[HMCState, HMCInfo]:
        momentum = self._momentum(state.position, generator)
        energy = _kinetic(momentum, self.inverse_mass) - state.log_density
        proposal, momentum = leapfrog(
            self.log_density, state, momentum, step_size, num_steps, self.inverse_mass
        )
        log_ratio = energy - (_kinetic(momentum, self.inverse_mass) - proposal.log_density)
        diverged = ~(log_ratio > -DIVERGENCE)  # also where it is NaN
        state, acceptance = accept(log_ratio, proposal, state, generator=generator)
        return state, HMCInfo(state.log_density, acceptance, energy, diverged)

    def warm_up(
        self,
        state: HMCState,
        num_steps: int,
        *,
        generator: torch.Generator | None = None,
        tick: Callable[[], object] = lambda: None,
    ) -> tuple[HMC, HMCState]:
        """Move the chains, and tune what is not given; where all is given there is only moving.

        In the first window each chain takes short paths with a step size of its own, since some may
        start where the density is steep; one that is lost all the same goes on from where another
        is. At the end of each window the mass is taken from the window's draws, of all chains
        together, and then the trajectory length from paths that start where the chains are. From
        then on all chains share a step size that follows their acceptance; after the last window it
        alone is tuned.

        Raises:
            ValueError: There is something to tune, and fewer than 20 steps to do it in.
        """
        if None not in (self.step_size, self.trajectory_length, self.inverse_mass):
            for _ in range(num_steps):
                state, _ = self.step(state, generator=generator)
                tick()
            return self, state
        if num_steps == 0:
            return self, state
        _checks.count("num_warmup, where HMC tunes itself,", num_steps, minimum=20)
        ends = [round(part * num_steps) for part in WINDOW_ENDS]
        tuned = self
        own_steps = tuned._first_step_sizes(state, generator)
        averaging = DualAveraging(float(own_steps.min()))
        window: list[Tensor] = []
        for i in range(num_steps):
            if i < ends[0] and self.step_size is None:
                state, info = tuned._move(state, own_steps, FIRST_STEPS, generator)
                own_steps = own_steps * (info.acceptance[:, None] - 0.65).exp()
            else:
                tuned = replace(tuned, step_size=self.step_size or averaging.step_size)
                state, info = tuned.step(state, generator=generator)
                averaging.update(info.acceptance)
            window.append(state.position)
            if i + 1 in ends[:-1]:
                state = _rescue(state, generator)
            if i + 1 in ends:
                # Where a coordinate never moved, as one chain's may, its scale is not known yet.
                moved = bool((torch.cat(window).var(dim=0) > 0).all())
                if self.inverse_mass is None and moved:
                    tuned = replace(tuned, inverse_mass=pooled_covariance(torch.cat(window)))
                averaging = DualAveraging(float(tuned._first_step_sizes(state, generator).min()))
                tuned = replace(tuned, step_size=self.step_size or averaging.step_size)
                if self.trajectory_length is None:
                    length = tuned.best_length(state, generator=generator)
                    if i + 1 < ends[-1]:  # the next mass will be better, and paths shorter
                        length = min(length, EARLY_STEPS * averaging.step_size)
                    tuned = replace(tuned, trajectory_length=length)
                window = []
            tick()
        return replace(tuned, step_size=self.step_size or averaging.average), state

    def _known_step_size(self) -> float:
        if self.step_size is None:
            raise ValueError("step_size must be a number, got None: give one, or warm up first")
        return self.step_size

    def _momentum(self, position: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw p ~ N(0, M): with M⁻¹ = L Lᵀ the covariance of L⁻ᵀ times noise is M."""
        noise = normal_like(position, generator)
        if self.inverse_mass is None:
            return noise
        root = _root(self.inverse_mass)
        return torch.linalg.solve_triangular(root.T, noise.T, upper=True).contiguous().T

    def _first_step_sizes(
        self, state: HMCState, generator: torch.Generator | None
    ) -> Float[Tensor, "chains 1"]:
        """Halve each chain's step size until one leapfrog step is likely to be accepted."""
        momentum = self._momentum(state.position, generator)
        energy = _kinetic(momentum, self.inverse_mass) - state.log_density
        steps = torch.full_like(state.position[:, :1], 1024.0)
        for _ in range(MAX_HALVINGS):
            end, p = leapfrog(self.log_density, state, momentum, steps, 1, self.inverse_mass)
            log_ratio = energy - _kinetic(p, self.inverse_mass) + end.log_density
            good = _probability(log_ratio) > 0.5
            if good.all():
                break
            steps = torch.where(good[:, None], steps, steps / 2)
        return steps

    def best_length(self, state: HMCState, *, generator: torch.Generator | None = None) -> float:
        r"""The trajectory length that yields most effective draws for each gradient.

        Judged is :math:`\lVert\theta - m\rVert^2`, in units of the mass, which does not change on a
        path that turns back to the other side. Its mean square change over a path, times the
        acceptance, is :math:`2 (1 - \rho)` times its variance, and draws with an autocorrelation of
        :math:`\rho` are worth :math:`(1 - \rho) / (1 + \rho)` independent ones each. Long paths are
        followed from where the chains are; each point on them says what ending there would change.

        Args:
            state: Where the chains are.
            generator: Source of randomness.

        Returns:
            The length at which the kernel's paths, whose lengths are uniform up to twice that, are
            worth most for their cost.

        Source:
            Hoffman, Radul and Sountsov (2021), "An adaptive-MCMC scheme for setting trajectory
            lengths in Hamiltonian Monte Carlo", AISTATS, for the square change.
        """
        step_size = self._known_step_size()
        # From every n-th chain one path, or several from each.
        chosen = torch.arange(PATHS, device=state.position.device) * len(state.position) // PATHS
        center = state.position.mean(dim=0)
        state = HMCState(*(field[chosen] for field in state))
        momentum = self._momentum(state.position, generator)
        energy = _kinetic(momentum, self.inverse_mass) - state.log_density
        root = None if self.inverse_mass is None else _root(self.inverse_mass)

        def distance(position: Tensor) -> Tensor:
            offset = (position - center).T
            if root is not None:
                offset = torch.linalg.solve_triangular(root, offset, upper=False)
            return offset.square().sum(dim=0)

        start = distance(state.position)
        farthest, best_rate, total = 1, -1.0, 0.0
        means: list[float] = []  # of the change over paths with 1, 2, … steps
        for num_steps in range(1, MAX_STEPS + 1):
            state, momentum = leapfrog(
                self.log_density, state, momentum, step_size, 1, self.inverse_mass
            )
            log_ratio = energy - _kinetic(momentum, self.inverse_mass) + state.log_density
            change = _probability(log_ratio) * (distance(state.position) - start).square()
            total += float(change.nan_to_num(nan=0.0, posinf=0.0).mean())
            means.append(total / num_steps)
            if means[-1] / (num_steps + 1) > best_rate:
                farthest, best_rate = num_steps, means[-1] / (num_steps + 1)
            if num_steps > 1.5 * farthest + 10:
                break
        # Few chains know the variance badly: twice it is no less than the largest change.
        twice_variance = max(*means, 2 * float(start.var()), torch.finfo().tiny)
        renewed = torch.tensor(means) / twice_variance
        worth = renewed / (2 - renewed) / torch.arange(2, len(means) + 2)
        return (int(worth.argmax()) + 2) / 2 * step_size


def _rescue(state: HMCState, generator: torch.Generator | None) -> HMCState:
    """Let chains that are lost, far below the median log density, go on from where another is.

    Where a density falls like exp(-10¹⁰⁰) no step size is small enough, and one such chain would
    stop the others, which share its step size. So far below, a mode has no weight either.
    """
    count, dim = state.position.shape
    lost = state.log_density < state.log_density.median() - LOST - 10 * dim
    found = (~lost).nonzero().flatten()
    others = torch.randint(len(found), (count,), generator=generator, device=found.device)
    chosen = torch.where(lost, found[others], torch.arange(count, device=found.device))
    return HMCState(*(field[chosen] for field in state)) if lost.any() else state


def _probability(log_ratio: Tensor) -> Tensor:
    return log_ratio.nan_to_num(nan=-torch.inf).clamp(max=0).exp()


def _root(inverse_mass: Tensor) -> Tensor:
    """The lower triangular L with L Lᵀ = M⁻¹."""
    if inverse_mass.ndim == 1:
        return inverse_mass.sqrt().diag()
    return torch.linalg.cholesky(inverse_mass)


def hmc(
    log_density: LogDensity,
    *,
    step_size: float | None = None,
    trajectory_length: float | None = None,
    inverse_mass: Float[Tensor, "..."] | None = None,
) -> HMC:
    r"""Hamiltonian Monte Carlo for :func:`coursepkg.mcmc.sample`, without anything to tune.

    Args:
        log_density: The target. If it has a method ``value_and_grad``, that is used; else autograd.
        step_size: Size of a leapfrog step.
        trajectory_length: Mean length of a path: step size times number of steps.
        inverse_mass: :math:`M^{-1}`, symmetric and positive definite, shape ``(dim, dim)``, or its
            diagonal, shape ``(dim,)``; best is the covariance of the target.

    Returns:
        A kernel. What is ``None`` is tuned in the warm-up, which then needs 20 steps or more (100
        do well): the step size to a harmonic mean acceptance of 0.8 by dual averaging, the mass to
        the covariance of the draws, the length to the most effective draws per gradient.

    Raises:
        TypeError: ``log_density`` cannot be called, or an argument is of the wrong kind.
        ValueError: A number is not positive, or ``inverse_mass`` not positive definite.

    Source:
        Neal (2011), "MCMC using Hamiltonian dynamics", Handbook of Markov Chain Monte Carlo,
        chapter 5; Hoffman and Gelman (2014), "The No-U-Turn Sampler", Journal of Machine Learning
        Research 15, for dual averaging; Hoffman, Radul and Sountsov (2021), "An adaptive-MCMC
        scheme for setting trajectory lengths in Hamiltonian Monte Carlo", AISTATS, for many chains
        that are tuned together.

    Example:
        >>> from coursepkg.mcmc import sample
        >>> kernel = hmc(lambda theta: -theta.square().sum(-1) / 2)
        >>> sample(kernel, torch.zeros(16, 2), 100, num_warmup=50, progress=False).draws.shape
        torch.Size([16, 100, 2])
    """
    _checks.function("log_density", log_density)
    if step_size is not None:
        step_size = _checks.positive("step_size", step_size)
    if trajectory_length is not None:
        trajectory_length = _checks.positive("trajectory_length", trajectory_length)
    if inverse_mass is not None:
        if _checks.array("inverse_mass", inverse_mass).ndim not in (1, 2):
            raise ValueError(
                f"inverse_mass must have 1 or 2 dimensions, got shape {tuple(inverse_mass.shape)}"
            )
        whole = inverse_mass.diag() if inverse_mass.ndim == 1 else inverse_mass
        if whole.shape[0] != whole.shape[1]:
            raise ValueError(f"inverse_mass must be square, got shape {tuple(whole.shape)}")
        asymmetry = (whole - whole.T).abs().max() > 1e-5 * whole.abs().max()
        if asymmetry or torch.linalg.cholesky_ex(whole).info:
            raise ValueError(f"inverse_mass must be symmetric and positive definite, got {whole}")
    return HMC(log_density, step_size, trajectory_length, inverse_mass)
