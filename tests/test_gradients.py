"""Gradient estimators: against gradients and variances in closed form, which wrong ones miss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bad_input import bad_input
from scipy.stats import norm
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Distribution,
    Gamma,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
    Uniform,
)

from coursepkg import gradients
from coursepkg.gradients import estimator_variance, pathwise, score_function

M, S = 0.7, 0.6
NORMAL = {"loc": torch.tensor(M).double(), "scale": torch.tensor(S).double()}
DRAWS = 100_000


def real(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def square(z: Any) -> Any:
    return z**2


def z_scores(draws: Tensor, truth: Tensor | float) -> Tensor:
    """How many standard errors the mean of each entry is from the truth."""
    error = draws.std(dim=0) / len(draws) ** 0.5
    return ((draws.mean(dim=0) - truth) / error).abs()


def z_of_variance(draws: Tensor, truth: float) -> float:
    value, error = estimator_variance(draws)
    return float((value - truth).abs() / error)


def gaussian_mean(g: Callable[[Any], Any]) -> float:
    """E[g(ε)] for a standard normal ε, by quadrature: exact for polynomials up to degree 159."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ g(nodes)) / math.sqrt(2 * math.pi)


# --- The estimates are unbiased, and vary as theory says ------------------------------------------

# f, and the derivatives of E[f(z)] for z ~ N(m, s²) by m and by s.
GAUSSIAN_CASES: dict[str, tuple[Any, Any, float, float]] = {
    "square": (square, lambda z: 2 * z, 2 * M, 2 * S),
    "cube": (lambda z: z**3, lambda z: 3 * z**2, 3 * (M**2 + S**2), 6 * M * S),
    "exp": (
        lambda z: z.exp() if isinstance(z, Tensor) else np.exp(z),
        lambda z: np.exp(z),
        math.exp(M + S**2 / 2),
        S * math.exp(M + S**2 / 2),
    ),
    "quadratic": (lambda z: 1 - 2 * (z - 3) ** 2, lambda z: -4 * (z - 3), -4 * (M - 3), -4 * S),
}


@pytest.mark.parametrize("case", GAUSSIAN_CASES)
@pytest.mark.parametrize("method", ["score", "score, with a baseline", "pathwise"])
def test_a_gaussian_s_gradients_have_their_means_and_variances(
    case: str, method: str, generator: torch.Generator
) -> None:
    f, derivative, by_loc, by_scale = GAUSSIAN_CASES[case]
    baseline = 1.5 if "baseline" in method else 0.0
    if method == "pathwise":
        draws = pathwise(f, Normal, NORMAL, DRAWS, generator=generator)
        one: dict[str, Any] = {
            "loc": lambda e: derivative(M + S * e),
            "scale": lambda e: derivative(M + S * e) * e,
        }
    else:
        draws = score_function(f, Normal, NORMAL, DRAWS, baseline=baseline, generator=generator)
        one = {
            "loc": lambda e: (f(M + S * e) - baseline) * e / S,
            "scale": lambda e: (f(M + S * e) - baseline) * (e**2 - 1) / S,
        }
    for name, truth in {"loc": by_loc, "scale": by_scale}.items():
        assert draws[name].shape == (DRAWS,)
        assert math.isclose(gaussian_mean(one[name]), truth, rel_tol=1e-10)
        variance = gaussian_mean(lambda e, g=one[name]: g(e) ** 2) - truth**2
        assert z_scores(draws[name], truth) < 4.5
        assert z_of_variance(draws[name], variance) < 4.5
        # Wrong: the sign; the gradient by the logarithm of a scale; a standard deviation.
        assert z_scores(-draws[name], truth) > 9
        assert z_scores(S * draws[name], truth) > 9
        assert z_of_variance(draws[name], variance**0.5) > 9


def test_the_score_function_varies_more_and_a_baseline_helps(generator: torch.Generator) -> None:
    """For f = z² all of it in closed form, with b = E f = m² + s²."""
    m, s = 3.0, 1.5
    at = {"loc": real(m).squeeze(), "scale": real(s).squeeze()}
    exact = {
        "score": m**4 / s**2 + 14 * m**2 + 15 * s**2,
        "baseline": 8 * m**2 + 10 * s**2,
        "pathwise": 4 * s**2,
    }
    draws = {
        "score": score_function(square, Normal, at, DRAWS, generator=generator),
        "baseline": score_function(
            square, Normal, at, DRAWS, baseline=m**2 + s**2, generator=generator
        ),
        "pathwise": pathwise(square, Normal, at, DRAWS, generator=generator),
    }
    for ours, other in itertools.product(draws, exact):
        distance = z_of_variance(draws[ours]["loc"], exact[other])
        assert distance < 4.5 if ours == other else distance > 9
    for found in draws.values():
        assert z_scores(found["loc"], 2 * m) < 4.5
    assert exact["score"] > 2 * exact["baseline"] > 10 * exact["pathwise"]


@pytest.mark.parametrize("n", [2, 3])
def test_a_baseline_of_the_same_draws_shrinks_the_gradient_and_leaving_one_out_does_not(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly, over all outcomes of n coins: by (n - 1)/n. Draws left out: covariance μ²/(n-1)²."""
    p, low, high = 0.3, 1.0, 4.0
    outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)
    chances = Bernoulli(real(p)).log_prob(outcomes).sum(dim=1).exp()

    def all_draws(baseline: Any) -> Tensor:
        def f(z: Tensor) -> Tensor:
            return low + (high - low) * z

        at, found = {"probs": torch.tensor(p).double()}, []
        for outcome in outcomes:
            monkeypatch.setattr(gradients, "draw", lambda q, outcome=outcome, **_: outcome)
            found.append(score_function(f, Bernoulli, at, n, baseline=baseline)["probs"])
        return torch.stack(found)

    truth = torch.full((n,), high - low, dtype=torch.float64)
    left_out = all_draws("leave_one_out")
    torch.testing.assert_close(chances @ left_out, truth)
    torch.testing.assert_close(chances @ all_draws(0.0), truth)
    torch.testing.assert_close(chances @ all_draws(2.5), truth)
    torch.testing.assert_close(chances @ all_draws("mean"), truth * (n - 1) / n)
    product = chances @ (left_out[:, 0] * left_out[:, 1])
    torch.testing.assert_close(product - truth[0] ** 2, truth[0] ** 2 / (n - 1) ** 2)


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_with_many_draws_both_baselines_have_the_best_known_variance(
    baseline: Any, generator: torch.Generator
) -> None:
    draws = score_function(square, Normal, NORMAL, DRAWS, baseline=baseline, generator=generator)
    assert z_of_variance(draws["loc"], 8 * M**2 + 10 * S**2) < 4.5
    assert z_of_variance(draws["loc"], M**4 / S**2 + 14 * M**2 + 15 * S**2) > 9
    assert z_scores(draws["loc"], 2 * M) < 4.5


def test_each_draw_has_its_own_gradient() -> None:
    """Replayed one by one, with the same noise."""
    loc, scale = real(0.5, -1.0), real(1.0, 2.0)
    at = {"loc": loc, "scale": scale}
    z = Normal(loc, scale).loc + scale * torch.randn(
        7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )

    def f(z: Tensor) -> Tensor:
        return z[..., 0] ** 2 * z[..., 1]

    inner = torch.stack([2 * z[:, 0] * z[:, 1], z[:, 0] ** 2], dim=1)
    e = (z - loc) / scale
    found = pathwise(f, Normal, at, 7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found["loc"], inner)
    torch.testing.assert_close(found["scale"], inner * e)
    found = score_function(f, Normal, at, 7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found["loc"], f(z)[:, None] * e / scale)
    torch.testing.assert_close(found["scale"], f(z)[:, None] * (e**2 - 1) / scale)


def test_a_full_covariance(generator: torch.Generator) -> None:
    """E[zᵀAz] = tr(A L Lᵀ) + mᵀAm: gradients 2Am, and the lower triangle of 2AL."""
    a = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    at = {
        "loc": real(1.0, -2.0),
        "scale_tril": torch.tensor([[1.0, 0.0], [0.8, 0.5]], dtype=torch.float64),
    }

    def f(z: Tensor) -> Tensor:
        return ((z @ a) * z).sum(-1)

    by_factor = (2 * a @ at["scale_tril"])[[0, 1, 1], [0, 0, 1]]
    for draws in (
        pathwise(f, MultivariateNormal, at, DRAWS, generator=generator),
        score_function(
            f, MultivariateNormal, at, DRAWS, baseline="leave_one_out", generator=generator
        ),
    ):
        assert draws["scale_tril"].shape == (DRAWS, 2, 2)
        lower = draws["scale_tril"][:, [0, 1, 1], [0, 0, 1]]
        assert (z_scores(draws["loc"], 2 * a @ at["loc"]) < 4.5).all()
        assert (z_scores(lower, by_factor) < 4.5).all()
        assert (z_scores(lower, by_factor.flip(0)) > 9).any()
        trace = float(sum(column.var() for column in draws["loc"].T))
        assert math.isclose(float(estimator_variance(draws["loc"]).value), trace)


# --- Implicit reparameterization, where torch has it ----------------------------------------------


def first(z: Tensor) -> Tensor:
    return z[..., 0]


def identity(z: Tensor) -> Tensor:
    return z


IMPLICIT: dict[str, tuple[Any, Any, dict[str, Tensor], dict[str, Any]]] = {
    "Gamma": (
        identity,
        Gamma,
        {"concentration": torch.tensor(2.5).double(), "rate": torch.tensor(0.5).double()},
        {"concentration": 1 / 0.5, "rate": -2.5 / 0.5**2},
    ),
    "Beta": (
        identity,
        Beta,
        {
            "concentration1": torch.tensor(2.0).double(),
            "concentration0": torch.tensor(3.0).double(),
        },
        {"concentration1": 3 / 25, "concentration0": -2 / 25},
    ),
    "Dirichlet": (
        first,
        Dirichlet,
        {"concentration": real(1.0, 2.0, 3.0)},
        {"concentration": real(5, -1, -1) / 36},
    ),
    "Student": (  # E z² = ν / (ν - 2)
        square,
        StudentT,
        {"df": torch.tensor(14.0).double()},
        {"df": -2 / 12**2},
    ),
}


@pytest.mark.parametrize("case", IMPLICIT)
def test_implicit_reparameterization_and_the_score_agree_with_closed_forms(
    case: str, generator: torch.Generator
) -> None:
    f, family, at, truth = IMPLICIT[case]
    draws = pathwise(f, family, at, DRAWS, generator=generator)
    by_score = score_function(
        f, family, at, 4 * DRAWS, baseline="leave_one_out", generator=generator
    )
    for name in at:
        assert (z_scores(draws[name], truth[name]) < 4.5).all()
        assert (z_scores(by_score[name], truth[name]) < 4.5).all()
        assert (z_scores(-draws[name], truth[name]) > 9).all()
        assert estimator_variance(draws[name]).value < estimator_variance(by_score[name]).value


def test_a_gamma_s_gradient_by_its_rate_has_its_exact_variance(generator: torch.Generator) -> None:
    """z = g / b with g ~ Gamma(a, 1): dz/db = -g / b², of variance a / b⁴."""
    f, family, at, _ = IMPLICIT["Gamma"]
    draws = pathwise(f, family, at, DRAWS, generator=generator)["rate"]
    assert z_of_variance(draws, 2.5 / 0.5**4) < 4.5
    assert z_of_variance(draws, 2.5 / 0.5**2) > 9


# --- Where one of the two fails -------------------------------------------------------------------


def mixture(logits: Tensor, means: Tensor) -> Distribution:
    return MixtureSameFamily(Categorical(logits=logits), Normal(means, 1.0))


STATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)
TABLE = real(3.0, -1.0, 0.5)


def bits(z: Tensor) -> Tensor:
    return (z @ TABLE.to(z)).square() + z.prod(dim=-1)


# A factorized Bernoulli (by its logits), a categorical z, a count, a mixture of normals.
DISCRETE: dict[str, tuple[Any, Any, dict[str, Tensor], Any]] = {
    "Bernoulli": (
        bits,
        lambda logits: Bernoulli(logits=logits),
        {"logits": real(0.3, -0.8, 1.2)},
        lambda logits: bits(STATES) @ Bernoulli(logits=logits).log_prob(STATES).sum(dim=-1).exp(),
    ),
    "Categorical": (
        lambda z: TABLE[z],
        lambda logits: Categorical(logits=logits),
        {"logits": real(0.3, -0.8, 1.2)},
        lambda logits: logits.softmax(dim=-1) @ TABLE,
    ),
    "Poisson": (
        square,
        Poisson,
        {"rate": torch.tensor(2.0).double()},
        lambda rate: rate + rate**2,
    ),
    "MixtureSameFamily": (
        square,
        mixture,
        {"logits": real(0.2, -0.4), "means": real(-1.0, 2.0)},
        lambda logits, means: logits.softmax(dim=-1) @ (1 + means**2),
    ),
}


@pytest.mark.parametrize("case", DISCRETE)
@pytest.mark.parametrize("baseline", [0.0, "leave_one_out"])
def test_without_rsample_the_score_is_right_and_pathwise_says_so(
    case: str, baseline: Any, generator: torch.Generator, kind_error: Callable[..., Any]
) -> None:
    f, family, at, expectation = DISCRETE[case]
    leaves = [value.clone().requires_grad_() for value in at.values()]
    truth = torch.autograd.grad(expectation(*leaves), leaves)
    draws = score_function(f, family, at, DRAWS, baseline=baseline, generator=generator)
    for name, exact in zip(at, truth, strict=True):
        assert (z_scores(draws[name], exact) < 4.5).all()
        assert (z_scores(-draws[name], exact) > 9).any()
    with kind_error(ValueError, "family", "has_rsample", case, "score_function"):
        pathwise(f, family, at, 10)


def test_pathwise_does_not_see_a_jump_and_the_score_does(generator: torch.Generator) -> None:
    """E sign(z) = 1 - 2Φ(-m/s). Kinks, as of |z|, are harmless."""
    density = norm.pdf(M / S)
    by_loc, by_scale = 2 * density / S, -2 * density * M / S**2
    draws = pathwise(torch.sign, Normal, NORMAL, 1000, generator=generator)
    assert not draws["loc"].any()
    assert not draws["scale"].any()
    draws = score_function(torch.sign, Normal, NORMAL, DRAWS, generator=generator)
    assert z_scores(draws["loc"], by_loc) < 4.5
    assert z_scores(draws["scale"], by_scale) < 4.5
    assert (z_scores(draws["loc"], 0) > 9).all()

    def smooth_and_jump(z: Tensor) -> Tensor:
        return z.square() + torch.where(z > 0, 2.0, 0.0)

    wrong = pathwise(smooth_and_jump, Normal, NORMAL, DRAWS, generator=generator)["loc"]
    right = score_function(smooth_and_jump, Normal, NORMAL, DRAWS, generator=generator)["loc"]
    assert z_scores(right, 2 * M + by_loc) < 4.5
    assert z_scores(wrong, 2 * M + by_loc) > 9
    assert z_scores(wrong, 2 * M) < 4.5

    kink = pathwise(torch.abs, Normal, NORMAL, DRAWS, generator=generator)
    assert z_scores(kink["loc"], 1 - 2 * norm.cdf(-M / S)) < 4.5
    assert z_scores(kink["scale"], 2 * density) < 4.5


def test_the_score_does_not_see_a_support_that_moves_and_pathwise_does(
    generator: torch.Generator,
) -> None:
    """For z ~ U(0, h) the derivative of E z = h/2 is 1/2. The score, -1/h, makes it -1/2."""

    def family(high: Tensor) -> Distribution:
        return Uniform(torch.zeros_like(high), high)

    at = {"high": torch.tensor(3.0).double()}
    assert z_scores(pathwise(identity, family, at, DRAWS, generator=generator)["high"], 0.5) < 4.5
    wrong = score_function(identity, family, at, DRAWS, generator=generator)["high"]
    assert z_scores(wrong, -0.5) < 4.5


def test_a_parameter_that_f_does_not_feel_has_gradient_zero(generator: torch.Generator) -> None:
    at = {"loc": real(1.0, 2.0), "unused": real(3.0)}
    draws = pathwise(first, lambda loc, unused: Normal(loc, 1.0), at, 10, generator=generator)
    assert torch.equal(draws["loc"], real(1, 0).expand(10, 2))
    assert torch.equal(draws["unused"], torch.zeros(10, 1).double())


# --- The variance of an estimator -----------------------------------------------------------------


def test_the_variance_s_error_by_hand() -> None:
    value, error = estimator_variance(real(0.0, 2.0))
    assert float(value) == 2
    assert float(error) == pytest.approx(((1 + 4) / 2) ** 0.5)  # μ₄ = 1, (n - 3)/(n - 1) = -1
    value, error = estimator_variance(real(0.0, 0.0, 0.0, 4.0))
    assert float(value) == 4
    assert float(error) == pytest.approx(((3 + 81) / 4 / 4 - 16 / 3 / 4) ** 0.5)


@pytest.mark.parametrize("copies", [1, 3])
def test_the_variance_s_error_is_its_standard_deviation(copies: int) -> None:
    """Skewed draws, alone and three times in a row: a trace, whose parts err together."""
    random = torch.Generator().manual_seed(6)
    groups = torch.empty(4000, 1000, 1, dtype=torch.float64).exponential_(generator=random)
    found = [estimator_variance(group.expand(-1, copies)) for group in groups]
    values = torch.stack([one.value for one in found])
    squared_errors = torch.stack([one.standard_error for one in found]).square()
    assert z_scores(values, copies) < 4.5  # each has variance 1
    theory = copies**2 * (9 - 997 / 999) / 1000  # μ₄ = 9
    assert z_of_variance(values, theory) < 4.5
    assert z_of_variance(values, float(squared_errors.mean())) < 4.5
    assert z_of_variance(values, copies**2 * 2 / 999) > 9  # what Gaussian draws would have
    if copies > 1:
        assert z_of_variance(values, theory / copies) > 9  # were the parts independent


def test_heavy_tails_make_the_error_itself_too_small() -> None:
    """Student's t with 2.5 degrees of freedom: a variance of 5, and no fourth moment."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        groups = StudentT(torch.tensor(2.5).double()).sample((400, 2000))
    far = torch.tensor([z_of_variance(group, 5.0) > 4.5 for group in groups])
    assert far.double().mean() > 0.1  # nominal: 7e-6


# --- What a caller gets, and what is refused ------------------------------------------------------


@pytest.mark.parametrize("estimator", [score_function, pathwise])
def test_the_generator_decides_and_the_caller_s_tensors_stay(estimator: Any) -> None:
    at = {"loc": torch.tensor(1.0, requires_grad=True), "scale": torch.tensor(2.0)}
    state = torch.get_rng_state()
    draws, again, other = (
        estimator(square, Normal, at, 5, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(draws["loc"], again["loc"])
    assert not torch.equal(draws["loc"], other["loc"])
    assert draws["loc"].dtype == torch.float32
    assert not draws["loc"].requires_grad
    assert at["loc"].grad is None
    torch.manual_seed(1)
    draws = estimator(square, Normal, at, 5)
    torch.manual_seed(1)
    with torch.no_grad():
        assert torch.equal(draws["loc"], estimator(square, Normal, at, 5)["loc"])


def test_the_score_function_builds_no_graph_of_f() -> None:
    def f(z: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return z

    score_function(f, Normal, NORMAL, 5)


def test_a_dimension_of_draws_is_not_taken_for_another(kind_error: Callable[..., Any]) -> None:
    """With three draws, (3, 3) and (3,) would broadcast, each scale beside the wrong draws."""
    at = {"loc": torch.zeros(3), "scale": torch.tensor(1.0)}
    for count in (3, 5):
        with kind_error(ValueError, "family", "in front", "[..., None]"):
            score_function(first, Normal, at, count)
    at = {"loc": torch.zeros(1), "scale": torch.tensor(1.0)}
    with kind_error(ValueError, "family", "in front", "(3, 1)", "(3, 3)"):
        pathwise(first, Normal, at, 5)
    fixed = pathwise(first, lambda loc, scale: Normal(loc, scale[..., None]), at, 5)
    assert fixed["scale"].shape == (5,)


@pytest.mark.parametrize("estimator", [score_function, pathwise])
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"f": 3}, TypeError, ("f", "function")),
        ({"family": 3}, TypeError, ("family", "function")),
        ({"parameters": {}}, ValueError, ("parameters", "at least 1")),
        ({"parameters": {"loc": 1.0}}, TypeError, ("loc", "torch.Tensor")),
        ({"parameters": {"loc": torch.tensor(torch.nan)}}, ValueError, ("loc", "finite")),
        ({"num_samples": 0}, ValueError, ("num_samples", "at least 1")),
        ({"generator": 7}, TypeError, ("generator", "torch.Generator")),
        ({"f": lambda z: z.sum()}, ValueError, ("f must return", "(4,)", "()")),
        ({"f": lambda z: z > 0}, ValueError, ("f must return", "floating-point", "bool")),
        ({"f": lambda z: 3.0}, ValueError, ("f must return", "float")),
    ],
)
def test_bad_input_is_named(
    estimator: Any,
    arguments: dict[str, Any],
    error: type[Exception],
    words: tuple[str, ...],
    kind_error: Callable[..., Any],
) -> None:
    given = {"f": square, "family": Normal, "parameters": NORMAL, "num_samples": 4, **arguments}
    with kind_error(error, *words):
        estimator(**given)


test_what_one_of_them_refuses = bad_input(
    [
        (
            lambda: score_function(square, Normal, NORMAL, 4, baseline="best"),  # type: ignore[arg-type]
            ValueError,
            ("baseline", "leave_one_out", "best"),
        ),
        (
            lambda: score_function(square, Normal, NORMAL, 1, baseline="leave_one_out"),
            ValueError,
            ("num_samples", "at least 2"),
        ),
        (
            lambda: score_function(square, Normal, NORMAL, 4, baseline=torch.nan),
            ValueError,
            ("baseline", "finite"),
        ),
        (
            lambda: pathwise(lambda z: (z > 0).double(), Normal, NORMAL, 4),
            ValueError,
            ("f must be differentiable", "step", "score_function"),
        ),
        (lambda: estimator_variance(torch.ones(1)), ValueError, ("draws", "at least 2")),
        (lambda: estimator_variance(torch.tensor(1.0)), ValueError, ("draws", "at least 2")),
        (lambda: estimator_variance(torch.ones(3) / 0), ValueError, ("draws", "finite")),
        (lambda: estimator_variance([1.0, 2.0]), TypeError, ("draws", "torch.Tensor")),  # type: ignore[arg-type]
    ]
)


def test_the_module_hands_out_what_it_names() -> None:
    assert all(hasattr(gradients, name) for name in gradients.__all__)
