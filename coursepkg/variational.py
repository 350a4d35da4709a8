r"""Variational inference: the Gaussian that is closest to a posterior, by the largest ELBO.

For a log density :math:`\log p(\theta)` whose integral is :math:`Z`, and a guide :math:`q`,

.. math::
    \mathrm{ELBO}(q) = \mathbb E_q[\log p(\theta)] + \mathbb H[q]
    = \log Z - \mathrm{KL}\bigl(q \,\|\, p / Z\bigr) .

The entropy of a Gaussian is exact, and its draws are :math:`\theta = m + L \epsilon` with standard
normal :math:`\epsilon`, so that the gradient of the log density moves :math:`m` and :math:`L`. Many
restarts are one batch: the ELBO has local optima, and one run cannot tell that it is in one.

Source:
    Kingma and Welling (2014), "Auto-Encoding Variational Bayes", ICLR; Kucukelbir, Tran, Ranganath,
    Gelman and Blei (2017), "Automatic differentiation variational inference", Journal of Machine
    Learning Research 18(14).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.quasirandom import SobolEngine

from coursepkg import _checks
from coursepkg._lbfgs import minimize
from coursepkg.density import LogDensity, _LowerCholesky, value, value_and_grad

__all__ = ["FitResult", "FullRankNormal", "Guide", "MeanFieldNormal", "fit"]

LOG_2PI = math.log(2 * math.pi)


class Guide(Protocol):
    """A batch of distributions over vectors: noise, transformed by a few free numbers."""

    @classmethod
    def unflatten(cls, free: Tensor, dim: int) -> Self:
        """Make the guides whose free numbers are the rows of a matrix."""
        ...

    def flatten(self) -> Tensor:
        """Say the free numbers, shape ``(*batch, numbers)``."""
        ...

    def transform(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise, shape ``(samples, dim)``, into draws of each guide."""
        ...

    def entropy(self) -> Tensor:
        """Entropy in nats, shape ``(*batch)``."""
        ...

    @property
    def mean(self) -> Tensor:
        """Means, shape ``(*batch, dim)``."""
        ...


@dataclass(frozen=True)
class MeanFieldNormal:
    r"""Independent normals: :math:`q(\theta) = \prod_k \mathcal N(\theta_k \mid m_k, s_k^2)`.

    Attributes:
        mean: :math:`m`, shape ``(*batch, dim)``.
        scale: :math:`s`, of the same shape.
    """

    mean: Float[Tensor, "*batch dim"]
    scale: Float[Tensor, "*batch dim"]

    @classmethod
    def unflatten(cls, free: Tensor, dim: int) -> Self:
        """Make the guides whose free numbers are the rows of a matrix: means, log scales."""
        mean, log_scale = free.split(dim, dim=-1)
        return cls(mean, log_scale.exp())

    def flatten(self) -> Float[Tensor, "*batch numbers"]:
        """Say the free numbers."""
        return torch.cat([self.mean, self.scale.log()], dim=-1)

    def transform(self, noise: Float[Tensor, "samples dim"]) -> Float[Tensor, "samples *batch dim"]:
        """Turn standard normal noise into draws of each guide."""
        return self.mean + self.scale * _spread(noise, self.mean)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Entropy in nats."""
        return (self.scale.log() + (1 + LOG_2PI) / 2).sum(dim=-1)

    def log_prob(self, theta: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape"]:
        """Log density in nats; ``theta`` is broadcast against the batch."""
        noise = (theta - self.mean) / self.scale
        return -self.entropy() - (noise.square() - 1).sum(dim=-1) / 2


@dataclass(frozen=True)
class FullRankNormal:
    r"""A normal with any covariance: :math:`q(\theta) = \mathcal N(\theta \mid m, L L^\top)`.

    Attributes:
        mean: :math:`m`, shape ``(*batch, dim)``.
        scale_tril: :math:`L`, lower triangular, shape ``(*batch, dim, dim)``.
    """

    mean: Float[Tensor, "*batch dim"]
    scale_tril: Float[Tensor, "*batch dim dim"]

    @classmethod
    def unflatten(cls, free: Tensor, dim: int) -> Self:
        """Make the guides whose free numbers are the rows of a matrix: means, factors."""
        return cls(free[..., :dim], _LowerCholesky()(free[..., dim:]))

    def flatten(self) -> Float[Tensor, "*batch numbers"]:
        """Say the free numbers."""
        return torch.cat([self.mean, _LowerCholesky().inv(self.scale_tril)], dim=-1)

    def transform(self, noise: Float[Tensor, "samples dim"]) -> Float[Tensor, "samples *batch dim"]:
        """Turn standard normal noise into draws of each guide."""
        return self.mean + (self.scale_tril @ _spread(noise, self.mean)[..., None])[..., 0]

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Entropy in nats."""
        diagonal = self.scale_tril.diagonal(dim1=-2, dim2=-1)
        return (diagonal.log() + (1 + LOG_2PI) / 2).sum(dim=-1)

    def log_prob(self, theta: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape"]:
        """Log density in nats; ``theta`` is broadcast against the batch."""
        offset = (theta - self.mean)[..., None]
        noise = torch.linalg.solve_triangular(self.scale_tril, offset, upper=False)[..., 0]
        return -self.entropy() - (noise.square() - 1).sum(dim=-1) / 2


def _spread(noise: Tensor, mean: Tensor) -> Tensor:
    """The same noise for each guide of a batch."""
    return noise.reshape(len(noise), *[1] * (mean.ndim - 1), noise.shape[-1])


class FitResult(NamedTuple):
    """What :func:`fit` returns.

    Attributes:
        q: The guides that the last round ended with, best first, as one batch.
        elbo: Their ELBOs by fresh draws, shape ``(guides,)``, in nats.
        standard_error: The Monte Carlo errors of these.
        fitted: Their ELBOs by the draws that they were fitted to: higher, by what was overfitted.
        history: For each round the ELBO of each of its guides after each step, by its own draws.
        converged: Whether the search had come to rest, shape ``(guides,)``.
    """

    q: Any
    elbo: Float[Tensor, " guides"]
    standard_error: Float[Tensor, " guides"]
    fitted: Float[Tensor, " guides"]
    history: list[Float[Tensor, "guides steps"]]
    converged: Bool[Tensor, " guides"]


def fit(
    log_density: LogDensity,
    start: Guide,
    num_draws: int = 512,
    *,
    num_steps: int = 100,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> FitResult:
    r"""Find the guide with the largest ELBO, with fixed draws and a second-order optimizer.

    With its noise fixed, the estimate of the ELBO is a smooth function of the guide's numbers,
    which L-BFGS maximizes in tens of steps. Its optimum is that of the draws, and overfits them
    where they are few. So a race is run in rounds: all restarts with few draws, then the best
    eighth of them with eight times as many, until one is left with ``num_draws``.

    Args:
        log_density: The target.
        start: A batch of guides, such as a :class:`MeanFieldNormal` of shape ``(64, dim)``.
        num_draws: How many draws the last round has; take at least ten for each number of the
            guide.
        num_steps: How many steps of L-BFGS a round has, at most.
        generator: Source of randomness; torch's global one where it is ``None``.
        progress: Whether to show a progress bar.

    Returns:
        The guide of the last round.
    """
    flat, dim = start.flatten(), start.mean.shape[-1]
    rounds = max(1, math.ceil(math.log(len(flat), 8) - 1e-9) + 1) if len(flat) > 1 else 1
    history = []
    for left in reversed(range(rounds)):
        noise = normal_draws(max(2, num_draws // 8**left), dim, generator).to(flat)

        def loss(free: Tensor) -> tuple[Tensor, Tensor]:
            return _negative_elbo(log_density, type(start), free, noise)

        if history:
            flat = flat[loss(flat)[0].argsort()[: max(1, len(flat) // 8)]]
        found = minimize(loss, flat, num_steps)
        flat = found.point
        history.append(-found.history)
    order = found.value.argsort()
    q = type(start).unflatten(flat[order], dim)
    draws = q.transform(torch.randn(4096, dim, generator=generator, dtype=flat.dtype))
    terms = value(log_density, draws.flatten(0, 1)).reshape(draws.shape[:-1])
    elbo = terms.mean(dim=0) + q.entropy()
    return FitResult(q, elbo, terms.std(dim=0) / 64, -found.value[order], history, found.converged)


def _negative_elbo(
    log_density: LogDensity, family: type, free: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        free = free.detach().requires_grad_()
        q = family.unflatten(free, noise.shape[-1])
        draws = q.transform(noise)
        values, slopes = value_and_grad(log_density, draws.detach().flatten(0, 1))
        # The gradient of the log density is known: what autograd follows is a draw's way from the
        # free numbers.
        along = (slopes.reshape(draws.shape) * draws).sum(dim=-1)
        entropy = q.entropy()
        objective = along.mean(dim=0) + entropy
        (gradient,) = torch.autograd.grad(objective.sum(), free)
    return -(values.reshape(along.shape).mean(dim=0) + entropy.detach()), -gradient


def normal_draws(num_draws: int, dim: int, generator: torch.Generator | None) -> Tensor:
    """Standard normal draws that fill space evenly, each with its mirror image."""
    seed = int(torch.randint(2**31, (), generator=generator))
    uniform = SobolEngine(dim, scramble=True, seed=seed).draw((num_draws + 1) // 2)
    half = torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6))
    return torch.cat([half, -half])
