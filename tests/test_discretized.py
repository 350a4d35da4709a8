"""A Gaussian on levels: masses, digits, derivatives, draws."""

from __future__ import annotations

import math

import pytest
import torch
from bad_input import bad_input
from close import z

from coursepkg.discretized import DiscretizedNormal

GREYS = torch.linspace(-1, 1, 5).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 0.04, 0.3, 1.0, 30.0])
def test_probabilities_of_levels_sum_to_one(scale: float, dtype: torch.dtype) -> None:
    loc = torch.linspace(-3, 3, 41, dtype=dtype)
    greys = torch.linspace(-1, 1, 17, dtype=dtype)
    q = DiscretizedNormal(loc, torch.tensor(scale, dtype=dtype), greys)
    assert q.probs.shape == (41, 17)
    rounding = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(q.probs.sum(dim=-1), torch.ones_like(loc), rtol=0, atol=rounding)
    density = q.probs / (greys[1] - greys[0])  # planted bug: a density at the level, not a mass
    assert ((density.sum(dim=-1) - 1).abs() > 1).all()


def test_probabilities_are_masses_between_borders() -> None:
    levels = torch.tensor([-2.0, 0.0, 1.0]).double()
    q = DiscretizedNormal(torch.tensor(0.3).double(), torch.tensor(0.8).double(), levels)
    phi = lambda x: math.erfc(-(x - 0.3) / 0.8 / 2**0.5) / 2  # noqa: E731
    expected = torch.tensor([phi(-1), phi(0.5) - phi(-1), 1 - phi(0.5)]).double()
    torch.testing.assert_close(q.probs, expected)
    torch.testing.assert_close(q.mean, expected @ levels)


def test_far_levels_keep_their_digits_and_gradients() -> None:
    """-log Φ(-x) is about x²/2 + log x + log(2π)/2, in float32 too."""
    levels = torch.linspace(-1, 1, 17)
    for sign in (-1.0, 1.0):
        loc = torch.tensor(sign * 30, requires_grad=True)
        for level in (levels[0], levels[5], levels[16]):
            found = DiscretizedNormal(loc, torch.tensor(0.1), levels).log_prob(level)
            (gradient,) = torch.autograd.grad(found, loc)
            log_prob = found.detach()
            toward = -sign  # the nearer border decides
            near = float(level) - toward * 0.0625
            inside = near * sign < 0.9  # all but the level at the very end on this side
            x = abs(sign * 30 - near) / 0.1
            if inside:
                expected = -(x**2) / 2 - math.log(x) - math.log(2 * math.pi) / 2
                assert math.isclose(float(log_prob), expected, rel_tol=1e-5)
                assert math.isclose(float(gradient), toward * x / 0.1, rel_tol=1e-3)
            else:
                assert float(log_prob) == pytest.approx(0, abs=1e-6)
                assert float(gradient) == pytest.approx(0, abs=1e-6)


def test_derivatives_of_level_probabilities() -> None:
    loc = torch.tensor([-1.4, -0.2, 0.1, 0.9]).double().requires_grad_()
    scale = torch.tensor([0.1, 0.5, 0.06, 0.3]).double().requires_grad_()
    for level in GREYS:
        assert torch.autograd.gradcheck(
            lambda loc, scale, x=level: DiscretizedNormal(loc, scale, GREYS).log_prob(x),
            (loc, scale),
        )


def test_draws_of_levels_have_their_probabilities() -> None:
    torch.manual_seed(20260101)
    q = DiscretizedNormal(torch.tensor([0.1, -0.4]).double(), torch.tensor(0.6).double(), GREYS)
    draws = q.sample((20_000,))
    assert draws.shape == (20_000, 2)
    assert q.support.check(draws).all()
    assert z((draws[..., None] == GREYS).double(), q.probs) < 4


test_bad_input_is_named = bad_input(
    [
        (
            lambda: DiscretizedNormal(GREYS, -GREYS.abs() - 1, GREYS),
            ValueError,
            ("scale", "positive"),
        ),
        (lambda: DiscretizedNormal(GREYS, GREYS.exp(), -GREYS), ValueError, ("levels", "rise")),
        (
            lambda: DiscretizedNormal(GREYS, GREYS.exp(), GREYS).log_prob(GREYS + 0.1),
            ValueError,
            ("support",),
        ),
    ]
)
