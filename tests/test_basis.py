"""Features against scalar arithmetic, over any batch shape, and with a constant first."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coursepkg import basis

CENTERS = torch.tensor([-1.0, 0.5, 2.0])
# Each basis of one input: how to call it, and its features after the constant in plain arithmetic.
SCALAR_BASES: list[tuple[Callable[[Tensor], Tensor], Callable[[float], list[float]]]] = [
    (
        lambda x: basis.polynomial(x, 3),
        lambda x: [x, x * x, x * x * x],
    ),
    (
        lambda x: basis.fourier(x, 2, 0.25),
        lambda x: [
            math.cos(0.5 * math.pi * x),
            math.cos(math.pi * x),
            math.sin(0.5 * math.pi * x),
            math.sin(math.pi * x),
        ],
    ),
    (
        lambda x: basis.rbf(x, CENTERS, 2.0),
        lambda x: [math.exp(-((x - c) ** 2) / 8) for c in (-1.0, 0.5, 2.0)],
    ),
]
each_basis = pytest.mark.parametrize(
    ("features_of", "expected"), SCALAR_BASES, ids=["polynomial", "fourier", "rbf"]
)
batch_shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@each_basis
@settings(deadline=None, derandomize=True, max_examples=30)
@given(shape=batch_shapes, seed=st.integers(0, 1000))
def test_each_entry_equals_its_formula_in_any_batch_shape(
    features_of: Callable[[Tensor], Tensor],
    expected: Callable[[float], list[float]],
    shape: tuple[int, ...],
    seed: int,
) -> None:
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    features = features_of(x)
    rows = [[1.0, *expected(value)] for value in x.flatten().tolist()]
    assert features.shape == (*shape, len(rows[0]))
    truth = torch.tensor(rows, dtype=torch.float64).reshape(features.shape)
    torch.testing.assert_close(features, truth, rtol=1e-13, atol=1e-13)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(shape=batch_shapes, dim=st.integers(1, 3))
def test_affine_puts_a_constant_before_the_inputs(shape: tuple[int, ...], dim: int) -> None:
    x = torch.arange(1.0, 1 + math.prod((*shape, dim))).reshape(*shape, dim)
    features = basis.affine(x)
    assert features.shape == (*shape, dim + 1)
    assert (features[..., 0] == 1).all()
    assert (features[..., 1:] == x).all()


@each_basis
def test_float32_inputs_give_float64_features(
    features_of: Callable[[Tensor], Tensor], expected: Any
) -> None:
    x = torch.tensor([0.1, 0.7])
    assert features_of(x).dtype == basis.affine(x).dtype == torch.float64
    assert torch.equal(features_of(x), features_of(x.double()))


def test_polynomial_of_degree_zero_is_the_constant_also_at_zero() -> None:
    assert basis.polynomial(torch.tensor([0.0, -2.0]), 0).tolist() == [[1.0], [1.0]]
    assert basis.polynomial(torch.tensor(0.0), 2).tolist() == [1.0, 0.0, 0.0]


def test_polynomial_raises_whole_numbers_exactly() -> None:
    """Also negative ones: the powers are as exact as float64 can hold."""
    whole = range(-20, 21)
    powers = [[float(n**k) for k in range(11)] for n in whole]
    assert basis.polynomial(torch.tensor([float(n) for n in whole]), 10).tolist() == powers


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    x=st.floats(-5, 5),
    base_frequency=st.floats(0.1, 3.0),
    num_frequencies=st.integers(1, 5),
    periods=st.integers(-3, 3),
)
def test_fourier_repeats_with_its_base_period(
    x: float, base_frequency: float, num_frequencies: int, periods: int
) -> None:
    points = torch.tensor([x, x + periods / base_frequency], dtype=torch.float64)
    here, later = basis.fourier(points, num_frequencies, base_frequency)
    torch.testing.assert_close(here, later, rtol=0, atol=1e-11)


def test_fourier_features_are_orthogonal_on_an_even_grid_of_one_period() -> None:
    grid = torch.arange(16, dtype=torch.float64) / 16 * 0.5
    features = basis.fourier(grid, 3, 2.0)
    gram = torch.diag(torch.tensor([16.0] + [8.0] * 6, dtype=torch.float64))
    torch.testing.assert_close(features.T @ features, gram, rtol=0, atol=1e-13)


def test_rbf_peaks_at_its_center_and_falls_by_the_root_of_e_at_one_length() -> None:
    peak, beside = basis.rbf(torch.tensor([2.0, 2.5]), torch.tensor([2.0]), 0.5)[:, 1].tolist()
    assert peak == 1.0
    assert beside == pytest.approx(math.exp(-0.5), rel=1e-15)


X = torch.tensor([0.0, 1.0])
EMPTY, NAN, INTEGERS = torch.ones(0), torch.tensor([1.0, math.nan]), torch.ones(2).int()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: basis.affine([[1.0]]), TypeError, ("x must be", "list")),
        (lambda: basis.affine(INTEGERS), TypeError, ("x must", "torch.int32")),
        (lambda: basis.affine(torch.tensor(1.0)), ValueError, ("x", "1 dimension", "number")),
        (lambda: basis.affine(EMPTY), ValueError, ("x must not be empty", "(0,)")),
        (lambda: basis.affine(NAN), ValueError, ("x must be finite", "1 NaN")),
        (lambda: basis.polynomial(1.0, 2), TypeError, ("x must be", "float")),
        (lambda: basis.polynomial(X, 2.0), TypeError, ("degree", "whole number", "2.0")),
        (lambda: basis.polynomial(EMPTY, 2), ValueError, ("x must not be empty",)),
        (lambda: basis.polynomial(NAN, 2), ValueError, ("x must be finite",)),
        (lambda: basis.polynomial(X, -1), ValueError, ("degree", "at least 0", "-1")),
        (lambda: basis.fourier([0.0], 1, 1.0), TypeError, ("x must be", "list")),
        (lambda: basis.fourier(X, 1.5, 1.0), TypeError, ("num_frequencies", "1.5")),
        (lambda: basis.fourier(X, 1, "1"), TypeError, ("base_frequency", "real number", "'1'")),
        (lambda: basis.fourier(EMPTY, 1, 1.0), ValueError, ("x must not be empty",)),
        (lambda: basis.fourier(NAN, 1, 1.0), ValueError, ("x must be finite",)),
        (lambda: basis.fourier(X, 0, 1.0), ValueError, ("num_frequencies", "at least 1", "0")),
        (lambda: basis.fourier(X, 1, 0.0), ValueError, ("base_frequency", "positive", "0.0")),
        (lambda: basis.rbf([0.0], X, 1.0), TypeError, ("x must be", "list")),
        (lambda: basis.rbf(X, [0.0], 1.0), TypeError, ("centers must be", "list")),
        (lambda: basis.rbf(X, INTEGERS, 1.0), TypeError, ("centers", "torch.int32")),
        (lambda: basis.rbf(X, X, None), TypeError, ("length_scale", "real number", "None")),
        (lambda: basis.rbf(EMPTY, X, 1.0), ValueError, ("x must not be empty",)),
        (lambda: basis.rbf(NAN, X, 1.0), ValueError, ("x must be finite",)),
        (lambda: basis.rbf(X, EMPTY, 1.0), ValueError, ("centers must not be empty",)),
        (lambda: basis.rbf(X, NAN, 1.0), ValueError, ("centers must be finite",)),
        (lambda: basis.rbf(X, X[:, None], 1.0), ValueError, ("centers", "1 dim", "(2, 1)")),
        (lambda: basis.rbf(X, X, -1.0), ValueError, ("length_scale", "positive", "-1.0")),
    ],
)
def test_bad_input_is_named(
    call: Callable[[], Tensor], error: type[Exception], words: tuple[str, ...], kind_error: Any
) -> None:
    with kind_error(error, *words):
        call()
