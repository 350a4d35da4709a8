"""Descent by minibatches: each row once an epoch, honest means, only the first part is moved."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bad_input import bad_input
from torch import Tensor

from coursepkg.descent import adam, minimize

X = torch.arange(7.0)[:, None]


def still(parameters: Any) -> torch.optim.Optimizer:
    """An optimizer that goes nowhere."""
    return torch.optim.SGD(parameters, lr=0.0)


def weight() -> Tensor:
    return torch.zeros(1, requires_grad=True)


def test_an_epochs_mean_is_that_of_its_rows_though_the_last_minibatch_is_smaller(
    generator: torch.Generator,
) -> None:
    w = weight()

    def parts(_: int, x: Tensor) -> Tensor:
        return torch.stack([((x - w) ** 2).mean(), x.mean()])

    found = minimize(
        parts,
        [w],
        (X,),
        num_epochs=5,
        batch_size=3,
        make_optimizer=still,
        generator=generator,
        progress=False,
    )
    expected = torch.tensor([float(X.square().mean()), float(X.mean())]).expand(5, 2)
    torch.testing.assert_close(found, expected)
    # The mean over minibatches, 3 + 3 + 1 rows, is another number.
    means = torch.stack([part.mean() for part in X.split(3)])
    assert abs(means.mean() - X.mean()) > 0.5


def seen(generator: torch.Generator | None, batch_size: int = 3) -> list[list[float]]:
    """The rows as three epochs meet them; the second tensor's rows must go along."""
    rows: list[list[float]] = [[], [], []]
    w = weight()

    def parts(epoch: int, x: Tensor, labels: Tensor) -> Tensor:
        assert len(x) in (batch_size, len(X) % batch_size)
        assert (x[:, 0] == labels).all()
        rows[epoch] += x[:, 0].tolist()
        return ((x - w) ** 2).mean()[None]

    data = (X, torch.arange(7))
    minimize(
        parts, [w], data, num_epochs=3, batch_size=batch_size, generator=generator, progress=False
    )
    return rows


def test_each_row_once_an_epoch_in_an_order_of_its_own(generator: torch.Generator) -> None:
    state = generator.get_state()
    rows = seen(generator)
    assert all(sorted(epoch) == X[:, 0].tolist() for epoch in rows)
    assert len({tuple(epoch) for epoch in rows}) == 3
    assert seen(generator) != rows
    generator.set_state(state)
    before = torch.get_rng_state()
    assert seen(generator) == rows
    assert (torch.get_rng_state() == before).all()
    # Without a generator it is the global one.
    torch.manual_seed(1)
    first = seen(None)
    torch.manual_seed(1)
    assert seen(None) == first


def test_the_first_part_is_minimized_and_the_others_are_recorded() -> None:
    moved, other = weight(), weight()

    def parts(_: int, x: Tensor) -> Tensor:
        return torch.stack([(x - moved).square().mean(), (x - other).square().mean()])

    found = minimize(
        parts,
        [moved, other],
        (X,),
        num_epochs=200,
        batch_size=7,
        make_optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        progress=False,
    )
    assert not found.requires_grad
    torch.testing.assert_close(moved.detach(), X.mean(dim=0))
    assert other == 0
    torch.testing.assert_close(found[-1], torch.stack([X.var(correction=0), X.square().mean()]))


@pytest.mark.parametrize("decay", [False, True])
def test_the_rate_falls_along_a_cosine_or_stays(decay: bool) -> None:
    rates = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            rates.append(self.param_groups[0]["lr"])

    w = weight()
    minimize(
        lambda _, x: (x - w).mean()[None],
        [w],
        (X,),
        num_epochs=4,
        make_optimizer=lambda p: Spy(p, lr=0.2),
        decay=decay,
        progress=False,
    )
    cosine = [(1 + math.cos(math.pi * epoch / 4)) / 10 for epoch in range(4)]
    assert rates == pytest.approx(cosine if decay else [0.2] * 4)


def test_the_usual_optimizer_is_adam_as_torch_has_it() -> None:
    optimizer = adam([weight()])
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 1e-3
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_divergence_is_an_error_that_says_what_to_do() -> None:
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"diverged: in epoch \d+ .*[Ll]ower the"):
        minimize(
            lambda _, x: (x * w).square().mean()[None],
            [w],
            (X,),
            num_epochs=99,
            make_optimizer=lambda p: torch.optim.SGD(p, lr=1e3),
            progress=False,
        )


def call(**changes: Any) -> Any:
    w = weight()
    good: dict[str, Any] = {
        "parts": lambda _, *data: (data[0] - w).mean()[None],
        "parameters": [w],
        "data": (X,),
        "num_epochs": 1,
        "progress": False,
    }
    return minimize(**{**good, **changes})


test_bad_input_is_refused_kindly = bad_input(
    [
        (lambda: call(parts=3), TypeError, ("parts", "function", "int")),
        (lambda: call(parts=lambda _, x: x.mean()), TypeError, ("parts", "one dimension")),
        (lambda: call(parts=lambda _, x: 0.5), TypeError, ("parts", "one dimension", "0.5")),
        (lambda: call(num_epochs=0), ValueError, ("num_epochs", "at least 1")),
        (lambda: call(num_epochs=1.5), TypeError, ("num_epochs", "whole")),
        (lambda: call(batch_size=0), ValueError, ("batch_size", "at least 1")),
        (lambda: call(generator=0), TypeError, ("generator", "int")),
        (lambda: call(data=X), TypeError, ("data", "tuple", "Tensor")),
        (lambda: call(data=()), ValueError, ("data", "at least one")),
        (lambda: call(data=(X[:0],)), ValueError, ("data", "[0] rows")),
        (lambda: call(data=(X, X[:3])), ValueError, ("data", "[7, 3] rows")),
        (lambda: call(make_optimizer=lambda _: None), TypeError, ("make_optimizer", "NoneType")),
    ]
)
