"""A deterministic network's Bayesian twin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from coursepkg.conv import BayesConv1d, BayesConv2d
from coursepkg.layers import BayesLayer, BayesLinear

__all__ = ["bayesianize"]


def bayesianize(
    model: nn.Module,
    *,
    where: Callable[[str, nn.Module], bool] = lambda name, module: True,
    **options: Any,
) -> nn.Module:
    """A copy of a network whose linear and convolutional layers have Gaussian weights.

    The means start from the network's weights. Everything else, such as dropout, stays as it is.

    Args:
        model: A deterministic network.
        where: Takes a layer's name and the layer, and says whether to turn it.
        options: ``prior``, ``estimator`` and ``initial_scale`` of
            :class:`coursepkg.layers.BayesLayer`.

    Raises:
        TypeError: ``model`` is not a module, or an option of the wrong kind.
        ValueError: No layer was turned, or a convolution pads with something else than zeros.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
        >>> bayesianize(network, where=lambda name, module: name == "2")
        Sequential(
          (0): Linear(in_features=1, out_features=20, bias=True)
          (1): Tanh()
          (2): BayesLinear(1×21 weights, prior=Normal(loc: 0.0, scale: 1.0), estimator='shared')
        )
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = copy.deepcopy(model)
    twins: dict[nn.Module, BayesLayer] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and where(name, module):
            twins[module] = _twin(module, options)
    if not twins:
        raise ValueError("where must choose a Linear, Conv1d or Conv2d layer, got none that it did")
    if model in twins:
        return twins[model]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children leaves out second places
            if child in twins:
                setattr(parent, name, twins[child])
    return model


def _twin(module: nn.Linear | nn.Conv1d | nn.Conv2d, options: dict[str, Any]) -> BayesLayer:
    bias = module.bias is not None
    twin: BayesLayer
    if isinstance(module, nn.Linear):
        twin = BayesLinear(module.in_features, module.out_features, bias, **options)
    else:
        if module.padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros', got {module.padding_mode!r}")
        kind = BayesConv1d if isinstance(module, nn.Conv1d) else BayesConv2d
        twin = kind(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            bias,
            **options,
        )
    twin = twin.to(module.weight)
    table = module.weight.flatten(1)
    if module.bias is not None:
        table = torch.cat([table, module.bias[:, None]], dim=1)
    with torch.no_grad():
        twin.mean.copy_(table)
    return twin.train(module.training)
