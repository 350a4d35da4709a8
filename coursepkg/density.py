r"""Log densities: the one thing that every inference engine of the book takes.

A ``LogDensity`` maps parameter vectors of shape ``(..., dim)`` to log densities of shape ``(...)``,
in nats and up to a constant. It is batched over all leading dimensions, so that many chains cost
one call. Where a parameter is constrained (a scale is positive, probabilities sum to one),
:class:`Space` moves the density to unconstrained coordinates, log-Jacobian included, so that the
engines never meet a wall.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Size, Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints
from torch.distributions.constraints import Constraint

from coursepkg import _checks

__all__ = ["LogDensity", "Space", "gradient", "value", "value_and_grad"]


@runtime_checkable
class LogDensity(Protocol):
    """A log density over flat parameter vectors: ``(..., dim)`` to ``(...)``.

    It may carry a method ``value_and_grad(theta) -> (value, gradient)``, and beside it a cheaper
    ``gradient(theta)``; where there are such, the engines use them in place of automatic
    differentiation.
    """

    def __call__(self, theta: Tensor, /) -> Tensor:
        """Log density in nats, up to a constant."""
        ...


def value(log_density: LogDensity, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
    """Log density, without a gradient; minus infinity where it cannot be computed.

    Args:
        log_density: The density.
        theta: Parameter vectors, shape ``(..., dim)``.

    Returns:
        Values of shape ``(...)``, in nats.

    Raises:
        ValueError: ``log_density`` does not return one value for each parameter vector.
    """

    def evaluate(theta: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return _checked(log_density(theta), theta), theta

    return _for_each_row(evaluate, theta)[0]


def value_and_grad(
    log_density: LogDensity, theta: Float[Tensor, "*batch dim"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch dim"]]:
    r"""Log density and gradient: the density's own where it supplies one, else by autograd.

    Rows do not interact, so that the gradient of the *sum* of all values holds each row's own
    gradient: one backward pass serves all chains. Where the density cannot be computed, it counts
    as zero (a value of minus infinity) and flat.

    Args:
        log_density: The density.
        theta: Parameter vectors, shape ``(..., dim)``.

    Returns:
        Values of shape ``(...)``, in nats, and gradients of shape ``(..., dim)``, both detached.

    Raises:
        ValueError: ``log_density`` does not return one value for each parameter vector.

    Example:
        >>> values, gradients = value_and_grad(lambda t: -t.square().sum(-1) / 2, torch.ones(3, 2))
        >>> values.shape, gradients[0]
        (torch.Size([3]), tensor([-1., -1.]))
    """
    supplied = getattr(log_density, "value_and_grad", None)
    if supplied is not None:
        return supplied(theta)

    def evaluate(theta: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            values = _checked(log_density(theta), theta)
            (gradient,) = torch.autograd.grad(values.sum(), theta)
        return values.detach(), gradient

    return _for_each_row(evaluate, theta)


def gradient(
    log_density: LogDensity, theta: Float[Tensor, "*batch dim"]
) -> Float[Tensor, "*batch dim"]:
    """The gradient alone, for the steps of a path on which nobody asks for the value.

    Args:
        log_density: The density.
        theta: Parameter vectors, shape ``(..., dim)``.

    Returns:
        Gradients of shape ``(..., dim)``, detached.

    Raises:
        ValueError: ``log_density`` does not return one value for each parameter vector.
    """
    supplied = getattr(log_density, "gradient", None)
    return supplied(theta) if supplied is not None else value_and_grad(log_density, theta)[1]


def _checked(values: Tensor, theta: Tensor, name: str = "log_density") -> Tensor:
    if not isinstance(values, Tensor) or values.shape != theta.shape[:-1]:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"{name} must return one value for each parameter vector: for theta of shape "
            f"{tuple(theta.shape)} a tensor of shape {tuple(theta.shape[:-1])}, got {got}; sum "
            "over data points, and over nothing else"
        )
    return values


def _for_each_row(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], theta: Tensor
) -> tuple[Tensor, Tensor]:
    """Evaluate rows so that one where the density cannot be computed does not stop the others.

    A sampler proposes points where a scale overflows or a matrix is singular. torch.distributions
    would raise there, for the whole batch: its checks are off meanwhile. A failing Cholesky
    decomposition is looked for by halves.
    """
    try:
        with unvalidated():
            values, others = evaluate(theta)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        rows = theta.reshape(-1, theta.shape[-1])
        if len(rows) == 1:
            return theta.new_full(theta.shape[:-1], -torch.inf), torch.zeros_like(theta)
        halves = [_for_each_row(evaluate, half) for half in rows.chunk(2)]
        values, others = (torch.cat(parts) for parts in zip(*halves, strict=True))
        return values.reshape(theta.shape[:-1]), others.reshape(theta.shape)
    if not torch.isfinite(values.sum()):
        computed = torch.isfinite(values)
        values = torch.where(computed, values, -torch.inf)
        others = torch.where(computed[..., None], others, 0).nan_to_num(nan=0)
    return values, others


@contextmanager
def unvalidated() -> Iterator[None]:
    """Let densities be asked for anywhere: outside of its support torch would raise."""
    checks = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checks)


class _LowerCholesky(Transform):
    """Fill a lower triangle row by row, the diagonal by its logarithm: n(n + 1)/2 coordinates."""

    domain = constraints.real_vector
    codomain = constraints.lower_cholesky
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        size = self.forward_shape(x.shape)[-1]
        filled = x.new_zeros(*x.shape[:-1], size, size)
        filled[..., *torch.tril_indices(size, size)] = x
        return filled.tril(-1) + filled.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def _inverse(self, y: Tensor) -> Tensor:
        filled = y.tril(-1) + y.diagonal(dim1=-2, dim2=-1).log().diag_embed()
        return filled[..., *torch.tril_indices(*y.shape[-2:])]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return y.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)

    def forward_shape(self, shape: Size) -> Size:
        size = math.isqrt(2 * shape[-1])
        return Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: Size) -> Size:
        if shape[-2] != shape[-1]:
            raise ValueError("not square")
        return Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


class Space:
    r"""Named parameters with their constraints, and the flat unconstrained vector behind them.

    Each parameter :math:`\theta = T(u)` is a smooth bijection of unconstrained coordinates
    :math:`u` (``torch.distributions.biject_to`` chooses :math:`T`; a Cholesky factor has the
    logarithms of its diagonal for coordinates), and densities transform as

    .. math::
        \log p_u(u) = \log p_\theta(T(u)) + \log \lvert \det \partial T / \partial u \rvert .

    Forgetting the last term samples another distribution, without any warning.

    Args:
        parameters: By name, a constraint from ``torch.distributions.constraints`` for one number,
            or a pair ``(constraint, shape)`` with ``shape`` an int or a tuple.

    Attributes:
        dim: How many unconstrained coordinates there are.
        names: A name for each coordinate of :meth:`flatten`, such as ``theta[0]``.

    Raises:
        TypeError: An entry is no constraint, or one that no smooth bijection leads to.
        ValueError: There are no parameters, or a shape does not fit its constraint.

    Source:
        Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), "Automatic differentiation variational
        inference", Journal of Machine Learning Research 18(14).

    Example:
        >>> from torch.distributions import constraints
        >>> space = Space({"mean": constraints.real, "scale": constraints.positive})
        >>> space.constrain(torch.zeros(2))
        {'mean': tensor(0.), 'scale': tensor(1.)}
    """

    def __init__(
        self, parameters: Mapping[str, Constraint | tuple[Constraint, int | tuple[int, ...]]]
    ) -> None:
        _checks.count("the number of parameters", len(parameters), minimum=1)
        self._parts: dict[str, tuple[Constraint, Transform, Size, Size]] = {}
        names = []
        for name, entry in parameters.items():
            constraint, shape = entry if isinstance(entry, tuple) else (entry, ())
            if not isinstance(constraint, Constraint):
                raise TypeError(
                    f"{name} must be a constraint or a pair (constraint, shape), got {entry!r}; "
                    "torch.distributions.constraints has positive, unit_interval, simplex and more"
                )
            try:
                lower = constraint is constraints.lower_cholesky
                transform = _LowerCholesky() if lower else biject_to(constraint)
            except NotImplementedError:
                raise TypeError(
                    f"{name} must have a constraint that a smooth bijection leads to, got "
                    f"{constraint}; whole numbers have none, and in place of a covariance matrix "
                    "use its factor, constraints.lower_cholesky"
                ) from None
            size = Size((shape,) if isinstance(shape, int) else shape)
            try:
                free_size = transform.inverse_shape(size)
            except (ValueError, IndexError):  # too few dimensions, or a matrix that is not square
                free_size = Size((0,))
            if free_size.numel() == 0 or min(size, default=1) < 1:
                raise ValueError(
                    f"{name} must have a shape with {constraint.event_dim} or more dimensions, "
                    f"fit for the constraint {constraint}, got {tuple(size)}"
                )
            self._parts[name] = constraint, transform, size, free_size
            cells = itertools.product(*map(range, size))
            names += [name + f"[{', '.join(map(str, cell))}]" * bool(cell) for cell in cells]
        self.names = tuple(names)
        self.dim = sum(free_size.numel() for *_, free_size in self._parts.values())

    def constrain(self, theta: Float[Tensor, "*batch dim"]) -> dict[str, Tensor]:
        """Turn unconstrained vectors into the parameters, by name.

        Args:
            theta: Unconstrained vectors, shape ``(..., dim)``; draws of a sampler are such.

        Returns:
            Each parameter, shape ``(..., *shape)``.

        Raises:
            TypeError: ``theta`` is not a floating-point tensor.
            ValueError: Its last dimension is not ``dim``.
        """
        return {name: value for name, value, _ in self._split(theta)}

    def unconstrain(self, values: Mapping[str, Tensor]) -> Float[Tensor, "*batch dim"]:
        """Turn parameters, by name, into unconstrained vectors: the inverse of :meth:`constrain`.

        Args:
            values: Each parameter, shape ``(..., *shape)``, within its constraint.

        Returns:
            Unconstrained vectors, shape ``(..., dim)``.

        Raises:
            ValueError: A name is missing or unknown, or a value has another shape than its
                parameter or leaves its constraint.
        """
        if values.keys() != self._parts.keys():
            raise ValueError(f"values must name {list(self._parts)}, got {list(values)}")
        flat = []
        for name, (constraint, transform, size, free_size) in self._parts.items():
            value = torch.as_tensor(values[name])
            batch = value.shape[: value.ndim - len(size)]
            if value.shape != batch + size:
                raise ValueError(
                    f"{name} must have the shape {tuple(size)} in its last dimensions, got "
                    f"{tuple(value.shape)}"
                )
            if not constraint.check(value).all():
                raise ValueError(f"{name} must satisfy {constraint}, got {value}")
            flat.append(transform.inv(value).reshape(*batch, free_size.numel()))
        return torch.cat(flat, dim=-1)

    def flatten(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch names"]:
        """Turn unconstrained vectors into constrained ones, a column for each of ``names``."""
        batch = theta.shape[:-1]
        return torch.cat([v.reshape(*batch, -1) for v in self.constrain(theta).values()], dim=-1)

    def log_density(self, log_joint: Callable[[dict[str, Tensor]], Tensor]) -> LogDensity:
        """Move a density of the parameters to the unconstrained coordinates.

        Args:
            log_joint: Takes the parameters by name, each of shape ``(..., *shape)``, and returns
                their log density, shape ``(...)``.

        Returns:
            A log density over unconstrained vectors, log-Jacobian included. It raises a
            ``ValueError`` where ``log_joint`` does not return one value for each vector.
        """

        def log_density(theta: Tensor) -> Tensor:
            parts = self._split(theta)
            log_jacobian = sum(log_jacobian for _, _, log_jacobian in parts)
            # Checked apart: a sum over all chains, of shape (), would broadcast without a word.
            values = log_joint({name: value for name, value, _ in parts})
            return _checked(values, theta, "log_joint") + log_jacobian

        return log_density

    def _split(self, theta: Tensor) -> list[tuple[str, Tensor, Tensor]]:
        """Each parameter's name, value, and log-Jacobian."""
        if not isinstance(theta, Tensor) or not theta.is_floating_point():
            raise TypeError(f"theta must be a floating-point tensor, got {type(theta).__name__}")
        if theta.ndim == 0 or theta.shape[-1] != self.dim:
            raise ValueError(
                f"theta must have {self.dim} unconstrained coordinates in its last dimension, got "
                f"shape {tuple(theta.shape)}"
            )
        batch, parts, start = theta.shape[:-1], [], 0
        for name, (_, transform, _, free_size) in self._parts.items():
            stop = start + free_size.numel()
            free = theta[..., start:stop].reshape(batch + free_size)
            value = transform(free)
            log_jacobian = transform.log_abs_det_jacobian(free, value)
            parts.append((name, value, log_jacobian.reshape(*batch, -1).sum(-1)))
            start = stop
        return parts
