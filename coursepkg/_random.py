"""Draws by a generator: from ``torch.distributions``, which take none, and evenly spread ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution
from torch.quasirandom import SobolEngine

__all__ = ["draw", "global_randomness", "normal", "spread_normal"]


@contextmanager
def global_randomness(generator: torch.Generator | None) -> Iterator[None]:
    """Let torch's global source of randomness go on from a generator's state, and then put it back.

    The generator moves on by what was drawn: the numbers are those that it would have given itself.
    Nothing happens where it is ``None``.
    """
    if generator is None:
        yield
        return
    device = generator.device
    source = (
        torch.default_generator
        if device.type == "cpu"
        else torch.get_device_module(device).default_generators[device.index or 0]
    )
    before = source.get_state()
    source.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(source.get_state())
        source.set_state(before)


def draw(
    q: Distribution,
    shape: tuple[int, ...] = (),
    *,
    generator: torch.Generator | None = None,
    grad: bool = False,
) -> Tensor:
    """Draw from a distribution.

    Args:
        q: The distribution.
        shape: How many draws; the leading dimensions of the result.
        generator: Source of randomness; torch's global one where it is ``None``.
        grad: Whether the draws carry gradients to the parameters (``rsample``).

    Returns:
        Draws, shape ``(*shape, *q.batch_shape, *q.event_shape)``.

    Raises:
        ValueError: ``q`` lives on another device than the generator.
    """
    with global_randomness(generator):
        draws = q.rsample(shape) if grad else q.sample(shape)
    if generator is not None and generator.device.type != draws.device.type:
        raise ValueError(
            f"generator must live where the distribution does, on {draws.device}, got one on "
            f"{generator.device}"
        )
    return draws


def normal(
    shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None
) -> Float[Tensor, "..."]:
    """Standard normal noise of the dtype, and on the device, of another tensor."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def spread_normal(
    num_draws: int, dim: int, generator: torch.Generator | None
) -> Float[Tensor, "draws dim"]:
    """Standard normal points that fill space evenly: averages over them are off by less.

    Each comes with its mirror image, and where there are enough of them they are whitened, so that
    averages of lines, and then of quadratics, are exact.

    Args:
        num_draws: How many, rounded up to an even number.
        dim: How many coordinates.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        Points in float64, on the generator's device.

    Source:
        Owen (1998), "Scrambling Sobol' and Niederreiter-Xing points", Journal of Complexity 14(4).
    """
    device = generator.device if generator else None
    seed = int(torch.randint(2**31, (), generator=generator, device=device))
    half = SobolEngine(dim, scramble=True, seed=seed).draw((num_draws + 1) // 2).double()
    z = torch.special.ndtri(half.clamp(1e-9, 1 - 1e-9))
    z = torch.cat([z, -z])
    if len(z) >= 4 * dim:
        factor = torch.linalg.cholesky(z.T @ z / len(z))
        z = torch.linalg.solve_triangular(factor, z.T, upper=False).T
    return z.to(device)
