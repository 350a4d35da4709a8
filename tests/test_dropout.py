"""Dropout: its own switch, one function a draw, exact moments, a prior that the optimum obeys."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

from coursepkg import dropout
from coursepkg.dropout import ConcreteDropout, mc_dropout, predict


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20260101)


EVERY_KIND = [
    nn.Dropout(0.5),
    nn.Dropout1d(0.5),
    nn.Dropout2d(0.5),
    nn.Dropout3d(0.5),
    nn.AlphaDropout(0.5),
    nn.FeatureAlphaDropout(0.5),
    ConcreteDropout(nn.Linear(3, 3)),
]


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: type(kind).__name__)
def test_dropout_alone_is_switched_on_and_all_modes_come_back(kind: nn.Module) -> None:
    inner = nn.Sequential(nn.Linear(3, 3), kind, nn.BatchNorm1d(3))
    model = nn.Sequential(inner, nn.BatchNorm1d(3))
    model.eval()
    inner.training = model[1].training = True  # modes as no train() or eval() leaves them
    before = [module.training for module in model.modules()]
    with mc_dropout(model):
        assert [module for module in model.modules() if module.training] == [kind]
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError), mc_dropout(model):
        raise RuntimeError
    assert [module.training for module in model.modules()] == before


def test_batchnorm_keeps_its_averages_and_uses_them() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 4), nn.BatchNorm1d(4))
    model(100 + torch.randn(50, 3))  # moves the averages
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(20, 3)
    draws = predict(model, x, 4000)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert all(module.training for module in model)
    # Affine but for the masks: the mean of the draws is the network without dropout.
    expected = copy.deepcopy(model).eval()(x).detach()
    error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - expected).abs() < 4.5 * error).all()
    with torch.no_grad():
        batch = copy.deepcopy(model)(x)  # the mistake: model.train()
    assert ((batch - expected).abs() > 20 * error).any()


IMAGES = nn.Unflatten(1, (1, 3))
NETWORKS = {
    "linear": nn.Sequential(nn.Linear(3, 8), nn.ReLU(inplace=True), nn.Dropout(0.5)),
    "in place, first": nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(3, 8)),
    "convolution": nn.Sequential(
        IMAGES, nn.Conv1d(1, 4, 2), nn.Dropout1d(0.5), nn.BatchNorm1d(4), nn.Flatten()
    ),
    "alpha": nn.Sequential(nn.Linear(3, 8), nn.SELU(), nn.AlphaDropout(0.5)),
    "concrete": nn.Sequential(nn.Linear(3, 8), nn.Tanh(), ConcreteDropout(nn.Linear(8, 8), 0.5)),
    "concrete convolution": nn.Sequential(
        IMAGES,
        nn.Conv1d(1, 4, 1),
        ConcreteDropout(nn.Conv1d(4, 4, 2), 0.5),
        nn.Flatten(),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_are_functions(name: str, generator: torch.Generator) -> None:
    model = nn.Sequential(copy.deepcopy(NETWORKS[name]), nn.Linear(8, 2))
    x = torch.randn(4, 3)
    twice = torch.cat([x, x])
    kept = twice.clone()
    draws = predict(model, twice, 50, generator=generator)
    assert draws.shape == (50, 8, 2)
    assert not draws.requires_grad
    torch.testing.assert_close(draws[:, :4], draws[:, 4:])
    assert (draws.std(dim=0) > 0).all()  # draws differ
    torch.testing.assert_close(twice, kept, rtol=0, atol=0)
    assert all(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))
    # By the same generator the same functions, whatever torch's own source of randomness does.
    state = torch.get_rng_state()
    again = predict(model, x, 50, generator=torch.Generator().manual_seed(20260101))
    torch.testing.assert_close(again, draws[:, :4])
    assert torch.equal(torch.get_rng_state(), state)
    # One mask a row, as in a forward pass, is no function.
    with mc_dropout(model):
        rows = torch.stack([model(twice.clone()) for _ in range(50)])
    assert (rows[:, :4] - rows[:, 4:]).abs().max() > 0.01


def test_in_place_dropout_is_in_place_again() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5, inplace=True))
    predict(model, torch.zeros(2, 3), 2)
    assert model[1].inplace


def test_a_linear_layer_has_the_exact_mean_and_covariance(generator: torch.Generator) -> None:
    rate, num_draws = 0.3, 40_000
    layer = nn.Linear(6, 2).double()
    x = torch.randn(3, 6).double()
    draws = predict(nn.Sequential(nn.Dropout(rate), layer), x, num_draws, generator=generator)
    # var Σ w x z / (1 - r) = Σ (w x)² r / (1 - r), and so the covariance of rows and outputs.
    weighted = torch.einsum("oi,ni->noi", layer.weight.detach(), x).flatten(0, 1)
    mean = layer(x).detach().flatten()
    covariance = weighted @ weighted.T * rate / (1 - rate)
    centered = draws.flatten(1) - mean
    products = centered[:, :, None] * centered[:, None, :]
    for sample, exact in ((centered, torch.zeros(6).double()), (products, covariance)):
        error = sample.std(dim=0) / num_draws**0.5
        assert ((sample.mean(dim=0) - exact).abs() < 4.5 * error).all()
    # The variance without the division by 1 - r, which torch does, is rejected.
    error = products.std(dim=0) / num_draws**0.5
    plain = covariance * (1 - rate) ** 2
    assert ((products.mean(dim=0) - plain).abs() > 20 * error).diagonal().all()


def ridge(
    features: Tensor, y: Tensor, length_scale: float, rate: float, precision: float
) -> Tensor:
    """Weights as torch stores them, at the optimum of the paper's objective in its own terms.

    There dropout does not divide: M has the features z ∘ x, with mean q x and variance q r x²,
    where q = 1 - r. So E‖y - X (z ∘ M)‖² = ‖y - q X M‖² + q r M' diag(X'X) M, and
    KL = q ℓ²‖M‖² / 2.
    """
    q, gram = 1 - rate, features.T @ features
    left = precision * (q**2 * gram + q * rate * gram.diagonal().diag())
    left = left + q * length_scale**2 * torch.eye(len(gram)).double()
    return q * torch.linalg.solve(left, precision * q * features.T @ y)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_the_weight_decay_leads_to_the_optimum_in_closed_form(rate: float) -> None:
    num_points, length_scale, precision = 40, 3.0, 0.7
    x = torch.randn(num_points, 3).double()
    y = x @ torch.tensor([2.0, -1.0, 0.5]).double() + torch.randn(num_points).double()
    optimum = ridge(x, y, length_scale, rate, precision)
    decay = dropout.weight_decay(length_scale, rate, num_points, precision)

    def steps(weight_decay: float, num_steps: int = 500) -> Tensor:
        """Where single steps of torch's SGD go from the optimum, with dropout's noise."""
        found = []
        for _ in range(num_steps):
            layer = nn.Linear(3, 1, bias=False).double()
            layer.weight.data[:] = optimum
            optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, weight_decay=weight_decay)
            outputs = layer(nn.functional.dropout(x, rate))[:, 0]
            ((outputs - y).square().mean() / 2).backward()
            optimizer.step()
            found.append(layer.weight.detach()[0] - optimum)
        return torch.stack(found)

    def off(weight_decay: float) -> Tensor:
        moves = steps(weight_decay)
        return moves.mean(dim=0).abs() / (moves.std(dim=0) / len(moves) ** 0.5 + 1e-12)

    assert (off(decay) < 4.5).all()
    # The number that multiplies ‖M‖² in the paper is not what torch wants: the half, and the masks.
    paper = (1 - rate) * length_scale**2 / (2 * num_points * precision)
    assert off(paper).max() > 20
    assert off(2 * decay).max() > 20  # the one beside a mean without the half
    assert dropout.precision(length_scale, rate, num_points, decay) == pytest.approx(precision)


def test_the_penalty_is_the_weight_decay_of_all_points() -> None:
    rate, num_points, precision, length_scale = 0.3, 50, 0.25, 2.0
    layer = nn.Linear(4, 2).double()
    dropout.kl(nn.Sequential(nn.Dropout(rate), layer), length_scale).backward()
    for parameter, dropped in ((layer.weight, rate), (layer.bias, 0.0)):
        decay = dropout.weight_decay(length_scale, dropped, num_points, precision)
        expected = num_points * precision * decay * parameter.detach()
        torch.testing.assert_close(parameter.grad, expected)


def narrow_kl(weight: float, rate: float, length_scale: float, width: float) -> float:
    """KL(q‖p) by quadrature of one weight, of narrow normals in place of the two points."""
    m = weight / (1 - rate)
    x = torch.cat([c + torch.linspace(-9, 9, 4001, dtype=torch.float64) * width for c in (0.0, m)])
    q = torch.stack(
        [
            Normal(0.0, width).log_prob(x) + math.log(rate),
            Normal(m, width).log_prob(x) + math.log1p(-rate),
        ]
    ).logsumexp(dim=0)
    terms = q.exp() * (q - Normal(0.0, 1 / length_scale).log_prob(x))
    return float(torch.trapezoid(terms[:4001], x[:4001]) + torch.trapezoid(terms[4001:], x[4001:]))


def test_the_penalty_is_the_kl_but_for_a_constant_that_is_infinite() -> None:
    settings = [(0.5, 0.1), (1.5, 0.1), (1.5, 0.4), (-0.7, 0.8)]
    for length_scale in (0.5, 2.0):
        penalties = []
        for weight, rate in settings:
            layer = nn.Linear(1, 1, bias=False).double()
            layer.weight.data.fill_(weight)
            penalties.append(
                float(dropout.kl(nn.Sequential(nn.Dropout(rate), layer), length_scale).detach())
            )
        constants = []
        for width in (1e-3, 1e-4, 1e-5):
            exact = [narrow_kl(weight, rate, length_scale, width) for weight, rate in settings]
            rests = [kl - penalty for kl, penalty in zip(exact, penalties, strict=True)]
            assert max(rests) - min(rests) < 1e-5  # the same for all weights and rates
            constants.append(rests[0])
        # ... and a factor of ten in the width adds log 10 to it, without end.
        for wide, narrow in pairwise(constants):
            assert narrow - wide == pytest.approx(math.log(10), abs=1e-5)
        # The formula without dropout's division is rejected.
        wrong = [length_scale**2 * (1 - rate) * w**2 / 2 for w, rate in settings]
        assert abs((penalties[1] - penalties[0]) - (wrong[1] - wrong[0])) > 0.01


def test_all_layers_count_with_the_rates_on_their_inputs() -> None:
    """One weight at a time by hand, for networks of every kind of layer."""

    def by_hand(layer: Any, rate: float, num_inputs: int) -> float:
        squares = float((layer.weight.detach() ** 2).sum()) / (1 - rate)
        bias = 0.0 if layer.bias is None else float((layer.bias.detach() ** 2).sum())
        entropy = float(Bernoulli(probs=rate).entropy()) if rate else 0.0
        return 4.0 * (squares + bias) / 2 - num_inputs * entropy

    first, second, third = nn.Linear(3, 5), nn.Linear(5, 4, bias=False), nn.Linear(4, 1)
    fixed = nn.Sequential(first, nn.Tanh(), nn.Dropout(0.3), second, nn.ReLU(), third)
    expected = by_hand(first, 0, 3) + by_hand(second, 0.3, 5) + by_hand(third, 0, 4)
    assert float(dropout.kl(fixed, 2.0).detach()) == pytest.approx(expected, rel=1e-5)

    learned = nn.Sequential(first, nn.Tanh(), ConcreteDropout(second, 0.3), nn.ReLU(), third)
    assert float(dropout.kl(learned, 2.0).detach()) == pytest.approx(expected, rel=1e-5)

    wide, grouped = nn.Conv1d(4, 6, 3), nn.Conv2d(6, 4, 3, groups=2)
    images = nn.ModuleList(
        [nn.Sequential(nn.Dropout1d(0.2), wide), nn.Sequential(nn.Dropout2d(0.4), grouped)]
    )
    expected = by_hand(wide, 0.2, 4) + by_hand(grouped, 0.4, 6)
    assert float(dropout.kl(images, 2.0).detach()) == pytest.approx(expected, rel=1e-5)


def reaching(model: ConcreteDropout, x: Tensor) -> Tensor:
    """What reaches the layer inside."""
    inputs: list[Tensor] = []
    model.layer.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    model(x)
    return inputs[0].detach()


@pytest.mark.parametrize(("temperature", "worst"), [(0.3, 0.1), (0.1, 0.02), (0.01, 0.001)])
def test_the_relaxed_mask_is_the_mask_as_the_temperature_goes_to_zero(
    monkeypatch: pytest.MonkeyPatch, temperature: float, worst: float
) -> None:
    monkeypatch.setattr(dropout, "TEMPERATURE", temperature)
    u = torch.linspace(0, 1, 400_002, dtype=torch.float64)[1:-1]
    for rate in (0.1, 0.5, 0.8):
        layer = ConcreteDropout(nn.Linear(200_000, 1, bias=False).double(), rate)
        kept = reaching(layer, torch.ones(1, 200_000).double())[0] * (1 - rate)
        # Above one half as often as an input is kept, at any temperature.
        share = (kept > 0.5).double()
        assert abs(float(share.mean()) - (1 - rate)) < 4.5 * float(share.std()) / len(kept) ** 0.5
        # The mean: an integral over the noise; and it comes to the rate.
        exact = float((-(math.log(rate / (1 - rate)) + u.logit()) / temperature).sigmoid().mean())
        assert abs(float(kept.mean()) - exact) < 4.5 * float(kept.std()) / len(kept) ** 0.5
        assert abs(exact - (1 - rate)) < worst


def test_the_mask_has_a_slope_in_the_rate_and_is_off_in_evaluation() -> None:
    layer = ConcreteDropout(nn.Linear(4, 2), 0.3)
    x = torch.randn(5, 4)
    torch.testing.assert_close(layer.eval()(x), layer.layer(x))
    layer.train()
    layer(x).square().sum().backward()
    assert layer.logit.grad is not None
    assert layer.logit.grad != 0
    # Of a convolution channels are dropped: what reaches it is the input times a number a channel.
    image = ConcreteDropout(nn.Conv2d(3, 2, 1), 0.5)
    inputs = reaching(image, torch.ones(2, 3, 4, 5))
    assert (inputs == inputs[..., :1, :1]).all()
    assert len(inputs[..., 0, 0].unique()) > 3
    # It moves with its layer, and can be copied and loaded.
    other = copy.deepcopy(layer).double()
    other.load_state_dict(layer.state_dict())
    assert other.logit.dtype == torch.float64
    torch.testing.assert_close(other.rate, layer.rate.double())


def learned_rate(num_points: int) -> float:
    """The rate that the variational objective asks for on a line through many inputs."""
    x = torch.randn(num_points, 10)
    y = x.sum(dim=1) + torch.randn(num_points)
    layer = ConcreteDropout(nn.Linear(10, 1), 0.2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        log_likelihood = Normal(layer(x)[:, 0], 1.0).log_prob(y).sum()
        ((dropout.kl(layer) - log_likelihood) / num_points).backward()
        optimizer.step()
    return float(layer.rate.detach())


def test_more_data_lower_the_rate() -> None:
    rates = [learned_rate(num_points) for num_points in (5, 50, 500)]
    for few, many in pairwise(rates):
        assert many < few / 2


@pytest.mark.parametrize("bad", [0, 1.0, -0.1, "a", math.nan])
def test_a_rate_must_be_between_zero_and_one(bad: Any, kind_error: Callable[..., Any]) -> None:
    with kind_error(TypeError if bad == "a" else ValueError, "initial_rate"):
        ConcreteDropout(nn.Linear(1, 1), bad)


def test_bad_arguments_are_explained(kind_error: Callable[..., Any]) -> None:
    good = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1))
    x = torch.zeros(2, 1)
    with kind_error(TypeError, "layer", "Tanh"):
        ConcreteDropout(nn.Tanh())
    for call in (lambda m: predict(m, x), dropout.kl, lambda m: mc_dropout(m).__enter__()):
        with kind_error(TypeError, "model", "Module", "int"):
            call(3)
        with kind_error(ValueError, "model", "rate above 0", "got 0"):
            call(nn.Linear(1, 1))
        with kind_error(ValueError, "model", "rate above 0", "got 1"):
            call(nn.Sequential(nn.Dropout(0.0), nn.Linear(1, 1)))
        for hidden in (nn.LSTM(2, 2, 2, dropout=0.5), nn.TransformerEncoderLayer(2, 1)):
            with kind_error(ValueError, "model", "modules of their own", "drops out inside"):
                call(nn.Sequential(nn.Dropout(0.5), hidden))
    with kind_error(ValueError, "num_draws", "at least 1"):
        predict(good, x, 0)
    with kind_error(TypeError, "generator"):
        predict(good, x, generator=3)
    with kind_error(ValueError, "length_scale", "positive"):
        dropout.kl(good, 0.0)
    for wrong in (
        nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5)),  # of the outputs
        nn.Sequential(nn.Dropout(0.5), nn.Tanh(), nn.Linear(1, 1)),
        nn.Sequential(nn.Dropout(0.5), nn.Conv1d(1, 1, 1)),  # of single places, not of channels
        nn.Sequential(nn.AlphaDropout(0.5), nn.Linear(1, 1)),
    ):
        with kind_error(ValueError, "model", "right before the layer", "elsewhere"):
            dropout.kl(wrong)
    for solve, last in ((dropout.weight_decay, "precision"), (dropout.precision, "weight_decay")):
        with kind_error(ValueError, "length_scale", "positive"):
            solve(0.0, 0.5, 10, 1.0)
        for rate in (-0.1, 1.0):
            with kind_error(ValueError, "rate", "below 1"):
                solve(1.0, rate, 10, 1.0)
        with kind_error(ValueError, "dataset_size", "at least 1"):
            solve(1.0, 0.5, 0, 1.0)
        with kind_error(ValueError, last, "positive"):
            solve(1.0, 0.5, 10, -1.0)
