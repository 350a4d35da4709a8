"""Ensembles: each member as it would be by itself; anchors that make of members posterior draws."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bad_input import bad_input
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from coursepkg import bayes_linear, training
from coursepkg.ensembles import Ensemble, anchored_penalty
from coursepkg.layers import BayesLinear


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20260101)


class Tied(nn.Module):
    """One matrix in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


BUILDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 2),
    "deep": lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
    "batch normalization": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(4, 2)
    ),
    "tied": Tied,
}
EACH_BUILD = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())


@EACH_BUILD
@pytest.mark.parametrize("mode", [True, False])
def test_outputs_are_those_of_the_members(build: Callable[[], nn.Module], mode: bool) -> None:
    members = [build().double() for _ in range(3)]
    for member in members:
        member(torch.randn(6, 3).double())  # averages of its own, where it has such
        member.train(mode)
    ensemble = Ensemble(members)
    x = torch.randn(6, 3).double()
    for _ in range(2):  # averages of batch normalization move, for each member
        expected = torch.stack([member(x) for member in members])
        torch.testing.assert_close(ensemble(x), expected)
    own = Ensemble(members, own_inputs=True)
    inputs = torch.randn(3, 6, 3).double()
    expected = torch.stack([member(x) for member, x in zip(members, inputs, strict=True)])
    torch.testing.assert_close(own(inputs), expected)


def likelihood(outputs: Tensor) -> Normal:
    return Normal(outputs[..., 0], (outputs[..., 1] / 2).exp())


@EACH_BUILD
@pytest.mark.parametrize("penalized", [False, True])
def test_training_together_is_training_alone(
    build: Callable[[], nn.Module], penalized: bool, generator: torch.Generator
) -> None:
    members = [build().double() for _ in range(3)]
    ensemble = Ensemble(members)
    x, y = torch.randn(20, 3).double(), torch.randn(20).double()
    prior = training.normal_penalty(0.5)
    how = {"num_epochs": 15, "batch_size": 8, "progress": False}
    training.fit(
        ensemble,
        x,
        y,
        likelihood,
        penalty=(lambda model: prior(model) / 3) if penalized else None,
        generator=generator,
        **how,
    )
    first = ensemble(x)
    for member in members:
        generator.manual_seed(generator.initial_seed())  # the same minibatches
        penalty = prior if penalized else None
        training.fit(member, x, y, likelihood, penalty=penalty, generator=generator, **how)
    alone = torch.stack([member(x) for member in members])
    # Adam divides by the size of a gradient plus 1e-8, which a third of the gradient notices.
    torch.testing.assert_close(first, alone, rtol=1e-5, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 0.1  # members differ


def test_dropout_is_each_members_own() -> None:
    member = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4, bias=False))
    nn.init.eye_(member[1].weight)
    ensemble = Ensemble([member] * 3)
    draws = ensemble(torch.ones(100, 4))
    assert {0.0, 2.0} == set(draws.unique().tolist())
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(ensemble.eval()(torch.ones(2, 4)), torch.ones(3, 2, 4))


def test_an_ensemble_behaves_as_modules_do() -> None:
    members = [BUILDS["batch normalization"]() for _ in range(3)]
    before = copy.deepcopy(members[0].state_dict())
    ensemble, other = Ensemble(members), Ensemble(BUILDS["batch normalization"]() for _ in range(3))
    x = torch.randn(5, 3)
    assert not torch.allclose(ensemble(x), other(x))
    other.load_state_dict(ensemble.state_dict())
    assert torch.equal(ensemble.eval()(x), other.eval()(x))
    assert torch.equal(copy.deepcopy(ensemble)(x), ensemble(x))
    assert ensemble.double()(x.double()).dtype == torch.float64
    assert sum(p.numel() for p in ensemble.parameters()) == 3 * (3 * 4 + 4 + 4 + 4)
    assert len(ensemble) == 3
    # The members that it was made of are as they were.
    assert all(torch.equal(before[name], now) for name, now in members[0].state_dict().items())


def test_frozen_weights_stay_frozen() -> None:
    members = [nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)) for _ in range(2)]
    for member in members:
        member[0].requires_grad_(False)
    assert [p.requires_grad for p in Ensemble(members).parameters()] == [False, False, True, True]


def test_classes_are_learned_by_all(generator: torch.Generator) -> None:
    x = torch.randn(60, 2)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0)
    ensemble = Ensemble(
        nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in range(4)
    )
    training.fit(
        ensemble,
        x,
        y,
        lambda outputs: Categorical(logits=outputs),
        num_epochs=300,
        generator=generator,
        progress=False,
    )
    assert ((ensemble(x).argmax(dim=-1) == y).double().mean(dim=1) > 0.95).all()


def spread(target_noise: float, generator: torch.Generator) -> tuple[Tensor, Any]:
    """Weights of many anchored linear members at their optima, and the exact posterior."""
    noise_scale, prior_scale = 0.5, 2.0
    x = torch.tensor([[1.0, 0.2], [1.0, -0.4], [1.0, 0.9]]).double()
    y = torch.tensor([1.0, 2.0, 0.5]).double()
    ensemble = Ensemble(nn.Linear(2, 1, bias=False).double() for _ in range(4000))
    targets = y + target_noise * torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    penalty = anchored_penalty(ensemble, prior_scale, generator=generator)
    optimizer = torch.optim.LBFGS(
        ensemble.parameters(), max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        each = Normal(ensemble(x)[..., 0], noise_scale).log_prob(targets).sum(dim=-1)
        value = penalty(ensemble) - each.mean()
        value.backward()
        return value

    optimizer.step(loss)
    prior = bayes_linear.normal_prior(2, prior_scale)
    exact = bayes_linear.posterior(x, y, prior, noise_scale)
    return ensemble.member.weight.detach()[:, 0], exact


def test_anchored_linear_members_with_noise_are_draws_from_the_posterior(
    generator: torch.Generator,
) -> None:
    draws, exact = spread(0.5, generator)
    error = exact.scale / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - exact.mean).abs() < 4.5 * error).all()
    found, diagonal = torch.cov(draws.T), exact.covariance.diagonal()
    error = ((diagonal[:, None] * diagonal + exact.covariance.square()) / len(draws)).sqrt()
    assert ((found - exact.covariance).abs() < 4.5 * error).all()
    # Anchors alone leave out what the noise in the data adds.
    without, _ = spread(0.0, generator)
    assert (torch.cov(without.T).diagonal() < (found - 9 * error).diagonal()).all()


def test_the_anchors_penalty_is_the_mean_of_the_members(generator: torch.Generator) -> None:
    members = [nn.Linear(2, 1) for _ in range(3)]
    ensemble = Ensemble(members)
    penalty = anchored_penalty(ensemble, 0.7, generator=generator)
    noise = torch.randn(9, generator=generator.manual_seed(generator.initial_seed()))
    weights = nn.utils.parameters_to_vector(ensemble.parameters())
    expected = -Normal(0.7 * noise, 0.7).log_prob(weights).sum() / 3
    torch.testing.assert_close(penalty(ensemble), expected)


test_bad_input_is_named = bad_input(
    [
        (lambda: Ensemble([]), ValueError, ("members", "none")),
        (lambda: Ensemble([nn.Linear(1, 1), 3]), TypeError, ("members", "int at 1")),
        (
            lambda: Ensemble([nn.Linear(1, 1), nn.Linear(1, 2)]),
            ValueError,
            ("alike", "at 1", "out_features=2"),
        ),
        (
            lambda: Ensemble([nn.Linear(1, 1), nn.Linear(1, 1).double()]),
            ValueError,
            ("alike", "at 1"),
        ),
        (lambda: Ensemble([nn.Tanh()]), ValueError, ("members", "parameters", "Tanh")),
        (
            lambda: Ensemble(nn.Sequential(nn.Linear(1, 1), g) for g in (nn.Tanh(), nn.ReLU())),
            ValueError,
            ("alike", "ReLU"),
        ),
        (lambda: Ensemble([BayesLinear(1, 1)]), ValueError, ("members", "plain", "KL")),
        (
            lambda: Ensemble([nn.Linear(5, 1)] * 3, own_inputs=True)(torch.zeros(2, 5)),
            ValueError,
            ("x", "(3, batch, …)", "(2, 5)"),
        ),
        (lambda: anchored_penalty(nn.Tanh(), 1.0), TypeError, ("ensemble", "Tanh")),
        (
            lambda: anchored_penalty(Ensemble([nn.Linear(1, 1)]), 0.0),
            ValueError,
            ("prior_scale", "positive"),
        ),
    ]
)
