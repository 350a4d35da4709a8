"""Draws by a generator are its own numbers, and torch's global state does not notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributions import Gamma, Normal

from coursepkg._random import draw, global_randomness, normal, spread_normal

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_noise_is_the_generators_own_in_the_others_dtype(dtype: torch.dtype) -> None:
    noise = normal((2, 3), torch.zeros(1, dtype=dtype), seeded(1))
    assert noise.dtype == dtype
    assert torch.equal(noise, torch.randn(2, 3, dtype=dtype, generator=seeded(1)))


def test_a_generator_of_another_device_is_named(kind_error: Callable[..., Any]) -> None:
    there = torch.zeros(2, device="meta")
    with kind_error(ValueError, "generator", "meta", "cpu"):
        draw(Normal(there, there, validate_args=False), generator=seeded(1))


@pytest.mark.parametrize("count", [64, 65])
def test_spread_points_have_exact_moments(count: int) -> None:
    z = spread_normal(count, 3, seeded(1))
    assert z.shape == (count + count % 2, 3)
    torch.testing.assert_close(z.sum(dim=0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(3).double(), rtol=0, atol=1e-12)
    # Each comes with its mirror image: every odd function has the mean zero.
    torch.testing.assert_close(z[: len(z) // 2], -z[len(z) // 2 :])


def test_too_few_spread_points_are_not_whitened() -> None:
    z = spread_normal(10, 3, seeded(1))
    assert z.shape == (10, 3)
    assert not torch.allclose(z.T @ z / 10, torch.eye(3).double())


def test_spread_points_follow_the_generator_and_the_normal_distribution() -> None:
    generator = seeded(1)
    first, second = spread_normal(512, 2, generator), spread_normal(512, 2, generator)
    assert torch.equal(first, spread_normal(512, 2, seeded(1)))
    assert not torch.equal(first, second)
    # An even spread: each of 16 equally likely slices holds 32 points, give or take 2; of
    # independent points there would be 32 give or take sqrt(30), and the largest miss about 12.
    slices = (torch.special.ndtr(first[:, 0]) * 16).long().bincount(minlength=16)
    assert (slices - 32).abs().max() <= 4
    independent = torch.randn(512, generator=seeded(2)).double()
    slices = (torch.special.ndtr(independent) * 16).long().bincount(minlength=16)
    assert (slices - 32).abs().max() > 4
