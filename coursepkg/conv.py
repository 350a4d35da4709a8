"""Convolutions whose weights are distributions: what they do, and nothing but that.

Means, scales, noise and divergence are those of :class:`coursepkg.layers.BayesLayer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from coursepkg import _checks
from coursepkg.layers import BayesLayer

__all__ = ["BayesConv1d", "BayesConv2d"]


class _BayesConv(BayesLayer):
    """A convolution with Gaussian weights; subclasses say over how many dimensions."""

    _convolve: Callable[..., Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        **options: Any,
    ) -> None:
        in_channels = _checks.count("in_channels", in_channels, minimum=1)
        out_channels = _checks.count("out_channels", out_channels, minimum=1)
        groups = _checks.count("groups", groups, minimum=1)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got {groups} for {in_channels} "
                f"and {out_channels}"
            )
        sizes = (kernel_size,) * self.num_positions if isinstance(kernel_size, int) else kernel_size
        if len(sizes) != self.num_positions or min(sizes) < 1:
            raise ValueError(
                f"kernel_size must be {self.num_positions} positive whole number(s), got "
                f"{kernel_size}"
            )
        self.kernel_shape = (in_channels // groups, *sizes)
        self.how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        super().__init__(out_channels, math.prod(self.kernel_shape), bias=bias, **options)

    def operation(self, x: Tensor, table: Tensor) -> Tensor:
        """Convolve the inputs with the weights, and add the biases."""
        weight, bias = self.split(table)
        kernel = weight.unflatten(1, self.kernel_shape)
        return type(self)._convolve(x, kernel, bias, **self.how)


class BayesConv1d(_BayesConv):
    """A convolution over sequences with Gaussian weights, in place of ``nn.Conv1d``.

    With ``estimator="local"`` each position draws noise of its own, though all share the same
    weights: the variance of each output is right, and outputs that should go together do not.

    Args:
        in_channels: As for ``nn.Conv1d``, and so are those up to ``bias``.
        options: ``prior``, ``estimator`` and ``initial_scale`` of
            :class:`coursepkg.layers.BayesLayer`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: As for :class:`coursepkg.layers.BayesLayer`; or ``groups`` or ``kernel_size`` do
            not fit.

    Example:
        >>> import torch
        >>> BayesConv1d(3, 4, kernel_size=5, padding="same")(torch.zeros(2, 3, 10)).shape
        torch.Size([2, 4, 10])
    """

    num_positions = 1
    _convolve = staticmethod(F.conv1d)


class BayesConv2d(_BayesConv):
    """A convolution over images with Gaussian weights, in place of ``nn.Conv2d``.

    With ``estimator="local"`` each position draws noise of its own; see :class:`BayesConv1d`.

    Args:
        in_channels: As for ``nn.Conv2d``, and so are those up to ``bias``.
        options: ``prior``, ``estimator`` and ``initial_scale`` of
            :class:`coursepkg.layers.BayesLayer`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: As for :class:`BayesConv1d`.

    Example:
        >>> import torch
        >>> BayesConv2d(1, 8, kernel_size=3, stride=2)(torch.zeros(2, 1, 9, 9)).shape
        torch.Size([2, 8, 4, 4])
    """

    num_positions = 2
    _convolve = staticmethod(F.conv2d)
