"""Training by minibatches: optima known in closed form, factors that are counted once."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from itertools import chain
from typing import Any

import pytest
import torch
from bad_input import bad_input
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from coursepkg import bayes_linear, data, training
from coursepkg.layers import BayesLinear, kl_divergence
from coursepkg.training import elbo, fit, kl_weights, normal_penalty

NOISE = 0.7
# One layer with this many outputs is so many independent fits of one line.
REPLICATES = 50


def likelihood(outputs: Tensor) -> Distribution:
    return Normal(outputs[..., 0], NOISE)


def problem(num_points: int = 40, dim: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs that are correlated, and targets."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_points, dim, generator=generator, dtype=torch.float64)
    x[:, 1] += 0.7 * x[:, 0]
    weights = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)[:dim]
    noise = torch.randn(num_points, generator=generator, dtype=torch.float64)
    return x, x @ weights + NOISE * noise


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)


# --- The ELBO ------------------------------------------------------------------------------------


def exact_log_likelihood(layer: BayesLinear, x: Tensor, y: Tensor) -> Tensor:
    """The mean of Gaussian log likelihoods over Gaussian weights, for each row."""
    residual = (y - x @ layer.mean[0]).square() + x.square() @ layer.scale[0].square()
    return -residual / (2 * NOISE**2) - math.log(NOISE) - math.log(2 * math.pi) / 2


def test_the_estimate_has_the_mean_of_the_closed_form(generator: torch.Generator) -> None:
    torch.manual_seed(2)
    layer = BayesLinear(3, 1, bias=False, prior=Normal(0.0, 0.05), initial_scale=0.3).double()
    x, y = problem()
    rows = torch.randperm(len(x), generator=generator)[:8]
    each = exact_log_likelihood(layer, x[rows], y[rows]).detach()
    kl = kl_divergence(layer).detach()
    truth = 5 * each.sum() - 0.5 * kl
    draws = torch.stack(
        [
            elbo(layer, x[rows], y[rows], likelihood, dataset_size=40, tempering=0.5)
            .elbo.detach()
            .clone()
            for _ in range(1500)
        ]
    )
    error = draws.std() / len(draws) ** 0.5
    assert (draws.mean() - truth).abs() < 4.5 * error
    # Twice the log likelihood, the mean in place of the sum, the KL by the minibatch: all are seen.
    for wrong in (10 * each.sum() - 0.5 * kl, each.sum() - 0.5 * kl, 5 * (each.sum() - 0.5 * kl)):
        assert (draws.mean() - wrong).abs() > 9 * error
    many = elbo(layer, x[rows], y[rows], likelihood, dataset_size=40, tempering=0.5, num_draws=1500)
    assert (many.elbo.detach() - truth).abs() < 4.5 * error
    torch.testing.assert_close(many.kl, kl_divergence(layer))


@pytest.mark.parametrize("schedule", ["uniform", "decreasing"])
def test_shares_of_the_kl_add_up_to_the_elbo_of_all_rows(schedule: Any) -> None:
    """Also where the last minibatch is smaller, and so do the scaled ones where none is."""
    torch.manual_seed(3)
    model = nn.Linear(3, 1).double()
    x, y = problem()
    penalty = normal_penalty(0.5)
    whole = elbo(model, x, y, likelihood, dataset_size=40, penalty=penalty)
    for size in (8, 12):
        batches = list(zip(x.split(size), y.split(size), strict=True))
        shares = kl_weights(schedule, len(batches)).tolist()
        parts = [
            elbo(model, xs, ys, likelihood, kl_weight=share, penalty=penalty)
            for (xs, ys), share in zip(batches, shares, strict=True)
        ]
        total = torch.stack([part.elbo for part in parts]).sum()
        torch.testing.assert_close(total, whole.elbo)
        assert all(part.kl == whole.kl for part in parts)
    scaled = [
        elbo(model, xs, ys, likelihood, dataset_size=40, penalty=penalty).elbo
        for xs, ys in zip(x.split(8), y.split(8), strict=True)
    ]
    torch.testing.assert_close(torch.stack(scaled).mean(), whole.elbo)


def test_schedules_are_exactly_those_of_the_papers() -> None:
    for batches in (1, 2, 7, 50):
        blundell = [Fraction(2 ** (batches - i), 2**batches - 1) for i in range(1, batches + 1)]
        assert sum(blundell) == 1
        expected = torch.tensor([float(share) for share in blundell], dtype=torch.float64)
        torch.testing.assert_close(kl_weights("decreasing", batches), expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(
            kl_weights("uniform", batches), torch.full_like(expected, 1 / batches)
        )
    long = kl_weights("decreasing", 3000)  # 2 to that power is no float
    assert long.sum() == 1
    assert long[0] == 0.5


def test_the_penalty_is_the_prior_density_of_all_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    expected = -sum(Normal(0.0, 0.3).log_prob(p).sum() for p in model.parameters())
    torch.testing.assert_close(normal_penalty(0.3)(model), expected)


# --- The fit -------------------------------------------------------------------------------------


def replicates(outputs: Tensor) -> Distribution:
    return Independent(Normal(outputs, NOISE), 1)


def mean_field_optimum(x: Tensor, y: Tensor, tempering: float) -> tuple[Tensor, Tensor]:
    """The normal of independent weights that is closest to the exact posterior, tempered or not."""
    prior_scale = 0.5 / tempering**0.5
    prior = bayes_linear.GaussianWeights(
        torch.zeros(3, dtype=torch.float64), prior_scale**2 * torch.eye(3, dtype=torch.float64)
    )
    exact = bayes_linear.posterior(x, y, prior, NOISE)
    return exact.mean, (tempering / torch.linalg.inv(exact.covariance).diagonal()).sqrt()


WAYS: list[tuple[dict[str, Any], float]] = [
    ({}, 1.0),
    ({"schedule": "uniform"}, 1.0),
    ({"schedule": "decreasing"}, 1.0),
    ({"tempering": 0.2}, 0.2),
]


@pytest.mark.parametrize(("how", "tempering"), WAYS, ids=str)
@pytest.mark.parametrize("estimator", ["shared", "local"])
def test_the_optimum_is_the_exact_mean_field_posterior(
    how: dict[str, Any], tempering: float, estimator: Any, generator: torch.Generator
) -> None:
    torch.manual_seed(4)
    x, y = problem()
    layer = BayesLinear(
        3, REPLICATES, bias=False, prior=Normal(0.0, 0.5), estimator=estimator
    ).double()
    targets = y[:, None].expand(-1, REPLICATES)
    fit(
        layer,
        x,
        targets,
        replicates,
        num_epochs=400,
        batch_size=10,
        make_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.03),
        generator=generator,
        progress=False,
        **how,
    )
    mean, scale = mean_field_optimum(x, y, tempering)
    for found, truth in ((layer.mean.detach(), mean), (layer.scale.detach(), scale)):
        error = found.std(dim=0) / REPLICATES**0.5
        # Adam's last small steps leave a bias of less than one in a hundred sds.
        assert ((found.mean(dim=0) - truth).abs() < 4.5 * error + 0.01 * scale).all()
    # Counting both factors, as copied code does, is an optimum far away.
    twice = mean_field_optimum(x, y, tempering / 4)[1]
    assert ((layer.scale.detach().mean(dim=0) - twice).abs() > 0.05 * scale).all()


def test_with_a_normal_penalty_the_fit_is_ridge() -> None:
    x, y = problem()
    model = nn.Linear(3, 1, bias=False).double()
    history = fit(
        model,
        x,
        y,
        likelihood,
        penalty=normal_penalty(0.5),
        make_optimizer=sgd,
        num_epochs=2000,
        progress=False,
    )
    mean, _ = mean_field_optimum(x, y, 1.0)
    torch.testing.assert_close(model.weight[0].detach(), mean, rtol=1e-6, atol=1e-8)
    log_joint = likelihood(model(x)).log_prob(y).sum() - normal_penalty(0.5)(model)
    torch.testing.assert_close(history.elbo[-1], log_joint.detach())
    torch.testing.assert_close(history.elbo, history.log_likelihood - history.kl)
    assert history.best_epoch == 1999
    assert len(history.validation) == 0


class Recorder(nn.Module):
    """A line that remembers the rows it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.seen: list[list[float]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x[:, 0].tolist())
        return self.line(x)


@pytest.mark.parametrize("drop_last", [False, True])
def test_each_epoch_goes_through_all_rows_in_another_order(
    drop_last: bool, generator: torch.Generator
) -> None:
    x = torch.arange(10.0)[:, None]
    model = Recorder()
    options: dict[str, Any] = {"batch_size": 4, "num_epochs": 3, "drop_last": drop_last}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, x, x[:, 0], likelihood, generator=generator, progress=False, **options)
    if drop_last:
        assert [str(w.message) for w in caught] == [
            "drop_last leaves out 2 of 10 rows in each epoch"
        ]
        assert [len(rows) for rows in model.seen] == [4, 4] * 3
        assert all(len({*model.seen[i], *model.seen[i + 1]}) == 8 for i in (0, 2, 4))
    else:
        assert not caught
        assert [len(rows) for rows in model.seen] == [4, 4, 2] * 3
        orders = [list(chain(*model.seen[i : i + 3])) for i in (0, 3, 6)]
        assert all(sorted(order) == x[:, 0].tolist() for order in orders)
        assert orders[0] != orders[1] != orders[2]


def test_the_history_is_of_all_rows_also_where_some_are_left_out() -> None:
    """With equal rows, the log likelihood of ten is known from any eight of them."""
    x = torch.ones(10, 1)
    model = nn.Linear(1, 1)
    truth = likelihood(model(x)).log_prob(x[:, 0]).sum().detach()
    still: dict[str, Any] = {"make_optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    for size, drop_last in ((4, True), (4, False), (None, False)):
        options = still | {"batch_size": size, "drop_last": drop_last, "num_epochs": 1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows left out: tested above
            history = fit(model, x, x[:, 0], likelihood, progress=False, **options)
        torch.testing.assert_close(history.log_likelihood, truth[None])
        assert history.kl == 0


def test_early_stopping_goes_back_to_the_best_weights(generator: torch.Generator) -> None:
    """A network that can learn the noise by heart does, unless it is stopped."""
    torch.manual_seed(5)
    x, y = problem(20)
    held_out = problem(60)[0][20:], problem(60)[1][20:]
    options: dict[str, Any] = {
        "num_epochs": 600,
        "validation": held_out,
        "decay": False,
        "generator": generator,
        "progress": False,
    }

    def model() -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Linear(3, 50), nn.Tanh(), nn.Dropout(0.1), nn.Linear(50, 1)
        ).double()

    stopped, driven = model(), model()
    history = fit(stopped, x, y, likelihood, patience=20, **options)
    beyond = fit(driven, x, y, likelihood, **options)
    assert len(history.elbo) == len(history.validation) == history.best_epoch + 21 < 600
    assert history.validation.argmax() == history.best_epoch
    assert len(beyond.validation) == 600
    judged = likelihood(stopped.eval()(held_out[0])).log_prob(held_out[1]).mean()
    torch.testing.assert_close(judged.item(), history.validation.max().item(), rtol=1e-6, atol=0)
    assert beyond.validation[-1] < history.validation.max() - 0.1
    assert driven.training  # as it was before


def test_a_bayesian_model_is_judged_by_its_predictive_density(generator: torch.Generator) -> None:
    """The mean of densities over functions, not the density of one draw or the mean of logs."""
    torch.manual_seed(6)
    x, y = problem()
    layer = BayesLinear(3, 1, bias=False, initial_scale=1.0, estimator="local").double()
    history = fit(
        layer,
        x,
        y,
        likelihood,
        num_epochs=300,
        make_optimizer=lambda p: torch.optim.SGD(p, lr=0.0),
        validation=(x[:5], y[:5]),
        generator=generator,
        progress=False,
    )
    # A draw's mean density is exact; its log, over 32 draws, is less by half its relative variance.
    total = (NOISE**2 + x[:5].square() @ layer.scale[0].detach().square()).sqrt()
    exact = Normal(x[:5] @ layer.mean[0].detach(), total).log_prob(y[:5]).mean()
    logs = exact_log_likelihood(layer, x[:5], y[:5]).mean().detach()
    found = history.validation.double()
    assert exact - 0.2 < found.mean() < exact + 4.5 * found.std() / len(found) ** 0.5
    assert found.mean() - logs > 0.5


def test_classes_and_targets_of_any_shape() -> None:
    torch.manual_seed(7)
    x = torch.randn(60, 2)
    classes = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3))
    adam = {"make_optimizer": lambda p: torch.optim.Adam(p, lr=0.05)}
    fit(model, x, classes, lambda out: Categorical(logits=out), progress=False, **adam)
    assert (model(x).argmax(dim=1) == classes).float().mean() > 0.9
    with pytest.raises(ValueError, match="support"):
        fit(model, x, classes + 5, lambda out: Categorical(logits=out), progress=False)
    wrong = torch.zeros(60)
    wrong[-1] = 0.5  # the last row alone
    one = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="support"):
        fit(one, x, wrong, lambda out: Bernoulli(logits=out[..., 0]), batch_size=8, progress=False)


def test_the_generator_decides_everything() -> None:
    x, y = problem()

    def trained(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(8)
        layer = BayesLinear(3, 1).double()
        before = torch.get_rng_state()
        own = torch.Generator().manual_seed(seed)
        fit(layer, x, y, likelihood, batch_size=8, num_epochs=2, generator=own, progress=False)
        assert torch.equal(before, torch.get_rng_state())
        return layer.mean.detach(), torch.rand(1, generator=own)

    first, again, other = trained(1), trained(1), trained(2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_the_learning_rate_falls_along_a_cosine() -> None:
    x, y = problem()
    for decay, last in ((True, (1 + math.cos(math.pi * 9 / 10)) / 2), (False, 1.0)):
        rates = []

        class Watched(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:
                rates.append(self.param_groups[0]["lr"])  # noqa: B023
                super().step(closure)

        model = nn.Linear(3, 1).double()
        fit(
            model,
            x,
            y,
            likelihood,
            num_epochs=10,
            decay=decay,
            make_optimizer=lambda p: Watched(p, lr=1e-3),
            progress=False,
        )
        assert len(rates) == 10
        assert rates[0] == 1e-3
        assert math.isclose(rates[-1], 1e-3 * last)


def test_the_bar_is_shown_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        training, "tqdm", lambda epochs, *_, disable, **__: [print(disable), *epochs][1:]
    )
    x, y = problem()
    for progress in (True, False):
        fit(nn.Linear(3, 1).double(), x, y, likelihood, num_epochs=1, progress=progress)
    assert capsys.readouterr().out.split() == ["None", "True"]  # None: where there is a terminal


def test_a_runaway_is_told() -> None:
    x, y = problem()
    for size in (None, 8):
        with pytest.raises(RuntimeError, match=r"diverged.*learning rate"):
            fit(
                nn.Linear(3, 1).double(),
                x,
                y,
                likelihood,
                batch_size=size,
                make_optimizer=lambda p: torch.optim.SGD(p, lr=1e200),
                progress=False,
            )


WAVE = data.wave()
X, Y = WAVE.x[:, None], WAVE.y


def of(**changes: Any) -> Any:
    """A call of fit that is right but for the changes."""
    right: dict[str, Any] = {"model": nn.Linear(1, 1).double(), "x": X, "y": Y}
    right |= {"likelihood": likelihood, "progress": False}
    return fit(**right | changes)


def step(**changes: Any) -> Any:
    right: dict[str, Any] = {"model": nn.Linear(1, 1).double(), "x": X, "y": Y}
    return elbo(**right | {"likelihood": likelihood} | changes)


test_bad_input_is_named = bad_input(
    [
        (lambda: step(), ValueError, ("dataset_size", "kl_weight", "neither")),
        (lambda: step(dataset_size=92, kl_weight=0.1), ValueError, ("exactly one", "both")),
        (lambda: step(dataset_size=91), ValueError, ("dataset_size", "92", "91")),
        (
            lambda: step(y=Y[:, None], dataset_size=92),
            ValueError,
            ("(92, 92)", "(92, 1)", "outputs[..., 0]"),
        ),
        (
            lambda: step(likelihood=lambda out: Normal(out, 1.0), dataset_size=92),
            ValueError,
            ("likelihood", "(92, 92)", "outputs[..., 0]"),
        ),
        (lambda: of(likelihood=lambda out: out), TypeError, ("likelihood returns", "distribution")),
        (lambda: kl_weights("other", 3), ValueError, ("schedule", "decreasing", "other")),
        (lambda: kl_weights("uniform", 0), ValueError, ("num_batches", "at least 1")),
        (lambda: normal_penalty(0.0), ValueError, ("prior_scale", "positive")),
        (lambda: of(model=3), TypeError, ("model", "Module", "int")),
        (lambda: of(model=nn.Tanh()), ValueError, ("model", "parameters")),
        (lambda: of(x=X.float()), ValueError, ("x", "float64", "float32")),
        (lambda: of(x=X.tolist()), TypeError, ("x", "Tensor", "list")),
        (lambda: of(y=Y.float()), ValueError, ("y", "float64", "float32")),
        (lambda: of(y=Y.tolist()), TypeError, ("y", "Tensor", "list")),
        (lambda: of(y=Y * math.nan), ValueError, ("y", "finite", "92")),
        (lambda: of(y=Y[:-1]), ValueError, ("x and y", "(92, 1)", "(91,)")),
        (lambda: of(num_epochs=0), ValueError, ("num_epochs", "at least 1")),
        (lambda: of(num_draws=0), ValueError, ("num_draws", "at least 1")),
        (lambda: of(batch_size=0), ValueError, ("batch_size", "at least 1")),
        (lambda: of(batch_size=93, drop_last=True), ValueError, ("batch_size", "92", "93")),
        (lambda: of(tempering=-1.0), ValueError, ("tempering", "-1")),
        (lambda: of(schedule="other"), ValueError, ("schedule", "uniform")),
        (lambda: of(patience=3), ValueError, ("patience", "validation")),
        (lambda: of(patience=0, validation=(X, Y)), ValueError, ("patience", "at least 1")),
        (lambda: of(validation=(X, Y[:3])), ValueError, ("validation[0]", "validation[1]", "(3,)")),
        (lambda: of(make_optimizer=lambda p: p), TypeError, ("make_optimizer", "list")),
        (lambda: of(generator=3), TypeError, ("generator", "int")),
    ]
)
