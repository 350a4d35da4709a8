"""A Gaussian for data that take a few values only, such as the greys of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import pad

from coursepkg import _checks

__all__ = ["DiscretizedNormal"]


class DiscretizedNormal(Distribution):
    r"""A Gaussian whose mass is gathered on a few levels: each gets what falls nearest to it.

    .. math::
        P(k) = \Phi\Bigl( \frac{b_{k+1} - \mu}{s} \Bigr) - \Phi\Bigl( \frac{b_k - \mu}{s} \Bigr)

    with borders :math:`b` halfway between levels, and at infinity beyond the first and the last.
    A density of numbers that only take a few values can be made as high as one likes; these
    probabilities cannot.

    Args:
        loc: Means :math:`\mu`, in units of the levels.
        scale: Standard deviations :math:`s`, positive; broadcasts with ``loc``.
        levels: The values that there are, at least 2, rising.

    Raises:
        TypeError: An argument is no floating-point tensor.
        ValueError: A scale is not positive, or the levels do not rise.

    Source:
        Ho, Jain and Abbeel (2020), "Denoising diffusion probabilistic models", NeurIPS,
        equation 13.

    Example:
        >>> greys = torch.linspace(-1, 1, 5)
        >>> found = DiscretizedNormal(torch.tensor(0.4), torch.tensor(0.2), greys).probs
        >>> [f"{p:.3f}" for p in found.tolist()]
        ['0.000', '0.001', '0.226', '0.733', '0.040']
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012, torch's own name; checked below instead

    def __init__(
        self,
        loc: Float[Tensor, "*#batch"],
        scale: Float[Tensor, "*#batch"],
        levels: Float[Tensor, " levels"],
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)
        if self._validate_args:
            _checks.numbers("loc", loc)
            _checks.numbers("scale", scale, positive=True)
            check_levels(levels)

    @property
    def support(self) -> constraints.Constraint:
        """The levels."""
        return OnLevels(self.levels)

    def log_prob(self, value: Float[Tensor, "*#batch"]) -> Float[Tensor, "*batch"]:
        """Log probabilities of levels, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        # In float64: torch's derivative of log_ndtr is unusable far out in float32.
        nearest = _nearest(value, self.levels)
        borders = (self.levels[1:] + self.levels[:-1]).double() / 2
        borders = pad(borders, (1, 0), value=-1e3 + float(borders[0]))
        borders = pad(borders, (0, 1), value=1e3 + float(borders[-1]))
        lower, upper = ((borders[nearest + k] - self.loc) / self.scale for k in (0, 1))
        # Above the mean Φ is close to 1, and differences lose their digits: look from below.
        above = lower + upper > 0
        lower, upper = torch.where(above, -upper, lower), torch.where(above, -lower, upper)
        log_upper = torch.special.log_ndtr(upper)
        log_rest = torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))
        return (log_upper + log_rest).to(self.loc.dtype)

    @property
    def probs(self) -> Float[Tensor, "*batch levels"]:
        """The probability of each level."""
        every = DiscretizedNormal(self.loc[..., None], self.scale[..., None], self.levels, False)
        return every.log_prob(self.levels).exp()

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """The mean, between levels as a rule."""
        return self.probs @ self.levels

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Draw: the level nearest to a draw from the Gaussian."""
        noise = torch.randn((*sample_shape, *self.batch_shape)).to(self.loc)
        return self.levels[_nearest(self.loc + self.scale * noise, self.levels)]


class OnLevels(constraints.Constraint):
    """Numbers that are levels, but for rounding."""

    def __init__(self, levels: Float[Tensor, " levels"]) -> None:
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        off = (value - self.levels.to(value)[_nearest(value, self.levels)]).abs()
        return off <= 1e-3 * self.levels.diff().min()


def _nearest(x: Tensor, levels: Float[Tensor, " levels"]) -> Int[Tensor, "..."]:
    """The number of the level that is nearest to each."""
    return torch.bucketize(x.contiguous(), (levels[1:] + levels[:-1]).to(x) / 2)


def check_levels(levels: Tensor) -> None:
    """Check the values that data take.

    Raises:
        TypeError: ``levels`` is no floating-point tensor.
        ValueError: There are less than 2, or they do not rise.
    """
    _checks.array("levels", levels, ndim=1)
    if len(levels) < 2 or not (levels.diff() > 0).all():
        raise ValueError(f"levels must be at least 2 numbers that rise, got {levels.tolist()}")
