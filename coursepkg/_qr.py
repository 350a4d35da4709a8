"""Least squares by QR, down to the last digits: scaling, the rank test, refinement."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["check_rank", "column_units", "correction", "solve_upper"]

# Beyond this condition number of the scaled features fewer than about four digits are left.
_NEARLY_COLLINEAR = 1e12


def solve_upper(
    r: Float[Tensor, "features features"], right: Float[Tensor, "features *columns"]
) -> Float[Tensor, "features *columns"]:
    if right.ndim == 1:
        return torch.linalg.solve_triangular(r, right[:, None], upper=True)[:, 0]
    return torch.linalg.solve_triangular(r, right, upper=True)


def correction(
    matrix: Float[Tensor, "rows features"],
    right: Float[Tensor, " rows"],
    q: Float[Tensor, "rows features"],
    r: Float[Tensor, "features features"],
    solution: Float[Tensor, " features"],
) -> Float[Tensor, " features"]:
    """One step of refinement, its residuals in extended precision: worth up to four digits.

    Solution and residual solve one system, [I A; A^T 0] [residual; x] = [b; 0]; what is left of
    its right-hand side, computed with more digits, is solved for the correction (Björck 1967).
    Where a machine has no longer floats than float64, numpy takes these, and less is won.
    """
    a, b, x, residual = (
        tensor.numpy(force=True).astype(np.longdouble)
        for tensor in (matrix, right, solution, right - matrix @ solution)
    )
    upper, lower = (
        torch.from_numpy(left.astype(np.float64)).to(right)
        for left in (b - residual - a @ x, a.T @ residual)
    )
    shift = torch.linalg.solve_triangular(r.T, lower[:, None], upper=False)[:, 0]
    return solve_upper(r, q.T @ upper + shift)


def column_units(
    matrix: Float[Tensor, "rows features"],
) -> Float[Tensor, " features"]:
    """The power of two nearest to each column's norm.

    Dividing by it makes the rank test fair to every unit, and rounds nothing.
    """
    norms = torch.linalg.vector_norm(matrix, dim=0)
    if (norms == 0).any():
        zeros = (norms == 0).nonzero().flatten().tolist()
        raise ValueError(f"features must not have columns of zeros, got zeros in columns {zeros}")
    return torch.exp2(norms.log2().round())


def check_rank(r: Float[Tensor, "features features"], num_points: int) -> None:
    """Refuse dependent columns, by name; warn where they are nearly so."""
    _, singular_values, directions = torch.linalg.svd(r)
    rounding = torch.finfo(r.dtype).eps * max(num_points, len(r))
    ratio = float(singular_values[-1] / singular_values[0])
    if ratio <= rounding:
        # The direction that the features do not see names the columns that cancel one another.
        columns = (directions[-1].abs() > 1e-6).nonzero().flatten().tolist()
        raise ValueError(
            f"features must have linearly independent columns, but columns {columns} depend on one "
            f"another (number of points: {num_points}). Drop columns, add points, or use fit_ridge "
            "with a positive penalty"
        )
    if ratio * _NEARLY_COLLINEAR < 1:
        warnings.warn(
            f"features are nearly collinear (condition number {1 / ratio:.0e} after scaling): "
            f"trust about {max(0, int(-math.log10(rounding / ratio)))} digits of the coefficients",
            stacklevel=4,
        )
