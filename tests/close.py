"""Float64 tensors, and how close ours must be to what is true."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def tensor(values: Any) -> Tensor:
    """Numbers in float64."""
    return torch.tensor(values, dtype=torch.float64)


def close(ours: Tensor, truth: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Compare with the truth, be it numbers, an array or a tensor."""
    truth = torch.as_tensor(truth, dtype=torch.float64)
    torch.testing.assert_close(ours, truth, rtol=rtol, atol=atol)


def z(values: Tensor, truth: Tensor | float) -> Tensor:
    """How many standard errors the mean over the first dimension is away, at most."""
    error = values.std(dim=0) / len(values) ** 0.5
    return ((values.mean(dim=0) - truth).abs() / error).max()
