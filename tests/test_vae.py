"""Variational autoencoders: probabilistic PCA is exact, each term is a sum, conditions decide."""

from __future__ import annotations

import copy
from typing import Any

import ppca
import pytest
import torch
from bad_input import bad_input
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional

from coursepkg import vae
from coursepkg.descent import minimize
from coursepkg.divergence import mean_with_error
from coursepkg.latent import active_units


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20260101)


def quick(rate: float = 0.01) -> dict[str, Any]:
    """How small models are fitted here."""
    adam = lambda parameters: torch.optim.Adam(parameters, lr=rate, fused=True)  # noqa: E731
    return {"make_optimizer": adam, "decay": True, "progress": False}


# --- Probabilistic PCA ---------------------------------------------------------------------------


def test_at_the_optimum_the_bound_is_the_log_likelihood() -> None:
    bound, log_likelihood, posterior = ppca.exact(ppca.optimum())
    torch.testing.assert_close(log_likelihood.mean(), ppca.LOG_LIKELIHOOD)
    torch.testing.assert_close(bound, log_likelihood)
    q = ppca.optimum().encode(ppca.X)
    torch.testing.assert_close(q.mean, posterior.mean)
    torch.testing.assert_close(q.variance, posterior.variance)


def off(model: vae.Autoencoder, generator: torch.Generator) -> float:
    """How many standard errors an estimate of the bound, by draws, is off the exact one."""
    with torch.no_grad():
        draws = [vae.elbo(model, ppca.X, generator=generator).elbo.mean() for _ in range(400)]
    found = mean_with_error(torch.stack(draws))
    return float((found.value - ppca.exact(model)[0].mean()).abs() / found.standard_error)


def test_the_bound_by_draws_is_the_exact_one_anywhere(generator: torch.Generator) -> None:
    for model in (ppca.optimum(), ppca.linear()):
        assert off(model, generator) < 4.5


@pytest.mark.parametrize("wrong", ["variance for scale", "no square", "half of the KL"])
def test_a_wrong_bound_is_found(
    wrong: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bound(model: Any, x: Tensor, condition: None, _beta: float, *_: Any) -> vae.Parts:
        q = model.encode(x)
        z = q.mean + torch.randn(q.mean.shape, generator=generator).double() * (
            q.variance if wrong == "variance for scale" else q.stddev
        )
        kl = kl_divergence(q, Normal(0, 1))
        if wrong == "no square":
            kl = kl - (q.variance - q.stddev) / 2
        log_likelihood = model.decode(z).log_prob(x)
        factor = 0.5 if wrong == "half of the KL" else 1.0
        return vae.Parts(log_likelihood - factor * kl.sum(dim=-1), log_likelihood, kl)

    monkeypatch.setattr(vae, "_bound", bound)
    assert off(ppca.optimum(), generator) > 10


def gradients(model: vae.Autoencoder, generator: torch.Generator) -> Tensor:
    """How many standard errors the mean gradient of the bound is away from zero."""
    draws = []
    for _ in range(400):
        model.zero_grad()
        vae.elbo(model, ppca.X, generator=generator).elbo.mean().backward()
        draws.append(torch.cat([each.grad.flatten() for each in model.parameters()]))
    found = mean_with_error(torch.stack(draws))
    return found.value.abs() / found.standard_error


def test_the_gradient_vanishes_at_the_optimum_and_only_there(generator: torch.Generator) -> None:
    model = ppca.optimum()
    assert gradients(model, generator).max() < 4.5
    model.likelihood.log_scale.data += 0.1
    assert gradients(model, generator).max() > 20


def test_a_fit_finds_the_optimum_and_the_encoder_the_posterior(generator: torch.Generator) -> None:
    model = ppca.linear()
    how = {"num_epochs": 1500, "batch_size": len(ppca.X), "generator": generator, **quick(0.03)}
    history = vae.fit(model, ppca.X, **how)
    bound, log_likelihood, posterior = ppca.exact(model)
    # What is missing, as the fit left it: of the likelihood, and of the guide.
    gap = float(ppca.LOG_LIKELIHOOD - bound.mean())

    scatter = float(log_likelihood.std() / len(ppca.X) ** 0.5)
    assert 0 < gap < scatter / 20  # far less than other rows would change
    # The likelihood bends by 2 (features - latent) in the logarithm of the noise scale, so that
    # being off by d costs (features - latent) d² nats, which is at most the gap.
    scale = float(model.likelihood.log_scale.detach() - ppca.NOISE_VARIANCE.log() / 2)

    assert scale**2 < 1.1 * gap / (ppca.FEATURES - ppca.LATENT)
    # Means d standard deviations off cost d²/2 nats, variances off by a factor e^d about d²/4.
    with torch.no_grad():
        q = model.encode(ppca.X)
    means = ((q.mean - posterior.mean) / posterior.stddev).square().sum(dim=-1).mean() / 2
    variances = (q.variance / posterior.variance).log().square().sum(dim=-1).mean() / 4

    assert float(means) < 1.1 * gap
    assert float(variances) < 1.1 * gap
    # The guide can only be exact where the posterior's covariance is diagonal: it turned there.
    covariance = posterior.covariance_matrix[0]
    correlation = covariance[0, 1] / covariance.diagonal().prod().sqrt()

    assert correlation.square() < 2 * 1.1 * gap  # a correlation r costs -log(1 - r²)/2
    # The history tells the same, by one draw a row: each epoch has an error, all together little.
    last = mean_with_error(history.elbo[-100:].double())
    assert (last.value - bound.mean()).abs() < 4.5 * last.standard_error


def test_a_linear_autoencoder_is_pca() -> None:
    model = vae.dense(
        ppca.FEATURES, 2, hidden=(), likelihood=vae.GaussianNoise(), kind=vae.Autoencoder
    ).double()
    history = vae.fit(model, ppca.X, num_epochs=1500, batch_size=len(ppca.X), **quick(0.03))
    squares = (model(ppca.X) - ppca.X).detach().square().sum(dim=-1).mean()
    left_out = ppca.VALUES[: -ppca.LATENT].sum()
    # No projection leaves less; the fit has no noise and ends where the rate is zero.
    assert 0 <= float(squares - left_out) < 1e-3 * float(left_out)
    assert (history.kl == 0).all()
    assert (history.elbo == history.log_likelihood).all()
    assert model.encode(ppca.X).shape == (len(ppca.X), 2)
    # Its noise scale is that of all features: the squares left out, over six.
    torch.testing.assert_close(
        (2 * model.likelihood.log_scale.detach()).exp(), squares / ppca.FEATURES, rtol=1e-3, atol=0
    )


# --- What a bound is made of ---------------------------------------------------------------------


def small(**options: Any) -> vae.Autoencoder:
    return vae.dense(8, 3, hidden=(16,), **options)


BINARY = (torch.rand(50, 8, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def test_each_term_is_a_sum_over_what_a_row_has() -> None:
    model, generator = small(), torch.Generator().manual_seed(2)
    state = generator.get_state()
    found = vae.elbo(model, BINARY, tempering=0.3, num_draws=4, generator=generator)
    assert [each.shape for each in found] == [(50,), (50,), (50, 3)]
    mean, log_variance = model.encoder(BINARY).split(3, dim=1)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(found.kl, expected)
    generator.set_state(state)
    z = mean + (log_variance / 2).exp() * torch.randn(4, 50, 3, generator=generator)
    entropy = functional.binary_cross_entropy_with_logits(
        model.decoder(z), BINARY.expand(4, -1, -1), reduction="none"
    )
    torch.testing.assert_close(found.log_likelihood, -entropy.sum(dim=-1).mean(dim=0))
    torch.testing.assert_close(found.elbo, found.log_likelihood - 0.3 * expected.sum(dim=-1))
    assert found.elbo.requires_grad


def test_likelihoods_have_rows_as_events() -> None:
    outputs = torch.randn(4, 5, 8)
    found = vae.bernoulli(outputs)
    assert (found.batch_shape, found.event_shape) == ((4, 5), (8,))
    torch.testing.assert_close(found.mean, outputs.sigmoid())
    noise = vae.GaussianNoise(0.7)
    found = noise(outputs)
    assert (found.batch_shape, found.event_shape) == ((4, 5), (8,))
    expected = Normal(outputs, 0.7).log_prob(torch.zeros(8)).sum(dim=-1)
    torch.testing.assert_close(found.log_prob(torch.zeros(8)), expected)
    assert [name for name, _ in noise.named_parameters()] == ["log_scale"]


def test_a_fit_is_the_loop_that_one_would_write() -> None:
    x = BINARY.double()
    ours = small().double()
    theirs = copy.deepcopy(ours)
    generator = torch.Generator().manual_seed(3)
    history = vae.fit(ours, x, num_epochs=4, batch_size=16, generator=generator, progress=False)

    generator.manual_seed(3)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    for epoch in range(4):
        losses = []
        for batch in x[torch.randperm(50, generator=generator)].split(16):
            mean, log_variance = theirs.encoder(batch).split(3, dim=1)
            noise = torch.randn(1, len(batch), 3, generator=generator, dtype=x.dtype)[0]
            logits = theirs.decoder(mean + (log_variance / 2).exp() * noise)
            loss = functional.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
            loss += (mean**2 + log_variance.exp() - 1 - log_variance).sum() / 2
            optimizer.zero_grad()
            (loss / len(batch)).backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(history.elbo[epoch], -torch.stack(losses).sum() / 50)
    for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, yours)


def two_factors() -> Tensor:
    """Rows of 64 features that two numbers decide, but for a little noise."""
    source = torch.Generator().manual_seed(7)
    z, mixing, noise = (
        torch.randn(shape, generator=source) for shape in ((256, 2), (2, 64), (256, 64))
    )
    return z @ mixing + 0.1 * noise


def test_a_loss_of_a_mean_and_a_sum_leaves_no_unit_active() -> None:
    x = two_factors()
    make = lambda: vae.dense(64, 4, hidden=(32,), likelihood=vae.GaussianNoise())  # noqa: E731
    ours, copied = make(), make()
    vae.fit(ours, x, num_epochs=150, batch_size=32, **quick())

    def widely_copied(_: int, x: Tensor) -> Tensor:
        q = copied.encode(x)
        outputs = copied.decoder(q.rsample())
        kl = kl_divergence(q, Normal(0.0, 1.0)).sum()
        return (nn.MSELoss()(outputs, x) + kl)[None]

    networks = [*copied.encoder.parameters(), *copied.decoder.parameters()]
    minimize(widely_copied, networks, (x,), num_epochs=150, batch_size=32, **quick())
    variance = float(x.var(dim=0, correction=0).mean())
    squares = {
        name: float((model(x) - x).square().mean().detach())
        for name, model in {"ours": ours, "copied": copied}.items()
    }

    assert active_units(ours, x).sum() == 2
    assert squares["ours"] < 0.1 * variance
    assert active_units(copied, x).sum() == 0
    assert squares["copied"] > 0.95 * variance  # no better than the mean of all rows


# --- Tempering and warm-up -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warm_up", "expected"), [(0, [2.0] * 6), (4, [0.0, 0.5, 1.0, 1.5, 2.0, 2.0])]
)
def test_the_tempering_rises_epoch_by_epoch(
    warm_up: int, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    used, bound = [], vae._bound

    def spy(*arguments: Any) -> vae.Parts:
        used.append(arguments[3])
        return bound(*arguments)

    monkeypatch.setattr(vae, "_bound", spy)
    vae.fit(small(), BINARY, num_epochs=6, tempering=2.0, warm_up=warm_up, progress=False)
    assert used == expected


def test_the_history_is_the_bound_whatever_the_tempering() -> None:
    history = vae.fit(small(), BINARY, num_epochs=3, tempering=5.0, progress=False)
    assert (history.kl > 0).all()
    torch.testing.assert_close(history.elbo, history.log_likelihood - history.kl)


def test_a_high_tempering_silences_the_latent_space() -> None:
    kls = []
    for tempering in (0.1, 1.0, 50.0):
        model = vae.dense(64, 4, hidden=(32,), likelihood=vae.GaussianNoise())
        history = vae.fit(model, two_factors(), num_epochs=100, tempering=tempering, **quick())
        kls.append(float(history.kl[-1]))

    assert kls[0] > kls[1] > kls[2]


# --- Conditions ----------------------------------------------------------------------------------


def labelled() -> tuple[Tensor, Tensor]:
    """Rows whose features depend on their label, and on nothing else: two halves of a row."""
    source = torch.Generator().manual_seed(9)
    labels = torch.eye(2)[torch.randint(2, (600,), generator=source)]
    odds = labels.repeat_interleave(4, dim=1) * 0.8 + 0.1
    return (torch.rand(600, 8, generator=source) < odds).float(), labels


def test_a_condition_decides_what_is_generated_and_leaves_the_code_free() -> None:
    x, labels = labelled()
    how = {"num_epochs": 150, **quick()}
    plain, conditional = small(), small(num_conditions=2)
    vae.fit(plain, x, **how)
    vae.fit(conditional, x, labels, **how)
    assert active_units(plain, x).sum() >= 1
    assert active_units(conditional, x, labels).sum() == 0
    z = torch.randn(500, 3)
    for label in torch.eye(2):
        found = conditional.decode(z, label.expand(500, -1)).mean.mean(dim=0).detach()
        mine = x[labels[:, 0] == label[0]]
        error = (mine.var(dim=0) / len(mine)).sqrt()
        assert ((found - mine.mean(dim=0)).abs() < 4.5 * error).all()
    # Draws have a leading dimension, the condition none: it is the same for all of them.
    draws = conditional.decode(z.expand(4, -1, -1), labels[:500]).mean
    assert draws.shape == (4, 500, 8)
    torch.testing.assert_close(draws[0], conditional.decode(z, labels[:500]).mean)
    # The encoder gets it too.
    flipped = conditional.encode(x, labels.flip(1)).mean
    assert not torch.equal(conditional.encode(x, labels).mean, flipped)


def test_autoencoders_restore_rows_with_and_without_a_condition() -> None:
    x, labels = labelled()
    for condition in (None, labels):
        options = {"kind": vae.Autoencoder, "num_conditions": 0 if condition is None else 2}
        model = small(**options)
        vae.fit(model, x, condition, num_epochs=60, **quick())
        found = vae.elbo(model, x, condition)
        assert found.kl.shape == (600, 3)
        assert (found.kl == 0).all()
        entropy = functional.binary_cross_entropy(model(x, condition), x, reduction="none")
        torch.testing.assert_close(found.elbo, -entropy.sum(dim=1), rtol=1e-4, atol=1e-4)
        # Better than to say each feature's mean, whatever the row.
        blind = Bernoulli(x.mean(dim=0)).log_prob(x).sum(dim=1).mean()
        assert found.elbo.mean() > blind + 1


# --- Modules --------------------------------------------------------------------------------------


def test_dense_layers() -> None:
    model = vae.dense(8, 3, hidden=(16, 4), num_conditions=2, activation=nn.Tanh)
    sizes = [
        [(m.in_features, m.out_features) for m in net if isinstance(m, nn.Linear)]
        for net in (model.encoder, model.decoder)
    ]
    assert sizes == [[(10, 16), (16, 4), (4, 6)], [(5, 4), (4, 16), (16, 8)]]
    assert [type(m) for m in model.encoder[1::2]] == [nn.Tanh, nn.Tanh]
    plain = vae.dense(8, 3, hidden=(), kind=vae.Autoencoder)
    assert [len(plain.encoder), plain.encoder[0].out_features] == [1, 3]
    assert type(plain) is vae.Autoencoder
    assert isinstance(model, vae.VAE)


def test_a_vae_restores_by_the_mean_of_its_guide() -> None:
    model = small()
    torch.testing.assert_close(model(BINARY), model.decode(model.encode(BINARY).mean).mean)


@pytest.mark.parametrize("likelihood", [vae.bernoulli, vae.GaussianNoise(0.3)])
def test_copies_and_saved_states_are_the_same_model(likelihood: Any) -> None:
    model = small(likelihood=likelihood)
    vae.fit(model, BINARY, num_epochs=2, progress=False)
    loaded = small(likelihood=copy.deepcopy(likelihood))
    loaded.load_state_dict(model.state_dict())
    expected = vae.elbo(model, BINARY, generator=torch.Generator().manual_seed(1)).elbo
    for other in (loaded, copy.deepcopy(model)):
        found = vae.elbo(other, BINARY, generator=torch.Generator().manual_seed(1)).elbo
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # And the copy has a life of its own.
    vae.fit(loaded, BINARY, num_epochs=1, progress=False)
    found = vae.elbo(model, BINARY, generator=torch.Generator().manual_seed(1)).elbo
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_generator_is_the_only_source_of_randomness() -> None:
    start = small()
    before = torch.get_rng_state()
    runs = []
    for seed in (1, 1, 2):
        model = copy.deepcopy(start)
        generator = torch.Generator().manual_seed(seed)
        history = vae.fit(model, BINARY, num_epochs=3, generator=generator, progress=False)
        runs.append((history.elbo, vae.elbo(model, BINARY, generator=generator).elbo))
    assert all(torch.equal(*pair) for pair in zip(*runs[:2], strict=True))
    assert not any(torch.equal(*pair) for pair in zip(*runs[1:], strict=True))
    assert (torch.get_rng_state() == before).all()


@pytest.mark.parametrize("training", [True, False])
def test_a_fit_trains_and_leaves_the_mode_as_it_was(training: bool) -> None:
    encoder = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))
    model = vae.VAE(encoder, nn.Linear(3, 8), vae.bernoulli).train(training)
    modes = []
    encoder.register_forward_hook(lambda *_: modes.append(model.training))
    vae.fit(model, BINARY, num_epochs=1, progress=False)
    # The first look, at one row, moves no averages.
    assert modes == [False, True]
    assert encoder[1].num_batches_tracked == 1
    assert model.training is encoder.training is training


def test_double_precision_stays_double() -> None:
    model = small(likelihood=vae.GaussianNoise(), num_conditions=2).double()
    x, labels = (each.double() for each in labelled())
    history = vae.fit(model, x, labels, num_epochs=1, progress=False)
    found = vae.elbo(model, x, labels)
    assert {each.dtype for each in (*history, *found, model(x, labels))} == {torch.float64}


# --- Bad input ------------------------------------------------------------------------------------

GREYS = torch.rand(50, 8, generator=torch.Generator().manual_seed(4))


def test_greys_are_no_bernoulli() -> None:
    with pytest.raises(ValueError, match="support"):
        vae.elbo(small(), GREYS)


def fit(model: Any = None, x: Any = BINARY, condition: Any = None, **options: Any) -> Any:
    model = small() if model is None else model
    return vae.fit(model, x, condition, num_epochs=1, progress=False, **options)


def by_feature(outputs: Tensor) -> Bernoulli:
    return Bernoulli(logits=outputs)


CONDITION = torch.ones(50, 2)
NETS = nn.Linear(8, 6), nn.Linear(3, 8)

test_bad_input_is_refused_kindly = bad_input(
    [
        (lambda: vae.GaussianNoise(0.0), ValueError, ("initial_scale", "positive")),
        (lambda: vae.GaussianNoise("1"), TypeError, ("initial_scale", "str")),
        (lambda: vae.VAE(3, NETS[1], vae.bernoulli), TypeError, ("encoder", "Module", "int")),
        (lambda: vae.VAE(NETS[0], None, vae.bernoulli), TypeError, ("decoder", "NoneType")),
        (lambda: vae.Autoencoder(*NETS, 3), TypeError, ("likelihood", "function", "int")),
        (lambda: vae.dense(0, 3), ValueError, ("num_features", "at least 1")),
        (lambda: vae.dense(8, 2.5), TypeError, ("latent_dim", "whole")),
        (lambda: vae.dense(8, 3, hidden=16), TypeError, ("hidden", "sequence", "16")),
        (lambda: vae.dense(8, 3, hidden=(16, 0)), ValueError, ("hidden", "at least 1")),
        (lambda: vae.dense(8, 3, num_conditions=-1), ValueError, ("num_conditions", "0")),
        (lambda: vae.dense(8, 3, activation="relu"), TypeError, ("activation", "function")),
        (lambda: vae.dense(8, 3, likelihood="b"), TypeError, ("likelihood", "function")),
        (lambda: vae.dense(8, 3, kind=nn.Linear), TypeError, ("kind", "VAE", "Linear")),
        (lambda: vae.dense(8, 3, kind="vae"), TypeError, ("kind", "VAE", "'vae'")),
        (lambda: vae.elbo(nn.Linear(8, 3), BINARY), TypeError, ("model", "Autoencoder", "Linear")),
        (lambda: vae.elbo(small(), [0.0]), TypeError, ("x", "torch.Tensor", "list")),
        (lambda: vae.elbo(small(), BINARY.long()), TypeError, ("x", "floating-point")),
        (lambda: vae.elbo(small(), BINARY / 0), ValueError, ("x", "finite")),
        (lambda: vae.elbo(small(), BINARY.double()), ValueError, ("x", "dtype", "float64")),
        (lambda: vae.elbo(small(), BINARY, tempering=-1.0), ValueError, ("tempering", "-1")),
        (lambda: vae.elbo(small(), BINARY, tempering="1"), TypeError, ("tempering", "str")),
        (lambda: vae.elbo(small(), BINARY, num_draws=0), ValueError, ("num_draws", "at least 1")),
        (lambda: vae.elbo(small(), BINARY, generator=1), TypeError, ("generator", "int")),
        (
            lambda: vae.elbo(small(), BINARY, CONDITION[:, 0]),
            ValueError,
            ("condition", "2 dimensions", "(50,)"),
        ),
        (
            lambda: vae.elbo(small(), BINARY, CONDITION.long()),
            TypeError,
            ("condition", "floating-point"),
        ),
        (
            lambda: vae.elbo(small(), BINARY, CONDITION[:3]),
            ValueError,
            ("condition", "as many rows", "(50, 8)", "(3, 2)"),
        ),
        (
            lambda: vae.elbo(small(), BINARY, CONDITION.double()),
            ValueError,
            ("condition", "dtype", "float64"),
        ),
        (
            lambda: vae.elbo(vae.VAE(nn.Identity(), nn.Identity(), vae.bernoulli), BINARY),
            ValueError,
            ("model", "parameters"),
        ),
        (lambda: fit(nn.Linear(8, 3)), TypeError, ("model", "Autoencoder")),
        (lambda: fit(tempering=-0.5), ValueError, ("tempering", "-0.5")),
        (lambda: fit(warm_up=-1), ValueError, ("warm_up", "at least 0")),
        (lambda: fit(num_draws=0), ValueError, ("num_draws", "at least 1")),
        (lambda: fit(batch_size=0), ValueError, ("batch_size", "at least 1")),
        (lambda: fit(x=BINARY[:0]), ValueError, ("x", "empty")),
        (lambda: fit(condition=CONDITION[:3]), ValueError, ("condition", "as many rows")),
        (lambda: fit(x=GREYS), ValueError, ("x", "support", "(x > 0.5).float()")),
        (lambda: fit(small(likelihood=by_feature)), ValueError, ("Independent", "()", "(8,)")),
        (lambda: fit(small(likelihood=torch.sigmoid)), ValueError, ("likelihood", "Tensor")),
    ]
)
