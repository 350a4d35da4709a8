"""Chains of draws for tests, and how close what is said of them must be to the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor(values: Any) -> Tensor:
    """Numbers in float64."""
    return torch.tensor(values, dtype=torch.float64)


def close(ours: Tensor, truth: Any, rtol: float = 1e-10) -> None:
    """Compare with the truth; NaN is where NaN must be."""
    truth = tensor(np.asarray(truth))
    torch.testing.assert_close(ours, truth, rtol=rtol, atol=0, equal_nan=True)


def normals(*shape: int, seed: int = 0) -> Tensor:
    """Independent draws of a standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def autoregressive(correlation: float, *shape: int, seed: int = 0) -> Tensor:
    """Stationary AR(1) chains of variance 1; their autocorrelation time is known."""
    noise = normals(*shape, seed=seed)
    draws = noise.clone()
    for i in range(1, shape[1]):
        draws[:, i] = correlation * draws[:, i - 1] + math.sqrt(1 - correlation**2) * noise[:, i]
    return draws
