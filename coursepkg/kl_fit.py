r"""The Gaussian nearest to a density, by either direction of the Kullback-Leibler divergence.

The reverse direction minimizes :math:`\mathrm{KL}(q \,\|\, p)` over the Gaussians q. It asks for
the density of p only where q is, it may have several local optima, and where q cannot follow a
correlation it becomes too narrow. The forward direction minimizes :math:`\mathrm{KL}(p \,\|\, q)`.
Its one optimum has the mean and the covariance of p, wherever p has its mass.

Expectations are sums over fixed nodes :math:`\theta_k = m + L z_k` that move along with q. In one
dimension they are those of a quadrature, as good as exact. In more they are evenly spread random
points, made once, with a mean of exactly zero and a covariance of exactly one: the objective is a
smooth function without noise that a second-order optimizer finishes in tens of steps, and every
Gaussian target is met exactly.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from coursepkg import _checks
from coursepkg._random import spread_normal
from coursepkg.density import LogDensity, value, value_and_grad
from coursepkg.divergence import Estimate, mean_with_error

__all__ = ["NormalFit", "fit_normal"]

# The nodes of the quadrature reach this many standard deviations to each side.
QUADRATURE_WIDTH = 9.0
# Converged is what would not move by more than this many of q's standard deviations.
TOLERANCE = 1e-5


Nodes = tuple[Tensor, Tensor]
Found = tuple[Tensor, Tensor, Tensor]


class NormalFit(NamedTuple):
    r"""Gaussians that :func:`fit_normal` found: each local optimum once, the best first.

    Attributes:
        mean: Their means :math:`m`, shape ``(optima, dim)``.
        scale_tril: Lower Cholesky factors :math:`L` of their covariances, shape
            ``(optima, dim, dim)``.
        kl: Their divergences in nats, shape ``(optima,)``, with a standard error from draws that
            the fit has not seen (0 in one dimension). In the reverse direction it is
            :math:`\mathrm{KL}(q \,\|\, p) - \log Z`, with :math:`Z` the integral of the density
            as given, 1 if it is normalized; that is minus the evidence lower bound. In the forward
            direction :math:`Z` is estimated along with it.
        converged: Whether the search ended in a stationary point, shape ``(optima,)``.
    """

    mean: Float[Tensor, "optima dim"]
    scale_tril: Float[Tensor, "optima dim dim"]
    kl: Estimate
    converged: Bool[Tensor, " optima"]


def fit_normal(
    log_density: LogDensity,
    starts: Float[Tensor, "starts dim"],
    direction: Literal["reverse", "forward"] = "reverse",
    *,
    family: Literal["full", "diagonal"] = "full",
    start_scale: float = 1.0,
    num_samples: int = 1024,
    num_steps: int = 500,
    generator: torch.Generator | None = None,
) -> NormalFit:
    r"""Fit a Gaussian to a density by :math:`\mathrm{KL}(q \,\|\, p)` or by the forward one.

    Reverse: L-BFGS on the mean and the Cholesky factor, the diagonal of the factor by its
    logarithm, so that no scale can become negative. Forward: importance sampling from the present
    Gaussian gives the moments of p, which make the next Gaussian, until they stay. All starts are
    one batch.

    Args:
        log_density: :math:`\log p`, up to a constant, positive everywhere
            (:class:`coursepkg.density.Space` brings a constrained one there).
        starts: Means to start from, shape ``(starts, dim)``. The reverse direction finds the optima
            that its starts lead to: spread them. A start where the density is symmetric may end on
            a saddle point.
        direction: ``"reverse"`` for KL(q‖p), ``"forward"`` for KL(p‖q).
        family: Whether the covariance is full or diagonal. The forward direction matches the same
            variances by both.
        start_scale: Standard deviation to start from, in the unit of the parameters. In the forward
            direction the first Gaussian must overlap with p.
        num_samples: How many nodes, and then how many draws for the divergence; at least 100 and at
            least four for each dimension, best a power of two. In one dimension their distance,
            18 / num_samples standard deviations, must resolve the density.
        num_steps: At most so many steps.
        generator: Source of randomness, not needed in one dimension; torch's global one where it is
            ``None``.

    Returns:
        The optima, in float64.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``starts`` is no finite matrix, a number is too small, ``direction`` or
            ``family`` is unknown, or the density cannot be computed around a start.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, section 10.1.2; Owen (2013), Monte
        Carlo Theory, Methods and Examples, for the spread points.

    Example:
        >>> from torch.distributions import Categorical, MixtureSameFamily, Normal
        >>> parts = Normal(torch.tensor([0.0, 3.0]).double(), torch.tensor([0.4, 1.0]).double())
        >>> p = MixtureSameFamily(Categorical(torch.ones(2)), parts)
        >>> fit = fit_normal(lambda theta: p.log_prob(theta[..., 0]), torch.tensor([[-1.0], [4.0]]))
        >>> [f"{m:.2f}" for m in fit.mean[:, 0]], [f"{k:.2f}" for k in fit.kl.value]
        (['2.18', '0.04'], ['0.42', '0.65'])
    """
    _checks.function("log_density", log_density)
    mean = _checks.array("starts", starts, ndim=2).detach()
    dim = mean.shape[1]
    _checks.choice("direction", direction, ("reverse", "forward"))
    _checks.choice("family", family, ("full", "diagonal"))
    start_scale = _checks.positive("start_scale", start_scale)
    num_samples = _checks.count("num_samples", num_samples, minimum=max(100, 4 * dim))
    num_steps = _checks.count("num_steps", num_steps, minimum=1)
    generator = _checks.generator_or_none(generator)

    scale_tril = start_scale * torch.eye(dim, dtype=mean.dtype, device=mean.device)
    scale_tril = scale_tril.repeat(len(mean), 1, 1)
    if dim == 1:
        nodes = _quadrature(num_samples)
    else:
        noise = spread_normal(num_samples, dim, generator)
        nodes = noise, noise.new_full((len(noise),), 1 / len(noise))
    nodes = nodes[0].to(mean.device), nodes[1].to(mean.device)
    fit = _fit_reverse if direction == "reverse" else _fit_forward
    mean, scale_tril, converged = fit(log_density, mean, scale_tril, nodes, family, num_steps)

    proposal = scale_tril  # moment matching draws from the full Gaussian, whatever the family
    if family == "diagonal":
        scale_tril = torch.linalg.vector_norm(scale_tril, dim=-1).diag_embed()
    if dim > 1:  # of draws that the fit has not leaned on
        noise = torch.randn(nodes[0].shape, generator=generator, dtype=mean.dtype)
        nodes = noise.to(mean.device), nodes[1]
    divergence = _divergence(log_density, mean, scale_tril, proposal, nodes, direction)
    chosen = _distinct(mean, scale_tril, divergence.value)
    divergence = Estimate(divergence.value[chosen], divergence.standard_error[chosen])
    return NormalFit(mean[chosen], scale_tril[chosen], divergence, converged[chosen])


def _quadrature(count: int) -> Nodes:
    """Nodes and weights of the trapezoidal rule for a standard normal."""
    z = torch.linspace(-QUADRATURE_WIDTH, QUADRATURE_WIDTH, count, dtype=torch.float64)
    return z[:, None], (-z.square() / 2).softmax(dim=0)


def _fit_reverse(
    log_density: LogDensity, mean: Tensor, scale_tril: Tensor, nodes: Nodes, family: str, steps: int
) -> Found:
    """Minimize the cross entropy of q and p less the entropy of q, for all starts at once."""
    noise, weights = nodes
    mean = mean.clone()
    # Below its diagonal it is the factor, on it the logarithms: no scale can become negative.
    free = scale_tril.diagonal(dim1=-2, dim2=-1).log().diag_embed()

    def factor() -> Tensor:
        return free.tril(-1) + free.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def objective() -> Tensor:
        theta = mean[:, None] + noise @ factor().mT
        values, slopes = value_and_grad(log_density, theta)
        # Each node moves along with the parameters: theta_k = m + L z_k.
        slopes = slopes * weights[:, None]
        mean.grad = -slopes.sum(dim=1)
        by_factor = -slopes.mT @ noise
        log_scales = free.diagonal(dim1=-2, dim2=-1)
        by_log_scale = by_factor.diagonal(dim1=-2, dim2=-1) * log_scales.exp() - 1
        below = by_factor.tril(-1) if family == "full" else 0
        free.grad = below + by_log_scale.diag_embed()
        return -(values @ weights + log_scales.sum(dim=-1)).sum()

    if not torch.isfinite(objective()):
        raise ValueError(
            "log_density must be finite wherever a Gaussian reaches, got a value that is not, near "
            "a start; density.Space brings constrained parameters there, and a smaller start_scale "
            "avoids what overflows"
        )
    optimizer = torch.optim.LBFGS(
        [mean, free],
        max_iter=steps,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        history_size=50,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(lambda: float(objective()))
    objective()
    assert mean.grad is not None
    assert free.grad is not None
    in_scales = (factor().mT @ mean.grad[..., None]).abs().amax(dim=(-2, -1))
    converged = torch.maximum(in_scales, free.grad.abs().amax(dim=(-2, -1))) < TOLERANCE
    return mean.detach(), factor(), converged


def _fit_forward(
    log_density: LogDensity, mean: Tensor, scale_tril: Tensor, nodes: Nodes, family: str, steps: int
) -> Found:
    """Repeat: weight the nodes of q by p / q, and give q the moments that they then have."""
    noise, weights = nodes
    log_base = weights.log() + noise.square().sum(dim=-1) / 2
    for _ in range(steps):
        theta = mean[:, None] + noise @ scale_tril.mT
        share = (value(log_density, theta) + log_base).softmax(dim=-1)[..., None]
        moved = (share * theta).sum(dim=1)
        centered = theta - moved[:, None]
        factor, failed = torch.linalg.cholesky_ex((share * centered).mT @ centered)
        if failed.any():
            raise ValueError(
                "starts and start_scale must give Gaussians that overlap with the density, got one "
                "in which next to no node has any weight; a larger start_scale reaches farther"
            )
        change = torch.cat([(moved - mean)[..., None], factor - scale_tril], dim=-1)
        change = torch.linalg.solve_triangular(factor, change, upper=False)
        mean, scale_tril = moved, factor
        converged = change.abs().amax(dim=(-2, -1)) < TOLERANCE
        if change.abs().max() < 1e-10:
            break
    return mean, scale_tril, converged


def _divergence(
    log_density: LogDensity,
    mean: Tensor,
    scale_tril: Tensor,
    proposal: Tensor,
    nodes: Nodes,
    direction: str,
) -> Estimate:
    """The divergence with nodes of its own, those of the proposal N(mean, proposal proposal^T)."""
    noise, weights = nodes
    shift = noise @ proposal.mT
    log_p = value(log_density, mean[:, None] + shift)
    constant = mean.shape[1] * math.log(2 * math.pi) / 2

    def log_normal(factor: Tensor) -> Tensor:
        z = torch.linalg.solve_triangular(factor, shift.mT, upper=False)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        return -z.square().sum(dim=-2) / 2 - log_det[:, None] - constant

    log_ratio = log_p - log_normal(scale_tril)
    if direction == "reverse":
        kl, terms = -log_ratio @ weights, -log_ratio
    else:
        importance = weights.log() + log_p - log_normal(proposal)
        share = importance.softmax(dim=-1)
        log_normalizer = importance.logsumexp(dim=-1)
        mean_ratio = (share * log_ratio.nan_to_num(neginf=0)).sum(dim=-1)
        kl = mean_ratio - log_normalizer
        # The delta method: what a draw adds to the two sums, of which one is in a logarithm.
        terms = share * len(noise) * (log_ratio.nan_to_num(neginf=0) - mean_ratio[:, None] - 1)
    if noise.shape[1] == 1:
        return Estimate(kl, torch.zeros_like(kl))
    return Estimate(kl, mean_with_error(terms.T).standard_error)


def _distinct(mean: Tensor, scale_tril: Tensor, kl: Tensor) -> list[int]:
    """The best of each group of equal Gaussians, the best first."""
    flat = torch.cat([mean, scale_tril.flatten(1)], dim=1)
    chosen: list[int] = []
    for i in kl.argsort().tolist():
        scale = scale_tril[i].diagonal().min()
        if all((flat[i] - flat[j]).abs().max() > 1e-3 * scale for j in chosen):
            chosen.append(i)
    return chosen
