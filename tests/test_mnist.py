"""A Bayesian convolutional network on real digits, beside its plain twin and another library's MLP.

On these clean digits a mean-field posterior is too unsure: its confidence is below its accuracy,
and its log loss above that of the plain network. A tempered KL repairs that, but what it fits is no
posterior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mnist5k
import pytest
import torch
from mnist5k import Digits
from torch import nn
from torch.distributions import Categorical, Normal

from coursepkg import calibration, layers, training, uncertainty
from coursepkg.bayesianize import bayesianize


@pytest.fixture(scope="module")
def mlp(truth: Callable[[str], Any]) -> dict[str, float]:
    return truth("mnist5k")["mlp_400_400"]


@pytest.fixture(scope="module")
def digits(truth: Callable[[str], Any]) -> Digits:
    return mnist5k.load(truth)


class Report(NamedTuple):
    """What a network says about 1,000 digits that it has not seen."""

    error: float
    nll: float
    confidence: float
    calibration_error: float
    by_chance: float  # the calibration error if digits were drawn from the prediction itself


def report(name: str, digits: Digits, *, tempering: float | None) -> Report:
    """Train a network, Bayesian unless ``tempering`` is ``None``, and judge it."""
    torch.manual_seed(20260101)
    generator = torch.Generator().manual_seed(20260101)
    plain = nn.Sequential(
        nn.Conv2d(1, 8, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    how = {"prior": Normal(0.0, 0.2), "estimator": "local", "initial_scale": 0.02}
    model = plain if tempering is None else bayesianize(plain, **how)
    rate = 0.002 if tempering is None else 0.005
    training.fit(
        model,
        digits.x,
        digits.y,
        lambda outputs: Categorical(logits=outputs),
        num_epochs=30,
        batch_size=100,
        tempering=1.0 if tempering is None else tempering,
        make_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=rate),
        generator=generator,
        progress=False,
    )
    if tempering is None:
        outputs = model(digits.new_x).detach()[None]
    else:
        parts = digits.new_x.split(100)  # 50 draws of all images at once take gigabytes
        outputs = torch.cat([layers.predict(model, x, 50, generator=generator) for x in parts], 1)
    probabilities = outputs.softmax(dim=-1).mean(dim=0)
    confidence, guess = probabilities.max(dim=-1)
    nll = -uncertainty.log_predictive(Categorical(logits=outputs), digits.new_y).mean()
    drawn = torch.multinomial(probabilities, 200, replacement=True, generator=generator).T
    errors = [
        calibration.expected_calibration_error(calibration.reliability(p, labels))
        for p, labels in (
            (probabilities, digits.new_y),
            (probabilities.expand(200, -1, -1), drawn),
        )
    ]
    found = Report(
        float((guess != digits.new_y).double().mean()),
        float(nll),
        float(confidence.mean()),
        *(float(error.mean()) for error in errors),
    )
    print(name, found)
    return found


# An error near 3 % on 1,000 digits has a standard error of 0.5 points, the mean of a confidence's
# distance from what happens one of 0.005.


@pytest.mark.slow
def test_a_bayesian_convolutional_network_beats_the_mlp_and_is_too_unsure(
    digits: Digits, mlp: dict[str, float]
) -> None:
    found = report("Bayes by Backprop", digits, tempering=1.0)
    assert found.error < mlp["test_error"]
    assert found.nll < mlp["test_nll"]
    assert 0.04 < 1 - found.error - found.confidence < 0.2
    assert found.calibration_error > 3 * found.by_chance


@pytest.mark.slow
def test_the_plain_twin_is_calibrated_and_so_is_a_tempered_one(
    digits: Digits, mlp: dict[str, float]
) -> None:
    for name, tempering in (("plain", None), ("tempered", 0.1)):
        found = report(name, digits, tempering=tempering)
        assert found.error < mlp["test_error"]
        assert found.nll < 0.6 * mlp["test_nll"]
        assert abs(1 - found.error - found.confidence) < 0.02
        assert found.calibration_error < 3 * found.by_chance
