r"""Gradients of an expectation, by Monte Carlo, and how much they vary.

Wanted is :math:`\nabla_\varphi\, \mathbb E_{q_\varphi(z)}[f(z)]`. The expectation is a smooth
function of :math:`\varphi`; a draw of :math:`z`, as it comes out of a sampler, is no function of
:math:`\varphi` at all. There are two ways out: differentiate the density
(:func:`score_function`), or write the draw as a function of :math:`\varphi` and of noise that does
not depend on it (:func:`pathwise`). Both return one gradient for each draw, so that the mean is the
estimate, and :func:`estimator_variance` says how good it is.

Where a linear layer with Gaussian weights draws its noise is another choice:
:mod:`coursepkg.weight_noise`.

Source:
    Mohamed, Rosca, Figurnov and Mnih (2020), "Monte Carlo gradient estimation in machine learning",
    Journal of Machine Learning Research 21(132).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from coursepkg import _checks
from coursepkg._random import draw
from coursepkg.divergence import Estimate

__all__ = ["estimator_variance", "pathwise", "score_function"]


@torch.enable_grad()  # also where the caller has switched gradients off
def score_function(
    f: Callable[[Tensor], Tensor],
    family: Callable[..., Distribution],
    parameters: Mapping[str, Float[Tensor, "..."]],
    num_samples: int,
    *,
    baseline: float | Literal["mean", "leave_one_out"] = 0.0,
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, "samples ..."]]:
    r"""Score-function gradients (REINFORCE): one for each draw; ``f`` needs no gradient.

    .. math::
        g_i = \bigl(f(z_i) - b_i\bigr)\, \nabla_\varphi \log q_\varphi(z_i), \qquad
        z_i \sim q_\varphi .

    The score has mean zero, so that a baseline :math:`b_i` that does not look at :math:`z_i`
    changes the variance and not the mean. The support of :math:`q` must not move with
    :math:`\varphi`: for the ends of a uniform distribution the formula is wrong.

    Args:
        f: Takes draws of shape ``(samples, …)`` and returns one value for each, ``(samples,)``.
        family: Makes :math:`q` from the parameters by name, such as ``torch.distributions.Normal``.
            It gets them with a dimension for the draws in front; what lies behind, such as the
            coordinates of a factorized :math:`q`, is taken as one vector :math:`z`.
        parameters: :math:`\varphi`, by name.
        num_samples: How many draws.
        baseline: A number; or ``"leave_one_out"``, the mean of ``f`` over the *other* draws; or
            ``"mean"``, the mean over all of them, which looks at :math:`z_i` as well and shrinks
            the gradient by the factor :math:`(n - 1)/n`. The last two tie the draws together,
            with covariances of order :math:`1/n^2`.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        The gradients by each parameter's name, shape ``(samples, *parameter.shape)``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A parameter is not finite, ``family`` does not keep the draws apart, ``f`` does
            not return one number for each draw, or ``baseline`` is unknown or needs more draws.

    Source:
        Williams (1992), "Simple statistical gradient-following algorithms for connectionist
        reinforcement learning", Machine Learning 8. The baseline: Kool, van Hoof and Welling
        (2019), "Buy 4 REINFORCE samples, get a baseline for free!", ICLR workshop.

    Example:
        >>> from torch.distributions import Bernoulli
        >>> coin = {"probs": torch.tensor(0.5)}
        >>> draws = score_function(lambda z: 3 * z, Bernoulli, coin, 1000, baseline=1.5)
        >>> draws["probs"].mean(), draws["probs"].var()
        (tensor(3.), tensor(0.))
    """
    q, copies = _one_for_each_draw(f, family, parameters, num_samples, generator)
    z = draw(q, generator=generator)
    with torch.no_grad():
        values = _values(f, z)
    if baseline == "mean":
        values = values - values.mean()
    elif baseline == "leave_one_out":
        _checks.count("num_samples", num_samples, minimum=2)
        values = values - (values.sum() - values) / (num_samples - 1)
    elif isinstance(baseline, str):
        raise ValueError(f"baseline must be a number, 'mean' or 'leave_one_out', got {baseline!r}")
    else:
        values = values - _checks.scalar("baseline", baseline)
    log_density = q.log_prob(z).reshape(num_samples, -1).sum(dim=1)
    return _gradients((values * log_density).sum(), copies)


@torch.enable_grad()
def pathwise(
    f: Callable[[Tensor], Tensor],
    family: Callable[..., Distribution],
    parameters: Mapping[str, Float[Tensor, "..."]],
    num_samples: int,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, "samples ..."]]:
    r"""Pathwise gradients (the reparameterization trick): one for each draw.

    .. math::
        g_i = \Bigl(\frac{\partial z_i}{\partial \varphi}\Bigr)^{\!\top} \nabla f(z_i), \qquad
        z_i = T_\varphi(\epsilon_i), \quad \text{such as } z = m + s \, \epsilon .

    Where :math:`T` has no closed form (Gamma, Beta, Dirichlet, Student's t), torch differentiates
    the distribution function instead: implicit reparameterization. A discrete :math:`z` does not
    move with :math:`\varphi`: that is an error. ``f`` must have no jumps: a gradient does not see
    them, so that with jumps the result is wrong, without a word.

    Args:
        f: As for :func:`score_function`, and differentiable.
        family: As for :func:`score_function`, with ``rsample``.
        parameters: :math:`\varphi`, by name.
        num_samples: How many draws.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        The gradients by each parameter's name, shape ``(samples, *parameter.shape)``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: As for :func:`score_function`; or :math:`q` cannot be reparameterized, or torch
            knows no gradient of ``f``.

    Source:
        Kingma and Welling (2014), "Auto-encoding variational Bayes", ICLR; Figurnov, Mohamed and
        Mnih (2018), "Implicit reparameterization gradients", NeurIPS.

    Example:
        >>> from torch.distributions import Normal
        >>> at = {"loc": torch.tensor(1.0), "scale": torch.tensor(2.0)}
        >>> draws = pathwise(lambda z: 3 * z, Normal, at, 1000)
        >>> draws["loc"].mean(), draws["loc"].var()
        (tensor(3.), tensor(0.))
    """
    q, copies = _one_for_each_draw(f, family, parameters, num_samples, generator)
    if not q.has_rsample:
        raise ValueError(
            "family must make distributions whose draws move with the parameters (has_rsample), "
            f"got {q}; score_function does without"
        )
    values = _values(f, draw(q, generator=generator, grad=True))
    if not values.requires_grad:
        raise ValueError(
            "f must be differentiable, got values without a gradient: is it a step function, or "
            "does it leave torch? score_function does without"
        )
    return _gradients(values.sum(), copies)


def _one_for_each_draw(
    f: Callable[[Tensor], Tensor],
    family: Callable[..., Distribution],
    parameters: Mapping[str, Tensor],
    num_samples: int,
    generator: torch.Generator | None,
) -> tuple[Distribution, dict[str, Tensor]]:
    """Check the arguments; give each draw its own copy of the parameters, and make q of them.

    The gradient of the sum over draws then holds each draw's own one: a single backward pass.
    """
    _checks.function("f", f)
    _checks.function("family", family)
    _checks.count("the number of parameters", len(parameters), minimum=1)
    for name, value in parameters.items():
        _checks.array(name, value)
    _checks.count("num_samples", num_samples, minimum=1)
    _checks.generator_or_none(generator)

    def copies(count: int) -> dict[str, Tensor]:
        return {name: v.expand(count, *v.shape) for name, v in parameters.items()}

    # A count that is no other dimension's length: a draw's dimension cannot be taken for another.
    count = 2 + max(max(value.shape, default=0) for value in parameters.values())
    expected = (count, *family(**parameters).batch_shape)
    try:
        batch_shape = tuple(family(**copies(count)).batch_shape)
    except (RuntimeError, ValueError):
        batch_shape = None
    if batch_shape != expected:
        raise ValueError(
            "family must keep a dimension for the draws in front: for parameters with leading "
            f"dimension {count} a distribution of batch shape {expected}, got {batch_shape}; a "
            "number that goes with each entry of a vector needs number[..., None]"
        )
    leaves = {name: value.requires_grad_() for name, value in copies(num_samples).items()}
    return family(**leaves), leaves


def _values(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    values = f(z)
    if (
        not isinstance(values, Tensor)
        or values.shape != z.shape[:1]
        or not values.is_floating_point()
    ):
        got = (
            f"{values.dtype} of shape {tuple(values.shape)}"
            if isinstance(values, Tensor)
            else type(values).__name__
        )
        raise ValueError(
            f"f must return one number for each draw: for z of shape {tuple(z.shape)} a "
            f"floating-point tensor of shape {tuple(z.shape[:1])}, got {got}"
        )
    return values


def _gradients(total: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def estimator_variance(draws: Float[Tensor, "samples ..."]) -> Estimate:
    r"""Variance of one draw of an estimator (for vectors the trace of the covariance), with error.

    .. math::
        s^2 = \frac{1}{n - 1} \sum_i \lVert g_i - \bar g \rVert^2, \qquad
        \operatorname{var}(s^2) = \frac{1}{n}
        \Bigl(\mu_4 - \frac{n - 3}{n - 1}\, \sigma^4\Bigr),

    with :math:`\mu_4 = \mathbb E \lVert g - \mathbb E g \rVert^4`. The mean of :math:`n` draws has
    the variance :math:`s^2 / n`. For vectors the error is an upper bound, off by a relative
    :math:`1/n` at most. With heavy tails (no fourth moment, or one that rare draws decide) the
    error is itself too small and jumps as draws are added: trust neither number then.

    Args:
        draws: Independent draws, shape ``(samples, …)``, at least 2.

    Returns:
        The variance and its standard error, scalars in float64.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor.
        ValueError: It has fewer than 2 draws, or is not finite.

    Source:
        Mood, Graybill and Boes (1974), Introduction to the Theory of Statistics, chapter VI.

    Example:
        >>> estimator_variance(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 2.0], [-1.0, 2.0]]))
        Estimate(value=tensor(2.6667, dtype=torch.float64), ...
    """
    draws = _checks.array("draws", draws)
    count = _checks.count("the number of draws", len(draws) if draws.ndim else 1, minimum=2)
    squares = (draws - draws.mean(dim=0)).square().reshape(count, -1).sum(dim=1)
    variance = squares.sum() / (count - 1)
    fourth = squares.square().mean()
    error = ((fourth - (count - 3) / (count - 1) * variance**2) / count).sqrt()
    return Estimate(variance, error)
