"""Bayesian convolutions: the sums of torch's own, of any stride, padding, dilation and groups.

Their noise is tested with that of the other layers, in ``test_layers``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bad_input import bad_input
from torch import nn

from coursepkg.conv import BayesConv1d, BayesConv2d

ESTIMATORS = pytest.mark.parametrize("estimator", ["shared", "local", "flipout"])

CONVOLUTIONS = [
    (BayesConv1d, nn.Conv1d, (2, 4, 11)),
    (BayesConv2d, nn.Conv2d, (2, 4, 9, 10)),
]
HOW = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
    {"groups": 2, "bias": False},
]


@ESTIMATORS
@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize(("ours", "theirs", "shape"), CONVOLUTIONS, ids=["1d", "2d"])
def test_a_convolution_without_noise_is_that_of_torch(
    ours: Any, theirs: Any, shape: tuple[int, ...], how: dict[str, Any], estimator: Any
) -> None:
    layer = ours(4, 6, 3, estimator=estimator, initial_scale=1e-12, **how)
    plain = theirs(4, 6, 3, **how)
    weight, bias = layer.split(layer.mean)
    state = {"weight": weight.reshape(plain.weight.shape)}
    if bias is not None:
        state["bias"] = bias
    plain.load_state_dict(state)
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-5)


test_bad_input_is_named = bad_input(
    [
        (lambda: BayesConv1d(0, 1, 3), ValueError, ("in_channels", "at least 1")),
        (lambda: BayesConv1d(3, 4, 3, groups=2), ValueError, ("groups", "3", "4")),
        (lambda: BayesConv2d(1, 1, (3,)), ValueError, ("kernel_size", "2", "(3,)")),
    ]
)
