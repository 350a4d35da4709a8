"""Log densities and constrained parameters: against finite differences, Jacobians and integrals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Beta, Distribution, Gamma, LogNormal, MultivariateNormal, Normal
from torch.distributions import constraints as c
from torch.distributions.constraints import Constraint

from coursepkg import density
from coursepkg.density import Space

BATCHES = [(), (3,), (2, 3)]


def normals(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def skewed(theta: Tensor) -> Tensor:
    """Not symmetric in anything, and the coordinates interact."""
    return (theta - theta.exp()).sum(-1) + (theta[..., 0] * theta[..., 1]).sin()


class Supplied:
    """A standard normal that hands its gradient in, and counts how often it is asked."""

    asked = 0

    def __call__(self, theta: Tensor) -> Tensor:
        return -theta.square().sum(-1) / 2

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += 1
        return self(theta), -theta


# --- Value and gradient ---------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES)
def test_gradients_equal_finite_differences(batch: tuple[int, ...]) -> None:
    theta, step = normals(*batch, 3), 1e-5
    values, gradient = density.value_and_grad(skewed, theta)
    torch.testing.assert_close(values, skewed(theta))
    assert gradient.shape == theta.shape
    for i, direction in enumerate(torch.eye(3, dtype=torch.float64)):
        slope = (skewed(theta + step * direction) - skewed(theta - step * direction)) / (2 * step)
        # A central difference is off by step²/6 times the third derivative, and by rounding.
        torch.testing.assert_close(gradient[..., i], slope, rtol=1e-7, atol=1e-8)


def test_a_supplied_gradient_is_used_and_equals_autograd() -> None:
    theta, supplied = normals(4, 3), Supplied()
    for ours, autograd in zip(
        density.value_and_grad(supplied, theta),
        density.value_and_grad(supplied.__call__, theta),
        strict=True,
    ):
        torch.testing.assert_close(ours, autograd)
    assert supplied.asked == 1


def test_values_and_gradients_are_free_of_the_graph_and_leave_theta_as_it_was() -> None:
    theta = normals(2, 3)
    before = theta.clone()
    with torch.no_grad():  # a sampler may run without gradients; the density still needs them
        values, gradient = density.value_and_grad(skewed, theta)
    assert not values.requires_grad
    assert not gradient.requires_grad
    assert not theta.requires_grad
    assert torch.equal(theta, before)
    assert not density.value(skewed, theta.requires_grad_()).requires_grad


@pytest.mark.parametrize("batch", BATCHES)
def test_value_is_the_density(batch: tuple[int, ...]) -> None:
    theta = normals(*batch, 3)
    assert torch.equal(density.value(skewed, theta), skewed(theta))


# --- Rows where the density cannot be computed ----------------------------------------------------


def root(theta: Tensor) -> Tensor:
    """NaN below zero."""
    return theta[..., 0].sqrt() - theta[..., 1].square()


def plus_infinity(theta: Tensor) -> Tensor:
    return torch.where(theta[..., 0] < 0, torch.inf, skewed(theta))


def scale(theta: Tensor) -> Tensor:
    """torch.distributions raises for a scale below zero while its checks are on."""
    return Normal(0.0, theta[..., 0]).log_prob(theta[..., 1])


def cholesky(theta: Tensor) -> Tensor:
    """A decomposition that raises for the whole batch where one matrix is not definite."""
    covariance = theta[..., :1, None] * torch.eye(2, dtype=theta.dtype) + 0.1
    return MultivariateNormal(torch.zeros(2).to(theta), covariance).log_prob(theta)


@pytest.mark.parametrize("log_density", [root, plus_infinity, scale, cholesky])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (1,), ()])
def test_a_row_that_cannot_be_computed_is_impossible_and_flat_and_spoils_no_other(
    log_density: density.LogDensity, shape: tuple[int, ...]
) -> None:
    theta = normals(*shape, 2).abs() + 0.5
    good = torch.ones(shape, dtype=torch.bool)
    good.view(-1)[-2:] = False
    theta[..., 0] = torch.where(good, theta[..., 0], -theta[..., 0])
    values, gradient = density.value_and_grad(log_density, theta)
    assert (values[~good] == -torch.inf).all()
    assert (gradient[~good] == 0).all()
    assert torch.equal(density.value(log_density, theta) == -torch.inf, ~good)
    if good.any():
        alone = density.value_and_grad(log_density, theta[good])
        torch.testing.assert_close((values[good], gradient[good]), alone)
        assert (alone[1] != 0).all()


@pytest.fixture
def checks_restored() -> Iterator[Callable[[], bool]]:
    before = Distribution._validate_args
    yield lambda: Distribution._validate_args is before
    Distribution.set_default_validate_args(before)


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("evaluate", [density.value, density.value_and_grad])
def test_the_global_switch_of_torch_distributions_is_put_back(
    default: bool, evaluate: Callable[..., Any], checks_restored: Callable[[], bool]
) -> None:
    Distribution.set_default_validate_args(default)
    bad = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    for log_density in (scale, cholesky):
        evaluate(log_density, bad)
        assert Distribution._validate_args is default

    def broken(theta: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(broken, bad)
    assert Distribution._validate_args is default
    Distribution.set_default_validate_args(True)
    assert checks_restored()


@pytest.mark.parametrize("evaluate", [density.value, density.value_and_grad])
@pytest.mark.parametrize(
    "log_density",
    [
        lambda theta: theta.sum(),
        lambda theta: theta,
        lambda theta: theta.sum(-1, keepdim=True),
        lambda theta: 0.0,
    ],
)
def test_a_density_of_another_shape_is_refused(
    evaluate: Callable[..., Any], log_density: Any, kind_error: Callable[..., Any]
) -> None:
    with kind_error(ValueError, "log_density", "(4, 2)", "(4,)", "sum over data points"):
        evaluate(log_density, normals(4, 2))


# --- Constraints ----------------------------------------------------------------------------------

PARAMETERS: dict[str, tuple[Constraint, int | tuple[int, ...]]] = {
    "real": (c.real, ()),
    "real vector": (c.real, 3),
    "positive": (c.positive, ()),
    "positive matrix": (c.positive, (2, 2)),
    "greater than": (c.greater_than(2.0), 2),
    "less than": (c.less_than(-1.0), 2),
    "interval": (c.interval(-2.0, 5.0), ()),
    "interval vector": (c.interval(-2.0, 5.0), (3,)),
    "unit interval": (c.unit_interval, 2),
    "simplex": (c.simplex, 4),
    "simplexes": (c.simplex, (2, 3)),
    "Cholesky": (c.lower_cholesky, (3, 3)),
    "Choleskys": (c.lower_cholesky, (2, 2, 2)),
    "one by one": (c.lower_cholesky, (1, 1)),
    "correlation": (c.corr_cholesky, (3, 3)),
}
FREE = {"simplex": 3, "simplexes": 4, "Cholesky": 6, "Choleskys": 6, "one by one": 1} | {
    "correlation": 3
}


def free_entries(name: str, value: Tensor) -> Tensor:
    """As many entries of a constrained value as it has degrees of freedom."""
    if "simplex" in name:
        return value[..., :-1].flatten()
    if "Cholesky" in name or name == "one by one":
        return value[..., *torch.tril_indices(*value.shape[-2:])].flatten()
    if name == "correlation":
        return value[..., *torch.tril_indices(*value.shape[-2:], -1)].flatten()
    return value.flatten()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_satisfy_their_constraint_and_come_back(
    name: str, batch: tuple[int, ...]
) -> None:
    constraint, shape = PARAMETERS[name]
    space = Space({"first": c.real, "it": (constraint, shape), "last": (c.positive, 2)})
    size = torch.Size((shape,) if isinstance(shape, int) else shape)
    assert space.dim == 3 + FREE.get(name, size.numel())
    theta = 2 * normals(*batch, space.dim)
    values = space.constrain(theta)
    assert values["first"].shape == batch
    assert values["it"].shape == batch + size
    assert constraint.check(values["it"]).all()
    torch.testing.assert_close(space.unconstrain(values), theta)
    flat = space.flatten(theta)
    assert flat.shape == (*batch, len(space.names))
    torch.testing.assert_close(flat[..., 1:-2], values["it"].reshape(*batch, -1))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", PARAMETERS)
def test_the_log_jacobian_is_the_determinant_of_the_free_coordinates(
    name: str, batch: tuple[int, ...]
) -> None:
    space = Space({"it": PARAMETERS[name]})
    theta = normals(*batch, space.dim)

    def one_row(row: Tensor) -> Tensor:
        return free_entries(name, space.constrain(row)["it"])

    rows = theta.reshape(-1, space.dim)
    jacobians = torch.stack([torch.autograd.functional.jacobian(one_row, row) for row in rows])
    truth = torch.linalg.slogdet(jacobians).logabsdet.reshape(batch)
    flat = space.log_density(lambda values: torch.zeros(batch, dtype=torch.float64))
    torch.testing.assert_close(flat(theta), truth)


def test_the_log_jacobians_of_several_parameters_add_up() -> None:
    parts = {"a": PARAMETERS["interval"], "b": PARAMETERS["simplex"], "c": PARAMETERS["positive"]}
    theta = normals(5, 5)
    pieces = theta.split([1, 3, 1], dim=-1)

    def log_jacobian(space: Space, theta: Tensor) -> Tensor:
        return space.log_density(lambda values: torch.zeros(5, dtype=torch.float64))(theta)

    alone = [
        log_jacobian(Space({name: part}), piece)
        for (name, part), piece in zip(parts.items(), pieces, strict=True)
    ]
    torch.testing.assert_close(log_jacobian(Space(parts), theta), sum(alone))


KNOWN = [
    (c.positive, LogNormal(0.5, 0.8)),
    (c.positive, Gamma(3.0, 1.0)),
    (c.unit_interval, Beta(2.0, 3.0)),
    (c.interval(-1.0, 3.0), torch.distributions.Uniform(-1.0, 3.0)),
    (c.greater_than(1.0), torch.distributions.Pareto(1.0, 2.5)),
]


@pytest.mark.parametrize(("constraint", "known"), KNOWN)
def test_a_density_integrates_to_one_and_without_the_log_jacobian_it_does_not(
    constraint: Constraint, known: Distribution
) -> None:
    space = Space({"it": constraint})
    grid = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    checked = type(known).set_default_validate_args
    checked(False)  # at the ends of the grid a value rounds to the end of its interval
    try:
        moved = space.log_density(lambda values: known.log_prob(values["it"]))(grid[:, None])
        forgotten = known.log_prob(space.constrain(grid[:, None])["it"])
    finally:
        checked(True)
    # The trapezoid rule is all but exact for smooth functions that vanish at both ends.
    assert torch.trapezoid(moved.exp(), grid) == pytest.approx(1, abs=1e-6)
    assert abs(torch.trapezoid(forgotten.nan_to_num(nan=-torch.inf).exp(), grid) - 1) > 0.1


def test_names_count_the_cells() -> None:
    space = Space({"mu": c.real, "theta": (c.real, 2), "p": (c.simplex, (1, 2))})
    assert space.names == ("mu", "theta[0]", "theta[1]", "p[0, 0]", "p[0, 1]")
    assert space.dim == 1 + 2 + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_that_of_theta(dtype: torch.dtype) -> None:
    space = Space({str(i): part for i, part in enumerate(PARAMETERS.values())})
    theta = normals(3, space.dim).to(dtype)
    assert {value.dtype for value in space.constrain(theta).values()} == {dtype}
    assert space.log_density(lambda values: values["0"])(theta).dtype == dtype


def test_gradients_flow_through_every_constraint() -> None:
    space = Space({str(i): part for i, part in enumerate(PARAMETERS.values())})
    flat = space.log_density(
        lambda values: sum(v.sin().reshape(2, -1).sum(1) for v in values.values())
    )
    theta = normals(2, space.dim).requires_grad_()
    assert torch.autograd.gradcheck(flat, theta)


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "error", "words"),
    [
        ("positive", TypeError, ["scale", "constraint", "'positive'"]),
        (Normal(0.0, 1.0), TypeError, ["scale", "constraint"]),
        (c.nonnegative_integer, TypeError, ["scale", "smooth bijection"]),
        ((c.positive_definite, (2, 2)), TypeError, ["scale", "lower_cholesky"]),
        (c.simplex, ValueError, ["scale", "1 or more dimensions", "()"]),
        ((c.corr_cholesky, 3), ValueError, ["scale", "2 or more dimensions", "(3,)"]),
        ((c.corr_cholesky, (2, 3)), ValueError, ["scale", "CorrCholesky", "(2, 3)"]),
        ((c.lower_cholesky, (2, 3)), ValueError, ["scale", "LowerCholesky", "(2, 3)"]),
        ((c.real, 0), ValueError, ["scale", "(0,)"]),
        ((c.real, (2, -1)), ValueError, ["scale", "(2, -1)"]),
    ],
)
def test_entries_that_are_no_parameter_are_refused(
    entry: Any, error: type[Exception], words: list[str], kind_error: Callable[..., Any]
) -> None:
    with kind_error(error, *words):
        Space({"scale": entry})


def test_a_space_has_parameters(kind_error: Callable[..., Any]) -> None:
    with kind_error(ValueError, "number of parameters", "at least 1"):
        Space({})


def test_theta_of_another_shape_or_kind_is_refused(kind_error: Callable[..., Any]) -> None:
    space = Space({"a": c.real, "b": c.positive})
    for theta in (torch.zeros(3), torch.zeros(2, 1), torch.tensor(1.0)):
        with kind_error(ValueError, "theta", "2 unconstrained", str(tuple(theta.shape))):
            space.constrain(theta)
    for wrong in (torch.zeros(2, dtype=torch.int64), [0.0, 0.0]):
        with kind_error(TypeError, "theta", "floating-point"):
            space.constrain(wrong)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": torch.zeros(2)}, ["values", "'b'"]),
        ({"a": torch.zeros(2), "b": torch.tensor(0.5), "d": torch.zeros(())}, ["values", "'d'"]),
        ({"a": torch.zeros(2), "b": torch.tensor(1.5)}, ["b", "1.5", "satisfy"]),
        ({"a": torch.zeros(2), "b": torch.tensor(math.nan)}, ["b", "nan", "satisfy"]),
        ({"a": torch.zeros(3), "b": torch.tensor(0.5)}, ["a", "(2,)", "(3,)"]),
        ({"a": torch.zeros(()), "b": torch.tensor(0.5)}, ["a", "(2,)", "()"]),
    ],
)
def test_values_that_are_no_point_of_the_space_are_refused(
    values: dict[str, Tensor], words: list[str], kind_error: Callable[..., Any]
) -> None:
    space = Space({"a": (c.real, 2), "b": c.interval(-1.0, 1.0)})
    with kind_error(ValueError, *words):
        space.unconstrain(values)


@pytest.mark.parametrize(
    "log_joint",
    [
        lambda values: values["a"].sum(),  # over all chains, too: would broadcast
        lambda values: values["a"],
        lambda values: 0.0,
    ],
)
def test_a_log_joint_of_another_shape_is_refused(
    log_joint: Any, kind_error: Callable[..., Any]
) -> None:
    flat = Space({"a": (c.real, 2)}).log_density(log_joint)
    with kind_error(ValueError, "log_joint", "(4, 2)", "(4,)"):
        flat(normals(4, 2))
