"""Bayesian linear regression: against independent routes, stored truth, and repeated worlds."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from coursepkg import basis, data, linear
from coursepkg import bayes_linear as bl

NAN, INF = math.nan, math.inf
exact = settings(deadline=None, derandomize=True, max_examples=25)
seeds = st.integers(0, 10_000)
noise_scales = st.floats(0.05, 5)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(ours: Tensor, truth: Any, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(truth), rtol=rtol, atol=atol)


def normals(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def correlated(seed: int = 0, dim: int = 3) -> bl.GaussianWeights:
    """A prior with a mean and a covariance that are nothing special."""
    root = normals(dim, dim, seed=seed + 1)
    return bl.GaussianWeights(
        normals(dim, seed=seed), root @ root.T + 0.1 * torch.eye(dim, dtype=torch.float64)
    )


def problem(num_points: int = 8, dim: int = 3, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    return normals(num_points, dim, seed=seed + 2), 2 * normals(num_points, seed=seed + 3)


# --- A Gaussian over weights ---------------------------------------------------------------------


def test_a_gaussian_gives_back_its_mean_covariance_and_scales() -> None:
    covariance = tensor([[4.0, 1.0], [1.0, 9.0]])
    weights = bl.GaussianWeights(torch.tensor([1.0, 2.0]), covariance.float())
    assert weights.mean.tolist() == [1.0, 2.0]
    close(weights.covariance, covariance)
    close(weights.scale, tensor([2.0, 3.0]))
    assert weights.mean.dtype == weights.scale_tril.dtype == torch.float64
    assert torch.equal(weights.scale_tril, weights.scale_tril.tril())
    assert repr(weights).startswith("GaussianWeights(mean=[1.0, 2.0], scale=[2.0, ")


@exact
@given(seed=seeds, shape=st.lists(st.integers(1, 3), max_size=2))
def test_log_prob_equals_scipy_over_any_batch_shape(seed: int, shape: list[int]) -> None:
    weights = correlated(seed)
    at = normals(*shape, 3, seed=seed + 9)
    truth = scipy.stats.multivariate_normal(weights.mean, weights.covariance).logpdf(at)
    ours = weights.log_prob(at)
    assert ours.shape == tuple(shape)
    close(ours, tensor(truth).reshape(shape))


def test_draws_repeat_with_their_generator_and_leave_the_global_state_alone() -> None:
    weights, before = correlated(), torch.get_rng_state()
    first, again, other = (
        weights.sample(5, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert first.shape == (5, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_without_a_generator_follow_the_global_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = correlated().sample(2)
        assert not torch.equal(correlated().sample(2), first)
        torch.manual_seed(0)
        assert torch.equal(correlated().sample(2), first)


def test_draws_have_the_mean_and_covariance_and_a_transposed_factor_would_not(
    generator: torch.Generator,
) -> None:
    weights, count = correlated(), 20_000
    draws = weights.sample(count, generator=generator)
    wrong = (draws - weights.mean) @ torch.linalg.inv(weights.scale_tril.T) @ weights.scale_tril
    assert z_score(draws, weights.mean) < 4
    for sample, right in ((draws - weights.mean, True), (wrong, False)):
        products = (sample[:, :, None] * sample[:, None, :]).flatten(1)
        assert (z_score(products, weights.covariance.flatten()) < 4) == right


def test_the_usual_prior_is_independent_with_one_scale() -> None:
    prior = bl.normal_prior(3, tensor(0.5), device=torch.device("cpu"))
    assert prior.mean.tolist() == [0.0] * 3
    assert torch.equal(prior.covariance, 0.25 * torch.eye(3, dtype=torch.float64))


# --- Posterior and evidence by another route ------------------------------------------------------


@exact
@given(seed=seeds, num_points=st.integers(1, 12), noise_scale=noise_scales)
def test_posterior_equals_conditioning_the_joint_gaussian(
    seed: int, num_points: int, noise_scale: float
) -> None:
    """Through the covariance of the targets, which never solves for the weights."""
    prior, (features, targets) = correlated(seed), problem(num_points, seed=seed)
    ours = bl.posterior(features, targets, prior, noise_scale)
    cross = prior.covariance @ features.T
    marginal = features @ cross + noise_scale**2 * torch.eye(num_points, dtype=torch.float64)
    gain = torch.linalg.solve(marginal, cross.T).T
    close(ours.mean, prior.mean + gain @ (targets - features @ prior.mean), rtol=1e-7, atol=1e-8)
    close(ours.covariance, prior.covariance - gain @ cross.T, rtol=1e-7, atol=1e-8)
    assert torch.equal(ours.scale_tril, ours.scale_tril.tril())
    assert (ours.scale_tril.diag() > 0).all()


@exact
@given(seed=seeds, num_points=st.integers(1, 12), noise_scale=noise_scales)
def test_log_evidence_equals_the_marginal_density_of_the_targets(
    seed: int, num_points: int, noise_scale: float
) -> None:
    prior, (features, targets) = correlated(seed), problem(num_points, seed=seed)
    covariance = features @ prior.covariance @ features.T
    covariance = covariance + noise_scale**2 * torch.eye(num_points, dtype=torch.float64)
    marginal = MultivariateNormal(features @ prior.mean, covariance)
    close(bl.log_evidence(features, targets, prior, noise_scale), marginal.log_prob(targets))


@exact
@given(seed=seeds, noise_scale=noise_scales)
def test_bayes_rule_holds_at_every_weight_vector(seed: int, noise_scale: float) -> None:
    """log prior + log likelihood - log posterior is the log evidence, wherever it is taken."""
    prior, (features, targets) = correlated(seed), problem(seed=seed)
    weights = normals(4, 3, seed=seed + 9)
    noise = torch.distributions.Normal(weights @ features.T, noise_scale)
    joint = prior.log_prob(weights) + noise.log_prob(targets).sum(dim=1)
    after = bl.posterior(features, targets, prior, noise_scale).log_prob(weights)
    evidence = bl.log_evidence(features, targets, prior, noise_scale)
    close(joint - after, evidence.expand(4), rtol=1e-7)


@exact
@given(
    seed=seeds,
    order=st.permutations(range(7)),
    cuts=st.sets(st.integers(1, 6), max_size=6),
    noise_scale=noise_scales,
)
def test_updates_in_any_order_and_any_split_end_at_the_batch_posterior(
    seed: int, order: list[int], cuts: set[int], noise_scale: float
) -> None:
    """And their log evidences add up to that of all points."""
    prior, (features, targets) = correlated(seed), problem(7, seed=seed)
    belief, evidence = prior, tensor(0.0)
    edges = [0, *sorted(cuts), 7]
    for start, end in pairwise(edges):
        part = order[start:end]
        evidence = evidence + bl.log_evidence(features[part], targets[part], belief, noise_scale)
        belief = bl.posterior(features[part], targets[part], belief, noise_scale)
    batch = bl.posterior(features, targets, prior, noise_scale)
    close(belief.mean, batch.mean, rtol=1e-8, atol=1e-10)
    close(belief.covariance, batch.covariance, rtol=1e-8, atol=1e-10)
    close(evidence, bl.log_evidence(features, targets, prior, noise_scale), rtol=1e-8)


@exact
@given(seed=seeds, num_points=st.integers(1, 10), noise_scale=noise_scales)
def test_data_never_raise_a_variance_in_any_direction(
    seed: int, num_points: int, noise_scale: float
) -> None:
    prior, (features, targets) = correlated(seed), problem(num_points, seed=seed)
    after = bl.posterior(features, targets, prior, noise_scale)
    gained = torch.linalg.eigvalsh(prior.covariance - after.covariance)
    assert gained.min() > -1e-12 * prior.covariance.trace()
    assert gained.max() > 0


@exact
@given(seed=seeds, num_points=st.integers(2, 10), noise_scale=noise_scales)
def test_posterior_mean_is_ridge_with_the_ratio_of_noise_to_prior_variance(
    seed: int, num_points: int, noise_scale: float
) -> None:
    features, targets = problem(num_points, seed=seed)
    mean = bl.posterior(features, targets, bl.normal_prior(3, 2.0), noise_scale).mean
    ridge = linear.fit_ridge(features, targets, noise_scale**2 / 2.0**2)
    close(mean, ridge.coefficients)


def test_a_flat_prior_gives_least_squares_and_its_covariance() -> None:
    features, targets = problem(20)
    after = bl.posterior(features, targets, bl.normal_prior(3, 1e6), noise_scale=0.5)
    fit = linear.fit_ols(features, targets)
    close(after.mean, fit.coefficients)
    close(after.scale, 0.5 / fit.residual_scale * fit.standard_errors)


def test_where_the_data_are_silent_the_prior_speaks() -> None:
    """One point and a column of zeros: nothing is learned about the second weight."""
    prior = bl.GaussianWeights(tensor([1.0, -3.0]), tensor([[4.0, 0.0], [0.0, 9.0]]))
    after = bl.posterior(torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]), prior, noise_scale=2.0)
    close(after.mean, tensor([1.5, -3.0]))
    close(after.covariance, tensor([[2.0, 0.0], [0.0, 9.0]]))


def test_dependent_columns_share_the_weight_and_keep_their_difference_open() -> None:
    x, targets = problem(10, 1)
    after = bl.posterior(torch.cat([x, x], dim=1), targets, bl.normal_prior(2, 1.0), 0.1)
    difference = tensor([1.0, -1.0])
    close(after.mean[0], after.mean[1])
    close(difference @ after.covariance @ difference, tensor(2.0))


def test_units_from_1e_8_to_1e8_side_by_side_keep_their_digits() -> None:
    features, targets = problem(20)
    unit = tensor([1e8, 1e-8, 1.0])
    prior = bl.GaussianWeights(tensor([0.0, 0.0, 0.0]), torch.diag(unit**-2))
    scaled = bl.posterior(features * unit, targets, prior, 0.3)
    after = bl.posterior(features, targets, bl.normal_prior(3, 1.0), 0.3)
    close(scaled.mean * unit, after.mean, rtol=1e-12)
    close(scaled.scale * unit, after.scale, rtol=1e-12)


def test_a_tiny_noise_does_not_square_the_condition_number() -> None:
    """Exact data under noise of 1e-9: the normal equations would lose the small direction."""
    features = tensor([[1.0, 1.0], [1.0, 1.0 + 2.0**-20], [1.0, 1.0 - 2.0**-20]])
    prior = bl.normal_prior(2, 1e3)
    after = bl.posterior(features, features @ tensor([1.0, 2.0]), prior, noise_scale=1e-9)
    close(after.mean, tensor([1.0, 2.0]), rtol=1e-8)
    small = torch.linalg.eigvalsh(after.covariance)[-1].sqrt()
    close(small, tensor(1e-9 * 2.0**20), rtol=1e-5)


# --- The predictive -------------------------------------------------------------------------------


@exact
@given(seed=seeds, num_points=st.integers(1, 6), noise_scale=noise_scales)
def test_predictive_variance_is_noise_plus_weights(
    seed: int, num_points: int, noise_scale: float
) -> None:
    weights, (features, _) = correlated(seed), problem(num_points, seed=seed)
    at = bl.predictive(features, weights, noise_scale)
    close(at.mean, features @ weights.mean)
    close(at.noise_variance, torch.full_like(at.mean, noise_scale**2))
    close(at.weight_variance, (features @ weights.covariance @ features.T).diag())
    close(at.variance, at.noise_variance + at.weight_variance, rtol=1e-15)
    close(at.scale**2, at.variance, rtol=1e-14)


def test_chaining_predictives_gives_the_evidence() -> None:
    """The density of each point, given those before it, multiplies up to that of all."""
    belief, (features, targets) = correlated(), problem()
    total = tensor(0.0)
    for row, target in zip(features, targets, strict=True):
        at = bl.predictive(row[None], belief, noise_scale=0.7)
        total = total + torch.distributions.Normal(at.mean, at.scale).log_prob(target)[0]
        belief = bl.posterior(row[None], target[None], belief, noise_scale=0.7)
    close(total, bl.log_evidence(features, targets, correlated(), noise_scale=0.7))


# --- Truth from outside ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", [0, 1])
def test_sblri_posterior_and_evidence(case: int, truth: Any) -> None:
    stored = truth("sblri")
    features, targets, expected = tensor(stored["X"]), tensor(stored["y"]), stored["cases"][case]
    prior = bl.normal_prior(features.shape[1], expected["prior_sd"])
    arguments = features, targets, prior, expected["noise_sd"]
    after = bl.posterior(*arguments)
    close(after.mean, tensor(expected["posterior_mean"]), rtol=1e-9)
    close(after.covariance, tensor(expected["posterior_cov"]), rtol=1e-8, atol=1e-16)
    close(bl.log_evidence(*arguments), tensor(expected["log_evidence"]), rtol=1e-8)


def test_the_sine_sensor_s_line_has_the_posterior_that_a_lecture_prints(truth: Any) -> None:
    """To the eight printed digits."""
    expected = truth("sine_sensor")["line_posterior"]
    sensor = data.sine_sensor()
    after = bl.posterior(basis.polynomial(sensor.x, 1), sensor.y, bl.normal_prior(2, 1.0), 0.1)
    close(after.mean, tensor(expected["mean"]), rtol=0, atol=0.51e-8)
    close(after.scale, tensor(expected["scale"]), rtol=0, atol=0.51e-8)


def test_diabetes_posterior_predictive_and_evidence_at_scikit_learn_s_scales(truth: Any) -> None:
    study, expected = data.diabetes(), truth("diabetes")["bayesian_ridge"]
    noise_scale = expected["alpha_noise_precision"] ** -0.5
    prior = bl.normal_prior(10, expected["lambda_weight_precision"] ** -0.5)
    centered = study.y - study.y.mean()
    after = bl.posterior(study.x, centered, prior, noise_scale)
    close(after.mean, tensor(expected["coef"]), rtol=1e-7)
    close(after.scale, tensor(expected["coef_sd"]), rtol=1e-9)
    at = bl.predictive(study.x[:5], after, noise_scale)
    close(at.mean + study.y.mean(), tensor(expected["predict_first5_mean"]), rtol=1e-8)
    close(at.scale, tensor(expected["predict_first5_sd"]), rtol=1e-9)
    evidence = bl.log_evidence(study.x, centered, prior, noise_scale)
    close(evidence, tensor(expected["log_evidence_of_centred_y"]), rtol=1e-11)


def assert_agrees_with_scikit_learn(features: Tensor, targets: Tensor) -> None:
    from sklearn.linear_model import BayesianRidge

    model = BayesianRidge(
        fit_intercept=False,
        tol=1e-12,
        max_iter=10_000,
        **dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0),
    )
    theirs = model.fit(features.numpy(), targets.numpy())
    ours = bl.maximize_evidence(features, targets)
    close(ours.noise_scale, tensor(theirs.alpha_**-0.5), rtol=1e-6)
    close(ours.prior_scale, tensor(theirs.lambda_**-0.5), rtol=1e-6)
    close(ours.weights.mean, theirs.coef_, rtol=1e-5, atol=1e-7)
    close(ours.weights.covariance, theirs.sigma_, rtol=1e-5, atol=1e-7)


def test_diabetes_evidence_maximization_equals_scikit_learn(truth: Any) -> None:
    study, expected = data.diabetes(), truth("diabetes")["bayesian_ridge"]
    centered = study.y - study.y.mean()
    assert_agrees_with_scikit_learn(study.x, centered)
    fit = bl.maximize_evidence(study.x, centered)
    # The stored fit has a weak prior on the two scales, worth about six digits.
    close(fit.noise_scale, tensor(expected["alpha_noise_precision"] ** -0.5), rtol=1e-6)
    close(fit.prior_scale, tensor(expected["lambda_weight_precision"] ** -0.5), rtol=1e-6)
    close(fit.log_evidence, tensor(expected["log_evidence_of_centred_y"]), rtol=1e-10)


@pytest.mark.parametrize(("num_points", "dim"), [(30, 4), (200, 20), (12, 15)])
def test_evidence_maximization_equals_scikit_learn_on_random_problems(
    num_points: int, dim: int
) -> None:
    features, noise = problem(num_points, dim, seed=1)
    assert_agrees_with_scikit_learn(features, features @ normals(dim, seed=5) + noise)


# --- Maximum evidence -----------------------------------------------------------------------------


def scaled_problem(seed: int, num_points: int, powers: list[float]) -> tuple[Tensor, Tensor]:
    """Columns of different units, weights of scale one, noise of half the signal."""
    features, noise = problem(num_points, len(powers), seed=seed)
    signal = features @ normals(len(powers), seed=seed + 5)
    targets = signal + signal.square().mean().sqrt() * noise / 4
    return features * 10.0 ** tensor(powers), targets


@exact
@given(
    seed=seeds,
    num_points=st.integers(12, 30),
    powers=st.lists(st.floats(-3, 3), min_size=2, max_size=4),
)
def test_no_other_scales_have_more_evidence(
    seed: int, num_points: int, powers: list[float]
) -> None:
    """Far and near; and the gradient by autograd of the marginal density is zero."""
    features, targets = scaled_problem(seed, num_points, powers)
    try:
        fit = bl.maximize_evidence(features, targets)
    except ValueError as error:
        assert "prior scale vanishes" in str(error)  # noqa: PT017
        return
    values, vectors = torch.linalg.eigh(features @ features.T)

    def evidence(log_scales: Tensor) -> Tensor:
        """In the eigenvectors of the targets' covariance, where they are independent."""
        variances = (2 * log_scales).exp()
        variances = variances[..., :1] * values.clamp_min(0) + variances[..., 1:]
        return (
            torch.distributions.Normal(0.0, variances.sqrt()).log_prob(vectors.T @ targets).sum(-1)
        )

    best = torch.stack([fit.prior_scale, fit.noise_scale]).log().requires_grad_()
    close(fit.log_evidence, evidence(best), rtol=1e-8)
    (gradient,) = torch.autograd.grad(evidence(best), best)
    assert gradient.abs().max() < 1e-5
    steps = torch.cat([torch.linspace(-12, 12, 49), tensor([-0.01, 0.01])]).double()
    others = evidence(best.detach() + torch.cartesian_prod(steps, steps))
    assert others.max() < fit.log_evidence + 1e-8


def test_the_fit_holds_the_posterior_and_evidence_at_its_scales() -> None:
    features, targets = scaled_problem(0, 20, [0, 0, 0])
    fit = bl.maximize_evidence(features, targets)
    arguments = features, targets, bl.normal_prior(3, fit.prior_scale), fit.noise_scale
    close(fit.weights.mean, bl.posterior(*arguments).mean, rtol=1e-15)
    close(fit.weights.covariance, bl.posterior(*arguments).covariance, rtol=1e-15)
    close(fit.log_evidence, bl.log_evidence(*arguments), rtol=1e-12)


def fixed_point(features: Tensor, targets: Tensor, ratio: float) -> Tensor:
    """The usual updates of the precisions from one start; returns the evidence where they end."""
    identity = torch.eye(features.shape[1], dtype=torch.float64)
    prior_precision, noise_precision = tensor(ratio), tensor(1.0)
    for _ in range(300):
        precision = prior_precision * identity + noise_precision * features.T @ features
        mean = noise_precision * torch.linalg.solve(precision, features.T @ targets)
        effective = len(identity) - prior_precision * torch.linalg.inv(precision).trace()
        prior_precision = effective / (mean @ mean)
        squares = ((targets - features @ mean) ** 2).sum()
        noise_precision = (len(targets) - effective) / squares
    prior = bl.normal_prior(len(identity), prior_precision**-0.5)
    return bl.log_evidence(features, targets, prior, noise_precision**-0.5)


@pytest.mark.parametrize(("noise", "best_start"), [(0.1, 1.0), (0.3, 1e8)])
def test_of_two_peaks_the_higher_is_found_where_fixed_point_updates_stop_at_the_nearer(
    noise: float, best_start: float
) -> None:
    """Columns of two sizes: either the small ones are signal, or all that they explain is noise."""
    directions = torch.linalg.qr(normals(12, 12, seed=0)).Q
    features = directions[:, :6] * tensor([100.0] * 3 + [1.0] * 3)
    targets = directions @ tensor([5.0] * 3 + [3.0] * 3 + [noise] * 6)
    fit = bl.maximize_evidence(features, targets)
    for start in (1.0, 1e8):
        end = fixed_point(features, targets, start)
        if start == best_start:
            close(fit.log_evidence, end, rtol=1e-8)
        else:
            assert end < fit.log_evidence - 1


@pytest.mark.parametrize("noise", [1e-3, 1e-6, 1e-9])
def test_precise_data_are_no_exact_fit(noise: float) -> None:
    features = problem(20)[0]
    targets = features @ tensor([1.0, -1.0, 1.0]) + noise * normals(20, seed=9)
    fit = bl.maximize_evidence(features, targets)
    residual_scale = linear.fit_ols(features, targets).residual_scale
    assert float(fit.noise_scale / residual_scale) == pytest.approx(1, rel=1e-3 + noise)
    assert float(fit.prior_scale) == pytest.approx(1, rel=0.01)


def test_units_of_the_targets_and_the_features_are_the_reader_s_choice() -> None:
    features, targets = scaled_problem(0, 20, [0, 0, 0])
    fit = bl.maximize_evidence(features, targets)
    other = bl.maximize_evidence(1e-20 * features, 1e5 * targets)
    close(other.noise_scale, 1e5 * fit.noise_scale, rtol=3e-7)
    close(other.prior_scale, 1e25 * fit.prior_scale, rtol=3e-7)


def test_a_dependent_column_only_halves_the_prior_variance() -> None:
    """Two equal columns are one column of root two the length; one of zeros is none."""
    x, targets = scaled_problem(0, 20, [0])
    one, two = bl.maximize_evidence(x, targets), bl.maximize_evidence(x.expand(20, 2), targets)
    close(two.prior_scale, one.prior_scale / math.sqrt(2), rtol=1e-6)
    close(two.log_evidence, one.log_evidence)
    silent = bl.maximize_evidence(torch.cat([x, 0 * x], dim=1), targets)
    close(silent.prior_scale, one.prior_scale, rtol=1e-6)
    close(silent.log_evidence, one.log_evidence)


X = problem(20)[0]
LINE = X @ tensor([1.0, -2.0, 3.0])


@pytest.mark.parametrize(
    ("features", "targets"),
    [
        (X, LINE),
        (torch.cat([X, X], dim=1), LINE),
        (basis.polynomial(torch.arange(21.0), 5), basis.polynomial(torch.arange(21.0), 5).sum(1)),
        (basis.affine(X), torch.full((20,), 0.1)),
        (X, torch.zeros(20)),
        *((normals(n, 12, seed=n), normals(n, 12, seed=n).sum(1)) for n in (6, 9, 12)),
    ],
    ids=["plane", "dependent", "wampler", "constant", "zero", "wide 6", "wide 9", "square"],
)
def test_an_exact_fit_has_no_best_noise(features: Tensor, targets: Tensor, kind_error: Any) -> None:
    with kind_error(ValueError, "as the noise vanishes", "fewer features", "noise_scale"):
        bl.maximize_evidence(features, targets)


def test_features_that_tell_nothing_have_no_best_prior(kind_error: Any) -> None:
    """Targets orthogonal to every column."""
    noise = normals(20, seed=4)
    noise = noise - X @ torch.linalg.lstsq(X, noise[:, None]).solution[:, 0]
    with kind_error(ValueError, "as the prior scale vanishes", "nothing", "center"):
        bl.maximize_evidence(X, noise)


@pytest.mark.parametrize("seed", range(6))
def test_fewer_points_than_features_give_a_true_maximum_or_an_error(seed: int) -> None:
    features, targets = problem(5, 20, seed=seed)
    try:
        fit = bl.maximize_evidence(features, targets)
    except ValueError as error:
        assert "the evidence grows as" in str(error)  # noqa: PT017
        return
    for prior_factor in (0.9, 1.1):
        for noise_factor in (0.9, 1.1):
            prior = bl.normal_prior(20, prior_factor * fit.prior_scale)
            other = bl.log_evidence(features, targets, prior, noise_factor * fit.noise_scale)
            assert other < fit.log_evidence


# --- Repeated worlds: prior, data, posterior ------------------------------------------------------

NUM_WORLDS, NOISE_SCALE = 1000, 0.5


def z_score(samples: Tensor, expected: float | Tensor) -> float:
    """How many Monte Carlo standard errors the samples' mean lies from what is expected."""
    standard_error = samples.std(dim=0) / math.sqrt(len(samples))
    return float(((samples.mean(dim=0) - expected) / standard_error).abs().max())


@pytest.fixture(scope="module")
def worlds() -> dict[str, Tensor]:
    """Weights from the prior, four points of data each, and a new point to predict."""
    generator = torch.Generator().manual_seed(11)
    prior = correlated()
    weights = prior.sample(NUM_WORLDS, generator=generator)
    features = torch.randn(NUM_WORLDS, 5, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(NUM_WORLDS, 5, generator=generator, dtype=torch.float64)
    observed = (features @ weights[:, :, None])[..., 0] + NOISE_SCALE * noise
    rows = []
    for true, phi, y in zip(weights, features, observed, strict=True):
        after = bl.posterior(phi[:4], y[:4], prior, NOISE_SCALE)
        at = bl.predictive(phi[4:], after, NOISE_SCALE)
        whitened = torch.linalg.solve(after.scale_tril, true - after.mean)
        error = (y[4] - at.mean).reshape(1)
        rows.append(
            torch.cat([error, at.noise_variance, at.weight_variance, whitened, true - prior.mean])
        )
    error, noise_variance, weight_variance, *rest = torch.stack(rows).T
    return {
        "error": error,
        "noise": noise_variance,
        "weights": weight_variance,
        "whitened": torch.stack(rest[:3], dim=1),
        "from_prior": torch.stack(rest[3:], dim=1),
    }


def test_two_predictive_scales_cover_as_a_normal_does(worlds: dict[str, Tensor]) -> None:
    """With the noise or the weights left out, or variance taken for scale, they do not."""
    covered = math.erf(math.sqrt(2))  # 95.45 %
    variance = worlds["noise"] + worlds["weights"]
    inside = (worlds["error"].abs() < 2 * variance.sqrt()).double()
    assert z_score(inside, covered) < 4
    for wrong in (worlds["weights"].sqrt(), worlds["noise"].sqrt(), variance):
        assert z_score((worlds["error"].abs() < 2 * wrong).double(), covered) > 4


def test_the_predictive_variance_is_the_mean_squared_error(worlds: dict[str, Tensor]) -> None:
    squared = worlds["error"] ** 2
    assert z_score(squared - worlds["noise"] - worlds["weights"], 0.0) < 4
    assert z_score(squared - worlds["noise"], 0.0) > 4
    assert z_score(squared - worlds["weights"], 0.0) > 4


def test_the_truth_is_a_standard_normal_draw_from_each_posterior(
    worlds: dict[str, Tensor],
) -> None:
    """After whitening by the posterior: mean 0, covariance 1. By the prior it is far too small."""
    identity = torch.eye(3, dtype=torch.float64).flatten()
    whitened = worlds["whitened"]
    assert z_score(whitened, 0.0) < 4
    products = (whitened[:, :, None] * whitened[:, None, :]).flatten(1)
    assert z_score(products, identity) < 4
    overconfident = products / 0.8**2
    assert z_score(overconfident, identity) > 4


def test_predictive_variances_are_those_of_draws(generator: torch.Generator) -> None:
    """Functions drawn from the posterior, with noise and without."""
    features, targets = problem()
    weights = bl.posterior(features, targets, correlated(), 0.5)
    new = normals(5, 3, seed=8)
    at = bl.predictive(new, weights, 0.5)
    functions = weights.sample(20_000, generator=generator) @ new.T
    noise = torch.randn(functions.shape, generator=generator, dtype=torch.float64)
    observations = functions + 0.5 * noise
    assert z_score(functions, at.mean) < 4
    assert z_score((functions - at.mean) ** 2, at.weight_variance) < 4
    assert z_score((observations - at.mean) ** 2, at.variance) < 4
    assert z_score((observations - at.mean) ** 2, at.weight_variance) > 4
    assert z_score((observations - at.mean) ** 2, at.weight_variance + 0.5) > 4
    wrong = at.weight_variance - weights.covariance[0, 0] * new[:, 0] ** 2
    assert z_score((functions - at.mean) ** 2, wrong) > 4


# --- Errors ---------------------------------------------------------------------------------------

ONE, UNIT = torch.ones(1), torch.ones(1, 1)
PRIOR = bl.normal_prior(1, 1.0)


@pytest.mark.parametrize(
    ("mean", "covariance", "error", "words"),
    [
        ([0.0], UNIT, TypeError, ("mean must be", "list")),
        (ONE, [[1.0]], TypeError, ("covariance must be", "list")),
        (ONE.int(), UNIT, TypeError, ("mean", "torch.int32")),
        (UNIT, UNIT, ValueError, ("mean must have 1 dimension", "(1, 1)")),
        (ONE, ONE, ValueError, ("covariance must have 2 dimensions", "(1,)")),
        (ONE[:0], UNIT, ValueError, ("mean must not be empty",)),
        (ONE, torch.ones(1, 2), ValueError, ("covariance", "shape (1, 1)", "got (1, 2)")),
        (ONE, torch.eye(2), ValueError, ("covariance", "shape (1, 1)", "got (2, 2)")),
        (ONE * NAN, UNIT, ValueError, ("mean must be finite",)),
        (ONE, UNIT * INF, ValueError, ("covariance must be finite",)),
        (
            torch.zeros(2),
            torch.tensor([[1.0, 0.5], [0.25, 1.0]]),
            ValueError,
            ("covariance must be symmetric", "0.25 apart"),
        ),
        (
            torch.zeros(2),
            torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
            ValueError,
            ("covariance must be positive definite", "eigenvalue of -1"),
        ),
        (torch.zeros(2), torch.ones(2, 2), ValueError, ("positive definite", "eigenvalue")),
    ],
)
def test_a_gaussian_names_what_is_wrong(
    mean: Any, covariance: Any, error: type[Exception], words: tuple[str, ...], kind_error: Any
) -> None:
    with kind_error(error, *words):
        bl.GaussianWeights(mean, covariance)


def test_a_covariance_symmetric_to_rounding_is_symmetric() -> None:
    bl.GaussianWeights(torch.zeros(2), torch.tensor([[1e3, 1.0], [1.0 + 1e-5, 1e3]]))


REGRESSIONS = {
    "posterior": bl.posterior,
    "evidence": bl.log_evidence,
    "maximum": lambda features, targets, *_: bl.maximize_evidence(features, targets),
}


@pytest.mark.parametrize("regression", REGRESSIONS)
@pytest.mark.parametrize(
    ("features", "targets", "error", "words"),
    [
        ([[1.0]], ONE, TypeError, ("features must be", "list")),
        (UNIT, [1.0], TypeError, ("targets must be", "list")),
        (UNIT, ONE.int(), TypeError, ("targets", "torch.int32")),
        (ONE, ONE, ValueError, ("features must have 2 dimensions", "(1,)")),
        (UNIT, UNIT, ValueError, ("targets must have 1 dimension", "(1, 1)", "squeeze(1)")),
        (UNIT, torch.ones(2), ValueError, ("as many rows", "1 and 2")),
        (UNIT[:, :0], ONE, ValueError, ("features must not be empty", "(1, 0)")),
        (UNIT[:0], ONE[:0], ValueError, ("features must not be empty", "(0, 1)")),
        (UNIT * NAN, ONE, ValueError, ("features must be finite",)),
        (UNIT, ONE * INF, ValueError, ("targets must be finite",)),
    ],
)
def test_bad_data_are_named(
    regression: str,
    features: Any,
    targets: Any,
    error: type[Exception],
    words: tuple[str, ...],
    kind_error: Any,
) -> None:
    with kind_error(error, *words):
        REGRESSIONS[regression](features, targets, PRIOR, 1.0)


@pytest.mark.parametrize("regression", ["posterior", "evidence"])
@pytest.mark.parametrize(
    ("prior", "noise_scale", "error", "words"),
    [
        (None, 1.0, TypeError, ("prior must be GaussianWeights", "NoneType", "normal_prior")),
        (PRIOR, "1", TypeError, ("noise_scale", "real number", "'1'")),
        (PRIOR, ONE, TypeError, ("noise_scale", "real number", "(1,)")),
        (PRIOR, 0.0, ValueError, ("noise_scale must be positive", "0.0")),
        (PRIOR, -1.0, ValueError, ("noise_scale must be positive", "-1.0")),
        (PRIOR, NAN, ValueError, ("noise_scale must be finite", "nan")),
        (bl.normal_prior(2, 1.0), 1.0, ValueError, ("one column per weight (2)", "(1, 1)")),
    ],
)
def test_a_bad_prior_or_noise_is_named(
    regression: str,
    prior: Any,
    noise_scale: Any,
    error: type[Exception],
    words: tuple[str, ...],
    kind_error: Any,
) -> None:
    with kind_error(error, *words):
        REGRESSIONS[regression](UNIT, ONE, prior, noise_scale)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: bl.normal_prior(2.0, 1.0), TypeError, ("num_features", "whole number", "2.0")),
        (lambda: bl.normal_prior(2, None), TypeError, ("scale", "real number", "None")),
        (lambda: bl.normal_prior(0, 1.0), ValueError, ("num_features", "at least 1", "0")),
        (lambda: bl.normal_prior(2, 0.0), ValueError, ("scale must be positive", "0.0")),
        (lambda: PRIOR.sample(1.0), TypeError, ("num_draws", "whole number", "1.0")),
        (lambda: PRIOR.sample(1, generator=7), TypeError, ("generator", "int", "manual_seed")),
        (lambda: PRIOR.sample(0), ValueError, ("num_draws", "at least 1", "0")),
        (lambda: PRIOR.log_prob([0.0]), TypeError, ("weights must be", "list")),
        (lambda: PRIOR.log_prob(torch.ones(2)), ValueError, ("weights", "dimension of 1", "(2,)")),
        (lambda: PRIOR.log_prob(ONE[0]), ValueError, ("weights", "dimension of 1", "()")),
        (lambda: PRIOR.log_prob(ONE * NAN), ValueError, ("weights must be finite",)),
        (lambda: bl.predictive([[1.0]], PRIOR, 1.0), TypeError, ("features must be", "list")),
        (
            lambda: bl.predictive(UNIT, MultivariateNormal(ONE, UNIT), 1.0),
            TypeError,
            ("weights must be GaussianWeights", "MultivariateNormal"),
        ),
        (lambda: bl.predictive(UNIT, PRIOR, "1"), TypeError, ("noise_scale", "real number")),
        (
            lambda: bl.predictive(torch.ones(1, 2), PRIOR, 1.0),
            ValueError,
            ("one column per weight (1)", "(1, 2)"),
        ),
        (lambda: bl.predictive(ONE, PRIOR, 1.0), ValueError, ("features", "2 dimensions", "(1,)")),
        (lambda: bl.predictive(UNIT[:0], PRIOR, 1.0), ValueError, ("features must not be empty",)),
        (lambda: bl.predictive(UNIT * NAN, PRIOR, 1.0), ValueError, ("features must be finite",)),
        (lambda: bl.predictive(UNIT, PRIOR, 0.0), ValueError, ("noise_scale", "positive", "0.0")),
        (lambda: bl.maximize_evidence(UNIT, ONE), ValueError, ("at least 2 points", "got 1")),
        (
            lambda: bl.maximize_evidence(torch.zeros(2, 1), torch.ones(2)),
            ValueError,
            ("features must not be all zero",),
        ),
    ],
)
def test_bad_arguments_are_named(
    call: Callable[[], Any], error: type[Exception], words: tuple[str, ...], kind_error: Any
) -> None:
    with kind_error(error, *words):
        call()
