"""Draws from ``torch.distributions``, which take no generator, by a generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["draw", "global_randomness"]


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
