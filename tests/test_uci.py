"""Two published regressions, by the same protocol: at least as good as the paper says.

Yacht hydrodynamics and concrete strength, 20 splits each into 90 % for training and 10 % for
testing, as published; inputs and target standardized by the training part; one hidden layer of 50
ReLU units. Nothing is chosen by a test point: the noise is learned with the weights, and the
dropout rate is chosen for each split by a fifth of its own training part.

All splits are trained at once: a minibatch has a row of each, shape ``(batch, splits, inputs)``.

The tables are not ours to hand out and are no part of this repository. They are looked for beside
the checkout, in ``../shared/truth/uci``, or where the variable ``UCI_FOLDER`` says: ``yacht.csv``
and ``concrete.csv`` (a header, the target last), and for each a file such as ``yacht_splits.json``
with the test rows' numbers (``test_index``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent

from coursepkg import dropout, layers, training, uncertainty
from coursepkg.ensembles import Ensemble

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "truth" / "uci"
UCI = Path(os.environ.get("UCI_FOLDER", BESIDE))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (UCI / "yacht.csv").is_file(),
        reason=f"no yacht.csv in {UCI}: set UCI_FOLDER to the folder with the UCI tables",
    ),
]
NAMES = ("yacht", "concrete")
UNITS, BATCH, STEPS, DRAWS = 50, 50, 2500, 200
RATES = (0.005, 0.01, 0.05, 0.1)


# --- Protocol ------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Rows to fit and rows to score, ``(rows, splits, …)``, standardized by the former."""

    x: Tensor
    y: Tensor
    x_new: Tensor
    y_new: Tensor
    unit: Tensor  # one standard deviation of the target, in its own unit, by split


def splits(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The table, and the numbers of training and of test rows, shape ``(rows, splits)``."""
    table = torch.tensor(np.loadtxt(UCI / f"{name}.csv", delimiter=",", skiprows=1))
    numbers = json.loads((UCI / f"{name}_splits.json").read_text())["test_index"]
    rest = [np.setdiff1d(np.arange(len(table)), test) for test in numbers]
    return table, torch.tensor(np.array(rest)).T, torch.tensor(numbers).T


def standardized(table: Tensor, rows: Tensor, new_rows: Tensor) -> Part:
    known, new = table[rows], table[new_rows]
    mean, scale = known.mean(0), known.std(0, correction=0)
    known, new = (((part - mean) / scale).float() for part in (known, new))
    return Part(known[..., :-1], known[..., -1], new[..., :-1], new[..., -1], scale[:, -1])


def scores(outputs: Tensor, part: Part) -> tuple[Tensor, Tensor]:
    """RMSE and mean log likelihood of each split, by draws of shape (draws, rows, splits, 2)."""
    prediction = uncertainty.heteroscedastic(outputs.double())
    y = part.y_new.double()
    rmse = (prediction.mean.mean(0) - y).square().mean(0).sqrt() * part.unit
    # A density of y over its unit is one of y times the unit.
    return rmse, uncertainty.log_predictive(prediction, y).mean(0) - part.unit.log()


def summary(values: Tensor) -> tuple[float, float]:
    """Mean and standard error over splits, as the published tables have them."""
    return float(values.mean()), float(values.std(correction=0) / len(values) ** 0.5)


def least_squares(part: Part) -> Tensor:
    """Outputs of linear regression: one draw."""
    x, x_new = (
        torch.cat([x, torch.ones_like(x[..., :1])], dim=-1).double().movedim(1, 0)
        for x in (part.x, part.x_new)
    )
    y = part.y.double().T[..., None]
    fit = torch.linalg.lstsq(x, y).solution
    variance = (y - x @ fit).square().sum(1) / (x.shape[1] - x.shape[2])
    mean = (x_new @ fit).movedim(1, 0)
    return torch.cat([mean, variance.log().expand_as(mean)], dim=-1)[None]


def as_good(rmse: Tensor, log_likelihood: Tensor, published: dict[str, list[float]]) -> bool:
    """Within two of the published standard errors, or better."""
    (mean, error), (log_mean, log_error) = published["rmse"], published["log_likelihood"]
    return bool(
        rmse.mean() <= mean + 2 * error and log_likelihood.mean() >= log_mean - 2 * log_error
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_protocol_gives_another_library_s_figures_of_linear_regression(
    name: str, truth: Callable[[str], Any]
) -> None:
    """And linear regression is not as good as any of the published networks."""
    part = standardized(*splits(name))
    rmse, log_likelihood = scores(least_squares(part), part)
    reference = json.loads((UCI / "linear_baselines.json").read_text())["results"][name]["ols"]
    ours = (*summary(rmse), *summary(log_likelihood))
    theirs = [reference[key] for key in ("rmse_mean", "rmse_se", "ll_mean", "ll_se")]
    assert ours == pytest.approx(theirs, abs=1e-4)
    for published in truth("uci_networks")[name].values():
        assert not as_good(rmse, log_likelihood, published)


# --- Networks ------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """A network for each split, and a noise for each, the same for all inputs."""

    def __init__(self, network: nn.Module, num_splits: int) -> None:
        super().__init__()
        self.network = network
        self.log_variance = nn.Parameter(torch.full((num_splits, 1), -2.0))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.network(x)
        return torch.cat([mean, self.log_variance.expand_as(mean)], dim=-1)


class SplitsSecond(nn.Module):
    """An ensemble, each member with inputs of its own; but rows come first, as in all training."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, x: Tensor) -> Tensor:
        return self.ensemble(x.transpose(0, 1)).transpose(0, 1)


class ManyLinear(layers.BayesLayer):
    """A Bayesian linear layer for each split, in one table of weights."""

    def __init__(self, num_splits: int, inputs: int, outputs: int) -> None:
        super().__init__(num_splits * outputs, inputs, estimator="local")
        self.shape = (num_splits, outputs, inputs)

    def operation(self, x: Tensor, table: Tensor) -> Tensor:
        weight, bias = self.split(table)
        assert bias is not None
        y = torch.einsum("nsi,soi->nso", x, weight.reshape(self.shape))
        return y + bias.reshape(self.shape[:2])


def fit(network: nn.Module, part: Part, **options: Any) -> Noisy:
    """Train the weights and the noise: the sum of all splits' ELBOs is maximized."""
    model = Noisy(network, part.x.shape[1])
    training.fit(
        model,
        part.x,
        part.y,
        lambda outputs: Independent(uncertainty.heteroscedastic(outputs), 1),
        num_epochs=STEPS * BATCH // len(part.x),
        batch_size=BATCH,
        progress=False,
        **options,
    )
    return model


def with_dropout(part: Part, rate: float) -> tuple[Tensor, Tensor]:
    """Scores of networks with a dropout of this rate on inputs and hidden units."""
    _, num_splits, inputs = part.x.shape
    members = [
        nn.Sequential(
            nn.Dropout(rate),
            nn.Linear(inputs, UNITS),
            nn.ReLU(),
            nn.Dropout(rate),
            nn.Linear(UNITS, 1),
        )
        for _ in range(num_splits)
    ]
    network = SplitsSecond(Ensemble(members, own_inputs=True))
    model = fit(network, part, penalty=dropout.kl)
    return scores(dropout.predict(model, part.x_new, DRAWS), part)


def mc_dropout(name: str) -> tuple[Tensor, Tensor]:
    """Each split with the rate that is best on a fifth of its training part."""
    table, train, test = splits(name)
    shuffled = train[torch.randperm(len(train))]
    fifth = len(train) // 5
    inner = standardized(table, shuffled[fifth:], shuffled[:fifth])
    best = torch.stack([with_dropout(inner, rate)[1] for rate in RATES]).argmax(0)
    part = standardized(table, train, test)
    rmse, log_likelihood = torch.zeros(2, len(best)).double()
    for number in best.unique():
        chosen = best == number
        found = with_dropout(part, RATES[number])
        rmse[chosen], log_likelihood[chosen] = (values[chosen] for values in found)
    print(name, [RATES[i] for i in best])
    return rmse, log_likelihood


def mean_field(name: str) -> tuple[Tensor, Tensor]:
    """Bayes by Backprop with standard normal priors."""
    part = standardized(*splits(name))
    _, num_splits, inputs = part.x.shape
    hidden, last = ManyLinear(num_splits, inputs, UNITS), ManyLinear(num_splits, UNITS, 1)
    model = fit(nn.Sequential(hidden, nn.ReLU(), last), part)
    return scores(layers.predict(model, part.x_new, DRAWS), part)


METHODS = {"MC dropout": mc_dropout, "mean-field": mean_field}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_as_good_as_the_published_one(
    name: str, method: str, truth: Callable[[str], Any]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rmse, log_likelihood = METHODS[method](name)
    print(name, method, summary(rmse), summary(log_likelihood))
    assert as_good(rmse, log_likelihood, truth("uci_networks")[name][method])
