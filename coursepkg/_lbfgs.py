r"""L-BFGS for a batch of problems at once: each row of a matrix is a problem of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# How many pairs of steps and gradient changes stand for the curvature.
MEMORY = 10
# No coordinate moves farther than this in one step.
LONGEST_MOVE = 2.0
# How often a step is cut to a third before a problem stays where it is.
MAX_CUTS = 15


class Minimum(NamedTuple):
    """Where the search ended.

    Attributes:
        point: The points, shape ``(problems, dim)``.
        value: The function there, shape ``(problems,)``.
        history: The best values after each step, shape ``(problems, steps + 1)``.
        converged: Whether the last step gained no more than rounding, shape ``(problems,)``.
    """

    point: Float[Tensor, "problems dim"]
    value: Float[Tensor, " problems"]
    history: Float[Tensor, "problems steps"]
    converged: Bool[Tensor, " problems"]


def minimize(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Float[Tensor, "problems dim"],
    num_steps: int,
    *,
    tick: Callable[[], object] = lambda: None,
) -> Minimum:
    """Minimize by L-BFGS with a line search that cuts steps until they gain.

    Args:
        function: From points, shape ``(problems, dim)``, to values, ``(problems,)``, and gradients.
        start: Where each problem starts.
        num_steps: How many steps at most; it ends sooner where no problem gains more than rounding.
        tick: Called after each step.

    Returns:
        The best points.

    Source:
        Nocedal and Wright (2006), "Numerical Optimization", algorithms 7.4 and 3.1.
    """
    point, (value, gradient) = start, function(start)
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)
    # The first step has length 1 at most; later ones are scaled by the curvature.
    scale = 1 / gradient.norm(dim=1, keepdim=True).clamp(min=1)
    history, converged = [value], torch.zeros_like(value, dtype=torch.bool)
    for _ in range(num_steps):
        direction = _direction(gradient, pairs, scale)
        new_point, new_value, new_gradient = _search(function, point, value, gradient, direction)
        step, change = new_point - point, new_gradient - gradient
        curvature = (step * change).sum(dim=1, keepdim=True)
        # A pair without positive curvature, as of a problem that stayed, says nothing.
        told = curvature > 1e-10 * change.square().sum(dim=1, keepdim=True)
        weight = torch.where(told, 1 / curvature, 0)
        pairs.append((torch.where(told, step, 0), torch.where(told, change, 0), weight))
        scale = torch.where(told, curvature / change.square().sum(dim=1, keepdim=True), scale)
        gain = value - new_value
        point, value, gradient = new_point, new_value, new_gradient
        history.append(value)
        tick()
        rounding = 10 * torch.finfo(value.dtype).eps * (1 + value.abs())
        converged = gain < rounding
        if converged.all():
            break
    return Minimum(point, value, torch.stack(history, dim=1), converged)


def _direction(
    gradient: Tensor, pairs: deque[tuple[Tensor, Tensor, Tensor]], scale: Tensor
) -> Tensor:
    """Minus the inverse Hessian, as the pairs know it, times the gradient: the two loops."""
    direction, shares = gradient, []
    for step, change, weight in reversed(pairs):
        share = weight * (step * direction).sum(dim=1, keepdim=True)
        direction = direction - share * change
        shares.append(share)
    direction = scale * direction
    for (step, change, weight), share in zip(pairs, reversed(shares), strict=True):
        other = weight * (change * direction).sum(dim=1, keepdim=True)
        direction = direction + (share - other) * step
    return -direction


def _search(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    point: Tensor,
    value: Tensor,
    gradient: Tensor,
    direction: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Go as far as the value falls by a part of what the slope promises; else stay."""
    slope = (gradient * direction).sum(dim=1)
    size = (LONGEST_MOVE / direction.abs().amax(dim=1)).clamp(max=1)
    best = point, value, gradient
    done = torch.zeros_like(value, dtype=torch.bool)
    for _ in range(MAX_CUTS):
        tried = point + size[:, None] * direction
        new_value, new_gradient = function(tried)
        good = ~done & (new_value <= value + 1e-4 * size * slope)
        best = (
            torch.where(good[:, None], tried, best[0]),
            torch.where(good, new_value, best[1]),
            torch.where(good[:, None], new_gradient, best[2]),
        )
        done |= good
        # The few that are left try again from the same place, along a new direction.
        if done.double().mean() >= 0.9:
            break
        size = torch.where(done, size, size / 3)
    return best
