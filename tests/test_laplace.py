"""Laplace's approximation: exact where a posterior is Gaussian, the curvature where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from bad_input import bad_input
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal, StudentT

from coursepkg import bayes_linear, laplace, networks
from coursepkg._lbfgs import minimize
from coursepkg.density import value_and_grad
from coursepkg.guides import FullRankNormal, Guide, LowRankNormal, MeanFieldNormal
from coursepkg.networks import MLP

PRIOR, NOISE = 1.5, 0.3


def normals(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20260101)


def regression() -> tuple[Tensor, Tensor, bayes_linear.GaussianWeights, float]:
    """Two inputs and a bias: data, the exact posterior, and the exact log evidence."""
    x = normals(12, 2, seed=0)
    y = x @ torch.tensor([1.0, -2.0]).double() + 0.5 + NOISE * normals(12, seed=1)
    design = torch.cat([x, torch.ones(12, 1)], dim=1)
    problem = design, y, bayes_linear.normal_prior(3, PRIOR), NOISE
    return x, y, bayes_linear.posterior(*problem), float(bayes_linear.log_evidence(*problem))


def steady(outputs: Tensor) -> Normal:
    return Normal(outputs[..., 0], NOISE)


def covariance(q: FullRankNormal) -> Tensor:
    return q.scale_tril @ q.scale_tril.mT


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_a_linear_regression_is_solved_exactly(curvature: Any) -> None:
    x, y, exact, evidence = regression()
    model = networks.log_joint(MLP((2, 1)), x, y, networks.Gaussian(NOISE), PRIOR)
    fit = laplace.full(model, exact.mean, curvature=curvature)
    torch.testing.assert_close(fit.q.mean, exact.mean)
    torch.testing.assert_close(covariance(fit.q), exact.covariance)
    assert float(fit.log_evidence) == pytest.approx(evidence, rel=1e-9)
    # And so are predictions: their variance is that of the function, without the noise.
    new = normals(5, 2, seed=2)
    at = laplace.linearized(model.network, fit.q, new)
    known = bayes_linear.predictive(torch.cat([new, torch.ones(5, 1)], dim=1), exact, NOISE)
    torch.testing.assert_close(at.mean[:, 0], known.mean)
    torch.testing.assert_close(at.variance[:, 0], known.weight_variance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_last_layer_on_given_features_is_that_regression(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    x, y, exact, evidence = regression()
    model = nn.Linear(2, 1).to(dtype)
    fit = laplace.last_layer(model, x.to(dtype), y.to(dtype), steady, PRIOR)
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(fit.q.mean, exact.mean, **near)
    torch.testing.assert_close(covariance(fit.q), exact.covariance, **near)
    assert float(fit.log_evidence) == pytest.approx(evidence, rel=1e-4)
    new = normals(4, 2, seed=2)
    draws = fit.predict(new.to(dtype), 20_000, generator=generator)[..., 0]
    known = bayes_linear.predictive(torch.cat([new, torch.ones(4, 1)], dim=1), exact, NOISE)
    error = known.weight_variance.sqrt() / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - known.mean).abs() < 4.5 * error).all()
    relative = draws.var(dim=0) / known.weight_variance - 1
    assert (relative.abs() < 4.5 * (2 / len(draws)) ** 0.5).all()


def posteriors() -> dict[str, networks.LogJoint]:
    """Small networks of each likelihood."""
    x = normals(9, 2, seed=3)
    continuous, classes = normals(9, 2, seed=4), torch.arange(9) % 3
    return {
        "gaussian": networks.log_joint(
            MLP((2, 3, 2), torch.tanh), x, continuous, networks.Gaussian(NOISE)
        ),
        "bernoulli": networks.log_joint(
            MLP((2, 3, 1), torch.sin), x, classes % 2, networks.Bernoulli()
        ),
        "categorical": networks.log_joint(
            MLP((2, 3, 3), torch.tanh), x, classes, networks.Categorical()
        ),
    }


def mode_of(log_density: Callable[[Tensor], Tensor], dim: int) -> Tensor:
    """The highest of a few local modes."""

    def loss(weights: Tensor) -> tuple[Tensor, Tensor]:
        height, slope = value_and_grad(log_density, weights)
        return -height, -slope

    found = minimize(loss, normals(8, dim, seed=15), num_steps=500)
    return found.point[found.value.argmin()]


def differences(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Derivatives by central differences, the direction last."""
    steps = 1e-5 * torch.eye(len(at)).double()
    return torch.stack([(function(at + e) - function(at - e)) / 2e-5 for e in steps], dim=-1)


@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "categorical"])
def test_the_precision_is_minus_the_hessian(name: str) -> None:
    posterior = posteriors()[name]
    mode = mode_of(posterior, posterior.dim)
    fit = laplace.full(posterior, mode)
    precision = -differences(lambda w: value_and_grad(posterior, w)[1], mode)
    torch.testing.assert_close(
        covariance(fit.q) @ precision, torch.eye(len(mode)).double(), rtol=1e-4, atol=1e-4
    )
    expected = float(posterior(mode)) + len(mode) / 2 * math.log(2 * math.pi)
    expected -= float(torch.logdet(precision)) / 2
    assert float(fit.log_evidence) == pytest.approx(expected, abs=1e-4)


def output_curvature(name: str, outputs: Tensor) -> Tensor:
    """Minus the second derivatives of a log likelihood in its outputs, as textbooks have them."""
    if name == "gaussian":
        return (torch.eye(2).double() / NOISE**2).expand(len(outputs), 2, 2)
    p = outputs.softmax(dim=1) if name == "categorical" else outputs.sigmoid()
    if name == "bernoulli":
        return (p * (1 - p))[..., None]
    return p.diag_embed() - p[:, :, None] * p[:, None]


@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "categorical"])
def test_the_gauss_newton_matrix_is_that_of_the_tangent(name: str) -> None:
    posterior = posteriors()[name]
    mode = mode_of(posterior, posterior.dim)
    fit = laplace.full(posterior, mode, curvature="ggn")
    jacobian = differences(lambda w: posterior.network(w, posterior.x), mode)
    curvature = output_curvature(name, posterior.network(mode, posterior.x))
    precision = torch.einsum("nck,nco,nol->kl", jacobian, curvature, jacobian)
    precision += torch.eye(len(mode)).double() / posterior.prior_scale**2
    product = covariance(fit.q) @ precision
    torch.testing.assert_close(product, torch.eye(len(mode)).double(), rtol=1e-6, atol=1e-6)
    # The network bends: its Hessian is another matrix.
    other = covariance(laplace.full(posterior, mode).q) @ precision
    assert (other - product).abs().max() > 0.1


def test_the_error_of_a_logistic_regression_falls_with_the_data() -> None:
    x = normals(16, 1, seed=5)
    y = (x[:, 0] + normals(16, seed=6) > 0).long()
    grid = torch.linspace(-12, 12, 4001).double()[:, None]
    errors = []
    for copies in (4, 16, 64):
        model = networks.log_joint(
            MLP((1, 1)), x.repeat(copies, 1), y.repeat(copies), networks.Bernoulli(), PRIOR
        )
        # With the bias at zero it has one weight: a log density that quadrature integrates.
        one = lambda w, model=model: model(torch.cat([w, 0 * w], dim=-1))  # noqa: E731
        exact = torch.logsumexp(one(grid), dim=0) + math.log(24 / 4000)
        fit = laplace.full(one, mode_of(one, 1))
        errors.append(float(fit.log_evidence - exact))
    # Of order 1 / N: copies of the same points change nothing but N, and the prior's share.
    ratios = [before / after for before, after in pairwise(errors)]
    assert errors[0] < -0.003
    assert all(2.8 < ratio < 5 for ratio in ratios), (errors, ratios)


def heads() -> dict[str, tuple[nn.Module, Tensor, Tensor, Any]]:
    """Networks with a last layer, their data and likelihoods."""
    x, images = normals(30, 3, seed=7), normals(30, 1, 5, 5, seed=8)
    y, classes = x[:, 0] + 0.3 * x[:, 1] * normals(30, seed=9), torch.arange(30) % 4
    return {
        "categorical": (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4)).double(),
            images,
            classes,
            lambda outputs: Categorical(logits=outputs),
        ),
        "bernoulli": (
            nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1)).double(),
            x,
            (classes % 2).double(),
            lambda outputs: Bernoulli(logits=outputs[..., 0]),
        ),
        "mean and variance": (
            nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double(),
            x,
            y,
            lambda outputs: Normal(outputs[..., 0], (outputs[..., 1] / 2).exp()),
        ),
        "heavy tails": (
            nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(),
            x,
            y,
            lambda outputs: StudentT(5.0, outputs[..., 0], 0.5),
        ),
    }


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "mean and variance", "heavy tails"])
def test_a_last_layer_is_the_full_approximation_of_its_weights(name: str) -> None:
    model, x, y, likelihood = heads()[name]
    fit = laplace.last_layer(model, x, y, likelihood, PRIOR)
    body, head = model.eval()[:-1], model[-1]
    features = body(x).detach()
    size = head.weight.shape

    def log_joint(w: Tensor) -> Tensor:
        table = w.unflatten(-1, (size[0], -1))
        outputs = features @ table[..., : size[1]].mT
        if head.bias is not None:
            outputs = outputs + table[..., None, :, -1]
        prior = Normal(0.0, PRIOR).log_prob(w).sum(dim=-1)
        return likelihood(outputs).log_prob(y).sum(dim=-1) + prior

    slope = value_and_grad(log_joint, fit.q.mean)[1]
    assert (slope.abs() < 1e-4).all()  # it is at a mode, wherever training ended
    same = laplace.full(log_joint, fit.q.mean)
    torch.testing.assert_close(covariance(fit.q), covariance(same.q))
    torch.testing.assert_close(fit.log_evidence, same.log_evidence)


def test_predictions_are_those_of_the_network_with_drawn_weights(
    generator: torch.Generator,
) -> None:
    model, x, y, likelihood = heads()["bernoulli"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit = laplace.last_layer(model, x, y, likelihood, PRIOR)
    assert model.training  # it is as it was
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    draws = fit.predict(x, 3, generator=generator)
    assert draws.shape == (3, 30, 1)
    assert not draws.requires_grad
    weights = fit.q.rsample(3, generator=generator.manual_seed(generator.initial_seed()))
    for draw, w in zip(draws, weights, strict=True):
        nn.utils.vector_to_parameters(w, model[-1].parameters())
        torch.testing.assert_close(draw, model.eval()(x))


GUIDES = {
    "full": lambda dim: FullRankNormal(
        normals(dim, seed=10),
        normals(dim, dim, seed=11).tril(-1) + normals(dim, seed=12).exp().diag(),
    ),
    "mean field": lambda dim: MeanFieldNormal(normals(dim, seed=10), normals(dim, seed=12).exp()),
    "low rank": lambda dim: LowRankNormal(
        normals(dim, seed=10), normals(dim, seed=12).exp(), normals(dim, 2, seed=13)
    ),
}


@pytest.mark.parametrize("name", ["full", "mean field", "low rank"])
def test_outputs_by_the_tangent_have_the_covariance_of_the_weights(
    name: str, generator: torch.Generator
) -> None:
    network = MLP((2, 3, 2), torch.tanh)
    q: Guide = GUIDES[name](network.num_weights)
    x = normals(4, 2, seed=14)
    at = laplace.linearized(network, q, x)
    torch.testing.assert_close(at.mean, network(q.mean, x))
    weights = torch.distributions.MultivariateNormal(
        q.mean,
        covariance(q)
        if isinstance(q, FullRankNormal)
        else q.scale.square().diag() + (q.factor @ q.factor.T if name == "low rank" else 0.0),
    )
    jacobian = differences(lambda w: network(w, x), q.mean).flatten(0, 1)
    expected = jacobian @ weights.covariance_matrix @ jacobian.T
    root = at.root.flatten(0, 1)
    torch.testing.assert_close(root @ root.T, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(at.variance.flatten(), (root @ root.T).diagonal())
    draws = at.sample(20_000, generator=generator)
    assert draws.shape == (20_000, 4, 2)
    found, diagonal = torch.cov(draws.flatten(1).T), expected.diagonal()
    error = ((diagonal[:, None] * diagonal + expected.square()) / len(draws)).sqrt()
    assert ((found - expected).abs() < 4.5 * error).all()
    assert ((draws.mean(dim=0) - at.mean).abs() < 4.5 * (at.variance / len(draws)).sqrt()).all()


def bowl(w: Tensor) -> Tensor:
    return -w.square().sum(dim=-1)


ZERO, LINEAR = torch.zeros(2), nn.Linear(2, 1)
X, Y = torch.zeros(5, 2), torch.zeros(5)


test_bad_input_is_named = bad_input(
    [
        (lambda: laplace.full(3, ZERO), TypeError, ("log_density", "int")),  # type: ignore[arg-type]
        (lambda: laplace.full(bowl, ZERO[None]), ValueError, ("mode", "1 dimension", "(1, 2)")),
        (lambda: laplace.full(bowl, ZERO / 0), ValueError, ("mode", "finite")),
        (lambda: laplace.full(bowl, ZERO, curvature="kfac"), ValueError, ("curvature", "ggn")),  # type: ignore[arg-type]
        (
            lambda: laplace.full(bowl, ZERO, curvature="ggn"),
            TypeError,
            ("log_density", "networks.log_joint", "function"),
        ),
        # A minimum, a flat direction without a prior, a slope, a kink.
        (lambda: laplace.full(lambda w: -bowl(w), ZERO), ValueError, ("definite", "-2", "maximum")),
        (lambda: laplace.full(lambda w: bowl(w[..., :1]), ZERO), ValueError, ("prior", "ggn")),
        (lambda: laplace.full(bowl, ZERO + 3), ValueError, ("mode", "18 nats", "fit_map")),
        (
            lambda: laplace.full(lambda w: -w.abs().pow(1.5).sum(dim=-1), ZERO),
            ValueError,
            ("log_density", "finite second derivatives"),
        ),
        (lambda: laplace.linearized(LINEAR, None, X), TypeError, ("network", "MLP", "Linear")),  # type: ignore[arg-type]
        (lambda: laplace.linearized(MLP((2, 1)), ZERO, X), TypeError, ("q", "guide", "Tensor")),  # type: ignore[arg-type]
        (
            lambda: laplace.linearized(MLP((2, 1)), MeanFieldNormal(ZERO, ZERO + 1), X),
            ValueError,
            ("q", "3 weights", "(2,)"),
        ),
        (
            lambda: laplace.Linearized(X, X[..., None]).sample(0),
            ValueError,
            ("num_draws", "at least 1"),
        ),
        (lambda: laplace.last_layer(3, X, Y, steady), TypeError, ("model", "Module", "int")),  # type: ignore[arg-type]
        (lambda: laplace.last_layer(LINEAR, X, Y, 3), TypeError, ("likelihood", "function")),  # type: ignore[arg-type]
        (lambda: laplace.last_layer(LINEAR, X, Y, steady, -1), ValueError, ("prior_scale", "-1")),
        (lambda: laplace.last_layer(nn.Tanh(), X, Y, steady), ValueError, ("model", "Linear")),
        (
            lambda: laplace.last_layer(nn.Sequential(LINEAR, nn.Sigmoid()), X, Y, steady),
            ValueError,
            ("model must end in", "Sigmoid"),
        ),
        (
            lambda: laplace.last_layer(LINEAR, X, Y[:, None], steady),
            ValueError,
            ("likelihood", "5 rows", "(5, 5)"),
        ),
    ]
)


def test_a_search_that_does_not_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laplace, "MAX_STEPS", 1)
    model, x, y, likelihood = heads()["categorical"]
    with pytest.raises(RuntimeError, match="no mode in 1 steps"):
        laplace.last_layer(model, x, y, likelihood)
