"""Guides: equal to torch's normals, with draws that have the mean and covariance they claim."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bad_input import bad_input
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from coursepkg.guides import FullRankNormal, Guide, LowRankNormal, MeanFieldNormal


def normals(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean_field(*shape: int, dim: int) -> MeanFieldNormal:
    return MeanFieldNormal(normals(*shape, dim, seed=0), normals(*shape, dim, seed=1).exp())


def full_rank(*shape: int, dim: int) -> FullRankNormal:
    below = normals(*shape, dim, dim, seed=2).tril(-1)
    diagonal = normals(*shape, dim, seed=1).exp()
    return FullRankNormal(normals(*shape, dim, seed=0), below + diagonal.diag_embed())


def low_rank(*shape: int, dim: int) -> LowRankNormal:
    q = mean_field(*shape, dim=dim)
    return LowRankNormal(q.mean, q.scale, normals(*shape, dim, 2, seed=3))


def covariance(q: Guide) -> Tensor:
    if isinstance(q, FullRankNormal):
        return q.scale_tril @ q.scale_tril.mT
    diagonal = q.scale.square().diag_embed()
    return diagonal + q.factor @ q.factor.mT if isinstance(q, LowRankNormal) else diagonal


def as_torch(q: Guide) -> MultivariateNormal:
    return MultivariateNormal(q.mean, covariance(q))


FAMILIES = pytest.mark.parametrize("make", [mean_field, full_rank, low_rank])
SHAPES = pytest.mark.parametrize("shape", [(), (3,), (2, 3)])


@SHAPES
@FAMILIES
def test_guides_are_the_normals_of_torch(
    make: Callable[..., Guide], shape: tuple[int, ...]
) -> None:
    q = make(*shape, dim=4)
    theta = normals(5, *shape, 4, seed=4)
    torch.testing.assert_close(q.log_prob(theta), as_torch(q).log_prob(theta))
    torch.testing.assert_close(q.entropy(), as_torch(q).entropy())
    torch.testing.assert_close(q.variance, as_torch(q).variance)
    # Any leading dimensions, and a single point for all guides.
    torch.testing.assert_close(q.log_prob(theta[:, None])[:, 0], q.log_prob(theta))
    point = theta[(0,) * (theta.ndim - 1)]
    torch.testing.assert_close(q.log_prob(point), as_torch(q).log_prob(point))


@SHAPES
@FAMILIES
def test_the_kl_to_a_prior_is_that_of_torch(
    make: Callable[..., Guide], shape: tuple[int, ...]
) -> None:
    q = make(*shape, dim=4)
    mean, scale = normals(4, seed=5), normals(4, seed=6).exp()
    prior = MultivariateNormal(mean, scale.square().diag())
    torch.testing.assert_close(q.kl(mean, scale), kl_divergence(as_torch(q), prior))
    expected = kl_divergence(
        as_torch(q), MultivariateNormal(torch.zeros(4).double(), 9 * torch.eye(4).double())
    )
    torch.testing.assert_close(q.kl(prior_scale=3.0), expected)


@SHAPES
@FAMILIES
def test_a_guide_comes_back_from_its_free_numbers(
    make: Callable[..., Guide], shape: tuple[int, ...]
) -> None:
    q = make(*shape, dim=4)
    again = type(q).unflatten(q.flatten(), 4)
    torch.testing.assert_close(again.mean, q.mean)
    torch.testing.assert_close(covariance(again), covariance(q))


@FAMILIES
def test_unit_noise_shows_the_covariance_without_sampling(make: Callable[..., Guide]) -> None:
    q = make(2, dim=3)
    zero = torch.zeros(1, 1, q.num_noise).double()
    torch.testing.assert_close(q.transform(zero)[0], q.mean)
    # The images of the unit vectors are the columns of a root of the covariance.
    units = torch.eye(q.num_noise).double()[:, None]
    columns = (q.transform(units) - q.transform(zero)).permute(1, 2, 0)
    torch.testing.assert_close(columns @ columns.mT, covariance(q))


@FAMILIES
def test_draws_have_noise_of_their_own_for_each_guide(
    make: Callable[..., Guide], generator: torch.Generator
) -> None:
    one = make(dim=3)
    # Two equal guides: their draws are independent, each with the covariance of the guide.
    q = type(one).unflatten(one.flatten().expand(2, -1), 3)
    draws = q.rsample(20_000, generator=generator)
    both = (draws - q.mean).flatten(1)
    expected = torch.block_diag(*covariance(q))
    found = both.T @ both / len(draws)
    diagonal = expected.diagonal()
    error = ((diagonal[:, None] * diagonal + expected.square()) / len(draws)).sqrt()
    assert ((found - expected).abs() < 4.5 * error).all()
    again = q.rsample(20_000, generator=generator.manual_seed(generator.initial_seed()))
    assert torch.equal(again, draws)


@FAMILIES
def test_draws_carry_gradients_and_a_detached_guide_does_not(make: Callable[..., Guide]) -> None:
    free = make(2, dim=3).flatten().requires_grad_()
    q = type(make(dim=3)).unflatten(free, 3)
    assert q.rsample(2).requires_grad
    assert q.kl().requires_grad
    assert not q.detach().rsample(2).requires_grad
    assert type(q.detach()) is type(q)


@FAMILIES
def test_some_of_a_batch(make: Callable[..., Guide]) -> None:
    q = make(3, dim=2)
    torch.testing.assert_close(covariance(q[1]), covariance(q)[1])
    assert q[:2].mean.shape == (2, 2)
    with pytest.raises(IndexError, match="not a batch"):
        q[0][0]


@FAMILIES
def test_an_underflow_keeps_scales_positive(make: Callable[..., Guide]) -> None:
    one = make(dim=2)
    q = type(one).unflatten(torch.full_like(one.flatten(), -1000.0), 2)
    assert (q.variance >= 0).all()
    assert torch.isfinite(q.entropy())


def test_initial_guides_are_narrow_and_spread(generator: torch.Generator) -> None:
    q = MeanFieldNormal.initial(5, 1000, spread=2.0, scale=0.3, generator=generator)
    assert (q.scale == 0.3).all()
    # The standard deviation of 5,000 normals has a relative standard error of 1 / sqrt(10,000).
    assert abs(float(q.mean.std()) / 2 - 1) < 0.04
    assert q.mean.shape == (1000, 5)


ZERO, ONE = torch.zeros(3), torch.ones(3)


test_bad_input_is_named = bad_input(
    [
        (lambda: MeanFieldNormal([0.0], ONE), TypeError, ("mean", "list")),  # type: ignore[arg-type]
        (lambda: MeanFieldNormal(ZERO, ONE.int()), TypeError, ("scale", "int32")),
        (lambda: MeanFieldNormal(ZERO, ONE[:2]), ValueError, ("scale", "(3,)", "(2,)")),
        (lambda: MeanFieldNormal(ZERO, -ONE), ValueError, ("scale", "positive", "-1")),
        (lambda: MeanFieldNormal(ZERO[0], ONE[0]), ValueError, ("mean", "dimension")),
        (lambda: FullRankNormal(ZERO, ONE), ValueError, ("scale_tril", "(3, 3)", "(3,)")),
        (lambda: FullRankNormal(ZERO, -torch.eye(3)), ValueError, ("scale_tril", "positive")),
        (lambda: FullRankNormal(ZERO, torch.ones(3, 3)), ValueError, ("scale_tril", "cholesky")),
        (lambda: LowRankNormal(ZERO, ONE, ONE[:2, None]), ValueError, ("factor", "(3, 1)")),
        (lambda: LowRankNormal(ZERO, 0 * ONE, ONE[:, None]), ValueError, ("scale", "positive")),
        (lambda: MeanFieldNormal.initial(0), ValueError, ("dim", "at least 1")),
        (lambda: MeanFieldNormal.initial(2, 0), ValueError, ("num_restarts", "at least 1")),
        (lambda: MeanFieldNormal.initial(2, spread=0.0), ValueError, ("spread", "positive")),
        (lambda: MeanFieldNormal.initial(2, scale=-1.0), ValueError, ("scale", "positive")),
        (lambda: MeanFieldNormal(ZERO, ONE).rsample(0), ValueError, ("num_draws", "at least 1")),
        (
            lambda: MeanFieldNormal(ZERO, ONE).rsample(2, generator=7),  # type: ignore[arg-type]
            TypeError,
            ("generator", "torch.Generator"),
        ),
        (lambda: MeanFieldNormal(ZERO, ONE).kl("x"), TypeError, ("prior_mean", "str")),  # type: ignore[arg-type]
        (lambda: MeanFieldNormal(ZERO, ONE).kl(0, -1), ValueError, ("prior_scale", "positive")),
    ]
)
