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
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from coursepkg import _checks
from coursepkg._lbfgs import minimize
from coursepkg._random import spread_normal
from coursepkg.density import LogDensity, value
from coursepkg.divergence import Estimate, mean_with_error
from coursepkg.elbo import Estimator, check_guide, elbo, terms
from coursepkg.guides import Guide

__all__ = ["FitResult", "fit", "fit_stochastic"]

# One restart in so many goes on to the next round.
KEPT = 4
# How many fresh draws judge the guides in the end.
JUDGES = 4096
# A search that gained no more nats than this in its last stretch has come to rest.
RESTING = 0.1


class FitResult(NamedTuple):
    """What a fit returns: the guides of its last round, the best first, as one batch.

    Attributes:
        q: The guides.
        elbo: Their ELBOs in nats, shape ``(guides,)``, by fresh draws, with standard errors.
        fitted: The same by the draws that they were fitted to. What it is higher by is overfitted:
            take more draws where that matters.
        converged: Whether the search had come to rest, shape ``(guides,)``: by :func:`fit`, whether
            the last fifth of the steps gained less than a tenth of a nat; if not, take more steps.
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
    num_draws: int = 1024,
    *,
    num_steps: int = 50,
    race: bool = True,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> FitResult:
    r"""Find the guide with the largest ELBO, with fixed draws and a second-order optimizer.

    With its noise fixed, the estimate of the ELBO is a smooth function of the guide's numbers,
    which L-BFGS maximizes in tens of steps. Its optimum is that of these draws, and overfits them
    where they are few. So the restarts run a race: all of them with few draws, then the best
    quarter with four times as many, until the last one has ``num_draws``.

    Args:
        log_density: The target.
        start: A batch of guides, one for each restart, such as
            ``MeanFieldNormal.initial(dim, num_restarts=64)``.
        num_draws: How many draws the last round has, at least 2; thirty for each of the guide's
            free numbers do well.
        num_steps: How many steps of L-BFGS a round has, at most.
        race: Whether only the best restarts go on. Without it there is one round, with all draws
            for all restarts: their local optima.
        generator: Source of randomness; torch's global one where it is ``None``.
        progress: Whether to show a progress bar.

    Returns:
        The guides of the last round, judged by draws that none of them was fitted to.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is too small, ``start`` is no batch of finite guides, or the density is
            zero at all of their means.

    Source:
        Giordano, Ingram and Broderick (2024), "Black box variational inference with a deterministic
        objective: faster, more accurate, and even more black box", Journal of Machine Learning
        Research 25(18).

    Example:
        >>> from coursepkg.guides import FullRankNormal, MeanFieldNormal
        >>> covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
        >>> target = torch.distributions.MultivariateNormal(torch.ones(2), covariance)
        >>> found = fit(target.log_prob, MeanFieldNormal.initial(2, 8), progress=False)
        >>> [f"{s:.2f}" for s in found.q.scale[0]]  # (1 - 0.8**2) ** 0.5, not 1
        ['0.60', '0.60']
    """
    unflatten, free = _restarts(log_density, start)
    num_draws = _checks.count("num_draws", num_draws, minimum=2)
    num_steps = _checks.count("num_steps", num_steps, minimum=1)
    generator = _checks.generator_or_none(generator)

    num_rounds = math.ceil(math.log(len(free), KEPT)) + 1 if race else 1
    q: Any = unflatten(free)
    history: list[Tensor] = []
    with tqdm(total=num_rounds * num_steps, disable=None if progress else True) as bar:
        for rounds_left in reversed(range(num_rounds)):
            few = max(2, num_draws // KEPT**rounds_left)
            noise = spread_normal(few, start.num_noise, generator).to(free)[:, None]
            if history:
                bounds = terms(log_density, q, q.transform(noise), "entropy").mean(dim=0)
                q = q[bounds.argsort(descending=True)[: math.ceil(len(bounds) / KEPT)]]
            # L-BFGS needs far fewer steps where all coordinates vary by about as much.
            unit = q.variance.sqrt()
            in_units = partial(_in_units, unflatten, unit)
            loss = partial(_negative_elbo, log_density, in_units, noise)
            found = minimize(loss, _scaled(q, 1 / unit).flatten(), num_steps, tick=bar.update)
            q = in_units(found.point)
            history.append(-found.history)

    path = history[-1]
    converged = path[:, -1] - path[:, -1 - max(1, path.shape[1] // 5)] < RESTING
    best = found.value.argsort()
    q = q[best]
    judged = elbo(log_density, q, JUDGES, generator=generator)
    return FitResult(q, judged, -found.value[best], converged[best], history)


def fit_stochastic(
    log_density: LogDensity,
    start: Guide,
    num_draws: int = 5,
    *,
    num_steps: int = 3000,
    learning_rate: float = 0.01,
    estimator: Estimator = "path_derivative",
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> FitResult:
    r"""Find the guide with the largest ELBO, with fresh draws at each step and Adam.

    Each step moves along a noisy, unbiased gradient. That also works where the density itself is
    noisy, as one of :func:`coursepkg.elbo.minibatch` is, and where there are too many numbers for
    :func:`fit`; where both work, this takes tens of times as many steps. The learning rate falls
    to zero along a cosine, so that the last guides rest in spite of the noise.

    Args:
        log_density: The target, or an unbiased estimate of it.
        start: A batch of guides, one for each restart.
        num_draws: How many draws of each guide a step takes, at least 2.
        num_steps: How many steps.
        learning_rate: The first learning rate, in the units of the guide's free numbers.
        estimator: How gradients are estimated; see :func:`coursepkg.elbo.elbo`.
        generator: Source of randomness; torch's global one where it is ``None``.
        progress: Whether to show a progress bar.

    Returns:
        The guides, the best first. ``fitted`` is the mean over the last tenth of the steps;
        ``converged`` says whether the last quarter was better than the quarter before by no more
        than a tenth of a nat and three standard errors.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: As for :func:`fit`, or ``estimator`` is unknown.

    Source:
        Kingma and Welling (2014), as above; Kingma and Ba (2015), "Adam: A method for stochastic
        optimization", ICLR.

    Example:
        >>> from coursepkg.guides import MeanFieldNormal
        >>> normal = torch.distributions.Normal(2.0, 0.5)
        >>> start = MeanFieldNormal.initial(1, 4)
        >>> target = lambda theta: normal.log_prob(theta[..., 0])
        >>> found = fit_stochastic(target, start, learning_rate=0.1, num_steps=300, progress=False)
        >>> f"{found.q.mean[0, 0]:.2f}", f"{found.q.scale[0, 0]:.2f}"
        ('2.00', '0.50')
    """
    unflatten, free = _restarts(log_density, start)
    num_draws = _checks.count("num_draws", num_draws, minimum=2)
    num_steps = _checks.count("num_steps", num_steps, minimum=20)
    learning_rate = _checks.positive("learning_rate", learning_rate)
    generator = _checks.generator_or_none(generator)

    free.requires_grad_()
    optimizer = torch.optim.Adam([free], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    path = []
    for _ in tqdm(range(num_steps), disable=None if progress else True):
        with torch.enable_grad():
            bound = elbo(
                log_density, unflatten(free), num_draws, estimator=estimator, generator=generator
            ).value
            (gradient,) = torch.autograd.grad(bound.sum(), free)
        free.grad = -gradient
        optimizer.step()
        schedule.step()
        path.append(bound.detach())

    history = torch.stack(path, dim=1)
    fitted = history[:, -(num_steps // 10) :].mean(dim=1)
    before, last = (mean_with_error(part.T) for part in history.chunk(4, dim=1)[-2:])
    noise = torch.hypot(before.standard_error, last.standard_error)
    converged = last.value - before.value < RESTING + 3 * noise
    best = fitted.argsort(descending=True)
    q = unflatten(free.detach()[best])
    judged = elbo(log_density, q, JUDGES, generator=generator)
    return FitResult(q, judged, fitted[best], converged[best], [history[best]])


def _restarts(log_density: LogDensity, start: Guide) -> tuple[Callable[[Tensor], Guide], Tensor]:
    """Check a target and guides to start from; return their free numbers, one row a restart."""
    _checks.function("log_density", log_density)
    check_guide("start", start)
    _checks.array("the means of start", start.mean, ndim=2)
    if value(log_density, start.mean).isinf().all():
        raise ValueError(
            "log_density must be finite at the means of start, got none that is; a Gaussian "
            "reaches everywhere, and coursepkg.density.Space brings constrained parameters there"
        )
    unflatten = partial(type(start).unflatten, dim=start.mean.shape[1])
    return unflatten, start.flatten().detach().clone()


def _in_units(unflatten: Callable[[Tensor], Guide], unit: Tensor, free: Tensor) -> Any:
    """Guides whose free numbers are those of the coordinates in other units."""
    return _scaled(unflatten(free), unit)


def _scaled(q: Guide, by: Tensor) -> Any:
    """The guides of coordinates that are so many times as large, ``by`` of shape ``(*batch, dim)``.

    Means and scales have a number for each coordinate, factors have a row.
    """
    parts = (getattr(q, f.name) for f in fields(q))
    return type(q)(*(x * (by if x.ndim == by.ndim else by[..., None]) for x in parts))


def _negative_elbo(
    log_density: LogDensity, unflatten: Callable[[Tensor], Guide], noise: Tensor, free: Tensor
) -> tuple[Tensor, Tensor]:
    """The ELBOs of guides by given noise, and their gradients in the free numbers, times -1."""
    with torch.enable_grad():
        free = free.detach().requires_grad_()
        q = unflatten(free)
        bound = terms(log_density, q, q.transform(noise), "entropy").mean(dim=0)
        (gradient,) = torch.autograd.grad(bound.sum(), free)
    return -bound.detach(), -gradient
