"""The Bayesian twin of a network: the same function, but for its noise."""

from __future__ import annotations

import torch
from bad_input import bad_input
from torch import Tensor, nn
from torch.distributions import Normal

from coursepkg.bayesianize import bayesianize
from coursepkg.conv import BayesConv1d, BayesConv2d
from coursepkg.layers import BayesLayer, BayesLinear


def silent(layer: BayesLayer) -> BayesLayer:
    """The same layer with next to no noise."""
    with torch.no_grad():
        layer.free.fill_(-40.0)
    return layer


class Shared(nn.Module):
    """One layer in two places, and one that is no attribute of a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU())
        self.head = nn.Linear(2 * 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(torch.relu(self.first(x)))
        return self.head(self.features(x[:, None]).flatten(1))


def test_a_network_becomes_its_twin() -> None:
    plain = Shared()
    twin = bayesianize(plain, prior=Normal(0.0, 0.1), estimator="local", initial_scale=0.01)
    x = torch.randn(2, 3, 3)
    assert twin.first is twin.again
    assert isinstance(twin.features[0], BayesConv2d)
    assert all(layer.prior.scale == 0.1 for layer in (twin.first, twin.head))
    for layer in (twin.first, twin.features[0], twin.head):
        assert layer.estimator == "local"
        torch.testing.assert_close(layer.scale, torch.full_like(layer.mean, 0.01))
        silent(layer)
    torch.testing.assert_close(twin(x), plain(x), rtol=1e-4, atol=1e-5)
    assert isinstance(plain.head, nn.Linear)  # the network itself is as it was


def test_only_the_layers_asked_for_are_turned() -> None:
    twin = bayesianize(Shared(), where=lambda name, module: name == "head")
    assert isinstance(twin.head, BayesLinear)
    assert isinstance(twin.first, nn.Linear)
    single = bayesianize(nn.Linear(2, 1).double())
    assert isinstance(single, BayesLinear)
    assert single.mean.dtype == torch.float64
    assert isinstance(bayesianize(nn.Conv1d(2, 4, 3, groups=2)), BayesConv1d)


test_bad_input_is_named = bad_input(
    [
        (lambda: bayesianize(3), TypeError, ("model", "Module", "int")),
        (lambda: bayesianize(nn.Tanh()), ValueError, ("where", "Linear")),
        (
            lambda: bayesianize(nn.Conv1d(1, 1, 3, padding_mode="circular", padding=1)),
            ValueError,
            ("padding_mode", "circular"),
        ),
    ]
)
