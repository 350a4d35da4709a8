r"""The evidence lower bound (ELBO), its estimators, and tighter bounds.

For a log joint density :math:`\log p(y, \theta)` and a guide :math:`q`,

.. math::
    \mathrm{ELBO}(q)
    = \mathbb E_q\bigl[\log p(y, \theta) - \log q(\theta)\bigr]
    = \log p(y) - \mathrm{KL}\bigl(q \,\|\, p(\theta \mid y)\bigr)
    = \mathbb E_q[\log p(y \mid \theta)] - \mathrm{KL}\bigl(q \,\|\, p(\theta)\bigr) .

The first form needs nothing but a log density, :func:`elbo`. The second says what is missed,
:func:`gap`. The third splits the bound into what the data say and what the prior holds against it,
:func:`parts`; it is the one for minibatches.

Source:
    Jordan, Ghahramani, Jaakkola and Saul (1999), "An introduction to variational methods for
    graphical models", Machine Learning 37.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coursepkg import _checks
from coursepkg.density import LogDensity, value_and_grad
from coursepkg.divergence import Estimate, mean_with_error
from coursepkg.guides import Guide

__all__ = ["Estimator", "Parts", "elbo", "gap", "importance_bound", "minibatch", "parts"]

Estimator = Literal["log_ratio", "entropy", "path_derivative"]


def elbo(
    log_density: LogDensity,
    q: Guide,
    num_draws: int = 1000,
    *,
    estimator: Estimator = "log_ratio",
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Estimate the ELBO of each guide from draws of it.

    Three ways to write the mean over draws :math:`\theta_i = T_\varphi(\epsilon_i)`, all unbiased,
    in their values as in their gradients:

    - ``"log_ratio"``: :math:`\log p(\theta_i) - \log q_\varphi(\theta_i)`. If q is the posterior,
      each draw alone gives the log evidence: no variance. Its gradient does vary.
    - ``"entropy"``: :math:`\log p(\theta_i) + \mathbb H[q_\varphi]`, with the exact entropy. It
      varies less where q is still far from the posterior.
    - ``"path_derivative"``: the values of ``"log_ratio"``, but in the gradient :math:`\varphi` acts
      through :math:`\theta_i` alone. What is left out, the score :math:`\nabla_\varphi \log
      q_\varphi`, has mean zero. At the posterior this gradient is zero for each draw.

    Args:
        log_density: :math:`\log p(y, \theta)`, or any log density.
        q: One guide or a batch.
        num_draws: How many draws of each guide, at least 2.
        estimator: Which of the three.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        Estimates in nats with standard errors, of q's batch shape. The values carry gradients to
        q's tensors (and to nothing else that ``log_density`` may depend on).

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: q is not finite, ``num_draws`` is below 2, or ``estimator`` is unknown.

    Source:
        Roeder, Wu and Duvenaud (2017), "Sticking the landing: Simple, lower-variance gradient
        estimators for variational inference", NeurIPS, for the path derivative.

    Example:
        >>> from coursepkg.guides import MeanFieldNormal
        >>> log_joint = lambda theta: -theta.square().sum(-1) / 2  # its integral is 2 pi
        >>> bound, error = elbo(log_joint, MeanFieldNormal(torch.zeros(2), torch.ones(2)))
        >>> f"{bound:.4f}", f"{error:.4f}"
        ('1.8379', '0.0000')
    """
    _checks.function("log_density", log_density)
    check_guide("q", q)
    num_draws = _checks.count("num_draws", num_draws, minimum=2)
    _checks.choice("estimator", estimator, ("log_ratio", "entropy", "path_derivative"))
    draws = q.rsample(num_draws, generator=generator)
    return mean_with_error(terms(log_density, q, draws, estimator))


def terms(
    log_density: LogDensity,
    q: Guide,
    draws: Float[Tensor, "draws *batch dim"],
    estimator: Estimator,
) -> Float[Tensor, "draws *batch"]:
    """What each draw adds to the ELBO; see :func:`elbo`."""
    values, slopes = value_and_grad(log_density, draws.detach())
    # Where a draw moves, the log density changes by its slope there: autograd need not know it.
    log_p = values + (slopes * (draws - draws.detach())).sum(dim=-1)
    if estimator == "entropy":
        return log_p + q.entropy()
    return log_p - (q.detach() if estimator == "path_derivative" else q).log_prob(draws)


class Parts(NamedTuple):
    """The ELBO and its two parts, in nats, of the guides' batch shape.

    Attributes:
        elbo: Log likelihood less KL, with the standard error of the former.
        log_likelihood: The expected log likelihood of the whole data set.
        kl: KL(q‖prior), exact.
    """

    elbo: Estimate
    log_likelihood: Estimate
    kl: Float[Tensor, "*batch"]


def parts(
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    q: Guide,
    rows: Int[Tensor, " batch_size"],
    *,
    dataset_size: int,
    num_draws: int = 1000,
    prior_mean: float | Float[Tensor, " #dim"] = 0.0,
    prior_scale: float | Float[Tensor, " #dim"] = 1.0,
    generator: torch.Generator | None = None,
) -> Parts:
    r"""Estimate the ELBO from a minibatch, with the KL to a normal prior in closed form.

    .. math::
        \frac{N}{B} \sum_{n \in \text{batch}} \mathbb E_q[\log p(y_n \mid \theta)]
        - \mathrm{KL}(q \,\|\, p)

    The sum over the batch is scaled to the data set, once, here; the KL counts once, whole. With
    all rows, :math:`B = N`, it is the ELBO itself. The standard errors are those of the draws, not
    of the choice of rows.

    Args:
        log_likelihood: Takes parameters of shape ``(…, dim)`` and row numbers of shape
            ``(batch_size,)``, and returns the log probability of each of these data points, shape
            ``(…, batch_size)``: not summed, not scaled.
        q: One guide or a batch.
        rows: Which data points, shape ``(batch_size,)``; ``torch.arange(dataset_size)`` for all.
        dataset_size: How many data points there are, :math:`N`.
        num_draws: How many draws of each guide, at least 2.
        prior_mean: Mean of the prior.
        prior_scale: Its standard deviation.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        The ELBO and its parts, with gradients to q's tensors and all else.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is too small, or ``log_likelihood`` returns another shape.

    Source:
        Hoffman, Blei, Wang and Paisley (2013), "Stochastic variational inference", Journal of
        Machine Learning Research 14; Graves (2011), "Practical variational inference for neural
        networks", NeurIPS.

    Example:
        >>> from coursepkg.guides import MeanFieldNormal
        >>> y = torch.tensor([0.9, 1.1, 1.0])
        >>> log_likelihood = lambda theta, rows: -(y[rows] - theta).square() / 2
        >>> q = MeanFieldNormal(torch.tensor([1.0]), torch.tensor([1.0]))
        >>> parts(log_likelihood, q, torch.tensor([0, 2]), dataset_size=3).kl
        tensor(0.5000)
    """
    _checks.function("log_likelihood", log_likelihood)
    check_guide("q", q)
    dataset_size = _checks.count("dataset_size", dataset_size, minimum=1)
    num_draws = _checks.count("num_draws", num_draws, minimum=2)
    draws = q.rsample(num_draws, generator=generator)
    each = _pointwise(log_likelihood, draws, rows)
    expected = mean_with_error(dataset_size * each.mean(dim=-1))
    kl = q.kl(prior_mean, prior_scale)
    return Parts(Estimate(expected.value - kl, expected.standard_error), expected, kl)


def minibatch(
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    log_prior: LogDensity,
    *,
    dataset_size: int,
    batch_size: int,
    generator: torch.Generator | None = None,
) -> LogDensity:
    r"""A log joint density that looks at a minibatch: fresh rows at each call, unbiased.

    .. math::
        \log p(\theta) + \frac{N}{B} \sum_{n \in \text{batch}} \log p(y_n \mid \theta)

    It is for stochastic optimizers. One that asks twice and compares, as a line search does, would
    compare two different minibatches.

    Args:
        log_likelihood: As for :func:`parts`.
        log_prior: Log density of the parameters before any data.
        dataset_size: How many data points there are, :math:`N`.
        batch_size: How many a call looks at, :math:`B`, drawn without replacement.
        generator: Source of randomness; torch's global one where it is ``None``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is too small, or the batch is larger than the data set.

    Example:
        >>> y = torch.randn(100, generator=torch.Generator().manual_seed(0))
        >>> noisy = minibatch(
        ...     lambda theta, rows: -(y[rows] - theta).square() / 2,
        ...     lambda theta: -theta.square().sum(-1) / 2,
        ...     dataset_size=100, batch_size=10,
        ... )
        >>> noisy(torch.zeros(4, 1)).shape
        torch.Size([4])
    """
    _checks.function("log_likelihood", log_likelihood)
    _checks.function("log_prior", log_prior)
    dataset_size = _checks.count("dataset_size", dataset_size, minimum=1)
    batch_size = _checks.count("batch_size", batch_size, minimum=1)
    _checks.generator_or_none(generator)
    if batch_size > dataset_size:
        raise ValueError(f"batch_size must be at most {dataset_size} rows, got {batch_size}")

    def log_density(theta: Tensor) -> Tensor:
        rows = torch.randperm(dataset_size, generator=generator)[:batch_size].to(theta.device)
        each = _pointwise(log_likelihood, theta, rows)
        return log_prior(theta) + dataset_size * each.mean(dim=-1)

    return log_density


def importance_bound(
    log_density: LogDensity,
    q: Guide,
    num_importance: int,
    num_draws: int = 1000,
    *,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Estimate the importance-weighted bound: the log of a mean of K ratios, not the mean log.

    .. math::
        \mathcal L_K = \mathbb E\Bigl[\log \frac1K \sum_{k=1}^K \frac{p(y, \theta_k)}
        {q(\theta_k)}\Bigr], \qquad \theta_k \sim q, \qquad
        \mathrm{ELBO} = \mathcal L_1 \le \mathcal L_2 \le \dots \le \log p(y) .

    It rises to the log evidence as K grows, if q reaches wherever the posterior is.

    Args:
        log_density: :math:`\log p(y, \theta)`.
        q: One guide or a batch.
        num_importance: :math:`K`.
        num_draws: How many times K draws are made, at least 2.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        Estimates of :math:`\mathcal L_K` in nats, with standard errors, of q's batch shape, without
        a gradient.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is too small, or q is not finite.

    Source:
        Burda, Grosse and Salakhutdinov (2016), "Importance weighted autoencoders", ICLR.

    Example:
        >>> from coursepkg.guides import MeanFieldNormal
        >>> q = MeanFieldNormal(torch.zeros(1), torch.full((1,), 2.0))
        >>> standard_normal = lambda theta: -(theta.square() + math.log(2 * math.pi)).sum(-1) / 2
        >>> one, many = (importance_bound(standard_normal, q, k).value for k in (1, 50))
        >>> bool(one < many)
        True
    """
    _checks.function("log_density", log_density)
    check_guide("q", q)
    num_importance = _checks.count("num_importance", num_importance, minimum=1)
    num_draws = _checks.count("num_draws", num_draws, minimum=2)
    with torch.no_grad():
        draws = q.rsample(num_draws * num_importance, generator=generator)
        ratios = terms(log_density, q, draws, "log_ratio").unflatten(0, (num_draws, num_importance))
        return mean_with_error(ratios.logsumexp(dim=1) - math.log(num_importance))


def gap(bound: Estimate, log_evidence: Estimate | float) -> Estimate:
    r"""How far a bound is below the log evidence; for an ELBO this is KL(q‖posterior).

    Args:
        bound: Of :func:`elbo`, :func:`parts` or :func:`importance_bound`.
        log_evidence: The log evidence, in nats, known exactly or estimated independently.

    Returns:
        The difference, with both errors in it. Below zero by more than its error allows, one of the
        two is wrong.

    Raises:
        TypeError: ``log_evidence`` is neither an estimate nor a number.

    Example:
        >>> gap(Estimate(torch.tensor(-3.0), torch.tensor(0.3)), -1.0)
        Estimate(value=tensor(2.), standard_error=tensor(0.3000))
    """
    if not isinstance(log_evidence, Estimate):
        exact = bound.value.new_tensor(_checks.scalar("log_evidence", log_evidence))
        log_evidence = Estimate(exact, torch.zeros_like(exact))
    error = torch.hypot(bound.standard_error, log_evidence.standard_error.to(bound.value))
    return Estimate(log_evidence.value.to(bound.value) - bound.value, error)


def check_guide(name: str, q: Guide) -> None:
    """Check guides with finite numbers.

    Raises:
        TypeError: ``q`` is no guide.
        ValueError: A number of it is not finite.
    """
    if not isinstance(q, Guide):
        raise TypeError(
            f"{name} must be a guide, got {type(q).__name__}; coursepkg.guides has "
            "MeanFieldNormal, LowRankNormal and FullRankNormal"
        )
    _checks.array(f"the numbers of {name}", q.flatten())


def _pointwise(
    log_likelihood: Callable[[Tensor, Tensor], Tensor], theta: Tensor, rows: Tensor
) -> Tensor:
    each = log_likelihood(theta, rows)
    needed = (*theta.shape[:-1], *rows.shape)
    if not isinstance(each, Tensor) or each.shape != needed:
        got = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
        raise ValueError(
            "log_likelihood must return one value for each parameter vector and row, a tensor of "
            f"shape {needed}, got {got}; do not sum over the rows, and do not scale"
        )
    return each
