r"""Guides: families of Gaussians that stand in for a posterior, many at once.

A guide :math:`q_\varphi(\theta)` is a distribution with free parameters :math:`\varphi`, fitted to
a posterior. Each one here turns standard normal noise into draws, :math:`\theta = T_\varphi
(\epsilon)`, so that a draw moves along with :math:`\varphi`. The families differ in how much the
coordinates of :math:`\theta` may have to do with one another, and in how many numbers that takes:

- :class:`MeanFieldNormal`: nothing; :math:`2 D` numbers.
- :class:`LowRankNormal`: what a few common directions explain; :math:`(2 + R) D` numbers.
- :class:`FullRankNormal`: anything that a covariance can say; :math:`D + D (D + 1) / 2` numbers.

One object holds a batch of guides, such as one for each restart of a fit.

Source:
    Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), "Automatic differentiation variational
    inference", Journal of Machine Learning Research 18(14); Ong, Nott and Smith (2018), "Gaussian
    variational approximation with a factor covariance structure", Journal of Computational and
    Graphical Statistics 27(3), for the low rank.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Size, Tensor

from coursepkg import _checks
from coursepkg._random import normal
from coursepkg.density import _LowerCholesky

__all__ = ["FullRankNormal", "Guide", "LowRankNormal", "MeanFieldNormal"]

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Guide(ABC):
    """A batch of distributions over vectors: noise, transformed by a few free numbers.

    ``q[0]`` is the first of a batch, ``q[:8]`` the first eight.

    Attributes:
        mean: Means, shape ``(*batch, dim)``.
    """

    mean: Float[Tensor, "*batch dim"]

    @classmethod
    @abstractmethod
    def unflatten(cls, free: Float[Tensor, "*batch numbers"], dim: int) -> Guide:
        """Make the guides whose free numbers these are: any real numbers will do."""

    @abstractmethod
    def flatten(self) -> Float[Tensor, "*batch numbers"]:
        """Say the free numbers, those that an optimizer moves."""

    @abstractmethod
    def transform(self, noise: Float[Tensor, "draws *#batch noise"]) -> Float[Tensor, "..."]:
        """Turn standard normal noise into draws, shape ``(draws, *batch, dim)``."""

    @abstractmethod
    def entropy(self) -> Float[Tensor, "*batch"]:
        """Entropy in nats, exact."""

    @abstractmethod
    def log_prob(self, theta: Float[Tensor, "*shape dim"]) -> Float[Tensor, "..."]:
        """Log density in nats; ``theta`` is broadcast against the batch."""

    @property
    @abstractmethod
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """Variance of each coordinate."""

    @property
    def num_noise(self) -> int:
        """How many numbers of noise a draw takes."""
        return self.mean.shape[-1]

    def rsample(
        self, num_draws: int, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "draws *batch dim"]:
        """Draw from each guide; the draws carry gradients to the guide's tensors.

        Args:
            num_draws: How many draws of each.
            generator: Source of randomness; torch's global one where it is ``None``.

        Raises:
            TypeError: ``num_draws`` is no whole number, or ``generator`` no generator.
            ValueError: ``num_draws`` is below 1.
        """
        num_draws = _checks.count("num_draws", num_draws, minimum=1)
        _checks.generator_or_none(generator)
        shape = (num_draws, *self.mean.shape[:-1], self.num_noise)
        return self.transform(normal(shape, self.mean, generator))

    def kl(
        self,
        prior_mean: float | Float[Tensor, "*#batch #dim"] = 0.0,
        prior_scale: float | Float[Tensor, "*#batch #dim"] = 1.0,
    ) -> Float[Tensor, "*batch"]:
        r"""KL(q‖p) to a prior of independent normals, in closed form.

        .. math::
            \sum_d \Bigl( \tfrac12 \log 2 \pi s_d^2 +
            \frac{v_d + (m_d - \mu_d)^2}{2 s_d^2} \Bigr) - \mathbb H[q]

        Of the covariance of q it needs the entropy, and beside it only the variances :math:`v_d`.

        Args:
            prior_mean: :math:`\mu`, a number or shape ``(*batch, dim)``.
            prior_scale: Standard deviations :math:`s`, a number or the same shape.

        Returns:
            The divergences in nats, with gradients.

        Raises:
            TypeError: An argument is no number and no floating-point tensor.
            ValueError: One is not finite, or a scale not positive.

        Source:
            Cover and Thomas (2006), Elements of Information Theory, chapter 8.
        """
        mean = _checks.numbers("prior_mean", prior_mean).to(self.mean)
        scale = _checks.numbers("prior_scale", prior_scale, positive=True).to(self.mean)
        squares = (self.variance + (self.mean - mean).square()) / scale.square()
        cross_entropy = squares / 2 + scale.log() + LOG_2PI / 2
        return cross_entropy.sum(dim=-1) - self.entropy()

    def detach(self) -> Any:
        """The same guides, as constants."""
        return type(self)(*(getattr(self, f.name).detach() for f in fields(self)))

    def __getitem__(self, index: Any) -> Any:
        """Some of the guides of a batch."""
        if self.mean.ndim < 2:
            raise IndexError("this is one guide, not a batch of guides")
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class MeanFieldNormal(Guide):
    r"""Independent normals: :math:`q(\theta) = \prod_d \mathcal N(\theta_d \mid m_d, s_d^2)`.

    Args:
        mean: :math:`m`, shape ``(*batch, dim)``.
        scale: Standard deviations :math:`s`, of the same shape.

    Raises:
        TypeError: An argument is no floating-point tensor.
        ValueError: Shapes do not fit, or a scale is not positive.

    Example:
        >>> q = MeanFieldNormal(torch.zeros(2), torch.ones(2))
        >>> q.kl(prior_scale=1.0), q.rsample(5).shape
        (tensor(0.), torch.Size([5, 2]))
    """

    scale: Float[Tensor, "*batch dim"]

    def __post_init__(self) -> None:
        """Check shapes and scales."""
        _check_parts(self.mean, scale=(self.scale, lambda shape: shape))
        _check_positive("scale", self.scale)

    @classmethod
    def initial(
        cls,
        dim: int,
        num_restarts: int = 64,
        *,
        spread: float = 1.0,
        scale: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> MeanFieldNormal:
        """Guides to start a fit from: narrow ones around random places.

        Args:
            dim: How many coordinates.
            num_restarts: How many guides.
            spread: Standard deviation of their means around zero.
            scale: Standard deviation of each.
            generator: Source of randomness; torch's global one where it is ``None``.

        Raises:
            TypeError: An argument is of the wrong kind.
            ValueError: A number is too small.
        """
        dim = _checks.count("dim", dim, minimum=1)
        shape = (_checks.count("num_restarts", num_restarts, minimum=1), dim)
        mean = torch.randn(shape, generator=_checks.generator_or_none(generator))
        spread, scale = _checks.positive("spread", spread), _checks.positive("scale", scale)
        return cls(spread * mean, torch.full(shape, scale))

    @classmethod
    def unflatten(cls, free: Float[Tensor, "*batch numbers"], dim: int) -> MeanFieldNormal:
        """Make guides of means and log scales."""
        mean, log_scale = free.split(dim, dim=-1)
        return cls(mean, _floored(log_scale.exp()))

    def flatten(self) -> Float[Tensor, "*batch numbers"]:
        """Say the means and the log scales."""
        return torch.cat([self.mean, self.scale.log()], dim=-1)

    def transform(self, noise: Float[Tensor, "draws *#batch noise"]) -> Float[Tensor, "..."]:
        r"""Turn noise into draws, :math:`m + s \circ \epsilon`."""
        return self.mean + self.scale * noise

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Entropy in nats."""
        return (self.scale.log() + (1 + LOG_2PI) / 2).sum(dim=-1)

    def log_prob(self, theta: Float[Tensor, "*shape dim"]) -> Float[Tensor, "..."]:
        """Log density in nats; ``theta`` is broadcast against the batch."""
        noise = (theta - self.mean) / self.scale
        return -self.entropy() - (noise.square() - 1).sum(dim=-1) / 2

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """Variance of each coordinate."""
        return self.scale.square()


@dataclass(frozen=True)
class FullRankNormal(Guide):
    r"""A normal with any covariance: :math:`q(\theta) = \mathcal N(\theta \mid m, L L^\top)`.

    Args:
        mean: :math:`m`, shape ``(*batch, dim)``.
        scale_tril: :math:`L`, lower triangular with a positive diagonal, shape
            ``(*batch, dim, dim)``. ``FullRankNormal(q.mean, q.scale.diag_embed())`` starts where a
            mean-field fit has ended.

    Raises:
        TypeError: An argument is no floating-point tensor.
        ValueError: Shapes do not fit, or a factor is not lower triangular with a positive diagonal.

    Example:
        >>> q = FullRankNormal(torch.zeros(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        >>> q.variance
        tensor([1., 2.])
    """

    scale_tril: Float[Tensor, "*batch dim dim"]

    def __post_init__(self) -> None:
        """Check shapes and factors."""
        _check_parts(self.mean, scale_tril=(self.scale_tril, lambda shape: (*shape, shape[-1])))
        _check_positive("the diagonal of scale_tril", self.scale_tril.diagonal(dim1=-2, dim2=-1))
        if self.scale_tril.triu(1).any():
            raise ValueError(
                "scale_tril must be lower triangular, got numbers above its diagonal; "
                "torch.linalg.cholesky(covariance) makes it from a covariance"
            )

    @classmethod
    def unflatten(cls, free: Float[Tensor, "*batch numbers"], dim: int) -> FullRankNormal:
        """Make guides of means and factors, row by row, with the logarithms of the diagonals."""
        factor = _LowerCholesky()(free[..., dim:])
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        return cls(free[..., :dim], factor.tril(-1) + _floored(diagonal).diag_embed())

    def flatten(self) -> Float[Tensor, "*batch numbers"]:
        """Say the means and the factors, row by row, with the logarithms of the diagonals."""
        return torch.cat([self.mean, _LowerCholesky().inv(self.scale_tril)], dim=-1)

    def transform(self, noise: Float[Tensor, "draws *#batch noise"]) -> Float[Tensor, "..."]:
        r"""Turn noise into draws, :math:`m + L \epsilon`."""
        return self.mean + _rotate(self.scale_tril, noise)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Entropy in nats."""
        diagonal = self.scale_tril.diagonal(dim1=-2, dim2=-1)
        return (diagonal.log() + (1 + LOG_2PI) / 2).sum(dim=-1)

    def log_prob(self, theta: Float[Tensor, "*shape dim"]) -> Float[Tensor, "..."]:
        """Log density in nats; ``theta`` is broadcast against the batch."""
        squares = _squares(self.scale_tril, theta - self.mean)
        return -self.entropy() - (squares - self.mean.shape[-1]) / 2

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """Variance of each coordinate."""
        return self.scale_tril.square().sum(dim=-1)


@dataclass(frozen=True)
class LowRankNormal(Guide):
    r"""A normal with a few common directions: covariance :math:`W W^\top + \mathrm{diag}(s^2)`.

    Everything is computed with matrices of the rank's size,

    .. math::
        K = I + W^\top \mathrm{diag}(s^{-2}) W , \qquad
        \log \det (W W^\top + \mathrm{diag}(s^2)) = \log \det K + 2 \textstyle\sum_d \log s_d ,

    so that the cost grows with :math:`D`, not with its square.

    Args:
        mean: :math:`m`, shape ``(*batch, dim)``.
        scale: Standard deviations :math:`s` of what each coordinate has for itself, same shape.
        factor: Directions :math:`W`, shape ``(*batch, dim, rank)``.

    Raises:
        TypeError: An argument is no floating-point tensor.
        ValueError: Shapes do not fit, or a scale is not positive.

    Example:
        >>> q = LowRankNormal(torch.zeros(3), torch.ones(3), torch.ones(3, 1))
        >>> q.variance, q.num_noise
        (tensor([2., 2., 2.]), 4)
    """

    scale: Float[Tensor, "*batch dim"]
    factor: Float[Tensor, "*batch dim rank"]

    def __post_init__(self) -> None:
        """Check shapes and scales."""
        _check_parts(
            self.mean,
            scale=(self.scale, lambda shape: shape),
            factor=(self.factor, lambda shape: (*shape, *self.factor.shape[-1:])),
        )
        _check_positive("scale", self.scale)

    @classmethod
    def unflatten(cls, free: Float[Tensor, "*batch numbers"], dim: int) -> LowRankNormal:
        """Make guides of means, log scales, and factors row by row."""
        factor = free[..., 2 * dim :].unflatten(-1, (dim, -1))
        return cls(free[..., :dim], _floored(free[..., dim : 2 * dim].exp()), factor)

    def flatten(self) -> Float[Tensor, "*batch numbers"]:
        """Say the means, the log scales, and the factors row by row."""
        return torch.cat([self.mean, self.scale.log(), self.factor.flatten(-2)], dim=-1)

    @property
    def num_noise(self) -> int:
        """How many numbers of noise a draw takes, the dimension and the rank."""
        return sum(self.factor.shape[-2:])

    def transform(self, noise: Float[Tensor, "draws *#batch noise"]) -> Float[Tensor, "..."]:
        r"""Turn noise into draws, :math:`m + s \circ \epsilon + W \eta`."""
        dim, rank = self.factor.shape[-2:]
        own, common = noise.split([dim, rank], dim=-1)
        return self.mean + self.scale * own + _rotate(self.factor, common)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Entropy in nats."""
        _, root = self._capacitance()
        log_det = root.diagonal(dim1=-2, dim2=-1).abs().log().sum(dim=-1)
        return (self.scale.log() + (1 + LOG_2PI) / 2).sum(dim=-1) + log_det

    def log_prob(self, theta: Float[Tensor, "*shape dim"]) -> Float[Tensor, "..."]:
        """Log density in nats; ``theta`` is broadcast against the batch."""
        scaled, root = self._capacitance()
        noise = (theta - self.mean) / self.scale
        # Woodbury: what the common directions explain is taken off the squares.
        shared = _squares(root, (noise[..., None] * scaled).sum(dim=-2))
        return -self.entropy() - ((noise.square() - 1).sum(dim=-1) - shared) / 2

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """Variance of each coordinate."""
        return self.scale.square() + self.factor.square().sum(dim=-1)

    def _capacitance(self) -> tuple[Tensor, Tensor]:
        """The directions in units of the scales, and a lower triangular root of K."""
        scaled = self.factor / self.scale[..., None]
        eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
        # By QR, which never squares: K itself may be too ill-conditioned for Cholesky.
        upper = torch.linalg.qr(torch.cat([eye.expand(*scaled.shape[:-2], -1, -1), scaled], -2))[1]
        return scaled, upper.mT


def _rotate(matrix: Tensor, noise: Tensor) -> Tensor:
    """Multiply each guide's matrix with all of its noise at once: draws stand first in both."""
    return (noise.movedim(0, -2) @ matrix.mT).movedim(-2, 0)


def _squares(root: Tensor, offset: Tensor) -> Tensor:
    r"""Squared lengths of :math:`L^{-1} x`, for each guide's factor and all of its x at once."""
    lead = offset.ndim - root.ndim + 1
    columns = offset.reshape(-1, *offset.shape[lead:]).movedim(0, -1)
    lengths = torch.linalg.solve_triangular(root, columns, upper=False).square().sum(dim=-2)
    return lengths.movedim(-1, 0).reshape(offset.shape[:-1])


def _floored(scale: Tensor) -> Tensor:
    """Scales, kept above an underflow: far from any optimum, that is no reason to stop."""
    return scale.clamp(min=torch.finfo(scale.dtype).tiny ** 0.5)


def _check_parts(mean: Tensor, **parts: tuple[Tensor, Callable[[Size], tuple[int, ...]]]) -> None:
    """Check kinds and shapes; finite numbers are what a fit checks, not each of its steps."""
    for name, value in (("mean", mean), *((name, value) for name, (value, _) in parts.items())):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {got}")
    if mean.ndim == 0:
        raise ValueError("mean must have a dimension for the coordinates, got shape ()")
    for name, (value, shape) in parts.items():
        if value.shape != shape(mean.shape):
            raise ValueError(
                f"{name} must have shape {tuple(shape(mean.shape))}, to go with mean of shape "
                f"{tuple(mean.shape)}, got {tuple(value.shape)}"
            )


def _check_positive(name: str, value: Tensor) -> None:
    if (value <= 0).any():
        got = float(value.detach().min())
        raise ValueError(f"{name} must be positive, got values down to {got:.3g}")
