r"""Starting points for a posterior with many modes: annealing from a broad Gaussian.

A population of particles is moved along a path of densities from a Gaussian to the target,

.. math::
    \log p_\beta(\theta) = \beta \log p(\theta) + (1 - \beta) \log \mathcal N(\theta \mid 0, s^2 I) ,

with :math:`\beta` from 0 to 1 in steps that it chooses itself. At each step particles are weighted,
resampled and moved by HMC. The mean weights multiply up to an estimate of the evidence.
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


class Population(NamedTuple):
    """What :func:`anneal` returns.

    Attributes:
        position: Particles, shape ``(particles, dim)``. Neighbours may share an ancestor.
        log_evidence: Estimate of :math:`\\log \\int p(\\theta)\\, d\\theta`, in nats.
        temperatures: The values of :math:`\\beta` from 0 to 1.
        ancestors: For each particle, which of the first ones it descends from.
    """

    position: Float[Tensor, "particles dim"]
    log_evidence: float
    temperatures: tuple[float, ...]
    ancestors: Int[Tensor, " particles"]


@dataclass(frozen=True)
class _Tempered:
    log_density: LogDensity
    scale: float
    beta: float

    def start(self, theta: Tensor) -> Tensor:
        constant = math.log(self.scale) + math.log(2 * math.pi) / 2
        return -((theta / self.scale).square() / 2 + constant).sum(dim=-1)

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
    num_particles: int = 256,
    *,
    start_scale: float = 1.0,
    num_moves: int = 4,
    generator: torch.Generator | None = None,
) -> Population:
    _checks.function("log_density", log_density)
    scale = _checks.positive("start_scale", start_scale)
    position = scale * torch.randn(num_particles, dim, generator=generator)
    ancestors = torch.arange(num_particles)
    temperatures, log_evidence, step_size = [0.0], 0.0, 0.5
    while temperatures[-1] < 1:
        target = _Tempered(log_density, scale, temperatures[-1])
        log_ratio = (value(log_density, position) - target.start(position)).double()
        beta = _next_temperature(log_ratio, temperatures[-1])
        log_weights = (beta - temperatures[-1]) * log_ratio
        log_evidence += float(log_weights.logsumexp(dim=0)) - math.log(num_particles)
        chosen = _systematic(log_weights.softmax(dim=0), generator)
        position, ancestors = position[chosen], ancestors[chosen]
        temperatures.append(beta)
        # The population is its own warm-up: its covariance is the mass, and in units of that
        # a path of length 0.5 goes a good way round.
        kernel = HMC(
            replace(target, beta=beta),
            trajectory_length=0.5,
            inverse_mass=pooled_covariance(position),
        )
        state = kernel.init(position.T.contiguous().T)
        averaging = DualAveraging(step_size)
        for _ in range(num_moves):
            kernel = replace(kernel, step_size=averaging.step_size)
            state, info = kernel.step(state, generator=generator)
            averaging.update(info.acceptance)
        position, step_size = state.position, averaging.average
    return Population(position, log_evidence, tuple(temperatures), ancestors)


def _next_temperature(log_ratio: Tensor, beta: float, share: float = 0.5) -> float:
    """The next β: at which the weights are worth half as many particles as there are."""

    def worth(new: float) -> float:
        weights = ((new - beta) * log_ratio).softmax(dim=0)
        return float(1 / weights.square().sum() / len(weights))

    low, high = beta, 1.0
    if worth(high) >= share:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if worth(middle) > share else (low, middle)
    return high


def _systematic(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Resample: each particle as often as its weight says, up to rounding."""
    count = len(weights)
    points = (torch.arange(count) + torch.rand(1, generator=generator)) / count
    return torch.searchsorted(weights.cumsum(dim=0), points.to(weights)).clamp(max=count - 1)
