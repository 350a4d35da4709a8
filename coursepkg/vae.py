r"""Variational autoencoders: a latent variable for each row of data, and a network that finds it.

A decoder turns a latent vector :math:`z \sim \mathcal N(0, I)` into a distribution of the data,
:math:`p(x \mid z)`. An encoder turns :math:`x` into a guide of its latent vector, :math:`q(z \mid
x)`, a normal with a diagonal covariance: inference is amortized, one network for all rows. The
bound on the log likelihood of a row is

.. math::
    \mathrm{ELBO}(x) = \mathbb E_{q(z \mid x)}[\log p(x \mid z)]
    - \sum_j \mathrm{KL}\bigl(q(z_j \mid x) \,\|\, \mathcal N(0, 1)\bigr) .

Both terms are sums, over features and over latent dimensions; the mean is over rows. To average one
of them and sum the other is a widely copied mistake, after which no latent dimension is used.

Source:
    Kingma and Welling (2014), "Auto-encoding variational Bayes", ICLR; Rezende, Mohamed and
    Wierstra (2014), "Stochastic backpropagation and approximate inference in deep generative
    models", ICML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from coursepkg import _checks, training
from coursepkg._random import normal
from coursepkg.descent import adam, minimize
from coursepkg.training import Likelihood

__all__ = [
    "VAE",
    "Autoencoder",
    "GaussianNoise",
    "History",
    "Parts",
    "bernoulli",
    "dense",
    "elbo",
    "fit",
]


def bernoulli(outputs: Float[Tensor, "*batch features"]) -> Distribution:
    """Features that are 0 or 1, with the outputs as log odds.

    Example:
        >>> bernoulli(torch.zeros(3, 4)).log_prob(torch.ones(3, 4)) / math.log(2)
        tensor([-4., -4., -4.])
    """
    return Independent(Bernoulli(logits=outputs), 1)


class GaussianNoise(nn.Module):
    """Features that are the outputs plus normal noise, whose scale is learned with the weights.

    Args:
        initial_scale: Standard deviation to start from, in the unit of the features.

    Attributes:
        log_scale: The parameter: the logarithm of the noise's standard deviation.

    Raises:
        TypeError: ``initial_scale`` is not a number.
        ValueError: It is not positive.

    Example:
        >>> noise = GaussianNoise(0.5)
        >>> noise(torch.zeros(3, 4)).stddev[0]
        tensor([0.5000, 0.5000, 0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    def __init__(self, initial_scale: float = 1.0) -> None:
        super().__init__()
        initial_scale = _checks.positive("initial_scale", initial_scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))

    def forward(self, outputs: Float[Tensor, "*batch features"]) -> Distribution:
        """The distribution of the features."""
        return Independent(Normal(outputs, self.log_scale.exp().expand_as(outputs)), 1)


class Parts(NamedTuple):
    """The bound of each row, and what it is made of, in nats.

    Attributes:
        elbo: Log likelihood less the tempered KL.
        log_likelihood: Of a row given its latent vector, a sum over features, a mean over draws.
        kl: Of each latent dimension; an autoencoder has zeros.
    """

    elbo: Float[Tensor, " batch"]
    log_likelihood: Float[Tensor, " batch"]
    kl: Float[Tensor, "batch latent"]


class Autoencoder(nn.Module):
    """A network that squeezes rows into codes and restores them: no prior, and no noise.

    Args:
        encoder: From rows, shape ``(batch, features)``, to codes, ``(batch, latent)``.
        decoder: From codes to the outputs that ``likelihood`` takes.
        likelihood: From the decoder's outputs to a distribution of rows: :func:`bernoulli`, a
            :class:`GaussianNoise`, or another with the features as its event.

    Where there is a condition, such as a label as ones and zeros, both networks get it as further
    columns.

    Raises:
        TypeError: An argument is of the wrong kind.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        for name, module in {"encoder": encoder, "decoder": decoder}.items():
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")
        _checks.function("likelihood", likelihood)
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood

    def encode(
        self, x: Float[Tensor, "batch features"], condition: Tensor | None = None
    ) -> Normal | Tensor:
        """The codes of rows, shape ``(batch, latent)``."""
        return self.encoder(_joined(x, condition))

    def decode(
        self, z: Float[Tensor, "*batch latent"], condition: Tensor | None = None
    ) -> Distribution:
        """The distribution of rows that have these codes."""
        return self.likelihood(self.decoder(_joined(z, condition)))

    def forward(
        self, x: Float[Tensor, "batch features"], condition: Tensor | None = None
    ) -> Float[Tensor, "batch features"]:
        """Rows restored from their codes (of a VAE: from the mean of the guide)."""
        code = self.encode(x, condition)
        return self.decode(code if isinstance(code, Tensor) else code.mean, condition).mean


class VAE(Autoencoder):
    """An autoencoder whose codes are random: the encoder's outputs are means and log variances.

    Args:
        encoder: From rows to the guide's numbers, shape ``(batch, 2 · latent)``.
        decoder: As for :class:`Autoencoder`.
        likelihood: As for :class:`Autoencoder`.

    Raises:
        TypeError: An argument is of the wrong kind.
    """

    def encode(self, x: Float[Tensor, "batch features"], condition: Tensor | None = None) -> Normal:
        """The guide of the latent vectors of rows, q(z|x), of batch shape ``(batch, latent)``."""
        mean, log_variance = self.encoder(_joined(x, condition)).chunk(2, dim=-1)
        return Normal(mean, (log_variance / 2).exp())


def dense(
    num_features: int,
    latent_dim: int,
    *,
    hidden: Sequence[int] = (400,),
    likelihood: Likelihood = bernoulli,
    num_conditions: int = 0,
    activation: Callable[[], nn.Module] = nn.ReLU,
    kind: type[Autoencoder] = VAE,
) -> Autoencoder:
    """A VAE of fully connected layers, or an autoencoder of the same layers.

    Args:
        num_features: Columns of the data.
        latent_dim: Latent dimensions.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        likelihood: Of the features, from as many outputs.
        num_conditions: Columns of the condition.
        activation: Makes the module between two layers.
        kind: :class:`VAE` or :class:`Autoencoder`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is too small.

    Example:
        >>> model = dense(784, 20)
        >>> model.encoder
        Sequential(
          (0): Linear(in_features=784, out_features=400, bias=True)
          (1): ReLU()
          (2): Linear(in_features=400, out_features=40, bias=True)
        )
    """
    num_features = _checks.count("num_features", num_features, minimum=1)
    latent_dim = _checks.count("latent_dim", latent_dim, minimum=1)
    num_conditions = _checks.count("num_conditions", num_conditions, minimum=0)
    if not isinstance(hidden, Sequence):
        raise TypeError(f"hidden must be a sequence of widths, such as (400,), got {hidden!r}")
    widths = [_checks.count("each of hidden", width, minimum=1) for width in hidden]
    _checks.function("activation", activation)
    if not (isinstance(kind, type) and issubclass(kind, Autoencoder)):
        raise TypeError(f"kind must be VAE or Autoencoder, got {kind!r}")

    def layers(*widths: int) -> nn.Sequential:
        linear = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths)]
        return nn.Sequential(linear[0], *(m for layer in linear[1:] for m in (activation(), layer)))

    codes = 2 * latent_dim if issubclass(kind, VAE) else latent_dim
    encoder = layers(num_features + num_conditions, *widths, codes)
    decoder = layers(latent_dim + num_conditions, *reversed(widths), num_features)
    return kind(encoder, decoder, likelihood)


def elbo(
    model: Autoencoder,
    x: Float[Tensor, "batch features"],
    condition: Tensor | None = None,
    *,
    tempering: float = 1.0,
    num_draws: int = 1,
    generator: torch.Generator | None = None,
) -> Parts:
    r"""The bound of each row, by draws that carry gradients: reconstruction less KL.

    .. math::
        \frac 1S \sum_{s=1}^S \log p(x \mid z_s) - \beta \sum_j \mathrm{KL}_j , \qquad
        \mathrm{KL}_j = \frac{m_j^2 + s_j^2 - 1}{2} - \log s_j .

    Args:
        model: A VAE; of an autoencoder it is the log likelihood of the restored rows.
        x: The rows.
        condition: Further columns for encoder and decoder, shape ``(batch, conditions)``.
        tempering: :math:`\beta`; 1 is the bound.
        num_draws: :math:`S`, of the latent vectors of each row.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        The bound and its parts, nats a row. The mean over rows is what a fit maximizes.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is out of range, or rows and condition do not fit.

    Source:
        Kingma and Welling (2014), as above, equation 10; the tempering: Higgins et al. (2017),
        "beta-VAE: Learning basic visual concepts with a constrained variational framework", ICLR.

    Example:
        >>> found = elbo(dense(784, 20), torch.zeros(8, 784))
        >>> found.elbo.shape, found.kl.shape
        (torch.Size([8]), torch.Size([8, 20]))
    """
    if _checks.scalar("tempering", tempering) < 0:
        raise ValueError(f"tempering must not be negative, got {tempering}")
    num_draws = _checks.count("num_draws", num_draws, minimum=1)
    check_rows(model, x, condition, generator)
    return _bound(model, x, condition, tempering, num_draws, generator)


class History(NamedTuple):
    """What happened while a model was trained: means over rows, in nats, for each epoch.

    Attributes:
        elbo: The bound itself, whatever tempering was in the loss.
        log_likelihood: The reconstruction.
        kl: The KL, summed over latent dimensions.
    """

    elbo: Float[Tensor, " epochs"]
    log_likelihood: Float[Tensor, " epochs"]
    kl: Float[Tensor, " epochs"]


def fit(
    model: Autoencoder,
    x: Float[Tensor, "rows features"],
    condition: Tensor | None = None,
    *,
    num_epochs: int = 50,
    batch_size: int = 128,
    tempering: float = 1.0,
    warm_up: int = 0,
    num_draws: int = 1,
    make_optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] = adam,
    decay: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> History:
    """Maximize the mean of the rows' bounds, in place.

    Args:
        model: A VAE, or an autoencoder.
        x: The rows.
        condition: Further columns for encoder and decoder, a row for each of ``x``.
        num_epochs: How often to go through the data.
        batch_size: Rows of a minibatch.
        tempering: A factor on the KL; 1 is the ELBO.
        warm_up: Over so many epochs the factor rises from zero to ``tempering``.
        num_draws: Draws of each row's latent vector in a step.
        make_optimizer: Takes the parameters, returns an optimizer of torch.
        decay: Whether the learning rate falls to zero along a cosine.
        generator: Source of randomness of order and noise; torch's global one where it is ``None``.
        progress: Whether to show a progress bar.

    Returns:
        The history; the model is trained.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is out of range, or rows and condition do not fit.
        RuntimeError: The bound is no longer finite.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = (torch.rand(100, 1) > 0.5).float().expand(100, 8)  # all zeros, or all ones
        >>> history = fit(dense(8, 1), x, num_epochs=200, progress=False)
        >>> bool(history.elbo[-1] > -2)  # eight fair coins would have -5.5, one has -0.7
        True
    """
    if _checks.scalar("tempering", tempering) < 0:
        raise ValueError(f"tempering must not be negative, got {tempering}")
    warm_up = _checks.count("warm_up", warm_up, minimum=0)
    check_rows(model, x, condition, generator)
    num_draws = _checks.count("num_draws", num_draws, minimum=1)
    was_training = model.training
    _check_support(model.eval(), x, condition)

    def parts(epoch: int, x: Tensor, condition: Tensor | None = None) -> Tensor:
        beta = tempering * min(1.0, epoch / warm_up if warm_up else 1.0)
        found = _bound(model, x, condition, beta, num_draws, generator)
        kl = found.kl.sum(dim=-1)
        return torch.stack([-found.elbo.mean(), found.log_likelihood.mean(), kl.mean()])

    model.train()
    history = minimize(
        parts,
        model.parameters(),
        (x,) if condition is None else (x, condition),
        num_epochs=num_epochs,
        batch_size=batch_size,
        make_optimizer=make_optimizer,
        decay=decay,
        generator=generator,
        progress=progress,
    )
    model.train(was_training)
    return History(history[:, 1] - history[:, 2], history[:, 1], history[:, 2])


def _bound(
    model: Autoencoder,
    x: Tensor,
    condition: Tensor | None,
    tempering: float,
    num_draws: int,
    generator: torch.Generator | None,
) -> Parts:
    q = model.encode(x, condition)
    if isinstance(q, Tensor):
        log_likelihood = model.decode(q, condition).log_prob(x)
        return Parts(log_likelihood, log_likelihood, torch.zeros_like(q))
    z = q.mean + q.scale * normal((num_draws, *q.mean.shape), q.mean, generator)
    log_likelihood = model.decode(z, condition).log_prob(x).mean(dim=0)
    kl = (q.mean.square() + q.scale.square() - 1) / 2 - q.scale.log()
    return Parts(log_likelihood - tempering * kl.sum(dim=-1), log_likelihood, kl)


def _joined(columns: Tensor, condition: Tensor | None) -> Tensor:
    """Columns, and those of the condition beside them."""
    if condition is None:
        return columns
    return torch.cat([columns, condition.expand(*columns.shape[:-1], -1)], dim=-1)


def check_rows(
    model: Autoencoder,
    x: Tensor,
    condition: Tensor | None,
    generator: torch.Generator | None = None,
    *,
    needs: type[Autoencoder] = Autoencoder,
) -> None:
    """Rows that a model can take, with a condition for each, if there is one."""
    if not isinstance(model, needs):
        raise TypeError(f"model must be a {needs.__name__}, got {type(model).__name__}")
    _checks.generator_or_none(generator)
    if condition is not None:
        _checks.array("condition", condition, ndim=2)
    training.check_rows(model, x, x if condition is None else condition, "x", "condition")


def _check_support(model: Autoencoder, x: Tensor, condition: Tensor | None) -> None:
    """Rows that the likelihood gives a density: asked once, not in every step."""
    with torch.no_grad():
        first = None if condition is None else condition[:1]
        code = model.encode(x[:1], first)
        rows = model.decode(code if isinstance(code, Tensor) else code.mean, first)
    if not isinstance(rows, Distribution) or rows.event_shape != x.shape[1:]:
        got = f"a {type(rows).__name__}"
        if isinstance(rows, Distribution):
            got += f" with event shape {tuple(rows.event_shape)}"
        raise ValueError(
            f"likelihood must return a distribution of rows, with event shape "
            f"{tuple(x.shape[1:])}, got {got}; torch.distributions.Independent(…, 1) makes one of "
            "the features' distributions"
        )
    support = rows.support
    if support is not None and not support.check(x).all():
        raise ValueError(
            f"x must be in the likelihood's support, {support}, got values from "
            f"{float(x.min()):g} to {float(x.max()):g}; greys from 0 to 1 become 0 or 1 by "
            "(x > 0.5).float()"
        )
