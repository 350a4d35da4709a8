r"""A linear layer with Gaussian weights: where its noise is drawn, and what rows have in common.

The three functions draw the outputs :math:`y_n = W x_n + b` of the rows :math:`x_n` of a minibatch,
where the weights are independent normal variables. Each row by itself has the same distribution in
all three: mean :math:`M x_n`, and independent entries of variance
:math:`(S \circ S)(x_n \circ x_n)` (a bias is a weight whose input is one). What they draw for
several rows *together* differs, and with it the variance of a minibatch's gradient:

- :func:`shared_weights` draws once for all rows: values of one function, correlated.
- :func:`flipout` draws once, and signs for each row: uncorrelated, but not independent.
- :func:`local_reparameterization` draws for each row's outputs: independent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from coursepkg import _checks
from coursepkg.mcmc import normal_like

__all__ = ["flipout", "local_reparameterization", "shared_weights"]

# From inputs and a table of weights to outputs.
Operation = Callable[[Tensor, Tensor], Tensor]


def shared_weights(
    x: Float[Tensor, "*#draws rows inputs"],
    weight_mean: Float[Tensor, "*#draws outputs inputs"],
    weight_scale: Float[Tensor, "*#draws outputs inputs"],
    bias_mean: Float[Tensor, "*#draws outputs"] | None = None,
    bias_scale: Float[Tensor, "*#draws outputs"] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "... rows outputs"]:
    r"""Draw the weights, once for all rows: the outputs are values of one drawn function.

    .. math::
        y_n = (M + S \circ E)\, x_n, \quad E_{oi} \sim \mathcal N(0, 1), \qquad
        \operatorname{cov}(y_{no}, y_{mo}) = \sum_i S_{oi}^2\, x_{ni} x_{mi} .

    Args:
        x: Inputs, shape ``(*draws, rows, inputs)``.
        weight_mean: :math:`M`, shape ``(*draws, outputs, inputs)``. Leading dimensions are
            independent draws of the weights: ``weight_mean.expand(10, -1, -1)``, and so for the
            others, asks for ten.
        weight_scale: Standard deviations :math:`S`, of the same shape.
        bias_mean: Mean of the bias, shape ``(*draws, outputs)``; no bias where it is ``None``.
        bias_scale: Its standard deviations, of the same shape.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        Outputs, shape ``(*draws, rows, outputs)``, with gradients to the means and scales.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes or dtypes do not fit, a scale is negative, values are not finite, or only
            one half of the bias is given.

    Source:
        Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), "Weight uncertainty in neural
        networks", ICML.

    Example:
        >>> y = shared_weights(torch.ones(2, 3), torch.zeros(1, 3), torch.ones(1, 3))
        >>> bool(y[0] == y[1])
        True
    """
    _checks.generator_or_none(generator)
    x, mean, scale = _with_bias(x, weight_mean, weight_scale, bias_mean, bias_scale)
    return draw_weights(matmul, x, mean, scale, generator)


def flipout(
    x: Float[Tensor, "*#draws rows inputs"],
    weight_mean: Float[Tensor, "*#draws outputs inputs"],
    weight_scale: Float[Tensor, "*#draws outputs inputs"],
    bias_mean: Float[Tensor, "*#draws outputs"] | None = None,
    bias_scale: Float[Tensor, "*#draws outputs"] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "... rows outputs"]:
    r"""Draw the noise of the weights once, and flip its signs at random for each row.

    .. math::
        y_n = M x_n + s_n \circ \bigl((S \circ E)(r_n \circ x_n)\bigr), \qquad
        r_{ni}, s_{no} \in \{-1, 1\} .

    For each row :math:`E \circ s_n r_n^\top` is distributed as :math:`E` is. Rows are uncorrelated,
    but where :math:`E` is large, it is so for all of them.

    Args:
        x: As for :func:`shared_weights`, and so are the others.
        weight_mean: :math:`M`.
        weight_scale: :math:`S`.
        bias_mean: Mean of the bias.
        bias_scale: Its standard deviations.
        generator: Source of randomness.

    Returns:
        Outputs, shape ``(*draws, rows, outputs)``.

    Raises:
        TypeError: As for :func:`shared_weights`.
        ValueError: As for :func:`shared_weights`.

    Source:
        Wen, Vicol, Ba, Tran and Grosse (2018), "Flipout: Efficient pseudo-independent weight
        perturbations on mini-batches", ICLR.

    Example:
        >>> flipout(torch.ones(2, 3), torch.zeros(1, 3), torch.ones(1, 3)).shape
        torch.Size([2, 1])
    """
    _checks.generator_or_none(generator)
    x, mean, scale = _with_bias(x, weight_mean, weight_scale, bias_mean, bias_scale)
    return flip_noise(matmul, x, mean, scale, generator)


def local_reparameterization(
    x: Float[Tensor, "*#draws rows inputs"],
    weight_mean: Float[Tensor, "*#draws outputs inputs"],
    weight_scale: Float[Tensor, "*#draws outputs inputs"],
    bias_mean: Float[Tensor, "*#draws outputs"] | None = None,
    bias_scale: Float[Tensor, "*#draws outputs"] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "... rows outputs"]:
    r"""Draw the outputs of each row, not the weights.

    .. math::
        y_n = M x_n + \sqrt{(S \circ S)(x_n \circ x_n)} \circ \epsilon_n, \qquad
        \epsilon_{no} \sim \mathcal N(0, 1) .

    The same input twice has two outputs, with correlation zero: they are *not* values of one drawn
    function. Noise of its own for each row averages out over a minibatch, and its gradient mostly
    varies less for it. Not always: residuals that cancel under shared noise then do not, so that
    close to a fit with much noise in the data the gradient by the scales can vary more.

    Args:
        x: As for :func:`shared_weights`, and so are the others.
        weight_mean: :math:`M`.
        weight_scale: :math:`S`.
        bias_mean: Mean of the bias.
        bias_scale: Its standard deviations.
        generator: Source of randomness.

    Returns:
        Outputs, shape ``(*draws, rows, outputs)``.

    Raises:
        TypeError: As for :func:`shared_weights`.
        ValueError: As for :func:`shared_weights`.

    Source:
        Kingma, Salimans and Welling (2015), "Variational dropout and the local reparameterization
        trick", NeurIPS, section 2.

    Example:
        >>> y = local_reparameterization(torch.ones(2, 3), torch.zeros(1, 3), torch.ones(1, 3))
        >>> bool(y[0] == y[1])
        False
    """
    _checks.generator_or_none(generator)
    x, mean, scale = _with_bias(x, weight_mean, weight_scale, bias_mean, bias_scale)
    return draw_outputs(matmul, x, mean, scale, generator)


def matmul(x: Tensor, table: Tensor) -> Tensor:
    """The layer itself: inputs times weights, the bias as the weight of a last input."""
    return x @ table.mT


# What follows holds for any operation that is linear in its weights, such as a convolution.


def draw_weights(
    operation: Operation,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Outputs by weights that are drawn once."""
    return operation(x, mean + scale * normal_like(mean, generator))


def flip_noise(
    operation: Operation,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    generator: torch.Generator | None = None,
    *,
    num_positions: int = 0,
) -> Tensor:
    """Outputs by noise that is drawn once and flipped for each row; so many dimensions share it."""
    y = operation(x, mean)
    channel, ones = -1 - num_positions, (1,) * num_positions
    flip_inputs = _signs(y, (*y.shape[:channel], x.shape[channel], *ones), generator)
    noise = operation(x * flip_inputs, scale * normal_like(mean, generator))
    return y + _signs(y, (*y.shape[:channel], y.shape[channel], *ones), generator) * noise


def draw_outputs(
    operation: Operation,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Outputs drawn one by one, from their own means and variances."""
    y = operation(x, mean)
    variance = operation(x.square(), scale.square())
    # The root has no derivative at zero: one row of zeros would make every gradient NaN.
    tiny = torch.finfo(variance.dtype).tiny
    return y + variance.clamp(min=tiny).sqrt() * normal_like(y, generator)


def _signs(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """One or minus one, each with probability one half."""
    return 2 * torch.bernoulli(like.new_full(shape, 0.5), generator=generator) - 1


def _with_bias(
    x: Tensor,
    weight_mean: Tensor,
    weight_scale: Tensor,
    bias_mean: Tensor | None,
    bias_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check a layer's arguments; return inputs, means and scales, the bias as a last column."""
    parts = {"x": x, "weight_mean": weight_mean, "weight_scale": weight_scale}
    if bias_mean is not None and bias_scale is not None:
        parts |= {"bias_mean": bias_mean, "bias_scale": bias_scale}
    elif bias_mean is not None or bias_scale is not None:
        raise ValueError("bias_mean and bias_scale must be given both, or neither")
    for name, value in parts.items():
        _checks.array(name, value)
        if value.dtype != x.dtype:
            raise ValueError(f"{name} must have the dtype of x, {x.dtype}, got {value.dtype}")
        if name.endswith("scale") and (value < 0).any():
            raise ValueError(
                f"{name} must not be negative, got {float(value.detach().min()):.3g}; softplus or "
                "exp makes a scale of a free parameter"
            )
    if x.ndim < 2 or weight_mean.ndim < 2 or x.shape[-1] != weight_mean.shape[-1]:
        raise ValueError(
            "x and weight_mean must have shapes (…, rows, inputs) and (…, outputs, inputs), got "
            f"{tuple(x.shape)} and {tuple(weight_mean.shape)}"
        )
    shape = weight_mean.shape
    for name, needed in (
        ("weight_scale", shape),
        ("bias_mean", shape[:-1]),
        ("bias_scale", shape[:-1]),
    ):
        if name in parts and parts[name].shape != needed:
            raise ValueError(
                f"{name} must have shape {tuple(needed)}, to go with weight_mean of shape "
                f"{tuple(shape)}, got {tuple(parts[name].shape)}"
            )
    if bias_mean is None or bias_scale is None:
        return x, weight_mean, weight_scale
    return (
        torch.cat([x, torch.ones_like(x[..., :1])], dim=-1),
        torch.cat([weight_mean, bias_mean[..., None]], dim=-1),
        torch.cat([weight_scale, bias_scale[..., None]], dim=-1),
    )
