"""One place for argument errors: each message names the argument, what it got and what it needs.

The functions return the checked value, so that a check and its conversion are one line at the top
of a public function. Tensors are handed on as float64: whatever is solved in closed form is solved
in double precision, also where the caller's data are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

__all__ = [
    "array",
    "broadcast",
    "choice",
    "classes",
    "count",
    "design",
    "distribution",
    "draws",
    "function",
    "generator_or_none",
    "inside",
    "interval",
    "log_prob",
    "numbers",
    "positive",
    "probabilities",
    "scalar",
    "scale_tril",
    "targets",
]


def array(name: str, value: Tensor, *, ndim: int | None = None) -> Float[Tensor, "..."]:
    """Check a non-empty floating-point tensor without NaN or infinity; return it as float64.

    Args:
        name: The argument's name, for the message.
        value: What the caller passed.
        ndim: The number of dimensions that it must have; any number where it is ``None``.

    Returns:
        ``value`` in float64.

    Raises:
        TypeError: ``value`` is no tensor, or its dtype is not a real floating-point one.
        ValueError: It has another number of dimensions, no elements, NaN or infinity.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(value).__name__}; "
            f"torch.as_tensor({name}, dtype=torch.float64) makes one"
        )
    if not value.is_floating_point():
        raise TypeError(
            f"{name} must have a floating-point dtype, got {value.dtype}; "
            f"{name}.double() converts it"
        )
    if ndim is not None and value.ndim != ndim:
        raise ValueError(
            f"{name} must have {ndim} dimension{'s' if ndim != 1 else ''}, "
            f"got shape {tuple(value.shape)}"
        )
    if value.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ValueError(
            f"{name} must be finite, got {bad} NaN or infinite value{'s' if bad != 1 else ''} "
            f"among {value.numel()}"
        )
    return value.double()


def design(
    features: Tensor, targets: Tensor
) -> tuple[Float[Tensor, "points features"], Float[Tensor, " points"]]:
    """Check a design matrix together with its targets; return both as float64.

    Raises:
        TypeError: One of them is no floating-point tensor.
        ValueError: A wrong number of dimensions, no elements, NaN, lengths that differ, or numbers
            so large or so small that their squares leave the range of float64.
    """
    features = array("features", features, ndim=2)
    if isinstance(targets, Tensor) and targets.ndim == 2 and targets.shape[1] == 1:
        # The copied mistake: (n, 1) against (n,) would broadcast to (n, n) without a word.
        raise ValueError(
            f"targets must have 1 dimension, got shape {tuple(targets.shape)}; "
            "targets.squeeze(1) drops the second one"
        )
    targets = array("targets", targets, ndim=1)
    if len(features) != len(targets):
        raise ValueError(
            f"features and targets must have as many rows, got {len(features)} and {len(targets)}"
        )
    for name, value in (("features", features), ("targets", targets)):
        largest = float(value.abs().max())
        if largest != 0 and not 1e-140 < largest < 1e140:
            raise ValueError(
                f"{name} must have squares within the range of float64, got numbers up to "
                f"{largest:.0e}; change their unit"
            )
    return features, targets


def scalar(name: str, value: float | Tensor) -> float:
    """Check a finite real number (a tensor of no dimensions counts as one); return a float.

    Raises:
        TypeError: ``value`` is not a real number.
        ValueError: It is NaN or infinite.
    """
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex():
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool):
        what = (
            f"a tensor of shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else f"{type(value).__name__} {value!r}"
        )
        raise TypeError(f"{name} must be a real number, got {what}")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the floats
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def positive(name: str, value: float | Tensor) -> float:
    """Check a finite number above zero; return a float.

    Raises:
        TypeError: ``value`` is not a real number.
        ValueError: It is zero, negative, NaN or infinite.
    """
    number = scalar(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {number}")
    return number


def inside(name: str, value: float | Tensor) -> float:
    """Check a number between 0 and 1, neither of them; return a float.

    Raises:
        TypeError: ``value`` is not a real number.
        ValueError: It is not between 0 and 1.
    """
    number = scalar(name, value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {number}")
    return number


def numbers(name: str, value: float | Tensor, *, positive: bool = False) -> Float[Tensor, "..."]:
    """Check finite numbers: a tensor, returned in its own dtype, or one number, as float64.

    Raises:
        TypeError: ``value`` is neither a real number nor a floating-point tensor.
        ValueError: It is empty or not finite, or not positive where it must be.
    """
    if not isinstance(value, Tensor):
        value = torch.tensor(scalar(name, value), dtype=torch.float64)
    array(name, value)
    if positive and not (value > 0).all():
        raise ValueError(f"{name} must be positive, got values down to {float(value.min())}")
    return value


def scale_tril(name: str, value: Tensor) -> None:
    """Check Cholesky factors of covariances.

    Raises:
        TypeError: ``value`` is no floating-point tensor.
        ValueError: It is not finite, not square in its last two dimensions, or not lower triangular
            with a positive diagonal.
    """
    array(name, value)
    if value.ndim < 2 or value.shape[-2] != value.shape[-1]:
        raise ValueError(
            f"{name} must be square in its last two dimensions, got shape {tuple(value.shape)}"
        )
    if value.triu(1).any() or not (value.diagonal(dim1=-2, dim2=-1) > 0).all():
        raise ValueError(
            f"{name} must be lower triangular with a positive diagonal; "
            "torch.linalg.cholesky(covariance) makes it from a covariance"
        )


def broadcast(**shapes: torch.Size) -> torch.Size:
    """Check that shapes, given by name, broadcast; return what they broadcast to.

    Raises:
        ValueError: They do not.
    """
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        got = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"shapes must broadcast, got {got}") from None


def choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check one of a few words.

    Raises:
        ValueError: ``value`` is another one.
    """
    if value not in choices:
        words = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {words}, got {value!r}")


def count(name: str, value: int, *, minimum: int) -> int:
    """Check a whole number that is not below ``minimum``; return an int.

    Raises:
        TypeError: ``value`` is not a whole number.
        ValueError: It is below ``minimum``.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__} {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def function(name: str, value: Callable[..., Any]) -> None:
    """Check something that can be called.

    Raises:
        TypeError: ``value`` cannot be called.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {type(value).__name__} {value!r}")


def generator_or_none(generator: torch.Generator | None) -> torch.Generator | None:
    """Check the source of randomness.

    Raises:
        TypeError: ``generator`` is neither a ``torch.Generator`` nor ``None``.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, got {type(generator).__name__}; "
            "torch.Generator().manual_seed(0) makes one"
        )
    return generator


# --- Predictions, and what they are compared with -------------------------------------------------


def distribution(name: str, value: Distribution) -> None:
    """Check a ``torch.distributions`` distribution.

    Raises:
        TypeError: ``value`` is something else.
    """
    if not isinstance(value, Distribution):
        raise TypeError(
            f"{name} must be a distribution of torch.distributions, got {type(value).__name__}"
        )


def draws(name: str, value: Tensor) -> Float[Tensor, "draws *points"]:
    """Check draws, which the first dimension counts; return them as they are.

    Raises:
        TypeError: ``value`` is no floating-point tensor.
        ValueError: It is not finite, or has no dimension.
    """
    value = numbers(name, value)
    if value.ndim == 0:
        raise ValueError(f"{name} must have a first dimension for the draws, got shape ()")
    return value


def targets(prediction: Distribution | Tensor, y: Tensor) -> Float[Tensor, "*points"]:
    """Check targets beside their prediction, a distribution or draws; return the targets.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes do not fit, or a number is not finite.
    """
    if isinstance(prediction, Tensor):
        shape = draws("prediction", prediction).shape[1:]
    else:
        distribution("prediction", prediction)
        shape = prediction.batch_shape
    y = numbers("y", y)
    if y.shape != shape:
        raise ValueError(
            f"y must have shape {tuple(shape)}, a target for each prediction, got {tuple(y.shape)}"
        )
    return y


def log_prob(
    likelihood: Callable[[Tensor], Distribution], outputs: Tensor, y: Tensor
) -> Float[Tensor, "*draws batch"]:
    """Check a network's outputs and their likelihood beside the targets.

    Returns:
        The log probability of each row's target.

    Raises:
        TypeError: The likelihood returns no distribution.
        ValueError: Shapes do not fit.
    """
    prediction = likelihood(outputs)
    distribution("what likelihood returns", prediction)
    each = prediction.log_prob(y)
    # Targets (8, 1) or outputs (8, 1) where the other has (8,) would broadcast to 64 pairs.
    if each.shape != outputs.shape[: each.ndim] or each.shape[-1:] != y.shape[:1]:
        raise ValueError(
            f"likelihood must give a log probability for each of {len(y)} rows, got a shape "
            f"{tuple(each.shape)} of outputs {tuple(outputs.shape)} and targets {tuple(y.shape)}; "
            "outputs[..., 0] takes an output's column"
        )
    return each


def interval(lower: Tensor, upper: Tensor, y: Tensor) -> None:
    """Check intervals beside the targets that they are for.

    Raises:
        TypeError: An argument is no floating-point tensor.
        ValueError: Shapes differ, a number is not finite, or a lower end is above the upper one.
    """
    named = {"lower": lower, "upper": upper, "y": y}
    if len({numbers(name, value).shape for name, value in named.items()}) > 1:
        got = ", ".join(f"{name} {tuple(value.shape)}" for name, value in named.items())
        raise ValueError(f"shapes must be equal, got {got}")
    if (lower > upper).any():
        raise ValueError("lower must not be above upper, got an interval where it is")


def probabilities(name: str, value: Tensor) -> Float[Tensor, "..."]:
    """Check probabilities of classes, which stand in the last dimension; return them as they are.

    Raises:
        TypeError: ``value`` is no floating-point tensor.
        ValueError: It is empty or not finite, or its rows are no probabilities that sum to 1 (but
            for the rounding of float32 and smaller).
    """
    array(name, value)
    if value.ndim == 0 or (value < 0).any() or ((value.sum(dim=-1) - 1).abs() > 1e-3).any():
        raise ValueError(
            f"{name} must be non-negative and sum to 1 over the last dimension, the classes; "
            f"{name}.softmax(-1) makes them from logits"
        )
    return value


def classes(probs: Tensor, labels: Tensor) -> None:
    """Check predicted probabilities beside the true classes.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: They are not probabilities, there is no such class, or shapes do not fit.
    """
    *shape, num_classes = probabilities("probabilities", probs).shape
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be a tensor of whole numbers, got {got}")
    if list(labels.shape) != shape:
        raise ValueError(
            f"labels must have shape {tuple(shape)}, one for each row of probabilities, got "
            f"{tuple(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, got from {int(labels.min())} to "
            f"{int(labels.max())}"
        )
