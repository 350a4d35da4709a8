"""Uncertainty and its parts: integrals of the mixture itself, scipy, and widely copied mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import scipy.integrate
import scipy.stats
import torch
import torch.distributions as td
from bad_input import bad_input
from close import close, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coursepkg import uncertainty as un

DTYPES = (torch.float32, torch.float64)
exact = settings(deadline=None, derandomize=True, max_examples=50)


def integral(function: Callable[[float], float]) -> float:
    return scipy.integrate.quad(function, -60, 60, points=[-3, 0, 3], epsabs=1e-12, limit=500)[0]


# --- The negative log likelihood -----------------------------------------------------------------

LOG_2PI = math.log(2 * math.pi)
WRONG_NLL: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "twice, without 2 pi": lambda y, m, v: v.log() + (y - m) ** 2 / v,
    "without 2 pi": lambda y, m, v: (v.log() + (y - m) ** 2 / v) / 2,
    "times the variance": lambda y, m, v: (LOG_2PI + v.log() + (y - m) ** 2 * v) / 2,
    "minus the log variance": lambda y, m, v: (LOG_2PI - v.log() + (y - m) ** 2 / v) / 2,
}


def is_density(nll: Callable[[Tensor, Tensor, Tensor], Tensor]) -> bool:
    """Whether what it is the negative logarithm of integrates to 1 over the targets."""
    mean, variances = tensor(0.3), (0.2, 1.0, 3.0)

    def mass(variance: float) -> float:
        return integral(lambda y: math.exp(-nll(tensor(y), mean, tensor(variance))))

    return all(abs(mass(variance) - 1) < 1e-9 for variance in variances)


def test_the_nll_is_that_of_a_density_and_the_copied_ones_are_not() -> None:
    assert is_density(un.gaussian_nll)
    for name, wrong in WRONG_NLL.items():
        assert not is_density(wrong), name


def best_log_variance(nll: Callable[[Tensor, Tensor, Tensor], Tensor], residual: float) -> float:
    grid = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    values = nll(torch.full_like(grid, residual), torch.zeros_like(grid), grid.exp())
    return float(grid[values.argmin()])


def test_the_best_variance_is_the_squared_residual_and_sign_errors_run_away() -> None:
    assert best_log_variance(un.gaussian_nll, 2.0) == pytest.approx(math.log(4), abs=0.005)
    assert best_log_variance(WRONG_NLL["times the variance"], 2.0) == -30
    assert best_log_variance(WRONG_NLL["minus the log variance"], 2.0) == 30


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_nll_keeps_the_dtype_and_takes_draws_in_front(dtype: torch.dtype) -> None:
    mean = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]], dtype=dtype)
    y, variance = torch.tensor([0.5, -1.0, 3.0], dtype=dtype), mean + 0.5
    truth = -td.Normal(mean, variance.sqrt()).log_prob(y)
    torch.testing.assert_close(un.gaussian_nll(y, mean, variance), truth)
    truth = -td.Normal(mean, 0.5).log_prob(y)
    torch.testing.assert_close(un.gaussian_nll(y, mean, 0.25), truth)
    torch.testing.assert_close(un.gaussian_nll(y, mean, torch.tensor(0.25)), truth)


def test_the_nll_is_differentiable() -> None:
    arguments = tensor([0.5, -1.0]), tensor([0.0, 1.0]), tensor([0.3, 2.0])
    assert torch.autograd.gradcheck(un.gaussian_nll, [x.requires_grad_() for x in arguments])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_heteroscedastic_network_gives_mean_and_log_variance(dtype: torch.dtype) -> None:
    outputs = torch.tensor([[[1.0, math.log(4.0)]], [[2.0, 0.0]]], dtype=dtype)
    q, y = un.heteroscedastic(outputs), torch.tensor([3.0], dtype=dtype)
    assert q.batch_shape == (2, 1)
    assert q.stddev.flatten().tolist() == pytest.approx([2.0, 1.0])
    ours = un.gaussian_nll(y, outputs[..., 0], outputs[..., 1].exp())
    torch.testing.assert_close(-q.log_prob(y), ours)


def test_both_outputs_of_a_heteroscedastic_network_learn() -> None:
    outputs, y = tensor([[0.5, -1.0], [2.0, 1.5]]), tensor([1.0, 0.0])
    assert torch.autograd.gradcheck(
        lambda outputs: un.heteroscedastic(outputs).log_prob(y), outputs.requires_grad_()
    )


# --- Variances -----------------------------------------------------------------------------------

MEANS, SCALES = tensor([-1.0, 0.5, 2.0]), tensor([0.2, 1.0, 2.5])


def total_is_the_mixture_s(decompose: Callable[[Tensor, Tensor], Any]) -> bool:
    """Against the second moment of the mixture's density, by quadrature."""

    def density(y: float) -> float:
        return float(scipy.stats.norm.pdf(y, MEANS.numpy(), SCALES.numpy()).mean())

    mean = integral(lambda y: y * density(y))
    variance = integral(lambda y: (y - mean) ** 2 * density(y))
    parts = decompose(MEANS, SCALES**2)
    return bool((parts.mean - mean).abs() < 1e-8 and (parts.total - variance).abs() < 1e-8)


def wrong_parts(aleatoric: Tensor, epistemic: Tensor, total: Tensor | None = None) -> un.Variances:
    total = aleatoric + epistemic if total is None else total
    return un.Variances(MEANS.mean(0), aleatoric, epistemic, total)


WRONG_PARTS: dict[str, Callable[[Tensor, Tensor], un.Variances]] = {
    "exponential of the mean log variance": lambda m, v: wrong_parts(
        v.log().mean(0).exp(), m.var(0, correction=0)
    ),
    "mean sd": lambda m, v: wrong_parts(v.sqrt().mean(0), m.var(0, correction=0)),
    "sum of sds": lambda m, v: wrong_parts(
        v.mean(0), m.var(0), (v.mean(0).sqrt() + m.std(0, correction=0)) ** 2
    ),
    "variance of a sample": lambda m, v: wrong_parts(v.mean(0), m.var(0)),
}


def test_variances_add_up_to_that_of_the_mixture_and_copied_ones_do_not() -> None:
    assert total_is_the_mixture_s(un.decompose_variance)
    for name, wrong in WRONG_PARTS.items():
        assert not total_is_the_mixture_s(wrong), name


def test_a_band_of_summed_sds_is_up_to_1_41_times_too_wide() -> None:
    parts = un.decompose_variance(tensor([-1.0, 1.0]), 1.0)
    ratio = (parts.aleatoric.sqrt() + parts.epistemic.sqrt()) / parts.total.sqrt()
    close(ratio, math.sqrt(2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_variances_of_many_points_and_one_noise_for_all(dtype: torch.dtype) -> None:
    means = torch.arange(24, dtype=dtype).reshape(4, 2, 3) ** 1.5
    parts = un.decompose_variance(means, 0.25)
    assert all(part.shape == (2, 3) and part.dtype == dtype for part in parts)
    torch.testing.assert_close(parts, un.decompose_variance(means, torch.full_like(means, 0.25)))
    assert (parts.aleatoric == 0.25).all()
    torch.testing.assert_close(parts.epistemic[1, 2], means[:, 1, 2].var(correction=0))


def test_few_draws_show_less_disagreement_than_there_is(generator: torch.Generator) -> None:
    """By the factor 1 - 1/T, as the docstring says."""
    means = torch.randn(5, 40_000, generator=generator, dtype=torch.float64)
    epistemic = un.decompose_variance(means, 1.0).epistemic
    error = epistemic.std() / len(epistemic) ** 0.5
    assert abs(epistemic.mean() - (1 - 1 / 5)) < 4.5 * error
    assert abs(epistemic.mean() - 1) > 4.5 * error


# --- Entropies -----------------------------------------------------------------------------------


def some_probabilities(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(-1)


def is_information(decompose: Callable[[Tensor], Any], probabilities: Tensor) -> bool:
    """Whether the parts are those of the joint distribution of a draw and a class, by scipy."""
    joint = probabilities.numpy() / len(probabilities)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    information = scipy.stats.entropy(joint.ravel(), independent.ravel())
    conditional = scipy.stats.entropy(probabilities.numpy(), axis=1).mean()
    total = scipy.stats.entropy(joint.sum(0))
    truth = un.Entropies(*map(tensor, (total, conditional, information)))
    return all(
        abs(part - right) < 1e-9
        for part, right in zip(decompose(probabilities), truth, strict=True)
    )


def entropies_swapped(probabilities: Tensor) -> un.Entropies:
    total, aleatoric, epistemic = un.decompose_entropy(probabilities)
    return un.Entropies(total, epistemic, aleatoric)


def entropies_in_bits(probabilities: Tensor) -> un.Entropies:
    return un.Entropies(*(part / math.log(2) for part in un.decompose_entropy(probabilities)))


def test_entropies_are_those_of_the_joint_distribution_of_draw_and_class() -> None:
    probabilities = some_probabilities(0, 7, 5)
    assert is_information(un.decompose_entropy, probabilities)
    for wrong in (entropies_swapped, entropies_in_bits):
        assert not is_information(wrong, probabilities)


@exact
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5))
def test_entropies_keep_their_bounds(seed: int, draws: int, classes: int) -> None:
    total, aleatoric, epistemic = un.decompose_entropy(some_probabilities(seed, draws, 3, classes))
    close(aleatoric + epistemic, total)
    assert (epistemic >= 0).all()
    assert (epistemic <= math.log(draws) + 1e-12).all()
    assert (aleatoric >= 0).all()
    assert (total <= math.log(classes) + 1e-12).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_that_agree_know_all_there_is(dtype: torch.dtype) -> None:
    """Also where rounding would make the information negative, and where a class is impossible."""
    probabilities = some_probabilities(1, 100, 10).to(dtype)
    probabilities = torch.cat([probabilities, torch.eye(10, dtype=dtype)])
    parts = un.decompose_entropy(probabilities.expand(6, -1, -1))
    assert all(part.shape == (110,) and part.dtype == dtype for part in parts)
    assert (parts.epistemic >= 0).all()
    assert parts.epistemic.max() < 1e-6
    assert (parts.total[100:] == 0).all()


# --- Mixtures ------------------------------------------------------------------------------------

GRID = tensor([[-1.0, 0.5, 2.0], [0.2, 1.0, 2.5]])
POINTS = tensor([0.3, 1.0, 2.0])
FAMILIES: dict[str, tuple[td.Distribution, Tensor]] = {
    "Normal": (td.Normal(GRID, GRID.exp()), POINTS),
    "StudentT": (td.StudentT(5.0, GRID, GRID.exp()), POINTS),
    "Laplace": (td.Laplace(GRID, GRID.exp()), POINTS),
    "Poisson": (td.Poisson(GRID.exp()), tensor([0.0, 1.0, 3.0])),
    "Bernoulli": (td.Bernoulli(logits=GRID), tensor([0.0, 1.0, 1.0])),
    "Bernoulli, probs": (td.Bernoulli(probs=GRID.sigmoid()), tensor([0.0, 1.0, 1.0])),
    "Categorical": (
        td.Categorical(logits=some_probabilities(2, 2, 3, 4)),
        tensor([0, 3, 1]).long(),
    ),
    "Independent": (
        td.Independent(td.Normal(some_probabilities(3, 2, 3, 4), 0.5), 1),
        some_probabilities(4, 3, 4),
    ),
    "MultivariateNormal": (
        td.MultivariateNormal(some_probabilities(3, 2, 3, 4), scale_tril=torch.eye(4).double()),
        some_probabilities(4, 3, 4),
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mixture_is_the_mean_of_the_draws_densities(name: str) -> None:
    parts, y = FAMILIES[name]
    truth = parts.log_prob(y).exp().mean(0)
    prediction = un.mixture(parts)
    assert prediction.batch_shape == (3,)
    close(prediction.log_prob(y).exp(), truth)
    close(un.log_predictive(parts, y).exp(), truth)
    if name == "Categorical":  # its numbers are names
        _ = parts.probs  # logits and probs are both there from now on
        close(un.mixture(parts).log_prob(y).exp(), truth)
        return
    close(prediction.mean, parts.mean.mean(0))
    close(prediction.variance, parts.variance.mean(0) + parts.mean.var(0, correction=0))


def test_the_mixture_of_a_heteroscedastic_network_has_the_decomposed_variance() -> None:
    outputs = some_probabilities(5, 20, 7, 2).requires_grad_()
    q = un.heteroscedastic(outputs)
    prediction, parts = un.mixture(q), un.decompose_variance(q.mean, q.variance)
    close(prediction.mean, parts.mean.detach())
    close(prediction.variance, parts.total.detach())
    y = torch.zeros(7).double()
    truth = scipy.stats.norm.cdf(0, q.mean.detach().numpy(), q.stddev.detach().numpy()).mean(0)
    close(prediction.cdf(y).detach(), truth)
    (gradient,) = torch.autograd.grad(prediction.log_prob(y).sum(), outputs)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_the_mean_log_density_is_not_the_predictive_one() -> None:
    q, y = FAMILIES["Normal"]
    assert (un.log_predictive(q, y) > q.log_prob(y).mean(0) + 1e-3).all()


def test_a_log_density_far_out_does_not_vanish() -> None:
    q = td.Normal(torch.zeros(10, 1), 1.0)
    assert float(un.log_predictive(q, torch.tensor([40.0]))) == pytest.approx(-800.92, abs=0.01)


# --- Bad input -----------------------------------------------------------------------------------

V = tensor([1.0, 2.0])
test_bad_input_is_named = bad_input(
    [
        (lambda: un.heteroscedastic(torch.ones(3, 1)), ValueError, ("outputs", "(3, 1)")),
        (lambda: un.gaussian_nll(V[:, None], V, 1.0), ValueError, ("mean", "(2, 1)", "(2,)")),
        (lambda: un.gaussian_nll(torch.ones(3, 2), V, 1.0), ValueError, ("mean",)),
        (lambda: un.gaussian_nll(V, V, torch.zeros(2)), ValueError, ("variance", "posi")),
        (lambda: un.gaussian_nll(V, V, torch.ones(3)), ValueError, ("variance", "(3,)")),
        (lambda: un.gaussian_nll([1.0], V, 1.0), TypeError, ("targets",)),
        (lambda: un.decompose_variance(V, torch.ones(3)), ValueError, ("variances",)),
        (lambda: un.decompose_variance(V, -V), ValueError, ("variances", "positive")),
        (lambda: un.decompose_variance(V[0], V[0]), ValueError, ("means", "draws", "()")),
        (lambda: un.decompose_entropy(torch.ones(3, 2)), ValueError, ("probabil", "softmax")),
        (lambda: un.decompose_entropy(torch.ones(1)), ValueError, ("draws", "(1,)")),
        (lambda: un.mixture(V), TypeError, ("distribution", "Tensor")),
        (lambda: un.mixture(td.Normal(0.0, 1.0)), ValueError, ("batch", "draws")),
        (
            lambda: un.mixture(td.LogNormal(V, 1.0)),
            TypeError,
            ("distribution", "LogNormal"),
        ),
        (
            lambda: un.log_predictive(td.Normal(GRID, 1.0), V),
            ValueError,
            ("y", "(3,)", "(2,)"),
        ),
        (
            lambda: un.log_predictive(td.Normal(GRID, 1.0), 1.0),
            ValueError,
            ("y", "float"),
        ),
    ]
)
