r"""Variational inference without gradients: linear regression with unknown noise.

The model is conjugate piece by piece, not as a whole: with noise precision :math:`\tau`,

.. math::
    y \mid w, \tau \sim \mathcal N(\Phi w, \tau^{-1} I), \qquad
    w \sim \mathcal N(m_0, S_0), \qquad \tau \sim \mathrm{Gamma}(a_0, b_0) .

Of a guide nothing is asked but that it factorizes, :math:`q(w, \tau) = q(w)\, q(\tau)`. Whatever
:math:`q(\tau)` is, the best :math:`q(w)` is proportional to :math:`\exp \mathbb E_{q(\tau)}[\log
p(y, w, \tau)]`, and the other way round. Here both are of a known family, so that they are
computed in turns, each step the best one there is: the ELBO can only rise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Gamma, kl_divergence

from coursepkg import _checks
from coursepkg.bayes_linear import GaussianWeights, posterior
from coursepkg.divergence import kl_mvn

__all__ = ["FactorizedFit", "fit_linear"]


class FactorizedFit(NamedTuple):
    r"""What :func:`fit_linear` returns.

    Attributes:
        weights: :math:`q(w)`.
        precision: :math:`q(\tau)`, of one over the noise's variance.
        elbo: The ELBO in nats, exact.
        history: The ELBO after each update of both, shape ``(steps,)``; it never falls.
        converged: Whether the last update gained less than ``tolerance``.
    """

    weights: GaussianWeights
    precision: Gamma
    elbo: float
    history: Float[Tensor, " steps"]
    converged: bool


def fit_linear(
    features: Float[Tensor, "points features"],
    targets: Float[Tensor, " points"],
    prior: GaussianWeights,
    precision_shape: float,
    precision_rate: float,
    *,
    num_steps: int = 1000,
    tolerance: float = 1e-10,
) -> FactorizedFit:
    r"""Find the best factorized guide of a linear regression with unknown noise.

    .. math::
        q(w) = \mathcal N(m, S): \quad
        S^{-1} = S_0^{-1} + \mathbb E[\tau]\, \Phi^\top \Phi, \quad
        m = S\, (S_0^{-1} m_0 + \mathbb E[\tau]\, \Phi^\top y)

        q(\tau) = \mathrm{Gamma}(a, b): \quad a = a_0 + \tfrac{N}{2}, \quad
        b = b_0 + \tfrac12 \bigl(\lVert y - \Phi m \rVert^2
        + \operatorname{tr}(\Phi S \Phi^\top)\bigr)

    The first is the exact posterior for a noise of :math:`\mathbb E[\tau]^{-1/2}`; the second
    counts the residuals *and* what is not known about the weights.

    Args:
        features: Design matrix :math:`\Phi`, shape ``(points, features)``.
        targets: :math:`y`, shape ``(points,)``.
        prior: :math:`\mathcal N(m_0, S_0)` over the weights.
        precision_shape: :math:`a_0`.
        precision_rate: :math:`b_0`, in squared units of the targets.
        num_steps: How many updates of both, at most.
        tolerance: It ends where an update gains less than this, in nats.

    Returns:
        The guide and its ELBO, in float64.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes do not fit, values are not finite, or a number is not positive.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, sections 10.1.1 and 10.3.

    Example:
        >>> from coursepkg.bayes_linear import normal_prior
        >>> y = torch.tensor([1.0, 3.0, 2.0, 2.0])
        >>> fit = fit_linear(torch.ones(4, 1), y, normal_prior(1, 10.0), 1.0, 1.0)
        >>> f"{fit.weights.mean[0]:.2f}", f"{fit.precision.mean ** -0.5:.2f}"
        ('2.00', '0.89')
    """
    features, targets = _checks.design(features, targets)
    shape = _checks.positive("precision_shape", precision_shape) + len(targets) / 2
    prior_rate = _checks.positive("precision_rate", precision_rate)
    num_steps = _checks.count("num_steps", num_steps, minimum=1)
    tolerance = _checks.positive("tolerance", tolerance)

    prior_precision = Gamma(targets.new_tensor(precision_shape), targets.new_tensor(prior_rate))
    precision, history, converged = prior_precision, [-math.inf], False
    while not converged and len(history) <= num_steps:
        weights = posterior(features, targets, prior, precision.mean**-0.5)
        unknown = (features @ weights.scale_tril).square().sum()
        squares = (targets - features @ weights.mean).square().sum() + unknown
        precision = Gamma(targets.new_tensor(shape), prior_rate + squares / 2)
        # E log tau is that of the Gamma: its digamma, less the log rate.
        log_precision = torch.digamma(precision.concentration) - precision.rate.log()
        log_likelihood = (
            len(targets) * (log_precision - math.log(2 * math.pi)) - precision.mean * squares
        ) / 2
        weights_kl = kl_mvn(weights.mean, weights.scale_tril, prior.mean, prior.scale_tril)
        bound = log_likelihood - weights_kl - kl_divergence(precision, prior_precision)
        history.append(float(bound))
        converged = history[-1] - history[-2] < tolerance
    steps = targets.new_tensor(history[1:])
    return FactorizedFit(weights, precision, history[-1], steps, converged)
