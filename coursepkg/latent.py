r"""What a trained VAE has learned: how good it is, and what its latent vectors mean.

The ELBO says that the log likelihood is at least so high. By more draws of the latent vector from
the same guide the bound rises, and in the limit it is the log likelihood itself,

.. math::
    \mathrm{ELBO} = \mathcal L_1 \le \mathcal L_2 \le \dots \le \log p(x) .
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from coursepkg import _checks
from coursepkg._random import normal
from coursepkg.divergence import Estimate, mean_with_error
from coursepkg.vae import VAE, check_rows

__all__ = ["active_units", "importance_bound", "interpolate", "log_likelihood", "traverse"]

# A latent dimension whose posterior mean varies less than this over the data carries nothing.
ACTIVE = 0.01
# Latent vectors that are decoded at once: all rows' draws may not fit into memory.
AT_ONCE = 10_000


@torch.no_grad()
def importance_bound(
    model: VAE,
    x: Float[Tensor, "batch features"],
    condition: Tensor | None = None,
    *,
    num_importance: int,
    num_draws: int = 10,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""The importance-weighted bound of each row, which rises to its log likelihood as K grows.

    .. math::
        \mathcal L_K(x) = \mathbb E\Bigl[\log \frac1K \sum_{k=1}^K
        \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}\Bigr], \qquad z_k \sim q(z \mid x) .

    Args:
        model: A VAE.
        x: The rows.
        condition: As for :func:`coursepkg.vae.elbo`.
        num_importance: :math:`K`; with 1 it is the ELBO.
        num_draws: How many times K draws are made, at least 2.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        Estimates of the bounds in nats, with standard errors, shape ``(batch,)``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is too small, or rows and condition do not fit.

    Source:
        Burda, Grosse and Salakhutdinov (2016), "Importance weighted autoencoders", ICLR.

    Example:
        >>> from coursepkg import vae
        >>> model, x = vae.dense(784, 20), torch.zeros(8, 784)
        >>> importance_bound(model, x, num_importance=5).value.shape
        torch.Size([8])
    """
    num_importance = _checks.count("num_importance", num_importance, minimum=1)
    num_draws = _checks.count("num_draws", num_draws, minimum=2)
    check_rows(model, x, condition, generator, needs=VAE)
    ratios = _log_ratios(model, x, condition, num_draws * num_importance, generator)
    sums = ratios.unflatten(0, (num_draws, num_importance)).logsumexp(dim=1)
    return mean_with_error(sums - math.log(num_importance))


@torch.no_grad()
def log_likelihood(
    model: VAE,
    x: Float[Tensor, "batch features"],
    condition: Tensor | None = None,
    *,
    num_draws: int = 1000,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Estimate the log likelihood of each row by importance sampling from the guide.

    .. math::
        \log p(x) \approx \log \frac1K \sum_{k=1}^K w_k, \qquad
        w_k = \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)} .

    The mean of the weights is unbiased; its logarithm is a little low. The standard error is that
    of the mean over the mean. Where the guide misses a part of the posterior, so do the draws, and
    both the estimate and its error are too low.

    Args:
        model: A VAE.
        x: The rows.
        condition: As for :func:`coursepkg.vae.elbo`.
        num_draws: :math:`K`, at least 2.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        Estimates in nats, with standard errors, shape ``(batch,)``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``num_draws`` is below 2, or rows and condition do not fit.

    Source:
        Rezende, Mohamed and Wierstra (2014), "Stochastic backpropagation and approximate inference
        in deep generative models", ICML.

    Example:
        >>> from coursepkg import vae
        >>> estimate = log_likelihood(vae.dense(784, 20), torch.zeros(8, 784), num_draws=10)
        >>> estimate.value.shape
        torch.Size([8])
    """
    num_draws = _checks.count("num_draws", num_draws, minimum=2)
    check_rows(model, x, condition, generator, needs=VAE)
    ratios = _log_ratios(model, x, condition, num_draws, generator)
    value = ratios.logsumexp(dim=0) - math.log(num_draws)
    weights = (ratios - value).exp()  # their mean is 1
    return Estimate(value, weights.std(dim=0) / math.sqrt(num_draws))


@torch.no_grad()
def active_units(
    model: VAE, x: Float[Tensor, "batch features"], condition: Tensor | None = None
) -> Bool[Tensor, " latent"]:
    r"""Which latent dimensions say something about the rows.

    One does where its posterior mean differs from row to row:
    :math:`\operatorname{Var}_x(\mathbb E_{q(z \mid x)}[z_j]) > 0.01`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: There is one row only, or rows and condition do not fit.

    Source:
        Burda, Grosse and Salakhutdinov (2016), as above, section 5.

    Example:
        >>> from coursepkg import vae
        >>> active_units(vae.dense(784, 3), torch.zeros(8, 784))  # all rows are the same
        tensor([False, False, False])
    """
    check_rows(model, x, condition, needs=VAE)
    if len(x) < 2:
        raise ValueError(f"x must have at least 2 rows, to see what differs, got {len(x)}")
    return model.encode(x, condition).mean.var(dim=0) > ACTIVE


def traverse(
    z: Float[Tensor, " latent"], dimension: int, values: Float[Tensor, " values"]
) -> Float[Tensor, "values latent"]:
    """Latent vectors along one dimension, to be decoded: what does it mean?

    Args:
        z: Where to start from, such as the posterior mean of a row.
        dimension: Which coordinate to replace.
        values: By what.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: There is no such dimension, or a shape is wrong.

    Example:
        >>> traverse(torch.zeros(2), 1, torch.tensor([-2.0, 0.0, 2.0]))
        tensor([[ 0., -2.],
                [ 0.,  0.],
                [ 0.,  2.]])
    """
    _checks.array("z", z, ndim=1)
    _checks.array("values", values, ndim=1)
    if _checks.count("dimension", dimension, minimum=0) >= len(z):
        raise ValueError(f"dimension must be below {len(z)}, got {dimension}")
    points = z.repeat(len(values), 1)
    points[:, dimension] = values.to(z)
    return points


def interpolate(
    start: Float[Tensor, " latent"], end: Float[Tensor, " latent"], num_points: int
) -> Float[Tensor, "points latent"]:
    """Latent vectors on the line between two, both ends among them, to be decoded.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``num_points`` is below 2, or the shapes differ.

    Example:
        >>> interpolate(torch.zeros(2), torch.ones(2), 3)
        tensor([[0.0000, 0.0000],
                [0.5000, 0.5000],
                [1.0000, 1.0000]])
    """
    _checks.array("start", start, ndim=1)
    _checks.array("end", end, ndim=1)
    if start.shape != end.shape:
        raise ValueError(
            f"start and end must have the same shape, got {tuple(start.shape)} and "
            f"{tuple(end.shape)}"
        )
    num_points = _checks.count("num_points", num_points, minimum=2)
    return torch.lerp(start, end, torch.linspace(0, 1, num_points).to(start)[:, None])


def _log_ratios(
    model: VAE,
    x: Tensor,
    condition: Tensor | None,
    num_draws: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "draws batch"]:
    """log p(x, z) - log q(z|x) of draws from the guide."""
    q = model.encode(x, condition)
    ratios = []
    for part in torch.arange(num_draws).split(max(1, AT_ONCE // len(x))):
        noise = normal((len(part), *q.mean.shape), q.mean, generator)
        z = q.mean + q.scale * noise
        # The constants of the two normals are the same.
        prior_minus_guide = (noise.square() - z.square()) / 2 + q.scale.log()
        ratios.append(model.decode(z, condition).log_prob(x) + prior_minus_guide.sum(dim=-1))
    return torch.cat(ratios)
