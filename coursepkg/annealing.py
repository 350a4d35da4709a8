r"""Starting points for a posterior with several modes: annealing from a broad Gaussian.

A population of particles follows a path of densities from a Gaussian to the target,

.. math::
    \log p_\beta(\theta) = \beta \log p(\theta) + (1 - \beta) \log \mathcal N(\theta \mid 0, s^2 I),
    \qquad 0 \le \beta \le 1 ,

in steps of :math:`\beta` that it chooses itself. At each step the particles are weighted by how the
density changes, resampled by these weights, and moved by a few steps of HMC. A mode gets as many
particles as it deserves, since it is entered while it is still easy to leave; and the mean weights
multiply up to an estimate of the evidence.

Source:
    Neal (2001), "Annealed importance sampling", Statistics and Computing 11(2); Del Moral, Doucet
    and Jasra (2006), "Sequential Monte Carlo samplers", Journal of the Royal Statistical Society,
    Series B, 68(3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coursepkg import _checks
from coursepkg.adaptation import DualAveraging, pooled_covariance
from coursepkg.density import LogDensity, gradient, value
from coursepkg.hmc import HMC

__all__ = ["Population", "anneal"]

# In units of the population's own spread, a path of this length goes a good part of the way round.
TRAJECTORY_LENGTH = 0.5
# A path that takes more than this leads nowhere.
MAX_TEMPERATURES = 1000


class Population(NamedTuple):
    r"""What :func:`anneal` returns.

    Attributes:
        position: Particles, shape ``(particles, dim)``, to start chains from. Neighbours may share
            an ancestor: groups of neighbours are the superchains for a nested R-hat.
        kernel: HMC for the target, tuned on the way: ``sample(population.kernel,
            population.position, …)`` goes on without tuning; its warm-up lets the chains forget
            what they share.
        log_evidence: Estimate of :math:`\log \int p(\theta)\, \mathrm d\theta`, in nats. It is low
            by an amount that falls like one over the number of particles, since they also tune the
            path: by about 0.1 with 512 particles for the sine sensor's network.
        temperatures: The values of :math:`\beta`, from 0 to 1.
        ancestors: For each particle, which of the first ones it descends from.
    """

    position: Float[Tensor, "particles dim"]
    kernel: HMC
    log_evidence: float
    temperatures: tuple[float, ...]
    ancestors: Int[Tensor, " particles"]


@dataclass(frozen=True)
class _Tempered:
    """The density at one place of the path, with its gradient."""

    log_density: LogDensity
    scale: float
    beta: float

    def start(self, theta: Tensor) -> Tensor:
        constant = theta.shape[-1] * (math.log(self.scale) + math.log(2 * math.pi) / 2)
        return -theta.square().sum(dim=-1) / (2 * self.scale**2) - constant

    def __call__(self, theta: Tensor) -> Tensor:
        return self.beta * value(self.log_density, theta) + (1 - self.beta) * self.start(theta)

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self(theta), self.gradient(theta)

    def gradient(self, theta: Tensor) -> Tensor:
        slope = (1 - self.beta) / self.scale**2
        return self.beta * gradient(self.log_density, theta) - slope * theta


def anneal(
    log_density: LogDensity,
    dim: int,
    num_particles: int = 512,
    *,
    start_scale: float = 1.0,
    num_moves: int = 4,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Population:
    r"""Anneal a population of particles from :math:`\mathcal N(0, s^2 I)` to the target.

    Where the target is a posterior with just this prior, such as a network's, the path raises the
    likelihood from power 0 to power 1.

    Args:
        log_density: The target. It must have a finite integral.
        dim: How many coordinates it has.
        num_particles: How many particles, at least 2. More particles know the weights of the modes,
            and the evidence, better: errors shrink like one over the square root.
        start_scale: :math:`s`, broad enough to cover every mode; a prior's scale is.
        num_moves: How many steps of HMC at each temperature; four times as many at the last one.
        dtype: Of the particles; torch's default where it is ``None``. In float32 a step takes half
            of the time; take float64 where log densities run into the ten thousands.
        generator: Source of randomness; torch's global one where it is ``None``. The particles live
            on its device.

    Returns:
        The population at :math:`\beta = 1`, and the estimate of the log evidence.

    Raises:
        TypeError: ``log_density`` cannot be called, or an argument is of the wrong kind.
        ValueError: A number is too small, the target is nowhere positive at the start, or its
            integral seems infinite.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> two_modes = lambda theta: torch.logaddexp(
        ...     -(theta - 3).square().sum(-1) * 8, -(theta + 3).square().sum(-1) * 8
        ... )
        >>> population = anneal(two_modes, 1, start_scale=4.0, generator=generator)
        >>> bool(0.4 < (population.position > 0).float().mean() < 0.6)
        True
    """
    _checks.function("log_density", log_density)
    dim = _checks.count("dim", dim, minimum=1)
    num_particles = _checks.count("num_particles", num_particles, minimum=2)
    num_moves = _checks.count("num_moves", num_moves, minimum=1)
    scale = _checks.positive("start_scale", start_scale)
    generator = _checks.generator_or_none(generator)

    device = generator.device if generator else None
    position = scale * torch.randn(
        num_particles, dim, dtype=dtype, generator=generator, device=device
    )
    ancestors = torch.arange(num_particles, device=device)
    temperatures, log_evidence, step_size = [0.0], 0.0, 0.5
    while temperatures[-1] < 1:
        target = _Tempered(log_density, scale, temperatures[-1])
        log_ratio = (value(log_density, position) - target.start(position)).double()
        if not log_ratio.isfinite().any():
            raise ValueError(
                f"log_density must be finite at some of the {num_particles} starting points drawn "
                f"with start_scale {scale:g}, got none"
            )
        beta = _next_temperature(log_ratio, temperatures[-1])
        log_weights = (beta - temperatures[-1]) * log_ratio
        log_evidence += float(log_weights.logsumexp(dim=0)) - math.log(num_particles)
        chosen = _resample(log_weights.softmax(dim=0), generator)
        position, ancestors = position[chosen], ancestors[chosen]
        temperatures.append(beta)
        if len(temperatures) > MAX_TEMPERATURES:
            raise ValueError(
                f"log_density must be within reach and have a finite integral; after "
                f"{MAX_TEMPERATURES} temperatures the path from start_scale {scale:g} is at "
                f"{beta:.3g} of 1"
            )
        # The population is its own warm-up: its covariance is the mass.
        kernel = HMC(
            replace(target, beta=beta) if beta < 1 else log_density,
            step_size,
            TRAJECTORY_LENGTH,
            pooled_covariance(position),
        )
        state = kernel.init(position.T.contiguous().T)
        averaging = DualAveraging(step_size)
        for _ in range(num_moves if beta < 1 else 4 * num_moves):
            kernel = replace(kernel, step_size=averaging.step_size)
            state, info = kernel.step(state, generator=generator)
            averaging.update(info.acceptance)
        position, step_size = state.position, averaging.average
    kernel = replace(kernel, step_size=step_size)
    kernel = replace(kernel, trajectory_length=kernel.best_length(state, generator=generator))
    return Population(position, kernel, log_evidence, tuple(temperatures), ancestors)


def _next_temperature(log_ratio: Float[Tensor, " particles"], beta: float) -> float:
    """How far the path can go until the weights are worth only half of the particles."""

    def worth(new: float) -> float:
        weights = ((new - beta) * log_ratio).softmax(dim=0)
        return float(1 / weights.square().sum()) / len(weights)

    low, high = beta, 1.0
    if worth(high) >= 0.5:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if worth(middle) > 0.5 else (low, middle)
    return high


def _resample(
    weights: Float[Tensor, " particles"], generator: torch.Generator | None
) -> Int[Tensor, " particles"]:
    """Choose particles by weight, each as often as it deserves up to rounding; in order."""
    count = len(weights)
    shift = torch.rand((), generator=generator, device=weights.device)
    points = (torch.arange(count, device=weights.device) + shift) / count
    return torch.searchsorted(weights.cumsum(dim=0), points.to(weights)).clamp(max=count - 1)
