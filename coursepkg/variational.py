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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from coursepkg import _checks
from coursepkg._lbfgs import minimize
from coursepkg._random import spread_normal
from coursepkg.density import LogDensity, _LowerCholesky, value, value_and_grad
from coursepkg.divergence import Estimate, mean_with_error

__all__ = ["FitResult", "FullRankNormal", "Guide", "MeanFieldNormal", "fit"]

LOG_2PI = math.log(2 * math.pi)
# One restart in so many goes on to the next round.
KEPT = 8
# How many fresh draws judge the guides in the end.
JUDGES = 4096


@runtime_checkable
class Guide(Protocol):
    """A batch of distributions over vectors: noise, transformed by a few free numbers."""

    @classmethod
    def unflatten(cls, free: Tensor, dim: int) -> Guide:
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

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log density in nats; ``theta`` is broadcast against the batch."""
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
    def unflatten(cls, free: Tensor, dim: int) -> MeanFieldNormal:
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
    def unflatten(cls, free: Tensor, dim: int) -> FullRankNormal:
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
    """What :func:`fit` returns: the guides of its last round, the best first, as one batch.

    Attributes:
        q: The guides.
        elbo: Their ELBOs in nats, shape ``(guides,)``, by fresh draws, with standard errors.
        fitted: The same by the draws that they were fitted to. What it is higher by is overfitted:
            take more draws where that matters.
        converged: Whether the search had come to rest, shape ``(guides,)``.
        history: The ELBOs of each round's guides after each step, by the round's own draws.
    """

    q: Any
    elbo: Estimate
    fitted: Float[Tensor, " guides"]
    converged: Bool[Tensor, " guides"]
    history: list[Float[Tensor, "guides steps"]]


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
    which L-BFGS maximizes in tens of steps. Its optimum is that of these draws, and overfits them
    where they are few. So the restarts run a race: all of them with few draws, then the best eighth
    with eight times as many, until the last ones have ``num_draws``.

    Args:
        log_density: The target.
        start: A batch of guides, one for each restart, such as a :class:`MeanFieldNormal` with
            means of shape ``(64, dim)``.
        num_draws: How many draws the last round has, at least 2; ten for each of the guide's free
            numbers do well.
        num_steps: How many steps of L-BFGS a round has, at most.
        generator: Source of randomness; torch's global one where it is ``None``.
        progress: Whether to show a progress bar.

    Returns:
        The guides of the last round, judged by draws that none of them was fitted to.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is too small, or the means are no finite matrix.

    Source:
        Giordano, Ingram and Broderick (2024), "Black box variational inference with a deterministic
        objective: faster, more accurate, and even more black box", Journal of Machine Learning
        Research 25(18).
    """
    _checks.function("log_density", log_density)
    _checks.array("the means of start", start.mean, ndim=2)
    num_draws = _checks.count("num_draws", num_draws, minimum=2)
    num_steps = _checks.count("num_steps", num_steps, minimum=1)
    generator = _checks.generator_or_none(generator)
    unflatten, free, dim = type(start).unflatten, start.flatten().detach(), start.mean.shape[1]

    num_rounds = math.ceil(math.log(len(free), KEPT)) + 1
    history: list[Tensor] = []
    with tqdm(total=num_rounds * num_steps, disable=None if progress else True) as bar:
        for rounds_left in reversed(range(num_rounds)):
            few = max(2, num_draws // KEPT**rounds_left)
            noise = spread_normal(few, dim, generator).to(free)
            loss = partial(_negative_elbo, log_density, unflatten, noise)
            if history:
                best = loss(free)[0].argsort()
                free = free[best[: math.ceil(len(free) / KEPT)]]
            found = minimize(loss, free, num_steps, tick=bar.update)
            free = found.point
            history.append(-found.history)

    best = found.value.argsort()
    q = unflatten(free[best], dim)
    fresh = torch.randn(JUDGES, dim, generator=generator, dtype=free.dtype, device=free.device)
    draws = q.transform(fresh)
    # With the log density of q in place of its entropy: near the posterior little is left to vary.
    elbo = mean_with_error(value(log_density, draws) - q.log_prob(draws))
    return FitResult(q, elbo, -found.value[best], found.converged[best], history)


def _negative_elbo(
    log_density: LogDensity,
    unflatten: Callable[[Tensor, int], Guide],
    noise: Tensor,
    free: Tensor,
) -> tuple[Tensor, Tensor]:
    """The ELBOs of guides by given noise, and their gradients in the free numbers, times -1."""
    with torch.enable_grad():
        free = free.detach().requires_grad_()
        q = unflatten(free, noise.shape[1])
        draws, entropy = q.transform(noise), q.entropy()
        values, slopes = value_and_grad(log_density, draws.detach())
        # Where a draw moves, the log density changes by its slope there: autograd need not know it.
        linear = (slopes * draws).sum(dim=-1).mean(dim=0)
        (gradient,) = torch.autograd.grad((linear + entropy).sum(), free)
    return -(values.mean(dim=0) + entropy.detach()), -gradient
