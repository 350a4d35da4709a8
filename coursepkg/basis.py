r"""Features: functions of the input in which a model is linear.

A linear model is linear in its *parameters*. With features :math:`\phi(x)` it is
:math:`f(x) = \phi(x)^\top w`, and :math:`\phi` may bend as it likes. Each function here takes
inputs of any shape and returns features along the last dimension; the first feature is always the
constant 1, so that the first coefficient is the intercept.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from coursepkg import _checks

__all__ = ["affine", "fourier", "polynomial", "rbf"]


def affine(x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch features"]:
    r"""Put a constant before the inputs: :math:`\phi(x) = (1, x_1, \ldots, x_D)`.

    Args:
        x: Inputs with ``dim`` columns, shape ``(..., dim)``.

    Returns:
        Features, shape ``(..., dim + 1)``, float64.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        ValueError: ``x`` has no dimension, is empty, or has NaN or infinity in it.

    Example:
        >>> affine(torch.tensor([[3.0, 5.0]]))
        tensor([[1., 3., 5.]], dtype=torch.float64)
    """
    x = _checks.array("x", x)
    if x.ndim == 0:
        raise ValueError("x must have at least 1 dimension, got a single number")
    return torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)


def polynomial(x: Float[Tensor, "*batch"], degree: int) -> Float[Tensor, "*batch features"]:
    r"""Powers of the input: :math:`\phi(x) = (1, x, x^2, \ldots, x^M)`.

    Powers of a variable that is not near zero are almost collinear: shift and scale ``x`` into
    [-1, 1] before you raise the degree.

    Args:
        x: Inputs, any shape.
        degree: The highest power :math:`M`, at least 0.

    Returns:
        Features, shape ``(..., degree + 1)``, float64.

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``degree`` is not a whole number.
        ValueError: ``x`` is empty or not finite, or ``degree`` is negative.

    Example:
        >>> polynomial(torch.tensor([2.0, 3.0]), degree=2)
        tensor([[1., 2., 4.],
                [1., 3., 9.]], dtype=torch.float64)
    """
    x = _checks.array("x", x)
    degree = _checks.count("degree", degree, minimum=0)
    return x[..., None] ** torch.arange(degree + 1, dtype=x.dtype, device=x.device)


def fourier(
    x: Float[Tensor, "*batch"], num_frequencies: int, base_frequency: float
) -> Float[Tensor, "*batch features"]:
    r"""Sines and cosines: :math:`\phi(x) = (1, \cos 2\pi f_0 x, \ldots, \sin 2\pi f_0 x, \ldots)`.

    The cosines of the frequencies :math:`f_0, 2 f_0, \ldots, K f_0` come first, then the sines.

    Args:
        x: Inputs, any shape.
        num_frequencies: How many multiples :math:`K` of the base frequency, at least 1.
        base_frequency: :math:`f_0 > 0`, in cycles per unit of ``x``.

    Returns:
        Features, shape ``(..., 2 * num_frequencies + 1)``, float64.

    Raises:
        TypeError: ``x`` is not a floating-point tensor, ``num_frequencies`` is not a whole number,
            or ``base_frequency`` is not a real number.
        ValueError: ``x`` is empty or not finite, ``num_frequencies`` is below 1, or
            ``base_frequency`` is not positive.

    Example:
        >>> fourier(torch.tensor([0.0, 0.25]), num_frequencies=1, base_frequency=1.0).round()
        tensor([[1., 1., 0.],
                [1., 0., 1.]], dtype=torch.float64)
    """
    x = _checks.array("x", x)
    num_frequencies = _checks.count("num_frequencies", num_frequencies, minimum=1)
    base_frequency = _checks.positive("base_frequency", base_frequency)
    multiples = torch.arange(1, num_frequencies + 1, dtype=x.dtype, device=x.device)
    angles = 2 * math.pi * base_frequency * x[..., None] * multiples
    return torch.cat([torch.ones_like(x)[..., None], angles.cos(), angles.sin()], dim=-1)


def rbf(
    x: Float[Tensor, "*batch"], centers: Float[Tensor, " centers"], length_scale: float
) -> Float[Tensor, "*batch features"]:
    r"""Gaussian bumps: :math:`\phi_k(x) = \exp\{-(x - c_k)^2 / (2 \ell^2)\}` after the constant.

    Args:
        x: Inputs, any shape.
        centers: The bumps' centers :math:`c_k`, shape ``(centers,)``, in the unit of ``x``.
        length_scale: The bumps' width :math:`\ell > 0`, in the unit of ``x``.

    Returns:
        Features, shape ``(..., centers + 1)``, float64.

    Raises:
        TypeError: ``x`` or ``centers`` is not a floating-point tensor, or ``length_scale`` is not
            a real number.
        ValueError: ``x`` or ``centers`` is empty or not finite, ``centers`` does not have one
            dimension, or ``length_scale`` is not positive.

    Example:
        >>> rbf(torch.tensor([0.0]), centers=torch.tensor([0.0]), length_scale=1.0)
        tensor([[1., 1.]], dtype=torch.float64)
    """
    x = _checks.array("x", x)
    centers = _checks.array("centers", centers, ndim=1)
    length_scale = _checks.positive("length_scale", length_scale)
    bumps = torch.exp(-0.5 * ((x[..., None] - centers) / length_scale) ** 2)
    return torch.cat([torch.ones_like(x)[..., None], bumps], dim=-1)
