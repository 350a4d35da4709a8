r"""Linear regression: least squares, ridge, and the same fit by gradient descent.

The model is :math:`y = \Phi w + \epsilon` with a design matrix :math:`\Phi` of one row per point
and one column per feature (see :mod:`coursepkg.basis`). The closed forms are solved by QR,
which does not square the condition number as the normal equations
:math:`\Phi^\top \Phi w = \Phi^\top y` do, and in float64 whatever the inputs' precision.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from coursepkg import _checks, _qr

__all__ = ["GradientFit", "LinearFit", "fit_gradient", "fit_ols", "fit_ridge"]


class LinearFit(NamedTuple):
    """A fitted linear model.

    Attributes:
        coefficients: One per feature, shape ``(features,)``.
        standard_errors: Standard deviation of each coefficient over repeated noise, in the
            coefficient's unit, shape ``(features,)``. For ridge the bias is not in it.
        residual_scale: Estimated standard deviation of the noise, in the unit of the targets.
        r_squared: Share of the targets' variation that the fit explains: about the mean where the
            features hold a constant column, else about zero.
    """

    coefficients: Float[Tensor, " features"]
    standard_errors: Float[Tensor, " features"]
    residual_scale: Float[Tensor, ""]
    r_squared: Float[Tensor, ""]

    def predict(self, features: Float[Tensor, "points features"]) -> Float[Tensor, " points"]:
        """Evaluate the fitted function.

        Args:
            features: Features of new inputs, shape ``(points, features)``.

        Returns:
            Fitted values, shape ``(points,)``, float64.

        Raises:
            TypeError: ``features`` is not a floating-point tensor.
            ValueError: It does not have one column per coefficient, is empty or not finite.
        """
        features = _checks.array("features", features, ndim=2)
        if features.shape[1] != len(self.coefficients):
            raise ValueError(
                f"features must have {len(self.coefficients)} columns, one per coefficient, "
                f"got shape {tuple(features.shape)}"
            )
        return features @ self.coefficients

    def rmse(
        self, features: Float[Tensor, "points features"], targets: Float[Tensor, " points"]
    ) -> Float[Tensor, ""]:
        """Root mean square error at given points, the fitted ones or new ones.

        Args:
            features: Their features, shape ``(points, features)``.
            targets: Their targets, shape ``(points,)``.

        Returns:
            The error, in the unit of the targets.

        Raises:
            TypeError: An argument is not a floating-point tensor.
            ValueError: Shapes do not fit, or values are missing or not finite.
        """
        features, targets = _checks.design(features, targets)
        return ((self.predict(features) - targets) ** 2).mean().sqrt()


def fit_ols(
    features: Float[Tensor, "points features"], targets: Float[Tensor, " points"]
) -> LinearFit:
    r"""Ordinary least squares: :math:`\hat w = \arg\min_w \lVert y - \Phi w \rVert^2`.

    Under independent Gaussian noise of one variance this is the maximum-likelihood estimate.

    Args:
        features: Design matrix :math:`\Phi`, shape ``(points, features)``, at least as many points
            as features.
        targets: :math:`y`, shape ``(points,)``.

    Returns:
        The fit, in float64.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: Shapes do not fit, values are missing or not finite, or the features are
            linearly dependent (the message names the columns), so that no single best fit exists.

    Warns:
        UserWarning: The features are nearly dependent, so that few digits can be trusted; or the
            fit leaves no degree of freedom, so that noise and standard errors are NaN; or the
            targets do not vary, so that R squared is NaN.

    Source:
        Golub and Van Loan (2013), Matrix Computations, 4th edition, section 5.3; the refinement
        from Björck (1967), "Iterative refinement of linear least squares solutions I", BIT 7.

    Example:
        >>> from coursepkg import basis
        >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0])
        >>> fit = fit_ols(basis.polynomial(x, degree=1), 1 + 2 * x)
        >>> fit.coefficients.round(decimals=6)
        tensor([1., 2.], dtype=torch.float64)
    """
    features, targets = _checks.design(features, targets)
    return _least_squares(features, targets, targets.new_zeros(features.shape[1]))


def fit_ridge(
    features: Float[Tensor, "points features"],
    targets: Float[Tensor, " points"],
    penalty: float | Float[Tensor, ""] | Float[Tensor, " features"],
) -> LinearFit:
    r"""Ridge: :math:`\hat w = \arg\min_w \lVert y - \Phi w \rVert^2 + \sum_j \lambda_j w_j^2`.

    With Gaussian noise of variance :math:`\sigma^2` and an independent Gaussian prior
    :math:`w_j \sim \mathcal N(0, s_j^2)` this is the maximum a posteriori estimate when
    :math:`\lambda_j = \sigma^2 / s_j^2`. A flat prior is :math:`\lambda_j = 0`.

    Args:
        features: Design matrix :math:`\Phi`, shape ``(points, features)``.
        targets: :math:`y`, shape ``(points,)``.
        penalty: :math:`\lambda \ge 0`, one for all coefficients or one per coefficient, shape
            ``(features,)``; put 0 where the intercept stands to leave it free. Its unit is that of
            a squared feature.

    Returns:
        The fit, in float64. Its ``residual_scale`` counts the trace of the hat matrix as the
        degrees of freedom that the fit used up.

    Raises:
        TypeError: An argument is not a floating-point tensor (or number, for ``penalty``).
        ValueError: Shapes do not fit, values are missing or not finite, a penalty is negative, or
            the unpenalized features are linearly dependent.

    Warns:
        UserWarning: As for :func:`fit_ols`.

    Source:
        Hastie, Tibshirani and Friedman (2009), The Elements of Statistical Learning, 2nd edition,
        equations 3.41 to 3.50.

    Example:
        >>> features = torch.tensor([[1.0], [1.0]])
        >>> fit_ridge(features, torch.tensor([2.0, 4.0]), penalty=1.0).coefficients
        tensor([2.], dtype=torch.float64)
    """
    features, targets = _checks.design(features, targets)
    num_features = features.shape[1]
    if isinstance(penalty, Tensor) and penalty.ndim > 0:
        penalty = _checks.array("penalty", penalty, ndim=1)
        if len(penalty) != num_features:
            raise ValueError(
                f"penalty must be one number, or one per feature ({num_features}), "
                f"got {len(penalty)}"
            )
    else:
        penalty = targets.new_full((num_features,), _checks.scalar("penalty", penalty))
    if (penalty < 0).any():
        raise ValueError(f"penalty must not be negative, got {penalty.min().item()}")
    return _least_squares(features, targets, penalty)


def _least_squares(
    features: Float[Tensor, "points features"],
    targets: Float[Tensor, " points"],
    penalty: Float[Tensor, " features"],
) -> LinearFit:
    """Solve ridge as least squares: [features; sqrt(penalty)] against [targets; 0]."""
    num_points, num_features = features.shape
    matrix = torch.cat([features, penalty.sqrt().diag()])
    right = torch.cat([targets, targets.new_zeros(num_features)])
    units = _qr.column_units(matrix)
    matrix = matrix / units
    q, r = torch.linalg.qr(matrix)
    _qr.check_rank(r, num_points)

    scaled = _qr.solve_upper(r, q.T @ right)
    scaled = scaled + _qr.correction(matrix, right, q, r, scaled)
    residuals = targets - matrix[:num_points] @ scaled

    # The fit is linear in the targets, w = B y with B = R^-1 Q1^T. Noise of variance
    # s^2 gives it the covariance s^2 B B^T; ||Q1||^2 is the trace of the hat matrix.
    q = q[:num_points]
    degrees_left = _degrees_left(num_points, float((q**2).sum()))
    residual_scale = torch.sqrt((residuals**2).sum() / degrees_left)
    row_norms = torch.linalg.vector_norm(_qr.solve_upper(r, q.T), dim=1)
    return LinearFit(
        coefficients=scaled / units,
        standard_errors=residual_scale * row_norms / units,
        residual_scale=residual_scale,
        r_squared=_r_squared(features, targets, residuals),
    )


def _degrees_left(num_points: int, degrees_used: float) -> float:
    """What the fit leaves to estimate the noise from; NaN where it leaves nothing."""
    if num_points - degrees_used < 1e-9 * num_points:
        warnings.warn(
            f"the fit leaves no degree of freedom (number of points: {num_points}): "
            "the residual scale and the standard errors are NaN",
            stacklevel=4,
        )
        return math.nan
    return num_points - degrees_used


def _r_squared(
    features: Float[Tensor, "points features"],
    targets: Float[Tensor, " points"],
    residuals: Float[Tensor, " points"],
) -> Float[Tensor, ""]:
    has_intercept = bool(((features == features[0]) & (features != 0)).all(dim=0).any())
    # The mean as the first target plus a mean difference: exact where all targets are the same.
    center = targets[0] + (targets - targets[0]).mean() if has_intercept else 0.0
    variation = ((targets - center) ** 2).sum()
    rounding = len(targets) * (torch.finfo(targets.dtype).eps * targets.abs().max()) ** 2
    if variation <= rounding:
        warnings.warn("the targets do not vary: R squared is NaN", stacklevel=4)
        return targets.new_tensor(math.nan)
    return 1 - (residuals**2).sum() / variation


class GradientFit(NamedTuple):
    """A linear model fitted step by step.

    Attributes:
        coefficients: Where the descent stopped, shape ``(features,)``.
        losses: Sum of squared errors before each step, shape ``(steps,)``.
    """

    coefficients: Float[Tensor, " features"]
    losses: Float[Tensor, " steps"]


def fit_gradient(
    features: Float[Tensor, "points features"],
    targets: Float[Tensor, " points"],
    make_optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
    num_steps: int,
    *,
    progress: bool = True,
) -> GradientFit:
    r"""Minimize :math:`\lVert y - \Phi w \rVert^2` by a torch optimizer, from :math:`w = 0`.

    The loss is the *sum* of squared errors over all points. With it, SGD's and Adam's
    ``weight_decay`` adds :math:`\tfrac12 \mathrm{wd} \lVert w \rVert^2`, so that the optimum is
    :func:`fit_ridge` with ``penalty = weight_decay / 2``, the intercept penalized like the rest;
    AdamW's does not add to the loss at all and leads elsewhere.

    Args:
        features: Design matrix :math:`\Phi`, shape ``(points, features)``.
        targets: :math:`y`, shape ``(points,)``.
        make_optimizer: Takes the list of parameters, returns the optimizer, for example
            ``lambda parameters: torch.optim.Adam(parameters, lr=0.01)``.
        num_steps: How many steps, at least 1, each on all points.
        progress: Whether to show a progress bar when it takes longer than a second.

    Returns:
        The last coefficients and the history of the loss, in float64.

    Raises:
        TypeError: ``features`` or ``targets`` is not a floating-point tensor, ``num_steps`` is not
            a whole number, or ``make_optimizer`` does not return an optimizer.
        ValueError: Shapes do not fit, values are missing or not finite, or ``num_steps`` is
            below 1.
        RuntimeError: The loss or a coefficient is no longer finite: the learning rate is too large.

    Example:
        >>> features = torch.tensor([[1.0], [1.0]])
        >>> sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
        >>> fit_gradient(features, torch.tensor([1.0, 3.0]), sgd, num_steps=50).coefficients
        tensor([2.0000], dtype=torch.float64)
    """
    features, targets = _checks.design(features, targets)
    num_steps = _checks.count("num_steps", num_steps, minimum=1)
    coefficients = features.new_zeros(features.shape[1]).requires_grad_()
    optimizer = make_optimizer([coefficients])
    if not isinstance(optimizer, torch.optim.Optimizer):
        got = type(optimizer).__name__
        raise TypeError(f"make_optimizer must return a torch.optim.Optimizer, got {got}")
    losses = features.new_empty(num_steps)
    steps = range(num_steps)
    bar = tqdm(steps, "gradient fit", delay=1, leave=False) if progress else steps
    for step in bar:
        optimizer.zero_grad()
        loss = ((targets - features @ coefficients) ** 2).sum()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
        # Once in a hundred steps stops a runaway early and costs next to nothing.
        if step % 100 == 0 or step == num_steps - 1:
            _check_finite(step, loss.detach(), coefficients.detach())
    return GradientFit(coefficients.detach(), losses)


def _check_finite(step: int, loss: Float[Tensor, ""], coefficients: Float[Tensor, "..."]) -> None:
    if not (torch.isfinite(loss) and torch.isfinite(coefficients).all()):
        raise RuntimeError(
            f"the fit diverged: step {step} went from a loss of {loss.item():.3g} to "
            f"coefficients up to {coefficients.abs().max().item():.3g}. "
            "Lower the optimizer's learning rate, or scale the features"
        )
