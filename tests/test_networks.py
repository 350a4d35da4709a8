"""Networks: against stacks of torch's own layers, torch.distributions, autograd, closed forms."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal

from coursepkg import density, linear, networks
from coursepkg.networks import MLP

MODULES = {
    torch.relu: nn.ReLU,
    torch.tanh: nn.Tanh,
    torch.sigmoid: nn.Sigmoid,
}
# No hidden layer to three of them, one and several inputs and outputs.
WIDTHS = [(2, 1), (1, 5, 1), (3, 4, 2), (1, 4, 3, 1), (2, 3, 5, 4, 3)]
LIKELIHOODS = [networks.Gaussian(0.7), networks.Bernoulli(), networks.Categorical()]
exact = settings(deadline=None, derandomize=True, max_examples=25)


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stack(widths: tuple[int, ...], activation: Any, weights: Tensor) -> nn.Sequential:
    """The same network out of torch's own layers, with one weight vector."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), MODULES[activation]()]
    model = nn.Sequential(*layers[:-1]).to(weights.dtype)
    nn.utils.vector_to_parameters(weights, model.parameters())
    return model


def targets(likelihood: Any, num_points: int, num_outputs: int) -> Tensor:
    if isinstance(likelihood, networks.Categorical):
        return torch.arange(num_points) % num_outputs
    y = normals(num_points, num_outputs, seed=7)
    return (y > 0).double() if isinstance(likelihood, networks.Bernoulli) else y


def problem(
    likelihood: Any, widths: tuple[int, ...], activation: Any, num_points: int = 6
) -> networks.LogJoint:
    y = targets(likelihood, num_points, widths[-1])
    x = normals(num_points, widths[0], seed=8)
    return networks.log_joint(MLP(widths, activation), x, y, likelihood, prior_scale=1.5)


def log_joint_by_torch(model: networks.LogJoint, y: Tensor, weights: Tensor) -> Tensor:
    """The log joint of one weight vector, from torch's layers and its distributions."""
    with torch.no_grad():
        f = stack(model.network.widths, model.network.activation, weights)(model.x)
    if isinstance(model.likelihood, networks.Gaussian):
        log_prob = Normal(f, model.likelihood.noise_scale).log_prob(y)
    elif isinstance(model.likelihood, networks.Bernoulli):
        log_prob = Bernoulli(logits=f).log_prob(y)
    else:
        log_prob = Categorical(logits=f).log_prob(y)
    return log_prob.sum() + Normal(0, model.prior_scale).log_prob(weights).sum()


# --- The network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", MODULES)
@pytest.mark.parametrize("widths", WIDTHS)
def test_a_network_is_a_stack_of_linear_layers(widths, activation, dtype):
    network = MLP(widths, activation)
    weights = normals(2, 3, network.num_weights, dtype=dtype)
    x = normals(7, widths[0], seed=1, dtype=dtype)
    outputs = network(weights, x)
    assert outputs.dtype == dtype
    assert outputs.shape == (2, 3, 7, widths[-1])
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(outputs[i, j], stack(widths, activation, weights[i, j])(x))


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 1, 3)])
def test_weights_may_have_any_batch_shape(batch):
    network = MLP((1, 5, 1))
    weights, x = normals(*batch, 16), normals(7, seed=1)
    outputs = network(weights, x)
    assert outputs.shape == (*batch, 7, 1)
    each = torch.stack([network(w, x) for w in weights.reshape(-1, 16)])
    torch.testing.assert_close(outputs, each.reshape(outputs.shape))


def test_one_input_needs_no_second_dimension_and_keeps_its_first():
    network, weights = MLP((1, 5, 1)), normals(16)
    assert torch.equal(network(weights, normals(7)), network(weights, normals(7)[:, None]))
    assert network(weights, normals(1)).shape == (1, 1)


@exact
@given(widths=st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_weights_are_counted_as_torch_counts_them(widths):
    modules = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)]
    assert MLP(tuple(widths)).num_weights == sum(
        part.numel() for module in modules for part in module.parameters()
    )


@pytest.mark.parametrize("hidden", [1, 2, 5, 20])
def test_one_hidden_layer_has_three_weights_a_unit_and_one(hidden):
    """A widely shown count, (h + 1) + h, forgets a weight for each unit."""
    assert MLP((1, hidden, 1)).num_weights == 3 * hidden + 1 != (hidden + 1) + hidden


def test_a_unit_bends_where_its_own_weights_say():
    """f(x) = 3 max(0, 2x - 1) + 0.5: the order of weights and biases, by hand."""
    network = MLP((1, 1, 1), torch.relu)
    outputs = network(torch.tensor([2.0, -1.0, 3.0, 0.5]), torch.tensor([0.0, 0.5, 1.0, 2.0]))
    assert outputs[:, 0].tolist() == [0.5, 0.5, 3.5, 9.5]


def test_without_an_activation_depth_is_for_nothing():
    network = MLP((1, 4, 4, 1), lambda sums: sums)
    lines = network(normals(20, network.num_weights), torch.arange(5.0))[..., 0]
    assert (lines.diff(n=2).abs() < 1e-12).all()


def test_a_forgotten_bias_would_be_seen():
    """What the comparisons with torch's layers rest on: they see each single weight."""
    network, x = MLP((2, 3, 2, 1), torch.tanh), normals(7, 2, seed=1)
    weights = normals(network.num_weights)
    right = stack(network.widths, torch.tanh, weights)(x)
    for left_out in range(network.num_weights):
        changed = weights.clone()
        changed[left_out] = 0
        assert not torch.allclose(network(changed, x), right)


# --- The log joint --------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", MODULES)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda one: type(one).__name__)
def test_log_joint_and_gradient_are_those_of_torch(likelihood, widths, activation):
    model = problem(likelihood, widths, activation)
    y = targets(likelihood, 6, widths[-1])
    weights = normals(4, model.dim, seed=2)
    values, gradients = model.value_and_grad(weights)
    torch.testing.assert_close(model(weights), values)
    for w, value, gradient in zip(weights, values, gradients, strict=True):
        w = w.clone().requires_grad_()
        truth = log_joint_by_torch(model, y, w.detach())
        torch.testing.assert_close(value, truth)
        (by_autograd,) = torch.autograd.grad(model(w), w)
        torch.testing.assert_close(gradient, by_autograd)
    assert not values.requires_grad
    assert not gradients.requires_grad


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda one: type(one).__name__)
def test_the_gradient_is_that_of_finite_differences(likelihood):
    """Autograd through our own forward pass would inherit a mistake made there."""
    model = problem(likelihood, (2, 4, 3, 2), torch.tanh)
    y, weights = targets(likelihood, 6, 2), normals(model.dim, seed=2)
    gradient, step = model.value_and_grad(weights)[1], 1e-6
    for index, shift in enumerate(step * torch.eye(model.dim, dtype=torch.float64)):
        rise = log_joint_by_torch(model, y, weights + shift)
        fall = log_joint_by_torch(model, y, weights - shift)
        assert math.isclose(gradient[index], (rise - fall) / (2 * step), rel_tol=1e-6, abs_tol=1e-6)


@pytest.mark.parametrize("num_chains", [10, 400])
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda one: type(one).__name__)
def test_large_batches_take_another_way_to_the_same_numbers(likelihood, num_chains):
    """Below and above the size from which sums of products become matrix products."""
    widths, num_points = (2, 12, 12, 2), 50
    assert (num_points * 12 * 12 * num_chains > networks.MANY) == (num_chains == 400)
    model = problem(likelihood, widths, torch.tanh, num_points)
    weights = normals(num_chains, model.dim, seed=2)
    values, gradients = model.value_and_grad(weights)
    for chain in (0, num_chains - 1):
        value, gradient = model.value_and_grad(weights[chain])
        torch.testing.assert_close(values[chain], value)
        torch.testing.assert_close(gradients[chain], gradient)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_values_and_gradients_have_the_shapes_of_the_batch(batch):
    model = networks.sine_posterior()
    weights = normals(*batch, 16)
    values, gradients = model.value_and_grad(weights)
    assert values.shape == model(weights).shape == batch
    assert gradients.shape == (*batch, 16)


def test_the_parts_are_the_whole_and_a_mean_is_no_sum():
    """The mean log likelihood beside the prior is another model: N times the noise variance."""
    model = networks.sine_posterior()
    weights = normals(5, 16)
    parts = model.log_likelihood(weights), model.log_prior(weights)
    torch.testing.assert_close(model(weights), parts[0] + parts[1])
    torch.testing.assert_close(parts[1], Normal(0, 1).log_prob(weights).sum(dim=-1))
    mean = parts[0] / 20 + parts[1]
    assert not torch.allclose(model(weights), mean)
    diluted = networks.log_joint(
        model.network, model.x, model.y[..., 0], networks.Gaussian(0.1 * math.sqrt(20))
    )
    constant = diluted(weights) - mean
    torch.testing.assert_close(constant, constant[:1].expand(5))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda one: type(one).__name__)
def test_single_targets_are_the_parts_of_the_likelihood(likelihood):
    x, y = normals(6, 2), targets(likelihood, 6, 3)
    model = networks.log_joint(MLP((2, 4, 3)), x, y, likelihood)
    weights = normals(5, 2, model.dim)
    rows = torch.tensor([4, 1, 1])
    each = model.pointwise(weights, rows)
    assert each.shape == (5, 2, 3)
    for column, row in enumerate(rows.tolist()):
        alone = networks.log_joint(model.network, x[[row]], y[[row]], likelihood)
        torch.testing.assert_close(each[..., column], alone.log_likelihood(weights))
    whole = model.pointwise(weights, torch.arange(6)).sum(dim=-1)
    torch.testing.assert_close(whole, model.log_likelihood(weights))


def test_the_log_joint_is_normalized_in_the_targets():
    """Probabilities of all possible targets sum to one, and the Gaussian's integrate to one."""
    x, weights = normals(2, 1, seed=3), normals(16)
    network = MLP((1, 5, 1))
    total = sum(
        networks.log_joint(network, x, torch.tensor(y), networks.Bernoulli())
        .log_likelihood(weights)
        .exp()
        for y in itertools.product([0.0, 1.0], repeat=2)
    )
    torch.testing.assert_close(total, torch.tensor(1.0, dtype=torch.float64))
    center = float(network(weights, x[:1]))
    grid = center + torch.linspace(-10, 10, 2001, dtype=torch.float64)
    densities = torch.stack(
        [
            networks.log_joint(network, x[:1], y[None], networks.Gaussian(0.8)).log_likelihood(
                weights
            )
            for y in grid
        ]
    ).exp()
    assert math.isclose(torch.trapezoid(densities, grid), 1, rel_tol=1e-9)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda one: type(one).__name__)
def test_every_score_is_target_minus_prediction(likelihood):
    outputs = normals(6, 3, 4).requires_grad_()
    y = likelihood.targets(targets(likelihood, 6, 3), 3)
    (by_autograd,) = torch.autograd.grad(likelihood.log_prob(outputs, y).sum(), outputs)
    prediction = {
        networks.Gaussian: lambda f: f,
        networks.Bernoulli: torch.sigmoid,
        networks.Categorical: lambda f: f.softmax(dim=1),
    }[type(likelihood)](outputs)
    scale = getattr(likelihood, "noise_scale", 1.0)
    torch.testing.assert_close(likelihood.score(outputs, y), by_autograd)
    torch.testing.assert_close(by_autograd, (y - prediction) / scale**2)


def test_logits_far_out_lose_no_digits():
    """log(sigmoid(-800)) is -800; by way of the probability it would be minus infinity."""
    y = torch.tensor([1.0, 0.0])[:, None, None]
    outputs = torch.tensor([-800.0, 800.0])[:, None, None]
    assert networks.Bernoulli().log_prob(outputs, y).flatten().tolist() == [-800.0, -800.0]
    classes = networks.Categorical().targets(torch.tensor([0]), 2)
    assert networks.Categorical().log_prob(torch.tensor([[[-800.0], [0.0]]]), classes) == -800


def test_an_activation_without_a_known_slope_is_left_to_autograd():
    """The posterior then carries no gradient of its own, and engines get one all the same."""
    x, y = normals(6, seed=3), normals(6, seed=4)
    model = networks.log_joint(MLP((1, 5, 1), torch.sin), x, y, networks.Gaussian(0.5))
    assert not hasattr(model, "value_and_grad")
    weights = normals(3, 16)
    values, gradients = density.value_and_grad(model, weights)
    w, b, v, c = weights.split([5, 5, 5, 1], dim=1)
    inner = w[:, None] * x[:, None] + b[:, None]
    left = (y - (v[:, None] * inner.sin()).sum(dim=-1) - c) / 0.25
    torch.testing.assert_close(values, model(weights))
    torch.testing.assert_close(gradients[:, 15], left.sum(dim=1) - c[:, 0])
    of_w = torch.einsum("cn,cj,cnj,n->cj", left, v, inner.cos(), x) - w
    torch.testing.assert_close(gradients[:, :5], of_w)


def test_numbers_follow_the_dtype_of_the_weights_from_call_to_call():
    model, weights = networks.sine_posterior(), normals(3, 16)
    for dtype, close in ((torch.float32, 1e-4), (torch.float64, 0), (torch.float32, 1e-4)):
        values, gradients = model.value_and_grad(weights.to(dtype))
        assert values.dtype == gradients.dtype == model(weights.to(dtype)).dtype == dtype
        torch.testing.assert_close(values.double(), model(weights), rtol=close, atol=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda one: type(one).__name__)
def test_all_happens_on_the_device_of_the_weights(likelihood):
    """A device without numbers: any tensor made on another one would stop the calculation."""
    model = problem(likelihood, (2, 4, 3), torch.relu)
    weights = torch.empty(5, model.dim, device="meta")
    values, gradients = model.value_and_grad(weights)
    assert model.network(weights, model.x).device.type == "meta"
    assert values.device.type == gradients.device.type == "meta"
    assert model(torch.zeros(model.dim)).isfinite()  # and back


# --- The sine sensor, and its symmetries ----------------------------------------------------------


def test_the_sine_posterior_is_the_one_that_all_chapters_mean(truth):
    """Data and order of the weights from a reference that was computed elsewhere."""
    reference, model = truth("sine_network"), networks.sine_posterior()
    assert model.dim == 16
    assert model.prior_scale == 1
    assert model.likelihood == networks.Gaussian(0.1)
    x, y = (torch.tensor(reference[name], dtype=torch.float64) for name in "xy")
    torch.testing.assert_close(model.x[:, 0], x)
    torch.testing.assert_close(model.y[:, 0, 0], y)
    weights = normals(16)
    w, b, v, c = weights.split([5, 5, 5, 1])
    f = torch.relu(torch.outer(x, w) + b) @ v + c
    by_hand = Normal(f, 0.1).log_prob(y).sum() + Normal(0, 1).log_prob(weights).sum()
    torch.testing.assert_close(model(weights), by_hand, rtol=1e-9, atol=0)


def test_units_may_change_places():
    model, weights = networks.sine_posterior(), normals(16)
    units = weights[:15].reshape(3, 5)
    for order in itertools.permutations(range(5)):
        moved = torch.cat([units[:, list(order)].flatten(), weights[15:]])
        torch.testing.assert_close(model(moved), model(weights))


def test_tanh_units_may_flip_their_signs_and_relu_units_may_not():
    weights = normals(16)
    flipped = weights.clone()
    flipped[[1, 6, 11]] *= -1
    x = normals(7, seed=1)
    for activation, same in ((torch.tanh, True), (torch.relu, False)):
        network = MLP((1, 5, 1), activation)
        assert torch.allclose(network(weights, x), network(flipped, x)) == same


def test_relu_units_may_be_rescaled_and_only_the_prior_minds():
    model, weights = networks.sine_posterior(), normals(16)
    scaled = weights.clone()
    scaled[[1, 6]] *= 3
    scaled[11] /= 3
    torch.testing.assert_close(model.log_likelihood(scaled), model.log_likelihood(weights))
    assert abs(model.log_prior(scaled) - model.log_prior(weights)) > 0.1


# --- Draws from the prior -------------------------------------------------------------------------


def test_prior_draws_have_the_priors_scale_and_repeat(generator):
    model = networks.log_joint(
        MLP((1, 5, 1)), normals(4), normals(4), networks.Gaussian(1.0), prior_scale=2.0
    )
    draws = model.sample_prior(4000, generator=generator)
    again = model.sample_prior(4000, generator=torch.Generator().manual_seed(20260101))
    assert draws.shape == (4000, 16)
    assert torch.equal(draws, again)
    # The mean of 64,000 squares of variance 4 has a standard error of 4 sqrt(2 / 64,000).
    for squares, right in ((draws**2, True), (draws**2 / 4, False)):
        assert (abs(squares.mean() - 4) < 4 * 4 * math.sqrt(2 / draws.numel())) == right


def test_the_size_of_prior_functions_grows_with_the_root_of_the_width(generator):
    """var f(x) = s^2 + h s^4 (1 + x^2) / 2 for ReLU units."""
    at, count = torch.tensor([2.0]), 20_000
    for hidden in (5, 80):
        network = MLP((1, hidden, 1))
        draws = torch.randn(count, network.num_weights, generator=generator)
        squares = network(draws, at).flatten() ** 2
        error = float(squares.std()) / math.sqrt(count)
        assert abs(squares.mean() - (1 + hidden * 2.5)) < 4 * error
        assert abs(squares.mean() - hidden * 5) > 10 * error  # the kink halves the variance


# --- Fits -----------------------------------------------------------------------------------------


def line(noise_scale: float = 0.3) -> tuple[networks.LogJoint, Tensor, Tensor]:
    """A "network" without hidden layer: linear regression with an intercept that comes last."""
    x = normals(30, 2, seed=5)
    y = x @ torch.tensor([1.0, -2.0], dtype=torch.float64) + 0.5 + 0.3 * normals(30, seed=6)
    model = networks.log_joint(MLP((2, 1)), x, y, networks.Gaussian(noise_scale), prior_scale=0.2)
    return model, torch.cat([x, torch.ones(30, 1, dtype=torch.float64)], dim=1), y


def test_maximum_likelihood_is_least_squares(generator):
    model, features, y = line()
    fit = networks.fit_mle(model, num_restarts=4, generator=generator)
    truth = linear.fit_ols(features, y).coefficients
    for weights in fit.restarts:
        torch.testing.assert_close(weights.double(), truth, rtol=1e-4, atol=1e-4)
    assert math.isclose(fit.value, model.log_likelihood(truth), rel_tol=1e-4)


@pytest.mark.parametrize("noise_scale", [0.3, 1.0])
def test_map_is_ridge_with_noise_variance_over_prior_variance(noise_scale, generator):
    model, features, y = line(noise_scale)
    fit = networks.fit_map(model, num_restarts=4, generator=generator)
    penalty = noise_scale**2 / 0.2**2
    truth = linear.fit_ridge(features, y, penalty=penalty).coefficients
    torch.testing.assert_close(fit.weights.double(), truth, rtol=1e-4, atol=1e-4)
    for wrong in (penalty / 2, 2 * penalty, 0.0):  # weight decay for lambda; no prior at all
        other = linear.fit_ridge(features, y, penalty=wrong).coefficients
        assert not torch.allclose(fit.weights.double(), other, rtol=1e-2, atol=1e-2)


def test_a_fit_hands_over_the_best_of_its_restarts(generator):
    model = networks.sine_posterior()
    fit = networks.fit_map(model, num_restarts=6, num_steps=50, generator=generator)
    assert fit.restarts.shape == (6, 16)
    assert fit.history.shape == (50, 6)
    torch.testing.assert_close(fit.values, model(fit.restarts))
    assert fit.value == float(fit.values.max())
    assert torch.equal(fit.weights, fit.restarts[fit.values.argmax()])
    start = model.sample_prior(6, generator=torch.Generator().manual_seed(20260101))
    torch.testing.assert_close(fit.history[0], model(start))
    assert (fit.values > fit.history[0]).all()


@pytest.mark.parametrize("likelihood", [networks.Bernoulli(), networks.Categorical()])
def test_classes_that_a_line_parts_are_told_apart(likelihood, generator):
    x = normals(40, 2, seed=5)
    y = (x.sum(dim=1) > 0).double()
    outputs = 1 if isinstance(likelihood, networks.Bernoulli) else 2
    model = networks.log_joint(MLP((2, 4, outputs), torch.tanh), x, y, likelihood, 3.0)
    fit = networks.fit_map(model, num_restarts=4, num_steps=300, generator=generator)
    f = model.network(fit.weights, x)
    guess = f[:, 0] > 0 if outputs == 1 else f.argmax(dim=1)
    assert (guess == y).double().mean() > 0.95


# --- Kind errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (((5,),), ValueError, ["widths", "at least 2"]),
        (((1, 0, 1),), ValueError, ["width", "at least 1", "0"]),
        (((1, 5.0, 1),), TypeError, ["width", "whole number", "5.0"]),
        (((1, 5, 1), "relu"), TypeError, ["activation", "function", "relu"]),
    ],
)
def test_networks_that_cannot_be(arguments, error, words, kind_error):
    with kind_error(error, *words):
        MLP(*arguments)


@pytest.mark.parametrize(
    ("weights", "x", "error", "words"),
    [
        (torch.zeros(15), torch.zeros(3), ValueError, ["weights", "16", "(15,)"]),
        (torch.tensor(0.0), torch.zeros(3), ValueError, ["weights", "16", "()"]),
        ([0.0] * 16, torch.zeros(3), ValueError, ["weights", "16", "list"]),
        (torch.zeros(16), torch.zeros(3, 2), ValueError, ["x", "(points, 1)", "(3, 2)"]),
        (torch.zeros(16), torch.tensor(1.0), ValueError, ["x", "(points, 1)", "()"]),
        (torch.zeros(16), torch.zeros(3, dtype=torch.int64), TypeError, ["x", "double"]),
        (torch.zeros(16), torch.tensor([math.nan]), ValueError, ["x", "finite"]),
    ],
)
def test_weights_and_inputs_that_do_not_fit(weights, x, error, words, kind_error):
    with kind_error(error, *words):
        MLP((1, 5, 1))(weights, x)


def test_several_inputs_are_not_guessed_from_one_dimension(kind_error):
    with kind_error(ValueError, "x", "(points, 2)", "(3,)"):
        MLP((2, 1))(torch.zeros(3), torch.zeros(3))


@pytest.mark.parametrize(
    ("likelihood", "y", "error", "words"),
    [
        (networks.Gaussian(1.0), torch.zeros(4), ValueError, ["y", "3", "(4, 1)"]),
        (networks.Gaussian(1.0), torch.zeros(4, 3, 1), ValueError, ["y", "3"]),
        (networks.Gaussian(1.0), torch.zeros(4, 3).long(), TypeError, ["y", "double"]),
        (networks.Gaussian(1.0), torch.full((4, 3), math.inf), ValueError, ["y", "finite"]),
        (networks.Bernoulli(), torch.full((4, 3), 0.5), ValueError, ["y", "0 and 1"]),
        (networks.Bernoulli(), [0, 1], TypeError, ["y", "list"]),
        (networks.Categorical(), torch.tensor([0, 1, 3, 0]), ValueError, ["y", "0 to 2", "3"]),
        (networks.Categorical(), torch.tensor([0, 1, -1, 0]), ValueError, ["y", "0 to 2", "-1"]),
        (networks.Categorical(), torch.tensor([0, 1.5, 1, 0]), ValueError, ["y", "1.5"]),
        (networks.Categorical(), torch.zeros(4, 3), ValueError, ["y", "(points,)"]),
        (networks.Categorical(), [0, 1], ValueError, ["y", "tensor"]),
        (networks.Gaussian(1.0), torch.zeros(5, 3), ValueError, ["x and y", "4", "5"]),
    ],
)
def test_targets_that_do_not_fit(likelihood, y, error, words, kind_error):
    with kind_error(error, *words):
        networks.log_joint(MLP((1, 3)), torch.zeros(4), y, likelihood)


def test_whole_numbers_are_good_class_labels():
    for likelihood, outputs in ((networks.Bernoulli(), 1), (networks.Categorical(), 2)):
        network = MLP((1, outputs))
        labels = torch.tensor([0, 1, 1])
        models = [
            networks.log_joint(network, torch.zeros(3), y, likelihood)
            for y in (labels, labels.double(), labels.to(torch.int32))
        ]
        values = [model(normals(network.num_weights)) for model in models]
        assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf])
def test_scales_must_be_positive(scale, kind_error):
    with kind_error(ValueError, "noise_scale"):
        networks.Gaussian(scale)
    with kind_error(ValueError, "prior_scale"):
        networks.log_joint(
            MLP((1, 1)), torch.zeros(4), torch.zeros(4), networks.Gaussian(1.0), scale
        )


@pytest.mark.parametrize("fit", [networks.fit_mle, networks.fit_map])
def test_fits_check_their_settings(fit, kind_error):
    model = networks.sine_posterior()
    for name, bad in (("num_restarts", 0), ("num_steps", 0), ("learning_rate", 0.0)):
        with kind_error(ValueError, name):
            fit(model, **{name: bad})
