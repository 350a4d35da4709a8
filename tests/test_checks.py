"""The argument checks: what passes comes back as float64, what does not is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from coursepkg import _checks

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Without the type checks of the tests, which refuse NumPy's numbers for a float."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_array_returns_the_same_numbers_in_float64(dtype: torch.dtype) -> None:
    given = torch.tensor([[0.5, -2.0]], dtype=dtype)
    checked = _checks.array("x", given, ndim=2)
    assert checked.dtype == torch.float64
    assert checked.tolist() == [[0.5, -2.0]]


def test_array_takes_any_number_of_dimensions_unless_told() -> None:
    for shape in [(), (1,), (2, 1, 3)]:
        assert _checks.array("x", torch.ones(shape)).shape == shape


@pytest.mark.parametrize("value", [[1.0], np.ones(2), 1.0, None])
def test_array_wants_a_tensor_and_says_how_to_make_one(value: Any, kind_error: Any) -> None:
    name = type(value).__name__
    with kind_error(TypeError, "speed must be", name, "torch.as_tensor(speed"):
        _checks.array("speed", value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128])
def test_array_wants_a_floating_dtype(dtype: torch.dtype, kind_error: Any) -> None:
    with kind_error(TypeError, "speed must have a floating-point dtype", str(dtype), ".double()"):
        _checks.array("speed", torch.ones(2, dtype=dtype))


@pytest.mark.parametrize(
    ("shape", "ndim", "words"),
    [
        ((2, 3), 1, ("speed must have 1 dimension,", "(2, 3)")),
        ((2,), 2, ("speed must have 2 dimensions,", "(2,)")),
        ((), 1, ("speed must have 1 dimension,", "()")),
        ((0,), None, ("speed must not be empty", "(0,)")),
        ((4, 0), 2, ("speed must not be empty", "(4, 0)")),
    ],
)
def test_array_names_a_wrong_shape(
    shape: tuple[int, ...], ndim: int | None, words: tuple[str, ...], kind_error: Any
) -> None:
    with kind_error(ValueError, *words):
        _checks.array("speed", torch.ones(shape), ndim=ndim)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, NAN, 2.0], "1 NaN or infinite value among 3"),
        ([INF, NAN, -INF], "3 NaN or infinite values among 3"),
    ],
)
def test_array_counts_what_is_not_finite(values: list[float], words: str, kind_error: Any) -> None:
    with kind_error(ValueError, "speed must be finite", words):
        _checks.array("speed", torch.tensor(values))


def test_design_returns_both_in_float64() -> None:
    features, targets = _checks.design(torch.ones(3, 2), torch.arange(3.0))
    assert features.dtype == targets.dtype == torch.float64
    assert features.shape == (3, 2)
    assert targets.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("features", "targets", "error", "words"),
    [
        (torch.ones(3), torch.ones(3), ValueError, ("features must have 2 dim", "(3,)")),
        (torch.ones(3, 0), torch.ones(3), ValueError, ("features must not be empty", "(3, 0)")),
        (torch.ones(0, 2), torch.ones(0), ValueError, ("features must not be empty", "(0, 2)")),
        (torch.ones(3, 2), torch.ones(3, 1), ValueError, ("targets", "(3, 1)", "squeeze(1)")),
        (torch.ones(3, 2), torch.ones(3, 2), ValueError, ("targets must have 1 dim", "(3, 2)")),
        (torch.ones(3, 2), torch.ones(2), ValueError, ("as many rows", "3 and 2")),
        (torch.ones(1, 2), torch.ones(3), ValueError, ("as many rows", "1 and 3")),
        (torch.ones(1, 2) * NAN, torch.ones(1), ValueError, ("features must be finite",)),
        (torch.ones(1, 2), torch.ones(1) * INF, ValueError, ("targets must be finite",)),
        (np.ones((3, 2)), torch.ones(3), TypeError, ("features must be", "ndarray")),
        (torch.ones(3, 2), [1.0] * 3, TypeError, ("targets must be", "list")),
        (torch.ones(3, 2), torch.ones(3).int(), TypeError, ("targets", "torch.int32")),
    ],
)
def test_design_names_the_argument_that_is_wrong(
    features: Any, targets: Any, error: type[Exception], words: tuple[str, ...], kind_error: Any
) -> None:
    with kind_error(error, *words):
        _checks.design(features, targets)


@pytest.mark.parametrize("size", [1e200, -1e200, 1e-200])
@pytest.mark.parametrize("name", ["features", "targets"])
def test_design_refuses_numbers_whose_squares_overflow_or_vanish(
    name: str, size: float, kind_error: Any
) -> None:
    """Sums of squares would turn into infinity or zero, and the answer into NaN, silently."""
    unit = torch.ones(2, dtype=torch.float64)
    arguments = {"features": unit[:, None], "targets": unit}
    arguments[name] = arguments[name] * size
    with kind_error(ValueError, name, f"{abs(size):.0e}", "change their unit"):
        _checks.design(**arguments)


def test_design_lets_zeros_through() -> None:
    """All zeros are a wrong unit for nobody: whether they make sense is the caller's question."""
    features, targets = _checks.design(torch.zeros(2, 1), torch.zeros(2))
    assert not features.any()
    assert not targets.any()


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), np.int64(2), Fraction(2), torch.tensor(2), torch.tensor(2.0)]
)
@pytest.mark.usefixtures("as_a_user")
def test_scalar_and_positive_take_every_real_number(value: Any) -> None:
    for check in (_checks.scalar, _checks.positive):
        number = check("x", value)
        assert type(number) is float
        assert number == 2.0


@pytest.mark.parametrize("value", [0, -0.0, -3.5])
@pytest.mark.usefixtures("as_a_user")
def test_scalar_takes_what_positive_refuses(value: float, kind_error: Any) -> None:
    assert _checks.scalar("speed", value) == value
    with kind_error(ValueError, "speed must be positive", f"got {float(value)}"):
        _checks.positive("speed", value)


@pytest.mark.parametrize("check", [_checks.scalar, _checks.positive])
@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("2", "str '2'"),
        (None, "NoneType None"),
        (True, "bool True"),
        (1j, "complex 1j"),
        (torch.tensor(True), "bool True"),
        (torch.tensor(1j), "a tensor of shape ()"),
        (torch.tensor([2.0]), "a tensor of shape (1,)"),
    ],
)
def test_scalar_wants_a_real_number(
    check: Callable[..., float], value: Any, got: str, kind_error: Any
) -> None:
    with kind_error(TypeError, "speed must be a real number", got):
        check("speed", value)


@pytest.mark.parametrize("check", [_checks.scalar, _checks.positive])
@pytest.mark.parametrize("value", [NAN, INF, -INF, torch.tensor(NAN)])
def test_scalar_wants_a_finite_number(
    check: Callable[..., float], value: Any, kind_error: Any
) -> None:
    with kind_error(ValueError, "speed must be finite", f"got {float(value)}"):
        check("speed", value)


def test_scalar_counts_a_whole_number_beyond_the_floats_as_infinite(kind_error: Any) -> None:
    with kind_error(ValueError, "speed must be finite", "got inf"):
        _checks.scalar("speed", 10**400)


@pytest.mark.parametrize("value", [3, np.int32(3)])
@pytest.mark.usefixtures("as_a_user")
def test_count_takes_the_minimum_itself(value: Any) -> None:
    number = _checks.count("laps", value, minimum=3)
    assert type(number) is int
    assert number == 3


def test_count_refuses_less_than_the_minimum(kind_error: Any) -> None:
    with kind_error(ValueError, "laps must be at least 3", "got 2"):
        _checks.count("laps", 2, minimum=3)


@pytest.mark.parametrize("value", [3.0, "3", True, None, torch.tensor(3)])
def test_count_wants_a_whole_number(value: Any, kind_error: Any) -> None:
    with kind_error(TypeError, "laps must be a whole number", type(value).__name__):
        _checks.count("laps", value, minimum=1)


def test_generator_is_handed_on_or_may_be_absent(generator: torch.Generator) -> None:
    assert _checks.generator_or_none(generator) is generator
    assert _checks.generator_or_none(None) is None


@pytest.mark.parametrize("value", [0, np.random.default_rng(0)])
def test_generator_wants_torch_s_kind(value: Any, kind_error: Any) -> None:
    with kind_error(TypeError, "generator must be", type(value).__name__, "manual_seed(0)"):
        _checks.generator_or_none(value)


def test_numbers_keep_their_dtype_and_one_number_is_float64() -> None:
    given = torch.tensor([0.5, 2.0])
    assert _checks.numbers("x", given) is given
    assert _checks.numbers("x", 0.1).dtype == torch.float64
    assert float(_checks.numbers("x", 3, positive=True)) == 3


@pytest.mark.parametrize("value", [0.0, torch.tensor([1.0, -0.5])])
def test_numbers_may_have_to_be_positive(value: Any, kind_error: Any) -> None:
    with kind_error(ValueError, "speed must be positive"):
        _checks.numbers("speed", value, positive=True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(2), ("square", "(2,)")),
        (torch.ones(2, 3), ("square", "(2, 3)")),
        (torch.ones(2, 2), ("lower triangular", "cholesky")),
        (torch.zeros(2, 2), ("positive diagonal",)),
        (torch.full((1, 1), NAN), ("finite",)),
    ],
)
def test_a_cholesky_factor_is_lower_triangular(value: Any, words: Any, kind_error: Any) -> None:
    _checks.scale_tril("factor", torch.eye(2).expand(3, 2, 2))
    with kind_error(ValueError, "factor must be", *words):
        _checks.scale_tril("factor", value)


def test_shapes_that_do_not_broadcast_are_named(kind_error: Any) -> None:
    assert _checks.broadcast(a=torch.Size([3, 1]), b=torch.Size([2])) == (3, 2)
    with kind_error(ValueError, "broadcast", "a (3,)", "b (2,)"):
        _checks.broadcast(a=torch.Size([3]), b=torch.Size([2]))


def test_a_choice_is_one_of_the_words(kind_error: Any) -> None:
    _checks.choice("way", "there", ("here", "there"))
    with kind_error(ValueError, "way must be one of 'here', 'there', got 'up'"):
        _checks.choice("way", "up", ("here", "there"))


@pytest.mark.parametrize("value", [0, 1.0, -0.1, 95])
def test_inside_means_between_0_and_1(value: Any, kind_error: Any) -> None:
    assert _checks.inside("share", torch.tensor(0.25)) == 0.25
    with kind_error(ValueError, "share must be between 0 and 1", str(float(value))):
        _checks.inside("share", value)


@pytest.mark.parametrize(
    ("error", "value", "words"),
    [
        (TypeError, [0.5, 0.5], ("torch.Tensor", "list")),
        (ValueError, torch.tensor(1.0), ("classes",)),
        (ValueError, torch.tensor([1.5, -0.5]), ("non-negative",)),
        (ValueError, torch.tensor([[0.5, 0.5], [0.5, 0.4]]), ("sum to 1", "softmax(-1)")),
        (ValueError, torch.tensor([NAN, 1.0]), ("finite",)),
    ],
)
def test_probabilities_are_not_logits(
    error: Any, value: Any, words: Any, as_a_user: None, kind_error: Any
) -> None:
    given = torch.randn(5, 1000).softmax(-1)
    assert _checks.probabilities("p", given) is given
    with kind_error(error, "p must", *words):
        _checks.probabilities("p", value)
