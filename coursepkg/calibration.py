r"""Is a prediction right? Coverage, and calibration of numbers and of classes.

A prediction is *calibrated* when what it gives a probability of 80 % happens in 80 % of the cases.
That alone is not enough: to predict the distribution of all targets, whatever the input, is
calibrated too. :mod:`coursepkg.scores` judge calibration and sharpness together.

A prediction of numbers is a ``torch.distributions`` distribution for each point, such as
:func:`coursepkg.uncertainty.mixture`, or draws of *targets*, which the first dimension counts:
draws of the function, without noise, are too narrow and fail here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution

from coursepkg import _checks
from coursepkg.divergence import Estimate

__all__ = [
    "Curve",
    "calibration_curve",
    "central_interval",
    "coverage",
    "expected_calibration_error",
    "pit_values",
    "reliability",
]

# Halvings of an interval: what is left is below the rounding of float64.
BISECTIONS = 60


class Curve(NamedTuple):
    """What was predicted beside what happened: equal, but for chance, where it is calibrated.

    Attributes:
        predicted: Probabilities, shape ``(..., bins)``; NaN for a bin without points.
        observed: How often it happened.
        standard_error: Of ``observed``, by the number of points.
        num_points: How many points were counted for each.
    """

    predicted: Float[Tensor, "*batch bins"]
    observed: Float[Tensor, "*batch bins"]
    standard_error: Float[Tensor, "*batch bins"]
    num_points: Float[Tensor, "*batch bins"]


def central_interval(
    prediction: Distribution | Tensor, probability: float = 0.95
) -> tuple[Float[Tensor, "*points"], Float[Tensor, "*points"]]:
    r"""The interval that leaves out as much probability :math:`(1 - p) / 2` below as above.

    Args:
        prediction: A distribution for each point, or draws of targets, shape ``(draws, ...)``.
        probability: :math:`p`, between 0 and 1.

    Returns:
        Lower and upper ends, shape ``(...)``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``probability`` is not between 0 and 1, or a draw is not finite.
        NotImplementedError: Torch does not know the distribution's ``cdf``.

    Example:
        >>> from torch.distributions import Normal
        >>> central_interval(Normal(torch.tensor(0.0), 1.0), 0.95)
        (tensor(-1.9600), tensor(1.9600))
    """
    outside = 1 - _checks.inside("probability", probability)
    lower, upper = outside / 2, 1 - outside / 2
    if isinstance(prediction, Tensor):
        draws = _checks.draws("prediction", prediction)
        return draws.quantile(lower, dim=0), draws.quantile(upper, dim=0)
    return _quantile(prediction, lower), _quantile(prediction, upper)


def _quantile(distribution: Distribution, level: float) -> Tensor:
    """Where the distribution function reaches a level; by bisection where it cannot be inverted."""
    _checks.distribution("prediction", distribution)
    try:
        return distribution.icdf(torch.full_like(distribution.mean, level))
    except NotImplementedError:
        # By Cantelli's inequality no quantile lies further from the mean.
        reach = distribution.stddev * max(level / (1 - level), (1 - level) / level) ** 0.5
        low, high = distribution.mean - reach, distribution.mean + reach
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = distribution.cdf(middle) < level
            low, high = middle.where(below, low), high.where(below, middle)
        return (low + high) / 2


def coverage(
    lower: Float[Tensor, "*batch points"],
    upper: Float[Tensor, "*batch points"],
    y: Float[Tensor, "*batch points"],
) -> Estimate:
    """How many targets lie in their intervals, as a share of all.

    Args:
        lower: Lower ends.
        upper: Upper ends.
        y: Targets.

    Returns:
        The share, with the standard error of a count. That takes each target for independent, so
        that two errors beside the intervals' probability are no proof of a fault.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: Shapes differ, a number is not finite, or a lower end is above the upper one.

    Source:
        Agresti and Coull (1998), "Approximate is better than 'exact' for interval estimation of
        binomial proportions", The American Statistician 52: with two more targets inside and two
        more outside, the error is not zero where all are inside.

    Example:
        >>> y = torch.tensor([0.0, 1.0, 2.0, 9.0])
        >>> coverage(torch.zeros(4), torch.full((4,), 3.0), y).value
        tensor(0.7500)
    """
    _checks.interval(lower, upper, y)
    inside = ((lower <= y) & (y <= upper)).to(y.dtype).sum(dim=-1)
    return _share(inside, torch.full_like(inside, y.shape[-1]))


def _share(successes: Tensor, count: Tensor) -> Estimate:
    """A share of a count; its error is that of a share with two more successes and failures."""
    careful = (successes + 2) / (count + 4)
    return Estimate(successes / count, (careful * (1 - careful) / count).sqrt())


def pit_values(
    prediction: Distribution | Tensor, y: Float[Tensor, "*points"]
) -> Float[Tensor, "*points"]:
    r"""Where in its predicted distribution each target fell: uniform where it is calibrated.

    .. math::
        u = F(y), \qquad \text{or by } T \text{ draws} \quad
        u = \frac{\#\{y_t < y\} + \#\{y_t \le y\} + 1}{2 (T + 1)}

    Args:
        prediction: A distribution for each point, or draws of targets, shape ``(draws, ...)``.
        y: Targets, shape ``(...)``.

    Returns:
        Numbers between 0 and 1. Where most lie near 0 and 1 the prediction is too narrow, where
        most lie near the middle it is too wide.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes do not fit, or a number is not finite.

    Source:
        Dawid (1984), "Present position and potential developments: some personal views, statistical
        theory, the prequential approach", Journal of the Royal Statistical Society A 147.

    Example:
        >>> from torch.distributions import Normal
        >>> pit_values(Normal(torch.zeros(2), 1.0), torch.tensor([0.0, 9.0]))
        tensor([0.5000, 1.0000])
    """
    y = _checks.targets(prediction, y)
    if isinstance(prediction, Tensor):
        ranks = (prediction < y).sum(dim=0) + (prediction <= y).sum(dim=0) + 1
        return ranks.to(prediction.dtype) / (2 * (len(prediction) + 1))
    return prediction.cdf(y)


def calibration_curve(
    prediction: Distribution | Tensor, y: Float[Tensor, "*points"], num_levels: int = 9
) -> Curve:
    r"""How often targets fall below the predicted quantiles of evenly spaced levels.

    Args:
        prediction: A distribution for each point, or draws of targets, shape ``(draws, ...)``.
        y: Targets; the last dimension counts the points.
        num_levels: How many levels :math:`k / (n + 1)`; 9 are the tenths.

    Returns:
        Levels, and shares of the targets below. The levels' errors are not independent.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes do not fit, a number is not finite, or there is no level.

    Source:
        Kuleshov, Fenner and Ermon (2018), "Accurate uncertainties for deep learning using
        calibrated regression", ICML.

    Example:
        >>> from torch.distributions import Normal
        >>> calibration_curve(Normal(torch.zeros(4), 1.0), torch.arange(-1.0, 3.0), 3).observed
        tensor([0.2500, 0.5000, 0.5000])
    """
    num_levels = _checks.count("num_levels", num_levels, minimum=1)
    values = pit_values(prediction, y)
    levels = torch.arange(1, num_levels + 1).to(values) / (num_levels + 1)
    below = (values[..., None] <= levels).to(values.dtype).sum(dim=-2)
    count = torch.full_like(below, values.shape[-1])
    return Curve(levels.expand_as(below), *_share(below, count), count)


def reliability(
    probabilities: Float[Tensor, "*batch points classes"],
    labels: Int[Tensor, "*batch points"],
    num_bins: int = 10,
) -> Curve:
    r"""How often the likeliest class is right, beside the probability that it got.

    Points are sorted by that probability, the confidence, into bins of equal width,
    :math:`((b - 1)/B, b/B]`.

    Args:
        probabilities: Of each class, shape ``(..., points, classes)``.
        labels: The true classes, whole numbers, shape ``(..., points)``.
        num_bins: :math:`B`.

    Returns:
        Mean confidence and share of right answers in each bin.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: They are not probabilities, there is no such class, shapes do not fit, or there
            is no bin.

    Source:
        Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks", ICML.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> reliability(probabilities, torch.tensor([0, 0, 0]), num_bins=2).observed
        tensor([   nan, 0.6667])
    """
    _checks.classes(probabilities, labels)
    num_bins = _checks.count("num_bins", num_bins, minimum=1)
    confidence, guess = probabilities.max(dim=-1)
    inner_edges = torch.arange(1, num_bins).to(confidence) / num_bins
    member = F.one_hot(torch.bucketize(confidence, inner_edges), num_bins).to(confidence.dtype)
    count = member.sum(dim=-2)
    right = (member * (guess == labels)[..., None]).sum(dim=-2)
    predicted = (member * confidence[..., None]).sum(dim=-2) / count
    return Curve(predicted, *_share(right, count), count)


def expected_calibration_error(curve: Curve) -> Float[Tensor, "*batch"]:
    r"""The mean distance between what was predicted and what happened, weighted by the counts.

    .. math::
        \mathrm{ECE} = \sum_b \frac{n_b}{\sum_{b'} n_{b'}} \, |\text{observed}_b
        - \text{predicted}_b|

    It is an estimate, and biased upwards: also a calibrated prediction gets more than zero, for
    chance moves what is observed; more bins, more bias. It is no proper score.

    Args:
        curve: By :func:`reliability` (classes) or :func:`calibration_curve` (numbers).

    Returns:
        A number between 0 and 1; shape ``(...)`` for curves of shape ``(..., bins)``.

    Source:
        Naeini, Cooper and Hauskrecht (2015), "Obtaining well calibrated probabilities using
        Bayesian binning", AAAI.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> expected_calibration_error(reliability(probabilities, torch.tensor([0, 0, 0]), 2))
        tensor(0.1000)
    """
    distance = (curve.observed - curve.predicted).abs() * curve.num_points
    return distance.nansum(dim=-1) / curve.num_points.sum(dim=-1)
