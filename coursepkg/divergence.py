r"""The Kullback-Leibler divergence: in closed form, by Monte Carlo, by quadrature.

.. math::
    \mathrm{KL}(q \,\|\, p) = \mathbb E_{x \sim q}\left[\log \frac{q(x)}{p(x)}\right]

It is a sum over the parts of :math:`x`, in nats; it is never negative, and zero only where both
are equal. The first argument is the distribution that the expectation is taken under: exchanging
the two gives another number.
"""

from __future__ import annotations

import contextlib
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily

from coursepkg import _checks
from coursepkg._random import draw
from coursepkg.density import unvalidated

__all__ = [
    "Estimate",
    "kl",
    "kl_monte_carlo",
    "kl_mvn",
    "kl_normal",
    "kl_quadrature",
    "mean_with_error",
]

# Quadrature covers this many standard deviations on each side: beyond are 4e-33 of a Gaussian.
QUADRATURE_WIDTH = 12.0


class Estimate(NamedTuple):
    """A number, and how far it may be from the truth.

    Attributes:
        value: The estimate.
        standard_error: Its Monte Carlo standard error, of the same shape; 0 where it is exact.
    """

    value: Float[Tensor, "*batch"]
    standard_error: Float[Tensor, "*batch"]


def kl(
    q: Distribution,
    p: Distribution,
    num_samples: int = 10_000,
    *,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""KL(q‖p) between two ``torch.distributions``: exact where torch knows how, else estimated.

    Torch has a closed form for most pairs of one family and for some others, and derives those of
    ``Independent``. Mixtures have none: they go to :func:`kl_monte_carlo`, plain. Only an exact
    value carries a gradient.

    Args:
        q: The distribution that the expectation is taken under.
        p: The other one, with the same event shape. Batch shapes broadcast.
        num_samples: How many draws of q, where they are needed; at least 2.
        generator: Source of randomness, where it is needed; torch's global one where it is
            ``None``.

    Returns:
        The divergence in nats, of the broadcast batch shape. Its standard error is 0 where it is
        exact. It is infinite where q can be where p cannot.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes do not fit, or ``num_samples`` is below 2.

    Example:
        >>> from torch.distributions import Normal
        >>> kl(Normal(0.0, 1.0), Normal(0.0, 2.0))
        Estimate(value=tensor(0.3181), standard_error=tensor(0.))
    """
    q, p = _check_pair(q, p)
    with contextlib.suppress(NotImplementedError):
        exact = torch.distributions.kl_divergence(q, p)
        if not exact.isnan().any():  # at a limit such as Poisson(0) some formulas have no value
            return Estimate(exact, torch.zeros_like(exact))
    return kl_monte_carlo(q, p, num_samples, generator=generator)


def kl_monte_carlo(
    q: Distribution,
    p: Distribution,
    num_samples: int = 10_000,
    *,
    estimator: Literal["plain", "control_variate"] = "plain",
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Estimate KL(q‖p) from draws of q, with the ratio :math:`r = p(x) / q(x)`.

    .. math::
        \frac{1}{N} \sum_{n=1}^N \bigl(-\log r_n + c \, (r_n - 1)\bigr), \qquad x_n \sim q

    The added term has the expectation zero. It is a control variate: it takes away what it has in
    common with the logarithm.

    - ``"plain"``, :math:`c = 0`. Unbiased. Its variance is finite where that of :math:`\log r` is,
      which only heavy tails of q prevent.
    - ``"control_variate"``, :math:`c = 1`. No term is negative, nor is the estimate; where p and q
      are close, its variance is far smaller. Unbiased only where q can be wherever p can (else it
      is too small by the mass that p has elsewhere) and both are normalized. Its variance is finite
      only where :math:`\mathbb E_q[r^2]` is: between Gaussians, where p has less than twice the
      variance of q in every direction.

    Where the variance is infinite the standard error misleads, mostly by being far too small: it
    knows the draws that were seen, and the rare ones that matter are not among them. No number of
    draws shows this for sure. A sign of it: a hundred times as many draws must divide an honest
    standard error by ten.

    Args:
        q: The distribution to draw from.
        p: The other one, with the same event shape. Batch shapes broadcast.
        num_samples: How many draws :math:`N` of q, at least 2.
        estimator: Which of the two.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        Estimate and standard error in nats, of the broadcast batch shape, without a gradient (that
        of an average over given draws would not be the gradient of the divergence). If a draw of q
        is where p cannot be, the divergence is known to be infinite: infinity, with error 0.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes do not fit, ``num_samples`` is below 2, or ``estimator`` is unknown.

    Source:
        Schulman (2020), "Approximating KL divergence", for :math:`c = 1`; Owen (2013), Monte Carlo
        Theory, Methods and Examples, chapter 8, for control variates.

    Example:
        >>> from torch.distributions import Normal
        >>> q, p = Normal(0.0, 1.0), Normal(0.1, 1.0)  # exact: 0.005
        >>> generator = torch.Generator().manual_seed(0)
        >>> plain = kl_monte_carlo(q, p, generator=generator)
        >>> other = kl_monte_carlo(q, p, estimator="control_variate", generator=generator)
        >>> bool(other.standard_error < plain.standard_error / 10)
        True
    """
    q, p = _check_pair(q, p)
    num_samples = _checks.count("num_samples", num_samples, minimum=2)
    _checks.choice("estimator", estimator, ("plain", "control_variate"))
    generator = _checks.generator_or_none(generator)
    with torch.no_grad(), unvalidated():
        x = draw(q, (num_samples,), generator=generator)
        log_r = _log_prob(p, x) - _log_prob(q, x)
    terms = -log_r if estimator == "plain" else torch.expm1(log_r) - log_r
    return mean_with_error(terms)


def kl_normal(
    q_mean: float | Float[Tensor, "*#batch"],
    q_scale: float | Float[Tensor, "*#batch"],
    p_mean: float | Float[Tensor, "*#batch"],
    p_scale: float | Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch"]:
    r"""KL(q‖p) between Gaussians of one dimension, element by element.

    .. math::
        \log \frac{\sigma_p}{\sigma_q} + \frac{\sigma_q^2 + (\mu_q - \mu_p)^2}{2 \sigma_p^2}
        - \frac12

    It is computed as a sum of two terms that are not negative, so that it is exactly zero for equal
    arguments and keeps its digits for nearly equal ones. Sum over the dimensions of independent
    parts.

    Args:
        q_mean: Mean :math:`\mu_q`. The arguments broadcast.
        q_scale: Standard deviation :math:`\sigma_q`.
        p_mean: Mean :math:`\mu_p`.
        p_scale: Standard deviation :math:`\sigma_p`.

    Returns:
        The divergences in nats, of the broadcast shape, with gradients.

    Raises:
        TypeError: An argument is no number and no floating-point tensor.
        ValueError: One is not finite, a scale is not positive, or shapes do not broadcast.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, exercise 1.30.

    Example:
        >>> kl_normal(torch.tensor([0.0, 1.0]), 1.0, 0.0, 2.0)
        tensor([0.3181, 0.4431])
    """
    q_mean, p_mean = _checks.numbers("q_mean", q_mean), _checks.numbers("p_mean", p_mean)
    q_scale = _checks.numbers("q_scale", q_scale, positive=True)
    p_scale = _checks.numbers("p_scale", p_scale, positive=True)
    _checks.broadcast(
        q_mean=q_mean.shape, q_scale=q_scale.shape, p_mean=p_mean.shape, p_scale=p_scale.shape
    )
    return _kl_scales(q_scale / p_scale) + ((q_mean - p_mean) / p_scale).square() / 2


def kl_mvn(
    q_mean: Float[Tensor, "*#batch dim"],
    q_scale_tril: Float[Tensor, "*#batch dim dim"],
    p_mean: Float[Tensor, "*#batch dim"],
    p_scale_tril: Float[Tensor, "*#batch dim dim"],
) -> Float[Tensor, "*batch"]:
    r"""KL(q‖p) between multivariate Gaussians, given Cholesky factors of their covariances.

    .. math::
        \frac12 \bigl(\operatorname{tr} (S_p^{-1} S_q) + (\mu_q - \mu_p)^\top S_p^{-1}
        (\mu_q - \mu_p) - D + \log \det S_p - \log \det S_q \bigr)

    With :math:`S = L L^\top` everything comes from triangular solves. The trace is the sum of the
    squares in :math:`L_p^{-1} L_q`, whose diagonal holds the ratios of the diagonals; so this, too,
    is a sum of terms that are not negative.

    Args:
        q_mean: Mean :math:`\mu_q`, shape ``(..., dim)``. The leading dimensions broadcast.
        q_scale_tril: Lower triangular factor :math:`L_q`, shape ``(..., dim, dim)``, with a
            positive diagonal.
        p_mean: Mean :math:`\mu_p`, shape ``(..., dim)``.
        p_scale_tril: Lower triangular factor :math:`L_p`, shape ``(..., dim, dim)``.

    Returns:
        The divergences in nats, shape ``(...)``, with gradients.

    Raises:
        TypeError: An argument is no floating-point tensor.
        ValueError: Shapes do not fit, a value is not finite, or a factor is not lower triangular
            with a positive diagonal.

    Source:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, equation A.23.

    Example:
        >>> zero, one = torch.zeros(2), torch.eye(2)
        >>> kl_mvn(zero, one, zero, 2 * one), 2 * kl_normal(0.0, 1.0, 0.0, 2.0)
        (tensor(0.6363), tensor(0.6363, dtype=torch.float64))
    """
    for name, mean, tril in (("q", q_mean, q_scale_tril), ("p", p_mean, p_scale_tril)):
        _checks.array(f"{name}_mean", mean)
        _checks.scale_tril(f"{name}_scale_tril", tril)
        if mean.shape[-1:] != q_scale_tril.shape[-1:] or mean.shape[-1:] != tril.shape[-1:]:
            raise ValueError(
                f"{name}_mean and {name}_scale_tril must have as many dimensions as q_scale_tril, "
                f"{q_scale_tril.shape[-1]}, got shapes {tuple(mean.shape)} and {tuple(tril.shape)}"
            )
    _checks.broadcast(
        q_mean=q_mean.shape,
        q_scale_tril=q_scale_tril.shape[:-1],
        p_mean=p_mean.shape,
        p_scale_tril=p_scale_tril.shape[:-1],
    )
    diagonal = q_scale_tril.diagonal(dim1=-2, dim2=-1) / p_scale_tril.diagonal(dim1=-2, dim2=-1)
    # Of the difference of the factors, so that equal ones give exact zeros off the diagonal.
    off_diagonal = torch.linalg.solve_triangular(
        p_scale_tril, q_scale_tril - p_scale_tril, upper=False
    ).tril(-1)
    shift = torch.linalg.solve_triangular(p_scale_tril, (q_mean - p_mean)[..., None], upper=False)
    squares = off_diagonal.square().sum(dim=(-2, -1)) + shift.square().sum(dim=(-2, -1))
    return _kl_scales(diagonal).sum(dim=-1) + squares / 2


def kl_quadrature(
    q: Distribution, p: Distribution, num_points: int = 2001
) -> Float[Tensor, "*batch"]:
    r"""KL(q‖p) in one dimension by the trapezoidal rule: exact to some 10 digits, or an error.

    The points reach 12 standard deviations of q to each side of its mean. For smooth densities on
    the whole line whose tails fall like a Gaussian's the rule is as good as exact once its step is
    below half of the smallest width in sight. Whether it is, is checked: q must integrate to 1, and
    every other point must give the same.

    Args:
        q: The distribution that the expectation is taken under, with a finite variance.
        p: The other one; it may be anything that q allows. Batch shapes broadcast.
        num_points: How many points, at least 3.

    Returns:
        The divergence in nats, of the broadcast batch shape, in float64, with gradients.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: q or p is not of one dimension, or the points do not resolve them.

    Source:
        Trefethen and Weideman (2014), "The exponentially convergent trapezoidal rule", SIAM Review
        56(3).

    Example:
        >>> from torch.distributions import Categorical, MixtureSameFamily, Normal
        >>> parts = Normal(torch.tensor([0.0, 3.0]), torch.tensor([0.4, 1.0]))
        >>> p = MixtureSameFamily(Categorical(torch.ones(2)), parts)
        >>> [f"{kl_quadrature(*pair):.3f}" for pair in ((Normal(2, 1.5), p), (p, Normal(2, 1.5)))]
        ['0.432', '0.401']
    """
    q, p = _check_pair(q, p)
    num_points = _checks.count("num_points", num_points, minimum=3)
    if q.event_shape:
        raise ValueError(f"q must be of one dimension, got an event shape {tuple(q.event_shape)}")
    mean, scale = q.mean, q.stddev
    if not torch.isfinite(mean + scale).all():
        raise ValueError(f"q must have a finite mean and variance, got mean {mean}, scale {scale}")
    z = torch.linspace(-1, 1, num_points, dtype=torch.float64, device=mean.device)
    z = QUADRATURE_WIDTH * z.reshape(-1, *[1] * mean.ndim)
    x = mean + scale * z
    with unvalidated():
        log_q, log_p = _log_prob(q, x), _log_prob(p, x)
    density = log_q.exp()
    terms = torch.where(density > 0, density * (log_q - log_p), 0)
    step = scale * (2 * QUADRATURE_WIDTH / (num_points - 1))
    value = step * terms.sum(dim=0)
    unresolved = (step * density.sum(dim=0) - 1).abs()
    coarse = 2 * step * terms[::2].sum(dim=0)
    unresolved = (unresolved + (coarse - value).nan_to_num(nan=0).abs()).detach()
    if (unresolved > torch.finfo(mean.dtype).eps ** 0.5 * (1 + value.abs())).any():
        raise ValueError(
            f"num_points must resolve q and p, got {num_points}, with an error of about "
            f"{float(unresolved.max()):.1g}; use more, or kl_monte_carlo where q has heavy tails, "
            "edges or kinks"
        )
    return value


def mean_with_error(values: Float[Tensor, "draws *batch"]) -> Estimate:
    """The mean of independent draws, with its standard error.

    Args:
        values: One value a draw, shape ``(draws, ...)``, at least 2 draws.

    Returns:
        Mean and standard error, shape ``(...)``. An infinite mean is one for sure: its error is 0.

    Example:
        >>> mean_with_error(torch.tensor([1.0, 2.0, 3.0]))
        Estimate(value=tensor(2.), standard_error=tensor(0.5774))
    """
    value = values.mean(dim=0)
    error = values.std(dim=0) / len(values) ** 0.5
    return Estimate(value, torch.where(value.isinf(), 0, error))


def _kl_scales(ratio: Tensor) -> Tensor:
    """KL between centered Gaussians whose scales have this ratio: (r² - 1 - log r²) / 2."""
    log_square = 2 * ratio.log()
    return (torch.expm1(log_square) - log_square) / 2


def _check_pair(q: Distribution, p: Distribution) -> tuple[Distribution, Distribution]:
    """Check two distributions, and give them one batch shape."""
    for name, distribution in (("q", q), ("p", p)):
        _checks.distribution(name, distribution)
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"q and p must have the same event shape, got {tuple(q.event_shape)} and "
            f"{tuple(p.event_shape)}; torch.distributions.Independent turns batch dimensions into "
            "event dimensions"
        )
    batch = _checks.broadcast(q=q.batch_shape, p=p.batch_shape)
    q, p = (d if d.batch_shape == batch else d.expand(batch) for d in (q, p))
    return q, p


def _log_prob(distribution: Distribution, x: Tensor) -> Tensor:
    """Log density, minus infinity outside of the support."""
    if isinstance(distribution, MixtureSameFamily):  # its components may differ in their supports
        parts = distribution.component_distribution
        log_parts = _log_prob(parts, x.unsqueeze(-1 - len(distribution.event_shape)))
        log_weights = distribution.mixture_distribution.logits.log_softmax(dim=-1)
        return (log_weights + log_parts).logsumexp(dim=-1)
    support = distribution.support
    assert support is not None
    return torch.where(support.check(x), distribution.log_prob(x), -torch.inf)
