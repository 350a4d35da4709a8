r"""What is uncertain, and why: predictions of many networks, put together.

Draws of the weights, of dropout masks, or the members of an ensemble each give a distribution of
the target. What they predict together is the mixture of all, with equal shares,

.. math::
    p(y \mid x) = \frac{1}{T} \sum_{t=1}^T p(y \mid x, w_t) .

Its spread has two causes. The *aleatoric* part is the noise that each draw expects: more data do
not take it away. The *epistemic* part is how much the draws disagree: more data do. Both parts add
up as variances (of a number), or as entropies (of a class); standard deviations do not add up.

Everywhere the first dimension counts the draws. Where there are two, such as members and masks,
``outputs.flatten(0, 1)`` makes them one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from coursepkg import _checks

__all__ = [
    "Entropies",
    "Variances",
    "decompose_entropy",
    "decompose_variance",
    "gaussian_nll",
    "heteroscedastic",
    "log_predictive",
    "mixture",
]


class Variances(NamedTuple):
    """The mean and the variance of a prediction, split by cause; shapes are those of one draw.

    Attributes:
        mean: Mean of the mixture.
        aleatoric: What each draw takes for noise, on average.
        epistemic: How far the draws' means lie apart.
        total: Variance of the mixture, the sum of both.
    """

    mean: Float[Tensor, "*points"]
    aleatoric: Float[Tensor, "*points"]
    epistemic: Float[Tensor, "*points"]
    total: Float[Tensor, "*points"]


class Entropies(NamedTuple):
    """The entropy of a predicted class in nats, split by cause; shapes are those of one draw.

    Attributes:
        total: Entropy of the mixture, the sum of both parts.
        aleatoric: The draws' own entropies, on average.
        epistemic: The mutual information of the class and the weights.
    """

    total: Float[Tensor, "*points"]
    aleatoric: Float[Tensor, "*points"]
    epistemic: Float[Tensor, "*points"]


def heteroscedastic(outputs: Float[Tensor, "*batch 2"]) -> Normal:
    r"""A Gaussian whose noise depends on the input: a network's second output says how much.

    .. math::
        p(y \mid x, w) = \mathcal N\bigl(f_1(x), \, e^{f_2(x)}\bigr)

    The second output is the logarithm of the *variance*, so that any number is allowed.

    Args:
        outputs: A network's outputs, shape ``(*draws, batch, 2)``.

    Returns:
        Distributions of the targets, batch shape ``(*draws, batch)``.

    Raises:
        ValueError: There are not two outputs, or one is not finite.

    Source:
        Nix and Weigend (1994), "Estimating the mean and variance of the target probability
        distribution", ICNN.

    Example:
        >>> heteroscedastic(torch.tensor([[1.0, 0.0]])).stddev
        tensor([1.])
    """
    if outputs.shape[-1:] != (2,):
        raise ValueError(
            "outputs must have 2 entries in the last dimension, a mean and a log variance, got "
            f"shape {tuple(outputs.shape)}"
        )
    mean, log_variance = outputs.unbind(dim=-1)
    return Normal(mean, (log_variance / 2).exp())


def gaussian_nll(
    targets: Float[Tensor, "*points"],
    mean: Float[Tensor, "*draws_and_points"],
    variance: float | Float[Tensor, "..."],
) -> Float[Tensor, "*draws_and_points"]:
    r"""The negative log likelihood of a Gaussian, in full: it can be compared with any other.

    .. math::
        -\log \mathcal N(y \mid \mu, \sigma^2)
        = \frac12 \log (2 \pi) + \frac12 \log \sigma^2 + \frac{(y - \mu)^2}{2 \sigma^2}

    Without the first term, or without each 1/2, its minimum is at the same place. It then is no
    log likelihood: in an ELBO a doubled one counts each point twice against the prior.

    Args:
        targets: :math:`y`.
        mean: :math:`\mu`, of the same shape, or with more dimensions in front (draws).
        variance: :math:`\sigma^2`, one number, or of the shape of ``mean``.

    Returns:
        One number for each mean, in nats.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes do not fit, a number is not finite, or a variance not positive.

    Example:
        >>> y, mean = torch.tensor([3.0]), torch.tensor([1.0])
        >>> gaussian_nll(y, mean, variance=4.0), -Normal(1.0, 2.0).log_prob(y)
        (tensor([2.1121]), tensor([2.1121]))
    """
    targets, mean = _checks.numbers("targets", targets), _checks.numbers("mean", mean)
    if mean.shape[mean.ndim - targets.ndim :] != targets.shape:
        raise ValueError(
            f"mean must end in the shape of targets, {tuple(targets.shape)}, got "
            f"{tuple(mean.shape)}"
        )
    variance = _of_shape("variance", variance, mean)
    return (math.log(2 * math.pi) + variance.log() + (targets - mean) ** 2 / variance) / 2


def _of_shape(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """Check positive numbers: one, or as many as ``like`` has; in its dtype, on its device."""
    value = _checks.numbers(name, value, positive=True)
    if value.ndim and value.shape != like.shape:
        raise ValueError(
            f"{name} must be one number or have shape {tuple(like.shape)}, got {tuple(value.shape)}"
        )
    return value.to(like) if value.ndim == 0 else value


def decompose_variance(
    means: Float[Tensor, "draws *points"], variances: float | Float[Tensor, "..."]
) -> Variances:
    r"""Split the variance of a prediction by the law of total variance.

    .. math::
        \mathrm{Var}[y] = \underbrace{\frac1T \sum_t \sigma_t^2}_{\text{aleatoric}}
        + \underbrace{\frac1T \sum_t (\mu_t - \bar\mu)^2}_{\text{epistemic}},
        \qquad \bar\mu = \frac1T \sum_t \mu_t

    It is exact for the mixture of these :math:`T` draws. As an estimate of what all draws would
    give, the epistemic part is too small by the factor :math:`1 - 1/T`, if they are independent.
    The mean in the aleatoric part is that of the variances: the exponential of a mean log variance
    is smaller, most so where the draws disagree. A band of two standard deviations has the width
    :math:`2 \sqrt{\mathrm{Var}[y]}`, not twice the sum of both parts' roots.

    Args:
        means: :math:`\mu_t`, shape ``(draws, ...)``.
        variances: :math:`\sigma_t^2`, of the same shape, or one number for all.

    Returns:
        Mean, both parts and their sum, shape ``(...)``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes differ, a number is not finite, or a variance not positive.

    Source:
        Kendall and Gal (2017), "What uncertainties do we need in Bayesian deep learning for
        computer vision?", NeurIPS.

    Example:
        >>> parts = decompose_variance(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0]))
        >>> parts.aleatoric, parts.epistemic, parts.total
        (tensor(2.), tensor(1.), tensor(3.))
    """
    means = _checks.draws("means", means)
    aleatoric = _of_shape("variances", variances, means).expand_as(means).mean(dim=0)
    epistemic = means.var(dim=0, correction=0)
    return Variances(means.mean(dim=0), aleatoric, epistemic, aleatoric + epistemic)


def decompose_entropy(probabilities: Float[Tensor, "draws *points classes"]) -> Entropies:
    r"""Split the entropy of a predicted class into noise and disagreement.

    .. math::
        \underbrace{\mathrm H\Bigl(\frac1T \sum_t p_t\Bigr)}_{\text{total}}
        = \underbrace{\frac1T \sum_t \mathrm H(p_t)}_{\text{aleatoric}}
        + \underbrace{\frac1T \sum_t \mathrm{KL}(p_t \,\|\, \bar p)}_{\text{epistemic}},
        \qquad \mathrm H(p) = -\sum_k p_k \log p_k

    The epistemic part is the mutual information of the class and the weights (BALD): zero where all
    draws agree, at most :math:`\log T`.

    Args:
        probabilities: Of each class, by each draw, shape ``(draws, ..., classes)``.

    Returns:
        The sum and both parts in nats, shape ``(...)``.

    Raises:
        TypeError: ``probabilities`` is not a floating-point tensor.
        ValueError: They are not probabilities, or there is no dimension for the draws.

    Source:
        Houlsby, Huszár, Ghahramani and Lengyel (2011), "Bayesian active learning for
        classification and preference learning".

    Example:
        >>> decompose_entropy(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # each sure, of another class
        Entropies(total=tensor(0.6931), aleatoric=tensor(0.), epistemic=tensor(0.6931))
    """
    probabilities = _checks.probabilities("probabilities", probabilities)
    if probabilities.ndim < 2:
        raise ValueError(
            f"probabilities must have shape (draws, ..., classes), got {tuple(probabilities.shape)}"
        )
    total = torch.special.entr(probabilities.mean(dim=0)).sum(dim=-1)
    aleatoric = torch.special.entr(probabilities).sum(dim=-1).mean(dim=0)
    # A divergence is never negative; rounding would make it so where all draws agree.
    return Entropies(total, aleatoric, (total - aleatoric).clamp(min=0))


def mixture(distribution: Distribution) -> MixtureSameFamily:
    r"""The predictive distribution: the mixture of all draws, with equal shares.

    Its ``mean`` and ``variance`` are those of :func:`decompose_variance`; it has a ``cdf``, a
    ``log_prob`` and ``sample``. It is no Gaussian even where each draw is one.

    Args:
        distribution: One distribution for each draw and point, such as ``likelihood(outputs)``:
            the first batch dimension counts the draws. A distribution that stores its parameters,
            such as ``Normal`` or ``Categorical``, or an ``Independent`` of one.

    Returns:
        A mixture for each point.

    Raises:
        TypeError: ``distribution`` is no distribution, or does not store its parameters.
        ValueError: It has no batch dimension.

    Example:
        >>> outputs = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]]])  # two draws, one point
        >>> prediction = mixture(heteroscedastic(outputs))
        >>> prediction.mean, prediction.variance
        (tensor([1.]), tensor([2.]))
    """
    _check_draws(distribution)
    parts = _draws_last(distribution)
    return MixtureSameFamily(Categorical(parts.mean.new_ones(parts.batch_shape[-1])), parts)


def log_predictive(
    distribution: Distribution, y: Real[Tensor, "*targets"]
) -> Float[Tensor, "*points"]:
    r"""The log density (or probability) of a target under the mixture of all draws.

    .. math::
        \log p(y \mid x) = \log \frac1T \sum_{t=1}^T p(y \mid x, w_t)

    The mean of the log densities is smaller, and scores a typical draw instead of the prediction.

    Args:
        distribution: One distribution for each draw and point, such as ``likelihood(outputs)``:
            the first batch dimension counts the draws.
        y: Targets, one for each point (whole numbers for classes).

    Returns:
        One number for each target, in nats.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The distribution has no batch dimension, or ``y`` does not fit it.

    Example:
        >>> guesses = Categorical(probs=torch.tensor([[0.2, 0.8], [0.6, 0.4]]))  # two draws
        >>> log_predictive(guesses, torch.tensor(1)).exp()
        tensor(0.6000)
    """
    _check_draws(distribution)
    shape = distribution.batch_shape[1:] + distribution.event_shape
    if not isinstance(y, Tensor) or y.shape != shape:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y must have shape {tuple(shape)}, a target for each point, got {got}")
    return distribution.log_prob(y).logsumexp(dim=0) - math.log(distribution.batch_shape[0])


def _check_draws(distribution: Distribution) -> None:
    _checks.distribution("distribution", distribution)
    if not distribution.batch_shape:
        raise ValueError("distribution must have a first batch dimension for the draws, got none")


def _draws_last(distribution: Distribution, behind: int = 0) -> Distribution:
    """Move the first batch dimension to the last place, where a mixture has its components."""
    if isinstance(distribution, Independent):
        num_event = distribution.reinterpreted_batch_ndims
        return Independent(_draws_last(distribution.base_dist, behind + num_event), num_event)
    constraints = distribution.arg_constraints
    names = [name for name in constraints if name in vars(distribution)]
    if "logits" in names and "probs" in names:  # one was computed from the other
        names.remove("probs")
    if not names:
        raise TypeError(
            "distribution must store its parameters, as Normal does, got "
            f"{type(distribution).__name__}"
        )
    parameters = {
        name: getattr(distribution, name).movedim(0, -1 - behind - constraints[name].event_dim)
        for name in names
    }
    return type(distribution)(**parameters)
