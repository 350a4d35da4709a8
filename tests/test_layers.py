"""Bayesian layers: the sums of torch's own layers, exact divergences, one function a draw."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bad_input import bad_input
from torch import Tensor, nn
from torch.distributions import Laplace, MultivariateNormal, Normal
from torch.func import functional_call

from coursepkg import data, divergence, layers, weight_noise
from coursepkg.conv import BayesConv1d, BayesConv2d
from coursepkg.layers import (
    BayesLayer,
    BayesLinear,
    kl_divergence,
    one_function,
    predict,
    scale_mixture,
)

ESTIMATORS = pytest.mark.parametrize("estimator", ["shared", "local", "flipout"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20260101)


def network(**options: Any) -> nn.Sequential:
    return nn.Sequential(BayesLinear(3, 5, **options), nn.Tanh(), BayesLinear(5, 2, **options))


def exact_moments(layer: BayesLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of all outputs, from the operation's matrix in the weights."""
    table = layer.mean.detach()
    jacobian = torch.func.jacrev(lambda t: layer.operation(x, t).flatten())(table).flatten(1)
    mean = layer.operation(x, table).flatten().detach()
    return mean, jacobian @ layer.scale.detach().square().flatten().diag() @ jacobian.T


@ESTIMATORS
@pytest.mark.parametrize("kind", ["linear", "1d", "2d"])
def test_outputs_have_the_exact_mean_and_variance(kind: str, estimator: Any) -> None:
    layer: BayesLayer = {
        "linear": lambda: BayesLinear(3, 2, estimator=estimator),
        "1d": lambda: BayesConv1d(2, 2, 2, estimator=estimator),
        "2d": lambda: BayesConv2d(1, 2, 2, estimator=estimator),
    }[kind]().double()
    with torch.no_grad():
        layer.free.uniform_(-2, 1)
    x = torch.randn({"linear": (2, 3), "1d": (2, 2, 3), "2d": (2, 1, 2, 3)}[kind]).double()
    draws = layers.many_passes(layer, x, 20_000).detach().flatten(1)
    mean, covariance = exact_moments(layer, x)
    variance = covariance.diagonal()
    error = (variance / len(draws)).sqrt()
    assert ((draws.mean(dim=0) - mean).abs() < 4.5 * error).all()
    # Of normal outputs; those of flipout have heavier tails, by products of normals at the most.
    relative = draws.var(dim=0) / variance - 1
    assert (
        relative.abs() < 4.5 * (2 / len(draws)) ** 0.5 * (3 if kind == "flipout" else 1.5)
    ).all()
    # What rows have in common: all by shared weights, nothing by the others.
    found = (draws - mean).T @ (draws - mean) / len(draws)
    half = len(mean) // 2
    between, expected = found[:half, half:], covariance[:half, half:]
    noise = (variance[:half, None] * variance[half:]).sqrt() * (3 / len(draws)) ** 0.5
    if estimator == "shared":
        assert ((between - expected).abs() < 4.5 * noise).all()
        assert (expected.abs() > 9 * noise).any()
    else:
        assert (between.abs() < 4.5 * noise).all()


def test_the_kl_is_the_sum_of_the_weights_closed_forms() -> None:
    model = network(prior=Normal(0.3, 0.7))
    expected = sum(
        float(divergence.kl_normal(layer.mean, layer.scale, 0.3, 0.7).sum().detach())
        for layer in (model[0], model[2])
    )
    assert float(kl_divergence(model).detach()) == pytest.approx(expected, rel=1e-5)
    # Summed, not averaged; q first; and a layer in two places counts once.
    other = divergence.kl_normal(0.3, 0.7, model[0].mean, model[0].scale).sum()
    assert (other - model[0].kl()).abs() > 1
    twice = nn.Sequential(model[0], nn.Linear(5, 3), model[0])
    torch.testing.assert_close(kl_divergence(twice), model[0].kl())


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_that_of_torch_whatever_the_dimensions(bias: bool) -> None:
    layer = BayesLinear(3, 2, bias=bias).double()
    weight, biases = layer.split(layer.mean)
    for shape in ((3,), (7, 3), (0, 3), (4, 7, 3)):
        x = torch.randn(shape, dtype=torch.float64)
        expected = F.linear(x, weight, biases)
        torch.testing.assert_close(layer.operation(x, layer.mean), expected)
    draws = torch.vmap(layer, randomness="different")(torch.randn(7, 3, dtype=torch.float64))
    assert draws.shape == (7, 2)
    # What a network does with outputs in turn: rows into images, rows of one output into a vector.
    assert layer(torch.zeros(4, 7, 3).double()).view(4, 14).shape == (4, 14)
    assert layer(torch.zeros(7, 3).double()).view(7, 2, 1).shape == (7, 2, 1)
    assert BayesLinear(3, 1)(torch.zeros(7, 3)).view(-1).shape == (7,)


@pytest.mark.parametrize("prior", [scale_mixture(1.0, 0.1, 0.3), Laplace(0.0, 0.5)], ids=str)
def test_a_prior_without_a_closed_form_is_estimated_without_bias(prior: Any) -> None:
    layer = BayesLinear(1, 2, prior=prior, initial_scale=0.2).double()
    q = Normal(layer.mean.detach(), layer.scale.detach())
    x = torch.linspace(-4, 4, 40_001, dtype=torch.float64)[:, None, None]
    terms = q.log_prob(x).exp() * (q.log_prob(x) - prior.log_prob(x))
    exact = float(torch.trapezoid(terms, x, dim=0).sum())
    draws = torch.stack([layer.kl().detach() for _ in range(2000)])
    error = float(draws.std()) / len(draws) ** 0.5
    assert abs(float(draws.mean()) - exact) < 4.5 * error + 1e-6
    # A mixture's density at mixed-up weights, or a KL the other way round, is far off.
    swapped = scale_mixture(1.0, 0.1, 0.7)
    wrong = q.log_prob(x).exp() * (q.log_prob(x) - swapped.log_prob(x))
    assert abs(float(torch.trapezoid(wrong, x, dim=0).sum()) - exact) > 20 * error


def test_a_scale_mixture_is_what_blundell_writes() -> None:
    prior = scale_mixture(wide_scale=2.0, narrow_scale=0.1, wide_share=0.3)
    x = torch.linspace(-3, 3, 7)
    by_hand = 0.3 * Normal(0.0, 2.0).log_prob(x).exp() + 0.7 * Normal(0.0, 0.1).log_prob(x).exp()
    torch.testing.assert_close(prior.log_prob(x).exp(), by_hand)
    # Far from the spike the density is that of the slab, not zero: its logarithm is finite.
    assert torch.isfinite(scale_mixture().log_prob(torch.tensor(30.0)))


@ESTIMATORS
def test_predictions_are_functions(estimator: Any, generator: torch.Generator) -> None:
    model = network(estimator=estimator, initial_scale=0.5)
    x = torch.randn(4, 3)
    draws = predict(model, torch.cat([x, x]), 50, generator=generator)
    assert draws.shape == (50, 8, 2)
    assert not draws.requires_grad
    torch.testing.assert_close(draws[:, :4], draws[:, 4:])
    assert (draws.std(dim=0) > 0).all()  # draws differ
    assert [layer.estimator for layer in (model[0], model[2])] == [estimator] * 2
    state = torch.get_rng_state()
    again = predict(
        model, torch.cat([x, x]), 50, generator=generator.manual_seed(generator.initial_seed())
    )
    assert torch.equal(draws, again)
    assert torch.equal(state, torch.get_rng_state())


def test_predictions_have_the_exact_moments(generator: torch.Generator) -> None:
    layer = BayesLinear(3, 2, initial_scale=0.5, estimator="local").double()
    x = torch.randn(2, 3).double()
    draws = predict(layer, x, 20_000, generator=generator).flatten(1)
    mean, covariance = exact_moments(layer, x)
    found = torch.cov(draws.T)
    diagonal = covariance.diagonal()
    error = ((diagonal[:, None] * diagonal + covariance.square()) / len(draws)).sqrt()
    assert ((draws.mean(dim=0) - mean).abs() < 4.5 * (diagonal / len(draws)).sqrt()).all()
    assert ((found - covariance).abs() < 4.5 * error).all()
    # Two rows go together, which noise for each row would not show.
    assert (covariance[:2, 2:].diagonal().abs() > 9 * error[:2, 2:].diagonal()).any()


def test_one_function_switches_everything_else_off_and_back() -> None:
    model = nn.Sequential(BayesLinear(3, 5, estimator="local"), nn.Dropout(0.5), nn.BatchNorm1d(5))
    model[1].eval()
    before = copy.deepcopy(model[2].state_dict())
    with one_function(model):
        assert model[0].estimator == "shared"
        assert not any(module.training for module in model.modules())
        model(torch.randn(7, 3))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert model[0].estimator == "local"
    assert all(torch.equal(before[name], value) for name, value in model[2].state_dict().items())


def test_gradients_reach_means_and_scales() -> None:
    for estimator in ("shared", "local", "flipout"):
        model = network(estimator=estimator)
        loss = model(torch.randn(7, 3)).square().sum() + kl_divergence(model)
        loss.backward()
        assert all(p.grad is not None and (p.grad != 0).all() for p in model.parameters())


def gradients(estimator: Any, batch_size: int, num_draws: int = 4000) -> Tensor:
    """Gradients of a minibatch's scaled log likelihood, a row for each draw; 1-20-20-2, untrained.

    The start is the one of a widely copied comparison: means N(0, 0.1²), scales near 0.05.
    """
    model = bayesian_relu(estimator)
    wave, rows = data.wave(), torch.arange(92).roll(-30)[:batch_size]
    x, y = wave.x[rows, None].float(), wave.y[rows].float()

    def log_likelihood(parameters: dict[str, Tensor]) -> Tensor:
        mean, log_variance = functional_call(model, parameters, (x,)).unbind(dim=-1)
        noise = Normal(mean, (log_variance / 2).exp(), validate_args=False)
        return noise.log_prob(y).sum() * (len(wave.x) / batch_size)

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    draw = torch.vmap(lambda _: torch.func.grad(log_likelihood)(parameters), randomness="different")
    return torch.cat([g.flatten(1) for g in draw(torch.empty(num_draws)).values()], dim=1).double()


def bayesian_relu(estimator: Any) -> nn.Sequential:
    generator = torch.Generator().manual_seed(3)
    modules: list[nn.Module] = []
    for inputs, outputs in ((1, 20), (20, 20), (20, 2)):
        layer = BayesLinear(inputs, outputs, estimator=estimator)
        with torch.no_grad():
            layer.mean.normal_(0, 0.1, generator=generator)
            layer.free.normal_(-3, 0.1, generator=generator)
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


@pytest.mark.parametrize(("batch_size", "at_least", "at_most"), [(8, 5, 10), (92, 45, 110)])
def test_estimators_agree_on_a_network_s_gradient_and_differ_in_its_noise(
    batch_size: int, at_least: float, at_most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: gradients(name, batch_size) for name in layers.ESTIMATORS}

    def detached(operation: Any, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Right outputs, and a tenth of the scales' gradient."""
        return weight_noise.draw_outputs(operation, x, mean, 0.1 * scale + 0.9 * scale.detach())

    monkeypatch.setitem(layers.ESTIMATORS, "local", detached)
    wrong = gradients("local", batch_size)

    def distance(a: Tensor, b: Tensor) -> float:
        """The largest of a thousand z scores; a weight whose unit is mostly off has none."""
        error = ((a.var(dim=0) + b.var(dim=0)) / len(a)).sqrt()
        z = (a.mean(dim=0) - b.mean(dim=0)).abs() / error
        busy = ((a != 0).double().mean(dim=0) > 0.2) & ((b != 0).double().mean(dim=0) > 0.2)
        assert 300 < busy.sum() < 1004
        return float(z[busy].max())

    assert distance(found["local"], found["shared"]) < 5.5
    assert distance(found["local"], found["flipout"]) < 5.5
    assert distance(found["local"], wrong) > 11
    trace = {name: float(draws.var(dim=0).sum()) for name, draws in found.items()}
    # Measured elsewhere: 6.7 and 65. With a bound for the Monte Carlo error of heavy tails.
    assert at_least < trace["shared"] / trace["local"] < at_most
    assert trace["local"] < trace["flipout"] < trace["shared"]


def test_layers_behave_as_modules_do() -> None:
    model = network(prior=scale_mixture())
    assert sorted(model.state_dict()) == ["0.free", "0.mean", "2.free", "2.mean"]
    assert sum(p.numel() for p in model.parameters()) == 2 * (3 * 5 + 5 + 5 * 2 + 2)
    other = network(prior=scale_mixture())
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other[0].mean, model[0].mean)
    double = copy.deepcopy(model).double()
    assert double(torch.randn(4, 3).double()).dtype == torch.float64
    assert double[0].prior.component_distribution.scale.dtype == torch.float64
    assert model[0].prior.component_distribution.scale.dtype == torch.float32
    assert kl_divergence(double).dtype == torch.float64
    assert network(prior=Normal(0.0, 1.0)).to("meta")[0].prior.loc.device.type == "meta"


COMPILED = """
import torch
from torch import nn
from coursepkg.layers import BayesLinear, kl_divergence

for estimator in ("shared", "local", "flipout"):
    model = nn.Sequential(BayesLinear(3, 5, estimator=estimator), nn.Tanh(), BayesLinear(5, 2))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(4, 3)
    torch.manual_seed(1)
    plain = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(x), plain)
"""


def test_a_compiled_model_gives_the_same_numbers() -> None:
    # In a process of its own: the shape checks of these tests are what cannot be traced.
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


test_bad_input_is_named = bad_input(
    [
        (lambda: BayesLinear(0, 1), ValueError, ("in_features", "at least 1")),
        (lambda: BayesLinear(1, 2.0), TypeError, ("out_features", "float")),
        (lambda: BayesLinear(1, 1, estimator="other"), ValueError, ("estimator", "flipout")),
        (lambda: BayesLinear(1, 1, initial_scale=0.0), ValueError, ("initial_scale", "positive")),
        (lambda: BayesLinear(1, 1, prior=0.1), TypeError, ("prior", "distribution", "float")),
        (
            lambda: BayesLinear(1, 1, prior=MultivariateNormal(torch.zeros(2), torch.eye(2))),
            ValueError,
            ("prior", "event shape", "(2,)"),
        ),
        (
            lambda: BayesLinear(1, 1, prior=Normal(torch.zeros(3, 1, 2), 1.0)),
            ValueError,
            ("prior", "broadcast", "(3, 1, 2)"),
        ),
        (lambda: predict(nn.Linear(1, 1), torch.zeros(1, 1)), ValueError, ("model", "bayesianize")),
        (lambda: predict(network(), torch.zeros(1, 3), 0), ValueError, ("num_draws", "at least 1")),
        (lambda: kl_divergence(nn.Tanh()), ValueError, ("model", "Tanh")),
        (lambda: scale_mixture(wide_share=1.0), ValueError, ("wide_share", "between 0 and 1")),
        (lambda: scale_mixture(narrow_scale=0.0), ValueError, ("narrow_scale", "positive")),
    ]
)


def test_the_base_class_asks_for_an_operation() -> None:
    with pytest.raises(NotImplementedError):
        BayesLayer(1, 1)(torch.zeros(1, 1))


def test_softplus_starts_where_it_was_asked_to() -> None:
    layer = BayesLinear(4, 3, initial_scale=0.2)
    torch.testing.assert_close(F.softplus(layer.free), torch.full((3, 5), 0.2))
    assert layer.mean.abs().max() <= 4**-0.5
    assert math.isclose(BayesLinear(1, 1).scale.max().item(), 0.05, rel_tol=1e-5)
