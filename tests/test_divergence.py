"""Kullback-Leibler divergences: 30-digit integrals, scipy, properties, and what estimates claim.

Statistical tests allow 4.5 standard errors, their seeds are fixed, and each also meets a wrong
estimate that it must reject.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import pytest
import scipy.integrate
import scipy.stats
import torch
import torch.distributions as td
from bad_input import bad_input
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coursepkg import divergence as dv

NAN, INF = math.nan, math.inf
exact = settings(deadline=None, derandomize=True, max_examples=50)
locations = st.integers(-50, 50).map(lambda n: n / 10)
scales = st.integers(1, 100).map(lambda n: n / 10)
seeds = st.integers(0, 10_000)
ESTIMATORS = ("plain", "control_variate")


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(ours: Tensor, truth: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    truth = torch.as_tensor(truth, dtype=torch.float64)
    torch.testing.assert_close(ours, truth, rtol=rtol, atol=atol)


def normal(mean: Any, scale: Any) -> td.Normal:
    return td.Normal(tensor(mean), tensor(scale))


def mixture(means: Any, widths: Any) -> td.MixtureSameFamily:
    equal = torch.ones(len(means), dtype=torch.float64)
    return td.MixtureSameFamily(td.Categorical(equal), normal(means, widths))


def factors(count: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Means and Cholesky factors that are nothing special."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(count, dim, dim, generator=generator, dtype=torch.float64)
    covariance = root @ root.mT + 0.1 * torch.eye(dim, dtype=torch.float64)
    mean = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return mean, torch.linalg.cholesky(covariance)


def z_score(estimate: dv.Estimate, truth: float | Tensor) -> float:
    """The largest distance from the truth, in the standard errors that the estimate claims."""
    return float(((estimate.value - truth) / estimate.standard_error).abs().max())


MIXTURE = mixture([0.0, 3.0], [0.4, 1.0])
Q, P = normal(1.0, 1.0), normal(0.0, 2.0)  # KL(Q, P) is 0.443, KL(P, Q) is 1.307

# --- Against truth -------------------------------------------------------------------------------


def pairs(truth: Callable[[str], Any]) -> list[tuple[td.Distribution, td.Distribution, float]]:
    """The file's pairs of one dimension: it has KL(p, q), with p first."""
    return [
        (
            getattr(td, case["p"])(*map(tensor, case["p_args"])),
            getattr(td, case["q"])(*map(tensor, case["q_args"])),
            float(case["kl"]),
        )
        for case in truth("kl")["scalar"]
    ]


def test_closed_forms_equal_30_digit_integrals(truth: Callable[[str], Any]) -> None:
    for first, second, value in pairs(truth):
        found = dv.kl(first, second)
        close(found.value, value)
        assert found.standard_error == 0
        if value > 0:
            assert abs(float(dv.kl(second, first).value) - value) > 0.01  # exchanged


def test_estimates_agree_with_30_digit_integrals(
    truth: Callable[[str], Any], generator: torch.Generator
) -> None:
    for first, second, value in pairs(truth):
        found = dv.kl_monte_carlo(first, second, 20_000, generator=generator)
        if value == 0:
            assert (found.value, found.standard_error) == (0, 0)
            continue
        assert z_score(found, value) < 4.5
        assert found.standard_error < 0.05 * (1 + value)
        if not isinstance(first, td.Uniform):  # the normal is infinitely far from the uniform
            assert z_score(dv.kl_monte_carlo(second, first, generator=generator), value) > 9


def test_multivariate_normals_equal_30_digit_algebra(truth: Callable[[str], Any]) -> None:
    for case in truth("kl")["multivariate_normal"]:
        mean, other_mean = tensor(case["p_mean"]), tensor(case["q_mean"])
        tril, other_tril = (torch.linalg.cholesky(tensor(case[k])) for k in ("p_cov", "q_cov"))
        close(dv.kl_mvn(mean, tril, other_mean, other_tril), float(case["kl_p_q"]))
        swapped = dv.kl_mvn(other_mean, other_tril, mean, tril)
        assert abs(float(swapped) - float(case["kl_p_q"])) > 0.1
        field = case["mean_field_of_p"]
        reverse = tensor(field["reverse_kl_variances"]).sqrt().diag()
        forward = tensor(field["forward_kl_variances"]).sqrt().diag()
        close(dv.kl_mvn(mean, reverse, mean, tril), field["min_reverse_kl"])
        close(dv.kl_mvn(mean, tril, mean, forward), field["min_forward_kl"])


def test_the_two_directions_of_two_gaussians() -> None:
    """In one example that is often copied these two stand for one another."""
    assert float(dv.kl_normal(1.0, 1.0, 0.0, 2.0)) == pytest.approx(0.443, abs=5e-4)
    assert float(dv.kl_normal(0.0, 2.0, 1.0, 1.0)) == pytest.approx(1.307, abs=5e-4)


def test_quadrature_is_exact_or_says_that_it_is_not(truth: Callable[[str], Any]) -> None:
    refused = []
    for first, second, value in pairs(truth):
        try:
            found = dv.kl_quadrature(first, second)
        except ValueError:
            refused.append(type(first).__name__)
            continue
        close(found, value, rtol=1e-10, atol=1e-10)
    assert "Normal" not in refused
    assert {"Uniform", "Exponential", "Laplace", "HalfNormal", "Beta"} <= set(refused)


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (normal(2.18, 1.465), MIXTURE),
        (MIXTURE, normal(1.5, 1.682)),
        (MIXTURE, mixture([-1.0, 0.5, 4.0], [1.0, 2.0, 0.7])),
        (normal(-1e4, 1e-3), normal(-1e4, 2e-3)),
    ],
)
def test_quadrature_equals_scipy(q: td.Distribution, p: td.Distribution) -> None:
    def density(x: float) -> float:
        log_q, log_p = q.log_prob(tensor(x)), p.log_prob(tensor(x))
        return float(log_q.exp() * (log_q - log_p))

    mean, scale = float(q.mean), float(q.stddev)
    edges = (mean - 12 * scale, mean + 12 * scale)
    truth, error = scipy.integrate.quad(
        density, *edges, epsabs=1e-12, epsrel=1e-12, limit=500, points=[mean - scale, mean]
    )
    assert error < 1e-10
    close(dv.kl_quadrature(q, p), truth, rtol=0, atol=1e-10)
    estimate = dv.kl_monte_carlo(q, p, 50_000, generator=torch.Generator().manual_seed(0))
    assert z_score(estimate, truth) < 4.5


def test_quadrature_over_a_batch_has_gradients() -> None:
    parameters = [tensor(v).requires_grad_() for v in ([0.5, 2.0], [1.0, 1.5], [0.0, 3.0])]

    def kl(q_mean: Tensor, q_scale: Tensor, p_means: Tensor) -> Tensor:
        parts = td.Normal(p_means, tensor([0.4, 1.0]))
        return dv.kl_quadrature(
            td.Normal(q_mean, q_scale),
            td.MixtureSameFamily(td.Categorical(torch.ones(2).double()), parts),
        )

    assert kl(*parameters).shape == (2,)
    assert torch.autograd.gradcheck(kl, parameters)
    apart = dv.kl_quadrature(normal(2.0, 1.5), MIXTURE)
    close(kl(*parameters)[1].detach(), apart)
    with pytest.raises(ValueError, match="must resolve"):  # a refusal, not a warning from torch
        dv.kl_quadrature(td.Normal(*parameters[:2]), MIXTURE, 51)


# --- Properties ----------------------------------------------------------------------------------


@exact
@given(locations, scales, locations, scales)
def test_kl_normal_is_torchs_and_not_negative(a: float, b: float, c: float, d: float) -> None:
    found = dv.kl_normal(a, b, c, d)
    close(found, td.kl_divergence(normal(a, b), normal(c, d)), atol=1e-13)
    assert found >= 0
    assert (found == 0) == ((a, b) == (c, d))
    assert dv.kl_normal(a, b, a, b) == 0


@exact
@given(scales, st.floats(-9, -1), st.sampled_from([-1, 1]))
def test_nearly_equal_scales_keep_their_digits(scale: float, power: float, sign: int) -> None:
    other = scale * (1 + sign * 10**power)
    with localcontext(prec=60):
        ratio = Decimal(scale) / Decimal(other)
        truth = float((ratio**2 - 1 - 2 * ratio.ln()) / 2)
    found = float(dv.kl_normal(0.0, scale, 0.0, other))
    assert found == pytest.approx(truth, rel=1e-15 * 10**-power)
    assert found > 0


@exact
@given(seeds, locations, scales)
def test_an_affine_map_of_both_changes_nothing(seed: int, shift: float, factor: float) -> None:
    (q_mean, p_mean), (q_tril, p_tril) = factors(2, 3, seed)
    before = dv.kl_mvn(q_mean, q_tril, p_mean, p_tril)
    matrix = factors(1, 3, seed + 1)[1][0] * factor
    after = dv.kl_mvn(
        matrix @ q_mean + shift, matrix @ q_tril, matrix @ p_mean + shift, matrix @ p_tril
    )
    close(after, before, rtol=1e-6, atol=1e-8)
    assert before > 0
    one = dv.kl_normal(factor * q_mean + shift, factor * 2, factor * p_mean + shift, factor)
    close(one, dv.kl_normal(q_mean, 2.0, p_mean, 1.0), rtol=1e-7)


@exact
@given(seeds)
def test_independent_parts_add_up(seed: int) -> None:
    (q_mean, p_mean), (q_tril, p_tril) = factors(2, 2, seed)
    (q_more, p_more), (q_wide, p_wide) = factors(2, 3, seed + 1)
    both = dv.kl_mvn(
        torch.cat([q_mean, q_more]),
        torch.block_diag(q_tril, q_wide),
        torch.cat([p_mean, p_more]),
        torch.block_diag(p_tril, p_wide),
    )
    parts = dv.kl_mvn(q_mean, q_tril, p_mean, p_tril) + dv.kl_mvn(q_more, q_wide, p_more, p_wide)
    close(both, parts)


@exact
@given(seeds, st.integers(1, 6))
def test_diagonal_factors_give_the_sum_over_dimensions(seed: int, dim: int) -> None:
    means, trils = factors(2, dim, seed)
    widths = trils.diagonal(dim1=1, dim2=2)
    full = dv.kl_mvn(means[0], widths[0].diag(), means[1], widths[1].diag())
    apart = dv.kl_normal(means[0], widths[0], means[1], widths[1])
    close(full, apart.sum())
    assert dim == 1 or abs(float(full - apart.mean())) > 1e-3  # a mean is not the sum


@exact
@given(seeds, st.integers(1, 6))
def test_kl_mvn_is_torchs_and_exactly_zero_for_equal_ones(seed: int, dim: int) -> None:
    means, trils = factors(2, dim, seed)
    q, p = (td.MultivariateNormal(m, scale_tril=t) for m, t in zip(means, trils, strict=True))
    found = dv.kl_mvn(means[0], trils[0], means[1], trils[1])
    close(found, td.kl_divergence(q, p), rtol=1e-8)
    assert dv.kl_mvn(means[0], trils[0], means[0], trils[0]) == 0
    near = dv.kl_mvn(means[0], trils[0] * (1 + 1e-9), means[0], trils[0])
    assert float(near) == pytest.approx(dim * 1e-18, rel=1e-5)  # torch's form has no digit left


def test_leading_dimensions_broadcast_and_dtypes_stay() -> None:
    means, trils = factors(6, 2, seed=0)
    q_mean, q_tril = means[:3, None].float(), trils[:3, None].float()
    p_mean, p_tril = means[3:].float(), trils[3:].float()
    table = dv.kl_mvn(q_mean, q_tril, p_mean, p_tril)
    assert table.shape == (3, 3)
    assert table.dtype == torch.float32
    apart = dv.kl_mvn(q_mean[2, 0], q_tril[2, 0], p_mean[1], p_tril[1])
    torch.testing.assert_close(table[2, 1], apart)
    grid = dv.kl_normal(torch.zeros(4, 1), 1.0, 0.0, torch.ones(3))
    assert grid.shape == (4, 3)
    assert grid.dtype == torch.float32
    assert dv.kl_normal(0.1, 1.0, 0.1, 2.0).dtype == torch.float64


def test_closed_forms_have_gradients() -> None:
    arguments = [tensor(v).requires_grad_() for v in ([0.3, -1.0], [0.5, 2.0], 0.2, 1.5)]
    assert torch.autograd.gradcheck(dv.kl_normal, arguments)
    (q_mean, p_mean), (q_tril, p_tril) = factors(2, 3, seed=0)
    lower = [t.detach().requires_grad_() for t in (q_mean, q_tril, p_mean, p_tril)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: dv.kl_mvn(a, b.tril(), c, d.tril()), lower)


# --- Any two distributions -----------------------------------------------------------------------


def test_a_mixture_is_estimated_and_the_rest_is_exact(generator: torch.Generator) -> None:
    q = normal(2.18, 1.465)
    found = dv.kl(q, MIXTURE, 50_000, generator=generator)
    assert z_score(found, dv.kl_quadrature(q, MIXTURE)) < 4.5
    assert 0 < found.standard_error < 0.01
    assert z_score(dv.kl(MIXTURE, q, 50_000, generator=generator), found.value) > 6  # exchanged
    blocks = [td.Independent(td.Normal(torch.zeros(3), s), 1) for s in (torch.ones(3), 2.0)]
    assert torch.equal(dv.kl(*blocks).standard_error, torch.tensor(0.0))


def test_a_wrong_sum_is_rejected(generator: torch.Generator) -> None:
    """Without its 1/N the estimate of 50 draws is 20.7 in an example that is often copied."""
    found, truth = dv.kl_monte_carlo(Q, P, 50, generator=generator), float(dv.kl(Q, P).value)
    assert z_score(found, truth) < 4.5
    for wrong in (50 * found.value, found.value / 2 - 0.5, -found.value):
        assert z_score(found._replace(value=wrong), truth) > 4.5


def test_batches_broadcast_and_are_not_mistaken_for_draws(generator: torch.Generator) -> None:
    wide = normal([1.0, 2.0, 30.0], [1.0, 1.0, 1.0])
    many = mixture([0.0, 3.0], [0.4, 1.0])
    for q, p in ((many, wide), (wide, many), (many, wide.expand([2, 3]))):
        found = dv.kl(q, p, 3000, generator=generator)
        shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
        assert found.value.shape == found.standard_error.shape == shape
        each = dv.kl_quadrature(q, p, 8001)
        assert z_score(found, each) < 4.5
    few = dv.kl_monte_carlo(Q, wide, 3, generator=generator)  # as many draws as distributions
    assert few.value.shape == (3,)
    assert few.value[2] > 300
    assert few.value[:2].max() < 10


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (normal(0.0, 1.0), td.Uniform(tensor(0.0), tensor(1.0))),
        (td.Uniform(tensor(0.0), tensor(2.0)), td.Uniform(tensor(0.0), tensor(1.0))),
        (MIXTURE, td.Uniform(tensor(0.0), tensor(1.0))),
        (MIXTURE, td.Exponential(tensor(1.0))),
        (MIXTURE, td.LogNormal(tensor(0.0), tensor(1.0))),
    ],
)
def test_where_p_cannot_follow_it_is_infinite(q: td.Distribution, p: td.Distribution) -> None:
    for estimator in ("plain", "control_variate"):
        assert dv.kl_monte_carlo(q, p, 1000, estimator=estimator) == (INF, 0)
    assert dv.kl(q, p) == (INF, 0)
    assert td.Distribution._validate_args  # torch's own checks are on again


def test_components_may_have_different_supports(generator: torch.Generator) -> None:
    parts = td.Uniform(tensor([0.0, 5.0]), tensor([1.0, 6.0]))
    two = td.MixtureSameFamily(td.Categorical(torch.ones(2).double()), parts)
    inside, whole = td.Uniform(tensor(0.0), tensor(1.0)), td.Uniform(tensor(0.0), tensor(10.0))
    close(dv.kl(two, whole, generator=generator).value, math.log(5))
    close(dv.kl(inside, two, generator=generator).value, math.log(2))
    assert dv.kl(whole, two, generator=generator).value == INF


def test_a_formula_without_a_value_at_its_limit_is_estimated() -> None:
    zero, one = td.Poisson(tensor(0.0)), td.Poisson(tensor(1.0))
    assert td.kl_divergence(zero, one).isnan()
    assert dv.kl(zero, one) == (1, 0)


def test_draws_repeat_with_their_generator_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (
        dv.kl(Q, MIXTURE, 100, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)
    generator = torch.Generator().manual_seed(3)
    assert dv.kl(Q, MIXTURE, 100, generator=generator) == first
    assert dv.kl(Q, MIXTURE, 100, generator=generator) != first  # it has moved on


def test_draws_without_a_generator_follow_the_global_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = dv.kl(Q, MIXTURE, 100)
        assert dv.kl(Q, MIXTURE, 100) != first
        torch.manual_seed(0)
        assert dv.kl(Q, MIXTURE, 100) == first


def test_an_estimate_offers_no_gradient() -> None:
    mean = tensor(0.0).requires_grad_()
    assert dv.kl(td.Normal(mean, 1.0), P).value.requires_grad
    assert not dv.kl(td.Normal(mean, 1.0), MIXTURE, 100).value.requires_grad


# --- What the estimators claim --------------------------------------------------------------------


def repeated(
    q: td.Distribution, p: td.Distribution, count: int, estimator: Any, *, runs: int = 1000
) -> dv.Estimate:
    """Independent runs, as a batch."""
    generator = torch.Generator().manual_seed(1)
    return dv.kl_monte_carlo(q.expand([runs]), p, count, estimator=estimator, generator=generator)


def bias_in_errors(values: Tensor, truth: float) -> float:
    return float((values.mean() - truth) / (values.std() / len(values) ** 0.5))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_estimator_is_unbiased_and_knows_its_error(estimator: str) -> None:
    q, p = normal(0.0, 1.0), normal(0.3, 0.9)
    truth = float(dv.kl(q, p).value)
    found = repeated(q, p, 500, estimator)
    assert abs(bias_in_errors(found.value, truth)) < 4.5
    assert abs(bias_in_errors(found.value, float(dv.kl(p, q).value))) > 9  # exchanged
    covered = float(((found.value - truth).abs() < 2 * found.standard_error).double().mean())
    assert abs(covered - 0.954) < 4.5 * (0.954 * 0.046 / 1000) ** 0.5 + 0.01


def test_a_control_variate_helps_where_the_two_are_close() -> None:
    q, p = normal(0.0, 1.0), normal(0.05, 1.02)
    errors = {name: repeated(q, p, 500, name).value.std() for name in ESTIMATORS}
    assert errors["control_variate"] < errors["plain"] / 10
    assert (repeated(q, p, 500, "control_variate").value > 0).all()
    assert (repeated(q, p, 500, "plain").value < 0).any()


def test_equal_distributions_are_zero_by_every_estimator(generator: torch.Generator) -> None:
    for estimator in ESTIMATORS:
        assert dv.kl_monte_carlo(Q, Q, 100, estimator=estimator, generator=generator) == (0, 0)


def test_the_control_variate_is_biased_where_q_does_not_cover_p() -> None:
    q, p = td.Uniform(tensor(-1.0), tensor(1.0)), normal(0.0, 1.0)
    truth, outside = float(dv.kl(q, p).value), 2 * scipy.stats.norm.sf(1)
    found = repeated(q, p, 500, "control_variate").value
    assert abs(bias_in_errors(found, truth - outside)) < 4.5
    assert abs(bias_in_errors(found, truth)) > 100
    assert abs(bias_in_errors(repeated(q, p, 500, "plain").value, truth)) < 4.5


def test_where_the_ratio_has_no_variance_its_standard_error_misleads() -> None:
    """The plain estimator is fine there."""
    q, p, count = normal(0.0, 1.0), normal(0.0, 3.0), 1000
    truth = float(dv.kl(q, p).value)
    covered = {}
    for name in ESTIMATORS:
        found = repeated(q, p, count, name)
        covered[name] = float(
            ((found.value - truth).abs() < 2 * found.standard_error).double().mean()
        )
    assert covered["plain"] > 0.93
    assert covered["control_variate"] < 0.6


def test_the_variance_of_the_ratio_ends_at_twice_the_variance() -> None:
    """E[r^2] by quadrature over ever wider ranges: it settles below, and grows above."""

    def second_moment(p_scale: float, width: float) -> float:
        x = torch.linspace(-width, width, 100_001, dtype=torch.float64)
        log_q, log_p = normal(0.0, 1.0).log_prob(x), normal(0.0, p_scale).log_prob(x)
        return float(torch.trapezoid((2 * log_p - log_q).exp(), x))

    assert second_moment(1.35, 40) == pytest.approx(second_moment(1.35, 80), rel=1e-9)
    assert second_moment(1.45, 80) > 1e3 * second_moment(1.45, 40)


def test_an_honest_error_shrinks_by_ten_from_a_hundred_times_the_draws() -> None:
    q, p = normal(0.0, 1.0), normal(0.0, 3.0)
    ratio = {}
    for name in ESTIMATORS:
        few, many = (repeated(q, p, n, name, runs=50).standard_error for n in (200, 20_000))
        ratio[name] = float(many.median() / few.median())
    assert ratio["plain"] == pytest.approx(0.1, rel=0.1)
    assert ratio["control_variate"] > 0.3


# --- Bad input -----------------------------------------------------------------------------------

EYE, ZERO = torch.eye(2), torch.zeros(2)


test_bad_input_is_named = bad_input(
    [
        (lambda: dv.kl(3, P), TypeError, ("q must be", "int")),
        (lambda: dv.kl(Q, "p"), TypeError, ("p must be", "str")),
        (lambda: dv.kl(Q, td.Dirichlet(torch.ones(3))), ValueError, ("event shape", "(3,)")),
        (
            lambda: dv.kl(normal([0.0] * 2, 1.0), normal([0.0] * 3, 1.0)),
            ValueError,
            ("broadcast", "q (2,)", "p (3,)"),
        ),
        (lambda: dv.kl(Q, MIXTURE, 1), ValueError, ("num_samples", "at least 2", "1")),
        (lambda: dv.kl(Q, MIXTURE, 9.5), TypeError, ("num_samples", "9.5")),
        (lambda: dv.kl(Q, MIXTURE, generator=7), TypeError, ("generator", "int")),
        (
            lambda: dv.kl_monte_carlo(Q, P, estimator="k3"),
            ValueError,
            ("estimator", "'plain'", "'control_variate'", "'k3'"),
        ),
        (lambda: dv.kl_normal("0", 1.0, 0.0, 1.0), TypeError, ("q_mean", "str")),
        (lambda: dv.kl_normal(0.0, 0.0, 0.0, 1.0), ValueError, ("q_scale", "positive")),
        (lambda: dv.kl_normal(0.0, 1.0, 0.0, -EYE[0]), ValueError, ("p_scale", "positive", "-1")),
        (lambda: dv.kl_normal(0.0, 1.0, NAN, 1.0), ValueError, ("p_mean", "finite")),
        (
            lambda: dv.kl_normal(torch.zeros(2), 1.0, torch.zeros(3), 1.0),
            ValueError,
            ("broadcast", "q_mean (2,)", "p_mean (3,)"),
        ),
        (lambda: dv.kl_mvn([0.0], EYE, ZERO, EYE), TypeError, ("q_mean", "list")),
        (lambda: dv.kl_mvn(torch.tensor(0.0), EYE, ZERO, EYE), ValueError, ("q_mean", "()")),
        (lambda: dv.kl_mvn(ZERO, ZERO, ZERO, EYE), ValueError, ("q_scale_tril", "square")),
        (
            lambda: dv.kl_mvn(ZERO, EYE, ZERO, torch.tensor([[2.0, 1.0], [1.0, 2.0]])),
            ValueError,
            ("p_scale_tril", "lower triangular", "cholesky"),
        ),
        (lambda: dv.kl_mvn(ZERO, -EYE, ZERO, EYE), ValueError, ("q_scale_tril", "positive")),
        (
            lambda: dv.kl_mvn(ZERO, EYE, torch.zeros(1), torch.eye(1)),
            ValueError,
            ("p_mean", "(1,)", "2"),
        ),
        (
            lambda: dv.kl_mvn(torch.zeros(3, 2), EYE, torch.zeros(2, 2), EYE),
            ValueError,
            ("broadcast", "q_mean (3, 2)"),
        ),
        (lambda: dv.kl_quadrature(Q, P, 2), ValueError, ("num_points", "at least 3")),
        (lambda: dv.kl_quadrature(Q, P, 20), ValueError, ("num_points", "got 20")),
        (
            lambda: dv.kl_quadrature(td.Cauchy(0.0, 1.0), P),
            ValueError,
            ("q must have a finite mean",),
        ),
        (
            lambda: dv.kl_quadrature(td.Dirichlet(ZERO + 1), td.Dirichlet(ZERO + 1)),
            ValueError,
            ("one dimension", "(2,)"),
        ),
    ]
)
