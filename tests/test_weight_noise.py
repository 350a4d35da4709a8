"""Three ways to draw a Gaussian layer's outputs: the same rows, other company, in closed form."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from coursepkg.gradients import estimator_variance
from coursepkg.weight_noise import flipout, local_reparameterization, shared_weights

Layer = Callable[..., Tensor]
LAYERS: dict[str, Layer] = {
    "shared": shared_weights,
    "flipout": flipout,
    "local": local_reparameterization,
}
ALL = pytest.mark.parametrize("name", LAYERS)
DRAWS = 100_000


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# The first row and the last one are the same input.
X = table([1.0, -0.5, 2.0], [0.3, 0.8, -1.0], [2.0, 1.0, 0.0], [1.0, -0.5, 2.0])
MEAN, SCALE = table([0.5, -1.0, 0.2], [1.0, 0.3, -0.7]), table([0.4, 0.9, 0.3], [0.6, 0.2, 0.5])
BIAS_MEAN, BIAS_SCALE = table([0.1, -0.3])[0], table([0.7, 0.4])[0]
# The bias as the weight of a constant input.
X1, MEAN1 = torch.cat([X, torch.ones(4, 1)], 1), torch.cat([MEAN, BIAS_MEAN[:, None]], 1)
SCALE1 = torch.cat([SCALE, BIAS_SCALE[:, None]], 1)
EXACT_MEAN = X1 @ MEAN1.T
EXACT_VARIANCE = X1**2 @ (SCALE1**2).T


def random(seed: int = 20260101) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outputs(layer: Layer, draws: int = DRAWS) -> Tensor:
    """Independent draws of all outputs, shape (draws, rows, outputs)."""
    return layer(
        X,
        MEAN.expand(draws, -1, -1),
        SCALE.expand(draws, -1, -1),
        BIAS_MEAN.expand(draws, -1),
        BIAS_SCALE.expand(draws, -1),
        generator=random(),
    )


def z_scores(draws: Tensor, truth: Tensor | float) -> Tensor:
    error = draws.std(dim=0) / len(draws) ** 0.5
    return ((draws.mean(dim=0) - truth) / error).abs()


def planted(change: str) -> Layer:
    """Local reparameterization with a bug."""

    def layer(x: Tensor, m: Tensor, s: Tensor, bm: Tensor, bs: Tensor, **given: Any) -> Tensor:
        mean, bias = x @ m.mT + bm[..., None, :], bs[..., None, :]
        variance = {
            "scale in place of variance": x**2 @ s.mT + bias,
            "inputs not squared": x.abs() @ (s**2).mT + bias**2,
            "no noise of the bias": x**2 @ (s**2).mT,
        }.get(change, x**2 @ (s**2).mT + bias**2)
        shape = list(mean.shape)
        if change == "noise shared by rows":
            shape[-2] = 1
        if change == "noise shared by outputs":
            shape[-1] = 1
        noise = torch.randn(shape, dtype=x.dtype, **given)
        if change == "variance in place of scale":
            return mean + variance * noise
        return mean + variance.sqrt() * noise

    return layer


# --- A row by itself ------------------------------------------------------------------------------


def worst_row(y: Tensor) -> float:
    """The largest z score of any row's mean or variance, and whether it is normal at all."""
    z = [float(z_scores(y, EXACT_MEAN).max())]
    for row, output in itertools.product(range(4), range(2)):
        value, error = estimator_variance(y[:, row, output])
        z.append(float((value - EXACT_VARIANCE[row, output]).abs() / error))
        standard = (y[:, row, output] - EXACT_MEAN[row, output]) / EXACT_VARIANCE[
            row, output
        ].sqrt()
        z.append(scipy.stats.norm.isf(scipy.stats.kstest(standard, "norm").pvalue / 2))
    return max(z)


@ALL
def test_a_row_by_itself_is_the_same_normal_in_all_three(name: str) -> None:
    assert worst_row(outputs(LAYERS[name])) < 4.5


@pytest.mark.parametrize(
    "change",
    [
        "scale in place of variance",
        "variance in place of scale",
        "inputs not squared",
        "no noise of the bias",
    ],
)
def test_a_row_with_a_wrong_variance_is_rejected(change: str) -> None:
    assert worst_row(outputs(planted(change))) > 9


def test_the_planted_layer_is_right_without_its_bug() -> None:
    y = outputs(planted("none"))
    assert worst_row(y) < 4.5
    assert worst_company(y, "local") < 4.5


# --- Rows together --------------------------------------------------------------------------------


def worst_company(y: Tensor, name: str) -> float:
    """The largest z score of a covariance of two outputs, of their squares, or of two and two."""
    centered, z = y - EXACT_MEAN, []
    for n, m in itertools.combinations(range(4), 2):
        shared = SCALE1**2 @ (X1[n] * X1[m])
        covariance = shared if name == "shared" else 0.0
        of_squares = {
            "shared": 2 * shared**2,
            "flipout": 2 * SCALE1**4 @ (X1[n] * X1[m]) ** 2,
            "local": 0.0,
        }[name]
        z.append(z_scores(centered[:, n] * centered[:, m], covariance))
        squares = centered.square() - EXACT_VARIANCE
        z.append(z_scores(squares[:, n] * squares[:, m], of_squares))
        z.append(z_scores(centered[:, n] * centered[:, m].flip(-1), 0.0))  # other outputs: none
        # Two outputs of two rows: what flips of the inputs alone would leave behind.
        four = shared.prod() if name == "shared" else 0.0
        z.append(z_scores(centered[:, [n, m]].flatten(1).prod(dim=-1), four)[None])
    z.append(z_scores(centered[:, :, 0] * centered[:, :, 1], 0.0))
    return max(float(one.nan_to_num(nan=0).max()) for one in z)


@ALL
def test_rows_together_vary_as_each_theory_says_and_not_as_another(name: str) -> None:
    y = outputs(LAYERS[name])
    for theory in LAYERS:
        distance = worst_company(y, theory)
        assert distance < 4.5 if theory == name else distance > 9


@pytest.mark.parametrize("change", ["noise shared by rows", "noise shared by outputs"])
def test_noise_that_is_shared_is_rejected(change: str) -> None:
    y = outputs(planted(change))
    assert worst_row(y) < 4.5  # no row by itself gives it away
    assert worst_company(y, "local") > 9


def test_the_same_input_twice_is_the_same_value_of_a_shared_draw_only() -> None:
    first, last = outputs(shared_weights)[:, [0, 3], 0].T
    assert torch.equal(first, last)
    for layer in (flipout, local_reparameterization):
        correlation = torch.corrcoef(outputs(layer)[:, [0, 3], 0].T)[0, 1]
        assert abs(float(correlation)) < 4.5 / DRAWS**0.5 * 3**0.5  # flipout: squares depend


# --- Gradients of a minibatch's loss --------------------------------------------------------------

ONE_MEAN, ONE_SCALE = MEAN1[:1], SCALE1[:1]
TARGETS = table([0.4, -1.0, 2.0, 0.5])[0]


def loss_gradients(layer: Layer, copies: int = 1) -> tuple[Tensor, Tensor]:
    """Of the mean loss (y - t)² / 2 by means and by scales, (draws, inputs), the bias's last."""
    leaves = [
        value.expand(DRAWS, *value.shape).requires_grad_()
        for value in (MEAN[:1], SCALE[:1], BIAS_MEAN[:1], BIAS_SCALE[:1])
    ]
    y = layer(X.repeat(copies, 1), *leaves, generator=random())[..., 0]
    loss = (y - TARGETS.repeat(copies)).square().mean(dim=-1) / 2
    m, s, bm, bs = torch.autograd.grad(loss.sum(), leaves)
    return torch.cat([m[:, 0], bm], dim=-1), torch.cat([s[:, 0], bs], dim=-1)


def exact_gradients() -> tuple[Tensor, Tensor]:
    residuals = (X1 @ ONE_MEAN.T)[:, 0] - TARGETS
    return residuals @ X1 / len(X1), ONE_SCALE[0] * X1.square().mean(dim=0)


def exact_traces(name: str, copies: int = 1) -> tuple[float, float]:
    """Traces of the covariances, from fourth moments of normal variables.

    With residuals d, rows x, scales s, noise e (of weights) or ε (of rows):
    by a mean j, the gradient is Σ_n (y_n - t_n) x_nj: its variance is x_jᵀ cov(y) x_j.
    By a scale j it is Σ_n (d_n + Σ_i x_ni s_i e_i) x_nj e_j, with flipped signs for flipout, and
    Σ_n (d_n + σ_n ε_n) ε_n x_nj² s_j / σ_n for local reparameterization.
    """
    x, s = X1.repeat(copies, 1), ONE_SCALE[0]
    d = (x @ ONE_MEAN.T)[:, 0] - TARGETS.repeat(copies)
    covariance = (x * s**2) @ x.T
    variance = covariance.diagonal()
    squares = x.square()
    if name == "shared":
        by_mean = (covariance @ x * x).sum(dim=0)
        gram = x.T @ x
        products = gram.square()
        by_scale = (d @ x).square()
    else:
        by_mean = variance @ squares
        products = squares.T @ squares
        by_scale = d.square() @ squares
    if name == "local":
        weights = squares * s / variance.sqrt()[:, None]
        by_scale = (d.square() + 2 * variance) @ weights.square()
    else:
        off_diagonal = products - products.diagonal().diag()
        twice = 2 * squares.sum(dim=0).square() * s**2
        by_scale = by_scale + twice + off_diagonal @ s**2
    return float(by_mean.sum()) / len(x) ** 2, float(by_scale.sum()) / len(x) ** 2


def worst_gradient(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> float:
    return max(float(z_scores(a, b).max()) for a, b in zip(found, truth, strict=True))


def worst_trace(found: tuple[Tensor, Tensor], truth: tuple[float, float]) -> float:
    z = []
    for draws, exact in zip(found, truth, strict=True):
        value, error = estimator_variance(draws)
        z.append(float((value - exact).abs() / error))
    return max(z)


@ALL
@pytest.mark.parametrize("copies", [1, 4])
def test_gradients_are_unbiased_and_vary_as_each_theory_says(name: str, copies: int) -> None:
    found = loss_gradients(LAYERS[name], copies)
    by_mean, by_scale = exact_gradients()
    assert worst_gradient(found, (by_mean, by_scale)) < 4.5
    assert worst_gradient(found, (-by_mean, -by_scale)) > 9
    for theory in LAYERS:
        distance = worst_trace(found, exact_traces(theory, copies))
        assert distance < 4.5 if theory == name else distance > 9


@pytest.mark.parametrize("change", ["noise shared by rows", "inputs not squared"])
def test_wrong_noise_gives_wrong_gradients(change: str) -> None:
    found = loss_gradients(planted(change))
    assert worst_trace(found, exact_traces("local")) > 9
    biased = worst_gradient(found, exact_gradients())
    assert biased > 9 if change == "inputs not squared" else biased < 4.5


def test_the_size_of_the_minibatch() -> None:
    """Noise of its own for each row averages out, shared noise does not."""
    for copies in (1, 4, 16):
        shared, flips, local = (exact_traces(name, copies) for name in LAYERS)
        assert shared[0] > flips[0] == local[0]
        assert shared[1] > local[1] < flips[1]
    assert exact_traces("shared", 16) == pytest.approx(exact_traces("shared"))
    assert exact_traces("local", 16) == pytest.approx([t / 16 for t in exact_traces("local")])
    # What flipout does not flip: a weight's noise by itself, squared.
    limit = float((2 * ONE_SCALE[0] ** 2 * X1.square().mean(dim=0) ** 2).sum())
    assert limit < exact_traces("flipout", 1000)[1] < 1.01 * limit


@pytest.mark.parametrize("residual", [0.0, 3.0])
def test_noise_for_each_row_can_also_vary_more(residual: float) -> None:
    """Two rows x = 1 and targets ±t: by the scale s the gradient of the loss is
    Σ (∓t + s ε_n) ε_n. With shared noise t cancels and 2 s ε² stays."""
    s = 0.5
    target = torch.tensor([residual, -residual], dtype=torch.float64)
    exact = {
        "shared": 8 * s**2,
        "flipout": 2 * residual**2 + 8 * s**2,
        "local": 2 * residual**2 + 4 * s**2,
    }
    for name, truth in exact.items():
        scale = torch.full((DRAWS, 1, 1), s, dtype=torch.float64, requires_grad=True)
        y = LAYERS[name](torch.ones(2, 1).double(), 0 * scale, scale, generator=random())
        (draws,) = torch.autograd.grad(((y[..., 0] - target) ** 2).sum() / 2, scale)
        assert z_scores(draws.flatten(), 2 * s) < 4.5
        value, error = estimator_variance(draws)
        assert abs(float(value) - truth) < 4.5 * float(error)
    assert (exact["local"] < exact["shared"]) == (residual == 0)


def test_a_signed_sum_of_one_draw_s_gradient_orders_nothing() -> None:
    """The copied comparison of single draws: more than every third time the noisier one wins."""
    shared, local = (loss_gradients(layer)[0] for layer in (shared_weights, LAYERS["local"]))
    assert estimator_variance(shared).value > 1.5 * estimator_variance(local).value
    other = torch.randperm(DRAWS, generator=random(1))
    wins = shared.sum(dim=-1).abs() < local.sum(dim=-1).abs()[other]
    assert 0.3 < wins.double().mean() < 0.5


# --- Shapes, edges, randomness --------------------------------------------------------------------


@ALL
def test_leading_dimensions(name: str) -> None:
    layer = LAYERS[name]
    stack = X.expand(6, 5, 4, 3)
    assert layer(X, MEAN, SCALE).shape == (4, 2)
    assert layer(stack, MEAN, SCALE, BIAS_MEAN, BIAS_SCALE).shape == (6, 5, 4, 2)
    assert layer(X, MEAN.expand(5, 2, 3), SCALE.expand(5, 2, 3)).shape == (5, 4, 2)
    y = layer(
        stack,
        MEAN.expand(5, 2, 3),
        SCALE.expand(5, 2, 3),
        BIAS_MEAN.expand(5, 2),
        BIAS_SCALE.expand(5, 2),
    )
    assert y.shape == (6, 5, 4, 2)
    # One draw of the weights serves all of x; each leading index of the weights is another draw.
    assert torch.equal(y[0], y[1]) == (name == "shared")
    assert not torch.equal(y[:, 0], y[:, 1])


@ALL
def test_without_noise_it_is_a_linear_layer(name: str) -> None:
    y = LAYERS[name](X, MEAN, 0 * SCALE, BIAS_MEAN, 0 * BIAS_SCALE)
    torch.testing.assert_close(y, torch.nn.functional.linear(X, MEAN, BIAS_MEAN))
    y = LAYERS[name](X.float(), MEAN.float(), 0 * SCALE.float())
    torch.testing.assert_close(y, torch.nn.functional.linear(X.float(), MEAN.float()))


@ALL
def test_a_row_of_zeros_has_no_noise_and_finite_gradients(name: str) -> None:
    x, mean, scale = (value.clone().requires_grad_() for value in (0 * X, MEAN, SCALE))
    y = LAYERS[name](x, mean, scale)
    assert y.abs().max() < 1e-100
    gradients = torch.autograd.grad(y.sum(), [x, mean, scale])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not gradients[2].any()


@ALL
def test_the_generator_decides(name: str) -> None:
    layer, state = LAYERS[name], torch.get_rng_state()
    first, again, other = (layer(X, MEAN, SCALE, generator=random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    layer(X, MEAN, SCALE)
    assert not torch.equal(state, torch.get_rng_state())


@ALL
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, ("x", "torch.Tensor")),
        ({"x": X * torch.nan}, ValueError, ("x", "finite")),
        ({"x": X[0]}, ValueError, ("x", "rows, inputs", "(3,)")),
        ({"x": X[:, :2]}, ValueError, ("x", "(4, 2)", "(2, 3)")),
        ({"x": X.float()}, ValueError, ("weight_mean", "dtype of x", "float32", "float64")),
        ({"weight_mean": MEAN[0]}, ValueError, ("weight_mean", "outputs, inputs", "(3,)")),
        ({"weight_scale": SCALE[:, :2]}, ValueError, ("weight_scale", "(2, 3)", "(2, 2)")),
        ({"weight_scale": -SCALE}, ValueError, ("weight_scale", "negative", "-0.9", "softplus")),
        ({"bias_mean": BIAS_MEAN}, ValueError, ("bias_mean", "bias_scale", "both")),
        ({"bias_scale": BIAS_SCALE}, ValueError, ("bias_mean", "bias_scale", "both")),
        (
            {"bias_mean": BIAS_MEAN, "bias_scale": -BIAS_SCALE},
            ValueError,
            ("bias_scale", "negative"),
        ),
        (
            {"bias_mean": BIAS_MEAN[:1], "bias_scale": BIAS_SCALE},
            ValueError,
            ("bias_mean", "(2,)", "(1,)"),
        ),
        (
            {"bias_mean": BIAS_MEAN, "bias_scale": BIAS_SCALE[:1]},
            ValueError,
            ("bias_scale", "(2,)", "(1,)"),
        ),
        ({"generator": 7}, TypeError, ("generator", "torch.Generator")),
    ],
)
def test_bad_input_is_named(
    name: str,
    arguments: dict[str, Any],
    error: type[Exception],
    words: tuple[str, ...],
    kind_error: Callable[..., Any],
) -> None:
    given = {"x": X, "weight_mean": MEAN, "weight_scale": SCALE, **arguments}
    with kind_error(error, *words):
        LAYERS[name](**given)
