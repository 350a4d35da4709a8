"""Calibration: scipy, exact counts, loops, and predictions that are known to be right or wrong.

Statistical tests allow 4.5 standard errors, their seeds are fixed, and each also meets a wrong
prediction that it must reject.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from bad_input import bad_input
from close import close, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Beta, Normal

from coursepkg import calibration as ca
from coursepkg import uncertainty

DTYPES = (torch.float32, torch.float64)
exact = settings(deadline=None, derandomize=True, max_examples=50)


# --- Intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("probability", [0.5, 0.8, 0.95])
def test_central_intervals_have_equal_tails(dtype: torch.dtype, probability: float) -> None:
    mean = torch.tensor([[0.0, 3.0, -1.0], [2.0, 3.5, 40.0]], dtype=dtype)
    q = Normal(mean, mean.exp().clamp(max=9))
    outside = (1 - probability) / 2
    for prediction in (Normal(mean, 1.3), uncertainty.mixture(q)):
        lower, upper = ca.central_interval(prediction, probability)
        assert lower.dtype == dtype
        below = torch.full_like(lower, outside)
        torch.testing.assert_close(prediction.cdf(lower), below, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(prediction.cdf(upper), 1 - below, rtol=1e-5, atol=1e-6)


def test_central_intervals_of_a_mixture_are_exact_and_are_found_far_from_its_mean() -> None:
    """One draw of a hundred is far away and wide: the upper end is its center."""
    mean, scale = torch.zeros(100, 1).double(), torch.ones(100, 1).double()
    mean[0], scale[0] = 1e4, 1e3
    prediction = uncertainty.mixture(Normal(mean, scale))
    lower, upper = ca.central_interval(prediction, 0.99)
    close(prediction.cdf(lower), [0.005], rtol=1e-12)
    close(upper, [1e4], rtol=1e-9)  # half of the far draw's hundredth


def test_central_intervals_of_draws_are_their_quantiles(generator: torch.Generator) -> None:
    draws = torch.randn(50, 2, 3, generator=generator, dtype=torch.float64)
    lower, upper = ca.central_interval(draws, 0.9)
    close(lower, np.quantile(draws.numpy(), 0.05, axis=0))
    close(upper, np.quantile(draws.numpy(), 0.95, axis=0))


def covers(scale: float, generator: torch.Generator) -> bool:
    """Whether 90 % intervals of this width hold 90 % of standard normal targets."""
    y = torch.randn(3, 20_000, generator=generator, dtype=torch.float64)
    share = ca.coverage(*ca.central_interval(Normal(torch.zeros_like(y), scale), 0.9), y)
    return bool(((share.value - 0.9).abs() < 4.5 * share.standard_error).all())


def test_right_intervals_cover_what_they_claim_and_wrong_ones_do_not(
    generator: torch.Generator,
) -> None:
    """Of noise 1 and weights of the same sd: noise alone, both in one, the sum of both sds."""
    assert covers(1.0, generator)
    assert not covers(0.5**0.5, generator)
    assert not covers(2**0.5, generator)


@pytest.mark.parametrize("dtype", DTYPES)
def test_coverage_counts_and_an_end_is_inside(dtype: torch.dtype) -> None:
    y = torch.tensor([[0.0, 1.0, 2.0, 3.0], [-1.0, 0.5, 0.5, 9.0]], dtype=dtype)
    share = ca.coverage(torch.zeros_like(y), torch.full_like(y, 2), y)
    torch.testing.assert_close(share.value, torch.tensor([0.75, 0.5], dtype=dtype))


def honest_error(interval: Callable[[Tensor, int], Tensor], probability: float, n: int) -> float:
    """How often two standard errors reach the truth, by the binomial distribution."""
    counts = torch.arange(n + 1).double()
    reach = (counts / n - probability).abs() <= 2 * interval(counts, n)
    return float(scipy.stats.binom.pmf(counts, n, probability) @ reach.numpy())


def our_error(counts: Tensor, n: int) -> Tensor:
    y = (torch.arange(n) >= counts[:, None]).double()
    return ca.coverage(torch.zeros_like(y), y * 0 + 0.5, y).standard_error


def plain_error(counts: Tensor, n: int) -> Tensor:
    return (counts / n * (1 - counts / n) / n).sqrt()


@pytest.mark.parametrize("n", [20, 50, 92])
def test_two_standard_errors_of_a_share_reach_the_truth(n: int) -> None:
    """Also near 1, where the plain error is zero as soon as all are inside."""
    for probability in (0.5, 0.8, 0.95, 0.99):
        assert honest_error(our_error, probability, n) > 0.92
    assert honest_error(plain_error, 0.99, n) < 0.7


# --- Where targets fall --------------------------------------------------------------------------


def test_the_integral_transform_is_the_distribution_function() -> None:
    y = tensor([-1.0, 0.5, 3.0])
    q = Normal(tensor([[0.0, 1.0, 2.0]] * 2), tensor([[1.0], [3.0]]))
    close(
        ca.pit_values(uncertainty.mixture(q), y),
        scipy.stats.norm.cdf(y, q.mean, q.stddev).mean(0),
    )


def test_a_target_like_the_draws_takes_each_rank_equally_often() -> None:
    """Each of four numbers in turn is the target, the other three are the draws."""
    values = tensor([0.3, -2.0, 5.0, 1.0])
    places = [ca.pit_values(values[torch.arange(4) != i, None], values[i, None]) for i in range(4)]
    close(torch.cat(places).sort().values, [1 / 8, 3 / 8, 5 / 8, 7 / 8])
    ties = ca.pit_values(torch.zeros(3, 1), torch.zeros(1))
    assert float(ties) == 0.5


PREDICTIONS: dict[str, Callable[[Tensor, torch.Generator], Any]] = {
    "distribution": lambda scale, _: Normal(torch.zeros(4_000).double(), scale),
    "draws": lambda scale, generator: (
        scale * torch.randn(200, 4_000, generator=generator, dtype=torch.float64)
    ),
}


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize(("scale", "right"), [(1.0, True), (0.8, False), (1.25, False)])
def test_a_calibrated_prediction_follows_the_diagonal(
    kind: str, scale: float, right: bool, generator: torch.Generator
) -> None:
    prediction = PREDICTIONS[kind](tensor(scale), generator)
    y = torch.randn(4_000, generator=generator, dtype=torch.float64)
    places = ca.pit_values(prediction, y)
    p_value = scipy.stats.kstest(places.numpy(), "uniform").pvalue
    assert p_value > 1e-4 if right else p_value < 1e-8

    curve = ca.calibration_curve(prediction, y)
    close(curve.predicted, torch.arange(1, 10) / 10.0, rtol=1e-6)
    assert (curve.num_points == 4_000).all()
    z = (curve.observed - curve.predicted) / curve.standard_error
    assert bool(z.abs().max() < 4.5) == right
    outside = z[0] * z[-1]  # too narrow: too many below the first tenth and above the last
    assert right or bool((z[0] > 4.5) == (scale < 1))
    assert right or outside < 0


def test_a_curve_is_the_share_below_each_quantile() -> None:
    y = tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, -6.0, 7.0]])
    prediction = Normal(tensor([[0.5, 0.0, 2.5, 3.0]] * 2), 2.0)
    curve = ca.calibration_curve(prediction, y, num_levels=3)
    for k, level in enumerate((0.25, 0.5, 0.75)):
        below = y <= prediction.icdf(torch.full_like(y, level))
        close(curve.observed[:, k], below.double().mean(-1))


# --- Classes -------------------------------------------------------------------------------------


def predicted_classes(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(-1).to(dtype)


def bins_one_by_one(probabilities: Any, labels: Any, num_bins: int) -> tuple[list[Any], float]:
    """Mean confidence, share of right answers and count of each bin, and the ECE, by loops."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(num_bins)]
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        place = next(b for b in range(num_bins) if confidence <= (b + 1) / num_bins)
        bins[place].append((confidence, row.index(confidence) == label))
    rows, error = [], 0.0
    for members in bins:
        if members:
            confidence = sum(c for c, _ in members) / len(members)
            right = sum(r for _, r in members) / len(members)
            error += len(members) / len(labels) * abs(confidence - right)
            rows.append((confidence, right, len(members)))
        else:
            rows.append((math.nan, math.nan, 0))
    return rows, error


@exact
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 5))
def test_reliability_and_ece_are_those_of_plain_loops(seed: int, bins: int, classes: int) -> None:
    probabilities = predicted_classes(seed, 2, 30, classes)
    labels = torch.randint(classes, (2, 30), generator=torch.Generator().manual_seed(seed))
    curve = ca.reliability(probabilities, labels, num_bins=bins)
    error = ca.expected_calibration_error(curve)
    for i in range(2):
        rows, truth = bins_one_by_one(probabilities[i], labels[i], bins)
        ours = torch.stack([curve.predicted[i], curve.observed[i], curve.num_points[i]], dim=1)
        torch.testing.assert_close(ours, tensor(rows), equal_nan=True)
        close(error[i], truth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_confidence_at_an_edge_belongs_below(dtype: torch.dtype) -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.0, 1.0]], dtype=dtype)
    curve = ca.reliability(probabilities, torch.tensor([0, 0, 1], dtype=torch.int32), num_bins=4)
    assert curve.num_points.tolist() == [0, 1, 1, 1]
    assert all(part.dtype == dtype for part in curve)
    torch.testing.assert_close(curve.observed[1:], torch.tensor([1.0, 0.0, 1.0], dtype=dtype))


@pytest.mark.parametrize(("power", "right"), [(1.0, True), (1.5, False), (0.67, False)])
def test_labels_from_the_prediction_are_calibrated_and_others_are_not(
    power: float, right: bool, generator: torch.Generator
) -> None:
    """With the logits times 1.5 the network is too sure, with 0.67 not sure enough."""
    probabilities = predicted_classes(0, 20_000, 4)
    labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    told = (power * probabilities.log()).softmax(-1)
    curve = ca.reliability(told, labels)
    used = curve.num_points > 50
    z = ((curve.observed - curve.predicted) / curve.standard_error)[used]
    assert bool(z.abs().max() < 4.5) == right
    assert right or bool(z.sum() < 0) == (power > 1)
    assert bool(ca.expected_calibration_error(curve) < 0.02) == right


def test_the_ece_of_a_calibrated_prediction_is_not_zero_and_grows_with_the_bins(
    generator: torch.Generator,
) -> None:
    """What the docstring warns of: 1000 data sets of 50 points, each calibrated by construction."""
    probabilities = predicted_classes(1, 1000 * 50, 3)
    labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    data = probabilities.reshape(1000, 50, 3), labels.reshape(1000, 50)
    few, many = (ca.expected_calibration_error(ca.reliability(*data, bins)) for bins in (5, 20))
    assert few.mean() > 4.5 * few.std() / 1000**0.5
    assert (many - few).mean() > 4.5 * (many - few).std() / 1000**0.5


def test_the_ece_of_a_curve_of_numbers_is_its_mean_distance_from_the_diagonal() -> None:
    curve = ca.Curve(*tensor([[0.25, 0.5, 0.75], [0.0, 0.5, 1.0], [0.1, 0.1, 0.1], [9, 9, 9]]))
    close(ca.expected_calibration_error(curve), 0.5 / 3)


# --- Bad input -----------------------------------------------------------------------------------

V, HALF, LABEL = tensor([1.0, 2.0]), tensor([[0.5, 0.5]]), torch.tensor([1])
NORMAL = Normal(V, 1.0)
test_bad_input_is_named = bad_input(
    [
        (lambda: ca.central_interval(NORMAL, 95), ValueError, ("probability", "95")),
        (lambda: ca.central_interval([1.0]), TypeError, ("prediction", "list")),
        (lambda: ca.central_interval(V[0]), ValueError, ("prediction", "draws")),
        (lambda: ca.central_interval(Beta(V, V)), NotImplementedError, ()),
        (lambda: ca.coverage(V, V + 1, V[:1]), ValueError, ("lower (2,)", "y (1,)")),
        (lambda: ca.coverage(V, V - 1, V), ValueError, ("lower", "above upper")),
        (lambda: ca.coverage(V, V, V * math.nan), ValueError, ("y", "finite")),
        (
            lambda: ca.pit_values(NORMAL, V[:1]),
            ValueError,
            ("y", "(2,)", "(1,)"),
        ),
        (lambda: ca.calibration_curve("N", V), TypeError, ("prediction", "str")),
        (lambda: ca.calibration_curve(NORMAL, V, 0), ValueError, ("num_levels", "1")),
        (lambda: ca.reliability(HALF, LABEL, 0), ValueError, ("num_bins", "1")),
        (lambda: ca.reliability(HALF, V[:1]), TypeError, ("labels", "float64")),
        (lambda: ca.reliability(HALF, LABEL + 1), ValueError, ("labels", "from 0 to 1")),
        (lambda: ca.reliability(4 * HALF, LABEL), ValueError, ("probabil", "softmax")),
    ]
)
