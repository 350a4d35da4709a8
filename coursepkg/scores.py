r"""Scores of predictions that reward honesty.

A score judges calibration and sharpness together. It is *proper* where its mean is smallest for the
true distribution, so that nobody gains by telling another one. Smaller is always better. The
logarithmic score, minus the log density of what happened, is
:func:`coursepkg.uncertainty.gaussian_nll`, or minus :func:`coursepkg.uncertainty.log_predictive`:
it is the one that punishes hardest what was sure and wrong.

Source:
    Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and estimation",
    Journal of the American Statistical Association 102.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, Normal

from coursepkg import _checks

__all__ = ["brier", "crps", "interval_score"]


def crps(
    prediction: Distribution | Tensor, y: Float[Tensor, "*points"]
) -> Float[Tensor, "*points"]:
    r"""The continuous ranked probability score: an error in the target's own unit.

    .. math::
        \mathrm{CRPS}(F, y) = \int (F(x) - 1[x \ge y])^2 \, dx
        = \mathbb E |X - y| - \tfrac12 \, \mathbb E |X - X'|, \qquad X, X' \sim F

    For a prediction without any width it is the absolute error. For a Gaussian and a mixture of
    Gaussians it is exact. Draws give its unbiased estimate: the second mean is over pairs of
    *different* draws (over all pairs, a score of few draws would be best where they are too
    narrow), by sorting:

    .. math::
        \frac1T \sum_t |y_t - y| - \frac{1}{T (T - 1)} \sum_{t=1}^T (2 t - T - 1) \, y_{(t)}

    Args:
        prediction: A ``Normal`` for each point, a mixture of them, or independent draws of targets,
            shape ``(draws, ...)``.
        y: Targets, shape ``(...)``.

    Returns:
        One score for each target, in its unit. An estimate from draws may be negative.

    Raises:
        TypeError: ``prediction`` is of another kind.
        ValueError: Shapes do not fit, a number is not finite, or there are less than two draws.

    Source:
        Grimit, Gneiting, Berrocal and Johnson (2006), "The continuous ranked probability score for
        circular variables and its application to mesoscale forecast ensemble verification",
        Quarterly Journal of the Royal Meteorological Society 132, for mixtures; Ferro (2014), "Fair
        scores for ensemble forecasts", in the same journal, 140.

    Example:
        >>> crps(Normal(torch.zeros(2), 1.0), torch.tensor([0.0, 2.0]))
        tensor([0.2337, 1.4528])
    """
    y = _checks.targets(prediction, y)
    if isinstance(prediction, Tensor):
        num_draws = _checks.count("the number of draws", len(prediction), minimum=2)
        ranks = torch.arange(1, num_draws + 1).to(prediction)
        weights = (2 * ranks - num_draws - 1) / (num_draws * (num_draws - 1))
        spread = torch.tensordot(weights, prediction.sort(dim=0).values, dims=1)
        return (prediction - y).abs().mean(dim=0) - spread
    if isinstance(prediction, Normal):
        to_target = _mean_distance(y - prediction.mean, prediction.variance)
        return to_target - prediction.stddev / math.pi**0.5
    parts = getattr(prediction, "component_distribution", None)
    if not isinstance(prediction, MixtureSameFamily) or not isinstance(parts, Normal):
        raise TypeError(
            "prediction must be a tensor of draws, a Normal or a mixture of Normals, got "
            f"{type(prediction).__name__}"
        )
    shares = prediction.mixture_distribution.probs
    means, variances = parts.mean, parts.variance
    to_target = _mean_distance(y[..., None] - means, variances)
    between = torch.zeros_like(y)
    for k in range(means.shape[-1]):  # one loop, or the square of all parts in memory
        one = slice(k, k + 1)
        distance = _mean_distance(means - means[..., one], variances + variances[..., one])
        between = between + (shares[..., one] * shares * distance).sum(dim=-1)
    return (shares * to_target).sum(dim=-1) - between / 2


def _mean_distance(mean: Tensor, variance: Tensor) -> Tensor:
    """E|X| of a Gaussian."""
    z = mean / variance.sqrt()
    density = (-(z**2) / 2).exp() / (2 * math.pi) ** 0.5
    return variance.sqrt() * (2 * density + z * torch.erf(z / 2**0.5))


def interval_score(
    lower: Float[Tensor, "*points"],
    upper: Float[Tensor, "*points"],
    y: Float[Tensor, "*points"],
    probability: float = 0.95,
) -> Float[Tensor, "*points"]:
    r"""The width of a central interval, and a fine for each target that lies outside.

    .. math::
        (u - l) + \frac{2}{1 - p} \max(l - y, \, y - u, \, 0)

    Args:
        lower: :math:`l`.
        upper: :math:`u`.
        y: Targets.
        probability: :math:`p`, what the intervals claim to hold, between 0 and 1.

    Returns:
        One score for each target, in its unit.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes differ, a number is not finite, a lower end is above the upper one, or
            ``probability`` is not between 0 and 1.

    Source:
        Gneiting and Raftery (2007), as above.

    Example:
        >>> interval_score(torch.zeros(2), torch.ones(2), torch.tensor([0.5, 1.5]), 0.5)
        tensor([1., 3.])
    """
    _checks.interval(lower, upper, y)
    fine = 2 / (1 - _checks.inside("probability", probability))
    return upper - lower + fine * torch.maximum(lower - y, y - upper).clamp(min=0)


def brier(
    probabilities: Float[Tensor, "*points classes"], labels: Int[Tensor, "*points"]
) -> Float[Tensor, "*points"]:
    r"""The Brier score: the squared distance of the probabilities from the truth.

    .. math::
        \sum_k (p_k - 1[k = \text{label}])^2

    Args:
        probabilities: Of each class, shape ``(..., classes)``.
        labels: The true classes, whole numbers, shape ``(...)``.

    Returns:
        One score for each label, between 0 and 2. (For two classes some divide it by 2.)

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: They are not probabilities, there is no such class, or shapes do not fit.

    Source:
        Brier (1950), "Verification of forecasts expressed in terms of probability", Monthly Weather
        Review 78.

    Example:
        >>> brier(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([1, 1]))
        tensor([2.0000, 0.5000])
    """
    _checks.classes(probabilities, labels)
    truth = F.one_hot(labels.long(), probabilities.shape[-1])
    return ((probabilities - truth) ** 2).sum(dim=-1)
