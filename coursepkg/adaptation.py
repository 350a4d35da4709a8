r"""How a sampler tunes itself: dual averaging, and a mass from all chains together."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

__all__ = ["DualAveraging", "harmonic_mean", "pooled_covariance"]

# How strongly the step size is held back. Hoffman and Gelman have 0.05, for one chain's noisy
# acceptance; the harmonic mean of many is less noisy and falls more steeply.
GAMMA = 0.2


def harmonic_mean(acceptance: Float[Tensor, " chains"]) -> float:
    """Harmonic mean of the chains' acceptance, none of them counted below 1 %.

    The chains share a step size. Their usual mean can be high while a few of them, where the
    density is narrow, never move; the harmonic mean heeds the worst.

    Source:
        Hoffman, Radul and Sountsov (2021), "An adaptive-MCMC scheme for setting trajectory lengths
        in Hamiltonian Monte Carlo", AISTATS.

    Example:
        >>> import torch
        >>> round(harmonic_mean(torch.tensor([1.0, 1.0, 1.0, 0.1])), 2)
        0.31
    """
    return float(1 / (1 / acceptance.clamp(min=0.01)).mean())


class DualAveraging:
    r"""Find the step size at which the acceptance is on target.

    The logarithm of the step size moves against the mean error so far; what is kept in the end is
    an average over its path, in which the noise of single steps cancels.

    Args:
        step_size: Where to start.
        target: The harmonic mean of the acceptance to reach.

    Attributes:
        step_size: What to try next.
        average: What to keep.

    Source:
        Nesterov (2009), "Primal-dual subgradient methods for convex problems", Mathematical
        Programming 120; Hoffman and Gelman (2014), "The No-U-Turn Sampler", Journal of Machine
        Learning Research 15, section 3.2.
    """

    def __init__(self, step_size: float, target: float = 0.8) -> None:
        self.step_size = self.average = step_size
        self.target = target
        self._anchor = math.log(step_size)
        self._error = self._log_average = 0.0
        self._count = 0

    def update(self, acceptance: Float[Tensor, " chains"]) -> None:
        """Learn from the acceptance that ``step_size`` had."""
        self._count += 1
        count = self._count
        weight = 1 / (count + 10)
        self._error += weight * (self.target - harmonic_mean(acceptance) - self._error)
        log_step = self._anchor - count**0.5 / GAMMA * self._error
        weight = count**-0.75
        self._log_average += weight * (log_step - self._log_average)
        self.step_size, self.average = math.exp(log_step), math.exp(self._log_average)


def pooled_covariance(draws: Float[Tensor, "draws dim"]) -> Float[Tensor, "..."]:
    """Covariance of the draws of all chains: a matrix, or its diagonal where draws are few.

    Args:
        draws: Draws, shape ``(draws, dim)``.

    Returns:
        Shape ``(dim, dim)``; ``(dim,)`` where there are fewer than ten draws for each dimension.

    Example:
        >>> import torch
        >>> pooled_covariance(torch.tensor([[0.0], [2.0]] * 10))
        tensor([[1.0526]])
    """
    count, dim = draws.shape
    variance = draws.double().var(dim=0)
    if count < 10 * dim:
        return variance.to(draws)
    covariance = draws.double().T.cov().reshape(dim, dim)
    # A little shrinkage of the correlations, for draws that repeat one another.
    shrinkage = dim / (dim + count)
    covariance = (1 - shrinkage) * covariance + shrinkage * variance.diag()
    return covariance.to(draws)
