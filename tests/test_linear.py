"""Least squares, ridge and the gradient fit: exact, certified, statistical, and hard cases."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coursepkg import basis, data, linear

NAN, INF = math.nan, math.inf
exact = settings(deadline=None, derandomize=True, max_examples=25)
seeds = st.integers(0, 10_000)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def problem(
    num_points: int = 20, dim: int = 3, *, seed: int = 0, intercept: bool = True
) -> tuple[Tensor, Tensor]:
    """Random features (the first constant, where asked) and targets with unit noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_points, dim, generator=generator, dtype=torch.float64)
    features = basis.affine(x) if intercept else x
    noise = torch.randn(num_points, generator=generator, dtype=torch.float64)
    return features, features @ torch.arange(1.0, features.shape[1] + 1).double() + noise


def close(ours: Tensor, truth: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(truth), rtol=rtol, atol=atol)


def digits(ours: Tensor, certified: list[str] | str) -> float:
    """The fewest correct digits: -log10 of the relative error, at most 15."""
    truth = np.asarray(certified, dtype=float)
    error = np.abs(ours.numpy() - truth) / np.abs(truth)
    return -math.log10(max(float(np.max(error)), 1e-15))


# --- Ordinary least squares ---------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("num_points", "dim"), [(5, 1), (20, 3), (200, 12)])
def test_ols_equals_the_textbook_formulas(num_points: int, dim: int, intercept: bool) -> None:
    features, targets = problem(num_points, dim, intercept=intercept)
    fit = linear.fit_ols(features, targets)
    solution = torch.linalg.lstsq(features, targets[:, None], driver="gelsd").solution[:, 0]
    squares = ((targets - features @ solution) ** 2).sum()
    variance = squares / (num_points - features.shape[1])
    center = targets.mean() if intercept else 0.0
    close(fit.coefficients, solution)
    close(fit.residual_scale, variance.sqrt())
    close(fit.standard_errors, (variance * torch.linalg.inv(features.T @ features).diag()).sqrt())
    close(fit.r_squared, 1 - squares / ((targets - center) ** 2).sum())


def test_r_squared_is_the_squared_correlation_where_a_constant_stands_in_any_column() -> None:
    features, targets = problem()
    features = features.flip(1) * tensor([1, 1, 1, -3])
    fit = linear.fit_ols(features, targets)
    pair = torch.stack([targets, fit.predict(features)])
    close(fit.r_squared, torch.corrcoef(pair)[0, 1] ** 2)


@exact
@given(seed=seeds, column=st.integers(0, 3), power=st.floats(-8, 8))
def test_scaling_a_column_scales_its_coefficient_inversely(
    seed: int, column: int, power: float
) -> None:
    """Units sixteen orders apart cost no digits: nothing else in the fit moves."""
    features, targets = problem(seed=seed)
    unit = torch.ones(4, dtype=torch.float64)
    unit[column] = 10.0**power
    fit, scaled = linear.fit_ols(features, targets), linear.fit_ols(features * unit, targets)
    close(scaled.coefficients * unit, fit.coefficients, rtol=1e-11)
    close(scaled.standard_errors * unit, fit.standard_errors, rtol=1e-11)
    close(scaled.residual_scale, fit.residual_scale, rtol=1e-12)
    close(scaled.r_squared, fit.r_squared, rtol=1e-12)


def test_units_from_1e_8_to_1e8_side_by_side_keep_their_digits() -> None:
    features, targets = problem()
    unit = tensor([1e8, 1e-8, 1.0, 1e4])
    fit = linear.fit_ols(features * unit, targets)
    close(fit.coefficients * unit, linear.fit_ols(features, targets).coefficients, rtol=1e-12)


@exact
@given(seed=seeds, shift=st.lists(st.floats(-100, 100), min_size=4, max_size=4))
def test_adding_a_combination_of_columns_to_the_targets_shifts_the_coefficients(
    seed: int, shift: list[float]
) -> None:
    features, targets = problem(seed=seed)
    fit = linear.fit_ols(features, targets)
    shifted = linear.fit_ols(features, targets + features @ tensor(shift))
    close(shifted.coefficients, fit.coefficients + tensor(shift), atol=1e-10)
    close(shifted.standard_errors, fit.standard_errors, rtol=1e-9)


def test_float32_data_are_solved_in_float64() -> None:
    features, targets = (value.float() for value in problem())
    fit = linear.fit_ols(features, targets)
    assert {value.dtype for value in fit} == {torch.float64}
    close(fit.coefficients, linear.fit_ols(features.double(), targets.double()).coefficients)


def test_predict_evaluates_the_fitted_function_at_new_points() -> None:
    x = tensor([0.0, 1.0, 2.0])
    fit = linear.fit_ols(basis.polynomial(x, 1), 1 - 2 * x)
    close(fit.predict(torch.tensor([[1.0, 10.0]])), tensor([-19.0]))


def test_rmse_is_the_root_of_the_mean_square_at_any_points() -> None:
    fit = linear.LinearFit(tensor([1.0, 2.0]), tensor([0.0, 0.0]), tensor(1.0), tensor(1.0))
    features = basis.affine(torch.tensor([[0.0], [1.0]]))
    close(fit.rmse(features, torch.tensor([4.0, 7.0])), tensor(math.sqrt((3**2 + 4**2) / 2)))


# --- Certified and independent answers ----------------------------------------------------------

NIST_SETS = ["norris", "noint1", "longley", "wampler1", "wampler2", "wampler4"]


def nist(truth: Any, name: str) -> tuple[dict[str, Any], float, linear.LinearFit]:
    """A certified set: the certificate, the digits asked for, and our fit."""
    entry = truth("nist_lls")["datasets"][name]
    columns = {key: tensor(values) for key, values in entry["columns"].items()}
    targets = columns.pop("y")
    x = torch.stack(list(columns.values()), dim=1)
    if name.startswith("wampler"):
        features = basis.polynomial(x[:, 0], 5)
    else:
        features = x if "no intercept" in entry["model"] else basis.affine(x)
    fit = linear.fit_ols(features, targets)
    return entry["certified"], entry["best_float64_digits"] - 1, fit


def test_every_certified_set_is_tested(truth: Any) -> None:
    assert sorted(truth("nist_lls")["datasets"]) == sorted(NIST_SETS)


@pytest.mark.parametrize("name", NIST_SETS)
def test_nist_coefficients_and_r_squared(name: str, truth: Any) -> None:
    """At most one digit fewer than the best float64 solver that was measured."""
    certified, asked, fit = nist(truth, name)
    assert digits(fit.coefficients, certified["coef"]) >= asked
    assert digits(fit.r_squared, certified["r_squared"]) >= asked


@pytest.mark.parametrize("name", ["norris", "noint1", "longley", "wampler4"])
def test_nist_standard_errors_and_residual_scale(name: str, truth: Any) -> None:
    certified, asked, fit = nist(truth, name)
    assert digits(fit.standard_errors, certified["std_error"]) >= asked
    assert digits(fit.residual_scale, certified["residual_sd"]) >= asked


@pytest.mark.parametrize("name", ["wampler1", "wampler2"])
def test_nist_exact_polynomials_leave_only_rounding(name: str, truth: Any) -> None:
    """Certified errors of zero: ours are as small beside the coefficients as their digits allow."""
    certified, asked, fit = nist(truth, name)
    assert {float(error) for error in certified["std_error"]} == {0.0}
    assert (fit.standard_errors / fit.coefficients).max() < 10**-asked
    largest_target = max(truth("nist_lls")["datasets"][name]["columns"]["y"])
    assert fit.residual_scale < 1e-15 * largest_target


@pytest.mark.skipif(
    np.finfo(np.longdouble).eps == np.finfo(np.float64).eps,
    reason="this machine has no floats longer than float64 to compute residuals in",
)
@pytest.mark.parametrize(("name", "asked"), [("longley", 13), ("wampler4", 11), ("norris", 13)])
def test_refinement_reaches_what_no_plain_float64_solver_does(name, asked, truth):
    """Each is at least half a digit, and up to four, beyond the best solver that was measured."""
    certified, best_less_one, fit = nist(truth, name)
    assert digits(fit.coefficients, certified["coef"]) >= asked
    assert best_less_one + 1 < asked - 0.3


def test_longley_as_shipped_reaches_the_certified_coefficients(truth: Any) -> None:
    table = data.longley()
    fit = linear.fit_ols(basis.affine(table.x), table.y)
    entry = truth("nist_lls")["datasets"]["longley"]
    assert digits(fit.coefficients, entry["certified"]["coef"]) >= entry["best_float64_digits"] - 1
    assert [float(value) for value in entry["certified"]["coef"]] == list(data.LONGLEY_CERTIFIED)


def test_diabetes_least_squares_equals_the_stored_fit(truth: Any) -> None:
    study, expected = data.diabetes(), truth("diabetes")["ols"]
    fit = linear.fit_ols(basis.affine(study.x), study.y)
    close(fit.coefficients, tensor([expected["intercept"], *expected["coef"]]), rtol=1e-9)


@pytest.mark.parametrize("penalty", ["0.01", "0.1", "1.0", "10.0"])
def test_diabetes_ridge_equals_the_stored_fits(penalty: str, truth: Any) -> None:
    study, expected = data.diabetes(), truth("diabetes")["ridge"][penalty]
    penalties = tensor([0.0] + [float(penalty)] * 10)
    fit = linear.fit_ridge(basis.affine(study.x), study.y, penalties)
    close(fit.coefficients, tensor([expected["intercept"], *expected["coef"]]), rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_ridge_equals_scikit_learn_on_random_problems(seed: int) -> None:
    from sklearn.linear_model import Ridge

    features, targets = problem(6 + 10 * seed, 5, seed=seed, intercept=False)
    penalty = 10.0 ** (seed - 2)
    theirs = Ridge(alpha=penalty, fit_intercept=False).fit(features.numpy(), targets.numpy())
    close(linear.fit_ridge(features, targets, penalty).coefficients, theirs.coef_, rtol=1e-8)
    theirs = Ridge(alpha=penalty).fit(features.numpy(), targets.numpy())
    penalties = tensor([0.0] + [penalty] * 5)
    ours = linear.fit_ridge(basis.affine(features), targets, penalties).coefficients
    close(ours[1:], theirs.coef_, rtol=1e-8)
    close(ours[0], tensor(theirs.intercept_), rtol=1e-8)


# --- Ridge --------------------------------------------------------------------------------------


@exact
@given(
    seed=seeds,
    num_points=st.integers(2, 30),
    penalty=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
)
def test_ridge_is_stationary_and_its_statistics_follow_from_the_hat_matrix(
    seed: int, num_points: int, penalty: list[float]
) -> None:
    """Also with fewer points than features."""
    features, targets = problem(num_points, seed=seed)
    fit = linear.fit_ridge(features, targets, tensor(penalty))
    weights = fit.coefficients.clone().requires_grad_()
    loss = ((targets - features @ weights) ** 2).sum() + (tensor(penalty) * weights**2).sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.abs().max() < 1e-11 * (features.T @ targets).abs().max()

    gram = features.T @ features
    estimator = torch.linalg.solve(gram + torch.diag(tensor(penalty)), features.T)
    used = (features @ estimator).trace()
    squares = ((targets - fit.predict(features)) ** 2).sum()
    close(fit.residual_scale, (squares / (num_points - used)).sqrt(), rtol=1e-8)
    close(
        fit.standard_errors,
        fit.residual_scale * torch.linalg.vector_norm(estimator, dim=1),
        rtol=1e-8,
    )
    close(fit.r_squared, 1 - squares / ((targets - targets.mean()) ** 2).sum(), rtol=1e-8)


def test_ridge_with_no_penalty_is_ordinary_least_squares() -> None:
    features, targets = problem()
    for ours, theirs in zip(
        linear.fit_ridge(features, targets, 0.0), linear.fit_ols(features, targets), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_ridge_tends_to_ordinary_least_squares_as_fast_as_its_penalty_to_zero() -> None:
    features, targets = problem()
    ols = linear.fit_ols(features, targets).coefficients
    distances = [
        torch.linalg.vector_norm(linear.fit_ridge(features, targets, penalty).coefficients - ols)
        for penalty in (1e-2, 1e-4, 1e-6)
    ]
    assert distances[0] > 0
    for near, far in zip(distances[1:], distances, strict=False):
        assert near / far == pytest.approx(0.01, rel=0.02)


def test_ridge_tends_to_zero_as_its_penalty_grows() -> None:
    features, targets = problem()
    fit = linear.fit_ridge(features, targets, 1e12)
    close(fit.coefficients, features.T @ targets / 1e12, rtol=1e-9, atol=0)


def test_a_free_intercept_equals_centering() -> None:
    x, targets = problem(dim=4, intercept=False)
    free = linear.fit_ridge(basis.affine(x), targets, tensor([0.0] + [3.0] * 4))
    centered = linear.fit_ridge(x - x.mean(dim=0), targets - targets.mean(), 3.0)
    close(free.coefficients[1:], centered.coefficients)
    close(free.coefficients[0], targets.mean() - x.mean(dim=0) @ centered.coefficients)


def test_a_penalty_may_be_a_number_a_scalar_tensor_or_one_a_coefficient() -> None:
    features, targets = problem()
    fits = [linear.fit_ridge(features, targets, p) for p in (2.0, tensor(2.0), tensor([2.0] * 4))]
    assert torch.equal(fits[0].coefficients, fits[1].coefficients)
    assert torch.equal(fits[0].coefficients, fits[2].coefficients)


def test_a_penalty_makes_dependent_columns_share_the_coefficient() -> None:
    features, targets = problem()
    twice = torch.cat([features, features[:, 1:2]], dim=1)
    coefficients = linear.fit_ridge(twice, targets, 1e-3).coefficients
    close(coefficients[1], coefficients[4], rtol=1e-8)


# --- Hard cases: an error or a warning, never a silently wrong answer ---------------------------


def columns(*chosen: Tensor) -> Tensor:
    return torch.stack(chosen, dim=1)


A, B, C, D = problem(dim=4, intercept=False)[0].T
E = torch.ones_like(A)


@pytest.mark.parametrize(
    ("features", "named"),
    [
        (columns(E, A, B, A), "[1, 3]"),
        (columns(A, B, 1e-6 * A, C), "[0, 2]"),
        (columns(E, A, B, A + 1e5 * B, C), "[1, 2, 3]"),
        (columns(E, A, 7 * E), "[0, 2]"),
        (columns(E, A, B, C, D)[:3], "[0, 1, 2, 3, 4]"),
        (columns(E, A)[:1], "[0, 1]"),
    ],
    ids=["twice", "other unit", "sum", "two constants", "few points", "one point"],
)
@pytest.mark.parametrize("penalized", [False, True])
def test_dependent_columns_are_refused_by_name(
    features: Tensor, named: str, penalized: bool, kind_error: Any
) -> None:
    """A penalty on one of five independent directions, or on none, does not help."""
    targets = torch.arange(float(len(features)), dtype=torch.float64)
    if penalized:
        features = columns(*features.T, 2 + torch.cos(targets))
    penalty = torch.zeros(features.shape[1])
    penalty[-1] = float(penalized)
    with kind_error(ValueError, f"columns {named} depend", f"points: {len(features)}", "fit_ridge"):
        linear.fit_ridge(features, targets, penalty)


def test_a_column_of_zeros_is_refused_by_name(kind_error: Any) -> None:
    with kind_error(ValueError, "columns of zeros", "[0, 2]"):
        linear.fit_ols(columns(0 * A, A, 0 * A), B)


def test_nearly_dependent_columns_warn_and_promise_no_more_digits_than_there_are() -> None:
    """Whole numbers make an exact problem: condition number near 1e13, coefficients 1 and 2."""
    x, z = torch.randint(-8, 9, (2, 20), generator=torch.Generator().manual_seed(0)).double()
    features = columns(x, x + 2.0**-43 * z)
    targets = features @ tensor([1.0, 2.0])
    with pytest.warns(UserWarning, match=r"nearly collinear .*condition number \de\+1[23]") as seen:
        fit = linear.fit_ols(features, targets)
    promised = int(str(seen[0].message).split("about ")[1].split()[0])
    assert promised >= 1
    assert digits(fit.coefficients, ["1", "2"]) >= promised


@pytest.mark.parametrize(("gap", "warns"), [(2.0**-37, False), (2.0**-42, True)])
def test_the_warning_starts_where_four_digits_are_left(gap: float, warns: bool) -> None:
    features = columns(A, A + gap * B)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        linear.fit_ols(features, C)
    assert bool(seen) == warns


@pytest.mark.parametrize("num_points", [1, 4])
def test_a_fit_through_every_point_has_no_noise_estimate(num_points: int) -> None:
    """Not zero, and not infinity: it is not known."""
    features, targets = problem(num_points, num_points, intercept=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the targets do not vary")  # as one alone cannot
        with pytest.warns(UserWarning, match="no degree of freedom"):
            fit = linear.fit_ols(features, targets)
    close(features @ fit.coefficients, targets)
    assert fit.residual_scale.isnan()
    assert fit.standard_errors.isnan().all()


def test_one_degree_of_freedom_is_enough() -> None:
    features, targets = problem(5, 3)
    residuals = targets - features @ torch.linalg.lstsq(features, targets[:, None]).solution[:, 0]
    close(linear.fit_ols(features, targets).residual_scale, torch.linalg.vector_norm(residuals))


@pytest.mark.parametrize("constant", [0.1, -7.7, 1e8 / 3])
@pytest.mark.parametrize("num_points", [5, 1000, 99_999])
def test_constant_targets_have_no_r_squared(constant: float, num_points: int) -> None:
    """However the mean of equal numbers rounds."""
    features = basis.affine(torch.linspace(0, 1, num_points, dtype=torch.float64)[:, None])
    with pytest.warns(UserWarning, match="targets do not vary"):
        fit = linear.fit_ols(features, torch.full((num_points,), constant, dtype=torch.float64))
    assert fit.r_squared.isnan()
    close(fit.coefficients, tensor([constant, 0.0]), atol=1e-13 * abs(constant))


def test_targets_of_zero_have_no_r_squared_without_an_intercept_either() -> None:
    with pytest.warns(UserWarning, match="targets do not vary"):
        assert linear.fit_ols(columns(A, B), 0 * A).r_squared.isnan()


def test_constant_targets_vary_about_zero_without_an_intercept() -> None:
    ones = torch.ones_like(A)
    share = (A @ ones) ** 2 / (A @ A) / len(A)
    close(linear.fit_ols(columns(A), ones).r_squared, share, rtol=1e-9)


def test_a_column_of_zeros_under_a_penalty_is_no_intercept() -> None:
    ones = torch.ones_like(A)
    share = linear.fit_ridge(columns(A), ones, 1.0).r_squared
    close(linear.fit_ridge(columns(A, 0 * A), ones, 1.0).r_squared, share)


def test_r_squared_survives_targets_far_from_zero() -> None:
    """A mean of 1e9 leaves seven digits of a variation of one, not a NaN."""
    features, targets = problem()
    far = linear.fit_ols(features, targets + 1e9).r_squared
    close(far, linear.fit_ols(features, targets).r_squared, rtol=1e-6)


def test_warnings_point_at_the_caller_s_line() -> None:
    """Seen from a fresh process, without the frames that the shape checks add."""
    program = """
import torch, warnings
from coursepkg.linear import fit_ols, fit_ridge
one = torch.ones(2, 1, dtype=torch.float64)
x = torch.cat([one, one + 1e-13 * torch.tensor([[0.0], [1.0]], dtype=torch.float64)], dim=1)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    fit_ols(x, one[:, 0])
    fit_ridge(x, one[:, 0], 0.0)
print(*[warning.lineno for warning in seen], *{warning.filename for warning in seen})
"""
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["8", "8", "8", "9", "9", "9", "<string>"]


F2, T2 = torch.ones(2, 1), torch.tensor([0.0, 1.0])
FIT = linear.LinearFit(T2, T2, T2[0], T2[0])


@pytest.mark.parametrize(
    "fit",
    [
        linear.fit_ols,
        lambda features, targets: FIT.rmse(features, targets),
        lambda features, targets: linear.fit_ridge(features, targets, 1.0),
        lambda features, targets: linear.fit_gradient(features, targets, sgd(0.1), 1),
    ],
    ids=["ols", "rmse", "ridge", "gradient"],
)
@pytest.mark.parametrize(
    ("features", "targets", "error", "words"),
    [
        ([[1.0]], T2, TypeError, ("features must be", "list")),
        (F2, [1.0], TypeError, ("targets must be", "list")),
        (F2.int(), T2, TypeError, ("features", "floating-point", "torch.int32")),
        (T2, T2, ValueError, ("features must have 2 dimensions", "(2,)")),
        (F2, T2[:, None], ValueError, ("targets must have 1 dimension", "(2, 1)", "squeeze(1)")),
        (F2, T2[:1], ValueError, ("features and targets", "as many rows", "2 and 1")),
        (F2[:, :0], T2, ValueError, ("features must not be empty", "(2, 0)")),
        (F2[:0], T2[:0], ValueError, ("features must not be empty", "(0, 1)")),
        (F2 * NAN, T2, ValueError, ("features must be finite", "2 NaN or infinite values")),
        (F2, T2 + INF, ValueError, ("targets must be finite", "2 NaN or infinite values")),
        (F2.double() * 1e200, T2, ValueError, ("features", "1e+200", "change their unit")),
    ],
)
def test_bad_data_are_named(
    fit: Callable[[Any, Any], Any],
    features: Any,
    targets: Any,
    error: type[Exception],
    words: tuple[str, ...],
    kind_error: Any,
) -> None:
    with kind_error(error, *words):
        fit(features, targets)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: linear.fit_ridge(F2, T2, "1"), TypeError, ("penalty", "real number", "'1'")),
        (lambda: linear.fit_ridge(F2, T2, F2[0].int()), TypeError, ("penalty", "torch.int32")),
        (lambda: linear.fit_ridge(F2, T2, -1.0), ValueError, ("penalty", "negative", "-1.0")),
        (
            lambda: linear.fit_ridge(basis.affine(F2), T2, torch.tensor([2.0, -0.5])),
            ValueError,
            ("penalty must not be negative", "-0.5"),
        ),
        (lambda: linear.fit_ridge(F2, T2, NAN), ValueError, ("penalty must be finite", "nan")),
        (lambda: linear.fit_ridge(F2, T2, T2 / 0), ValueError, ("penalty must be finite",)),
        (lambda: linear.fit_ridge(F2, T2, T2), ValueError, ("penalty", "one per feature (1)", "2")),
        (lambda: linear.fit_ridge(F2, T2, F2), ValueError, ("penalty", "1 dimension", "(2, 1)")),
        (lambda: FIT.predict([1.0]), TypeError, ("features must be", "list")),
        (lambda: FIT.predict(F2), ValueError, ("features", "2 columns", "(2, 1)")),
        (lambda: FIT.predict(F2[0]), ValueError, ("features", "2 dimensions", "(1,)")),
        (lambda: FIT.predict(F2[:0]), ValueError, ("features must not be empty",)),
        (lambda: FIT.predict(F2 * NAN), ValueError, ("features must be finite",)),
        (lambda: FIT.rmse(F2, T2), ValueError, ("features", "2 columns", "(2, 1)")),
        (
            lambda: linear.fit_gradient(F2, T2, sgd(0.1), 1.0),
            TypeError,
            ("num_steps", "whole number", "1.0"),
        ),
        (
            lambda: linear.fit_gradient(F2, T2, lambda parameters: None, 1),
            TypeError,
            ("make_optimizer must return", "NoneType"),
        ),
        (
            lambda: linear.fit_gradient(F2, T2, sgd(0.1), 0),
            ValueError,
            ("num_steps", "at least 1", "0"),
        ),
    ],
)
def test_bad_arguments_are_named(
    call: Callable[[], Any], error: type[Exception], words: tuple[str, ...], kind_error: Any
) -> None:
    with kind_error(error, *words):
        call()


# --- By gradient descent ------------------------------------------------------------------------


def sgd(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def descend(
    features: Tensor, targets: Tensor, kind: type[torch.optim.Optimizer], **options: Any
) -> Tensor:
    return linear.fit_gradient(
        features, targets, lambda parameters: kind(parameters, **options), 2000, progress=False
    ).coefficients


def test_gradient_descent_reaches_ordinary_least_squares() -> None:
    features, targets = problem()
    close(
        descend(features, targets, torch.optim.SGD, lr=0.01),
        linear.fit_ols(features, targets).coefficients,
    )


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_weight_decay_is_ridge_with_half_of_it(kind: type[torch.optim.Optimizer]) -> None:
    """The intercept is penalized too; neither the whole of it nor a free intercept fits."""
    features, targets = problem()
    coefficients = descend(features, targets, kind, lr=0.01, weight_decay=8.0)
    close(coefficients, linear.fit_ridge(features, targets, 4.0).coefficients, rtol=1e-8)
    for wrong in (8.0, tensor([0.0, 4.0, 4.0, 4.0])):
        distance = (coefficients - linear.fit_ridge(features, targets, wrong).coefficients).abs()
        assert distance.max() > 0.1


def test_adamw_s_weight_decay_is_no_ridge() -> None:
    """Below one over the largest coefficient it leaves least squares where it is.

    It gets there as slowly as its memory of squared gradients fades, hence the shorter one.
    """
    features, targets = problem()
    ols = linear.fit_ols(features, targets).coefficients
    ridge = linear.fit_ridge(features, targets, 0.1).coefficients
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.2, "betas": (0.9, 0.95)}
    adamw = descend(features, targets, torch.optim.AdamW, **options)
    assert (adamw - ols).abs().max() < 2e-3
    assert (adamw - ridge).abs().max() > 0.015


def test_the_history_holds_the_loss_before_each_step() -> None:
    features, targets = problem()
    fit = linear.fit_gradient(features, targets, sgd(1e-3), 50)
    step = 2e-3 * features.T @ targets
    close(fit.losses[0], (targets**2).sum())
    close(fit.losses[1], ((targets - features @ step) ** 2).sum())
    assert fit.losses.shape == (50,)
    assert (fit.losses.diff() < 0).all()
    assert not fit.coefficients.requires_grad
    assert not fit.losses.requires_grad


def test_one_step_from_zero_is_the_gradient_there() -> None:
    features, targets = problem()
    fit = linear.fit_gradient(features.float(), targets.float(), sgd(0.5), 1)
    close(fit.coefficients, features.float().double().T @ targets.float().double())


@pytest.mark.parametrize(("lr", "steps"), [(1.0, 500), (1.0, 150), (1e308, 1)])
def test_a_fit_that_diverges_is_an_error(lr: float, steps: int, kind_error: Any) -> None:
    """Also where the very last step is the one too far."""
    with kind_error(RuntimeError, "diverged", "learning rate"):
        linear.fit_gradient(*problem(), sgd(lr), steps)


def test_a_fit_that_diverges_stops_at_the_next_hundred_steps(kind_error: Any) -> None:
    with kind_error(RuntimeError, "diverged: step 300"):
        linear.fit_gradient(*problem(), sgd(0.1), 2000)


@pytest.mark.parametrize("progress", [True, False])
def test_the_progress_bar_can_be_switched_off(
    progress: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bool] = []

    def bar(steps: range, *_: Any, **options: Any) -> range:
        shown.append(not options.get("disable", False))
        return steps

    monkeypatch.setattr(linear, "tqdm", bar)
    linear.fit_gradient(*problem(), sgd(1e-3), 1, progress=progress)
    assert any(shown) == progress


# --- Statistics: what the estimates mean over repeated noise ------------------------------------

NOISE_SCALE, NUM_FITS = 0.5, 1000


class Repeats(NamedTuple):
    """Many fits of one truth, each to fresh noise."""

    features: Tensor
    truth: Tensor
    coefficients: Tensor
    standard_errors: Tensor
    residual_variance: Tensor

    @property
    def degrees(self) -> int:
        return self.features.shape[0] - self.features.shape[1]


@pytest.fixture(scope="module")
def repeats() -> Repeats:
    generator = torch.Generator().manual_seed(1)
    features, truth = problem(8, 2)[0], tensor([1.0, -2.0, 0.5])
    noise = torch.randn(NUM_FITS, 8, generator=generator, dtype=torch.float64)
    fits = [linear.fit_ols(features, features @ truth + NOISE_SCALE * row) for row in noise]
    coefficients = torch.stack([fit.coefficients for fit in fits])
    errors = torch.stack([fit.standard_errors for fit in fits])
    variance = torch.stack([fit.residual_scale for fit in fits]) ** 2
    return Repeats(features, truth, coefficients, errors, variance)


def z_score(samples: Tensor, expected: float | Tensor) -> float:
    """How many Monte Carlo standard errors the samples' mean lies from what is expected."""
    standard_error = samples.std(dim=0) / math.sqrt(len(samples))
    return float(((samples.mean(dim=0) - expected) / standard_error).abs().max())


def test_coefficients_are_unbiased(repeats: Repeats) -> None:
    assert z_score(repeats.coefficients, repeats.truth) < 4
    shrunk = 0.9 * repeats.coefficients
    assert z_score(shrunk, repeats.truth) > 4


def test_residual_variance_is_unbiased_and_dividing_by_all_points_is_not(repeats: Repeats) -> None:
    assert z_score(repeats.residual_variance, NOISE_SCALE**2) < 4
    by_all_points = repeats.residual_variance * repeats.degrees / len(repeats.features)
    assert z_score(by_all_points, NOISE_SCALE**2) > 4


def test_standard_errors_measure_the_spread_of_the_coefficients(repeats: Repeats) -> None:
    """Squared error of each fit less its claimed variance: zero on average."""
    squared_errors = (repeats.coefficients - repeats.truth) ** 2
    claimed = repeats.standard_errors**2
    assert z_score(squared_errors - claimed, 0.0) < 4
    without_noise = claimed / repeats.residual_variance[:, None]
    assert z_score(squared_errors - without_noise, 0.0) > 4
    by_all_points = claimed * repeats.degrees / len(repeats.features)
    assert z_score(squared_errors - by_all_points, 0.0) > 4


def test_t_intervals_cover_and_normal_ones_are_too_narrow(repeats: Repeats) -> None:
    distance = (repeats.coefficients - repeats.truth).abs() / repeats.standard_errors
    student, normal = scipy.stats.t(repeats.degrees).ppf(0.975), scipy.stats.norm().ppf(0.975)
    assert z_score((distance < student).double(), 0.95) < 4
    assert z_score((distance < normal).double(), 0.95) > 4
