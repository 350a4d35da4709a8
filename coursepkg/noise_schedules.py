r"""Noise schedules of diffusion models: how fast noise takes over.

A schedule is the variance :math:`\beta_t` that each of :math:`T` steps adds; see
:mod:`coursepkg.diffusion`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from coursepkg import _checks

__all__ = ["cosine", "linear", "log_snr", "scales"]


def linear(num_steps: int) -> Float[Tensor, " steps"]:
    r"""Noise variances that rise along a line, as the first large models had them.

    From :math:`10^{-4}` to 0.02 in 1,000 steps; with fewer, each step adds more, in proportion.

    Args:
        num_steps: :math:`T`, at least 21 (with fewer the last variance would reach 1).

    Returns:
        :math:`\beta_1, \dots, \beta_T`, float64.

    Raises:
        TypeError: ``num_steps`` is not a whole number.
        ValueError: It is below 21.

    Source:
        Ho, Jain and Abbeel (2020), "Denoising diffusion probabilistic models", NeurIPS, section 4.

    Example:
        >>> linear(100)[[0, -1]]
        tensor([0.0010, 0.2000], dtype=torch.float64)
    """
    num_steps = _checks.count("num_steps", num_steps, minimum=21)
    return torch.linspace(0.1, 20, num_steps, dtype=torch.float64) / num_steps


def cosine(num_steps: int) -> Float[Tensor, " steps"]:
    r"""Noise that takes over slowly at both ends.

    .. math::
        \alpha_t \propto \cos \Bigl( \frac{t / T + s}{1 + s} \cdot \frac\pi2 \Bigr) , \qquad
        s = 0.008 , \qquad \beta_t \le 0.999

    Args:
        num_steps: :math:`T`, at least 2.

    Returns:
        :math:`\beta_1, \dots, \beta_T`, float64.

    Raises:
        TypeError: ``num_steps`` is not a whole number.
        ValueError: It is below 2.

    Source:
        Nichol and Dhariwal (2021), "Improved denoising diffusion probabilistic models",
        International Conference on Machine Learning, equation 17.

    Example:
        >>> cosine(100)[[0, -1]]
        tensor([6.3128e-04, 9.9900e-01], dtype=torch.float64)
    """
    num_steps = _checks.count("num_steps", num_steps, minimum=2)
    angle = (torch.linspace(0, 1, num_steps + 1, dtype=torch.float64) + 0.008) / 1.008
    alpha_squared = torch.cos(angle * math.pi / 2).square()
    return (1 - alpha_squared[1:] / alpha_squared[:-1]).clamp(max=0.999)


def log_snr(num_steps: int, highest: float = 7.0, lowest: float = -7.0) -> Float[Tensor, " steps"]:
    r"""Noise that takes the same part of the signal-to-noise ratio at each step.

    :math:`\log (\alpha_t^2 / \sigma_t^2)` falls from ``highest`` to ``lowest`` along a line. Then
    every KL of the ELBO has the same weight; see :func:`coursepkg.diffusion.elbo_terms`.

    Args:
        num_steps: :math:`T`, at least 2.
        highest: The first log ratio, in nats: what is left for the last decoder to remove.
        lowest: The last one: what the prior does not know of.

    Returns:
        :math:`\beta_1, \dots, \beta_T`, float64.

    Raises:
        TypeError: An argument is no number.
        ValueError: There are less than 2 steps, or ``highest`` is not above ``lowest``.

    Example:
        >>> log_snr(100)[[0, -1]]
        tensor([0.0009, 0.1318], dtype=torch.float64)
    """
    num_steps = _checks.count("num_steps", num_steps, minimum=2)
    highest, lowest = _checks.scalar("highest", highest), _checks.scalar("lowest", lowest)
    if highest <= lowest:
        raise ValueError(f"highest must be above lowest, got {highest} and {lowest}")
    log_snr = torch.linspace(highest, lowest, num_steps, dtype=torch.float64)
    alpha_squared = pad(log_snr.sigmoid(), (1, 0), value=1)
    return 1 - alpha_squared[1:] / alpha_squared[:-1]


def scales(
    betas: Float[Tensor, " steps"],
) -> tuple[Float[Tensor, " steps+1"], Float[Tensor, " steps+1"]]:
    r"""Scales of signal and noise, :math:`\alpha_t` and :math:`\sigma_t`, at the times 0 to T.

    Args:
        betas: A schedule.

    Returns:
        The two, float64.

    Example:
        >>> signal_scale, noise_scale = scales(log_snr(100))
        >>> torch.allclose(signal_scale.square() + noise_scale.square(), torch.ones(101).double())
        True
    """
    log_alpha_squared = pad(torch.log1p(-betas.double()).cumsum(dim=0), (1, 0))
    return (log_alpha_squared / 2).exp(), torch.expm1(log_alpha_squared).abs().sqrt()
