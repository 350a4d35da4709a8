"""Draws by a generator are its own numbers, and torch's global state does not notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributions import Gamma, Normal

from coursepkg._random import draw, global_randomness

GAMMA = Gamma(torch.tensor([0.5, 3.0]), torch.tensor(2.0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_generator_decides_and_moves_on() -> None:
    generator = seeded(1)
    first, second = draw(GAMMA, (5,), generator=generator), draw(GAMMA, (5,), generator=generator)
    assert torch.equal(first, draw(GAMMA, (5,), generator=seeded(1)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, draw(GAMMA, (5,), generator=seeded(2)))
    assert torch.equal(
        draw(Normal(0.0, 1.0), (5,), generator=seeded(1)), torch.randn(5, generator=seeded(1))
    )


def fail_after_a_draw(generator: torch.Generator) -> None:
    with global_randomness(generator):
        torch.randn(3)
        raise RuntimeError("stop")


def test_the_global_state_does_not_notice() -> None:
    before = torch.get_rng_state()
    draw(GAMMA, (5,), generator=seeded(1))
    with pytest.raises(RuntimeError, match="stop"):
        fail_after_a_draw(seeded(1))
    assert torch.equal(before, torch.get_rng_state())
    draw(GAMMA, (5,))
    assert not torch.equal(before, torch.get_rng_state())


def test_a_generator_moves_on_also_where_the_block_fails() -> None:
    generator, expected = seeded(1), seeded(1)
    with pytest.raises(RuntimeError, match="stop"):
        fail_after_a_draw(generator)
    torch.randn(3, generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())


def test_draws_carry_a_gradient_where_asked() -> None:
    loc = torch.zeros(2, requires_grad=True)
    assert draw(Normal(loc, 1.0), (3,), grad=True).requires_grad
    assert not draw(Normal(loc, 1.0), (3,)).requires_grad
    assert draw(Normal(loc, 1.0), (3,)).shape == (3, 2)


def test_a_generator_of_another_device_is_named(kind_error: Callable[..., Any]) -> None:
    there = torch.zeros(2, device="meta")
    with kind_error(ValueError, "generator", "meta", "cpu"):
        draw(Normal(there, there, validate_args=False), generator=seeded(1))
