r"""Diffusion models: deep variational autoencoders with a fixed encoder, which adds noise.

The encoder hides a row of data :math:`x_0` in :math:`T` steps, with a schedule :math:`\beta_1,
\dots, \beta_T` that nobody learns:

.. math::
    q(x_t \mid x_{t-1}) = \mathcal N\bigl(\sqrt{1 - \beta_t}\, x_{t-1},\, \beta_t I\bigr) ,
    \quad\text{so that}\quad x_t = \alpha_t x_0 + \sigma_t \epsilon , \quad
    \alpha_t^2 = \prod_{s \le t} (1 - \beta_s) , \quad \sigma_t^2 = 1 - \alpha_t^2 .

The decoder begins with :math:`x_T \sim \mathcal N(0, I)` and comes back step by step. Its network
predicts the noise, :math:`\hat\epsilon(x_t, t)`, and with it the data, :math:`\hat x_0 = (x_t -
\sigma_t \hat\epsilon) / \alpha_t`. Then :math:`p(x_{t-1} \mid x_t)` is the encoder's own posterior
:math:`q(x_{t-1} \mid x_t, x_0)` with :math:`\hat x_0` in the place of :math:`x_0`.

(Ho, Jain and Abbeel write :math:`\bar\alpha_t` for our :math:`\alpha_t^2`.)

Source:
    Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli (2015), "Deep unsupervised learning using
    nonequilibrium thermodynamics", International Conference on Machine Learning; Ho, Jain and
    Abbeel (2020), "Denoising diffusion probabilistic models", NeurIPS; Kingma, Salimans, Poole and
    Ho (2021), "Variational diffusion models", NeurIPS, for the symbols.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn.functional import pad, silu

from coursepkg import _checks, noise_schedules
from coursepkg._random import normal
from coursepkg.descent import adam, minimize
from coursepkg.discretized import DiscretizedNormal, OnLevels, check_levels
from coursepkg.langevin import Langevin
from coursepkg.mcmc import State

__all__ = [
    "DDPM",
    "Denoiser",
    "annealed_langevin",
    "chain_elbo",
    "dense",
    "elbo_terms",
    "fit",
    "loss",
    "sample",
    "score",
]

Time = int | Int[Tensor, " batch"]
Weights = Literal["elbo", "simple"]


# --- The decoder ----------------------------------------------------------------------------------


class DDPM(nn.Module):
    r"""A denoising diffusion model: a network that finds the noise, and the chain that it serves.

    .. math::
        p(x_0, \dots, x_T) = \mathcal N(x_T \mid 0, I) \,\prod_{t=2}^T p(x_{t-1} \mid x_t) \;
        p(x_0 \mid x_1)

    The last step is :math:`\mathcal N(\hat x_0(x_1), \sigma_1^2 I)`, for data that take a few
    levels gathered on them.

    Args:
        network: Called as ``network(x_t, t)`` with ``x_t`` of shape ``(batch, features)`` and whole
            times ``t`` of shape ``(batch,)``, from 1 to T; returns the noise in ``x_t``, of its
            shape.
        betas: The encoder's schedule :math:`\beta_1, \dots, \beta_T`, between 0 and 1.
        levels: The values that data take, rising, where they are discrete.

    Attributes:
        signal_scale: :math:`\alpha_0, \dots, \alpha_T`, float64.
        noise_scale: :math:`\sigma_0, \dots, \sigma_T`, float64.
        weight: What multiplies a squared error of the noise at each time in the ELBO, shape
            ``(T + 1,)``; see :func:`elbo_terms`. The first two are 0: there, there is no KL.
        levels: As given.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A beta is not between 0 and 1, there are less than 2, or levels do not rise.

    Source:
        Ho, Jain and Abbeel (2020), as above.

    Example:
        >>> model = DDPM(Denoiser(2, noise_schedules.log_snr(50)), noise_schedules.log_snr(50))
        >>> sample(model, torch.randn(10, 2))[-1].shape
        torch.Size([10, 2])
    """

    signal_scale: Tensor
    noise_scale: Tensor
    weight: Tensor
    levels: Tensor | None

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        betas: Float[Tensor, " steps"],
        levels: Float[Tensor, " levels"] | None = None,
    ) -> None:
        super().__init__()
        _checks.function("network", network)
        _check_betas(betas)
        if levels is not None:
            check_levels(levels)
        signal_scale, noise_scale = noise_schedules.scales(betas)
        log_snr = 2 * (signal_scale[1:].log() - noise_scale[1:].log())
        self.network = network
        self.register_buffer("signal_scale", signal_scale)
        self.register_buffer("noise_scale", noise_scale)
        self.register_buffer("weight", pad(torch.expm1(-log_snr.diff()) / 2, (2, 0)))
        self.register_buffer("levels", levels)

    @property
    def num_steps(self) -> int:
        """How many steps the chain has, T."""
        return len(self.signal_scale) - 1

    def noised(
        self, x: Float[Tensor, "batch features"], t: Time, noise: Float[Tensor, "batch features"]
    ) -> Float[Tensor, "batch features"]:
        r"""The encoder, in one leap: :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`."""
        signal_scale, noise_scale = self._at(t, x)
        return signal_scale * x + noise_scale * noise

    def predicted_noise(
        self, x_t: Float[Tensor, "batch features"], t: Time
    ) -> Float[Tensor, "batch features"]:
        r"""The network's :math:`\hat\epsilon(x_t, t)`, at one time or at one for each row.

        Raises:
            ValueError: The network returns another shape, or a time is not from 1 to T.
        """
        self._at(t, x_t, first=1)
        noise = self.network(x_t, torch.as_tensor(t, device=x_t.device).expand(len(x_t)))
        if not isinstance(noise, Tensor) or noise.shape != x_t.shape:
            got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
            raise ValueError(
                f"network must return noise of the shape of x_t, {tuple(x_t.shape)}, got {got}"
            )
        return noise

    def denoised(
        self, x_t: Float[Tensor, "batch features"], t: Time
    ) -> Float[Tensor, "batch features"]:
        r"""The data that the network sees behind the noise, :math:`\hat x_0(x_t, t)`."""
        signal_scale, noise_scale = self._at(t, x_t)
        return (x_t - noise_scale * self.predicted_noise(x_t, t)) / signal_scale

    def reverse(
        self, x_t: Float[Tensor, "batch features"], t: int, s: int, eta: float = 1.0
    ) -> tuple[Float[Tensor, "batch features"], Float[Tensor, " 1"]]:
        r"""Mean and standard deviation of :math:`p(x_s \mid x_t)`, one step or many back.

        .. math::
            x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - v}\, \hat\epsilon + \sqrt v\, z , \qquad
            v = \eta^2\, \frac{\sigma_s^2}{\sigma_t^2}
            \Bigl( 1 - \frac{\alpha_t^2}{\alpha_s^2} \Bigr)

        With :math:`\eta = 1` this is the encoder's posterior with :math:`\hat x_0`, with
        :math:`\eta = 0` nothing is random. Every :math:`\eta` leads from the same
        :math:`q(x_t \mid x_0)` to the same :math:`q(x_s \mid x_0)`.

        Args:
            x_t: Where the chains are, shape ``(batch, features)``.
            t: When.
            s: The earlier time to go to, from 0.
            eta: :math:`\eta`, from 0 to 1.

        Source:
            Song, Meng and Ermon (2021), "Denoising diffusion implicit models", ICLR, equations 12
            and 16.
        """
        alpha_t, sigma_t = self._at(t, x_t, first=1)
        alpha_s, sigma_s = self._at(s, x_t)
        noise = self.predicted_noise(x_t, t)
        scale = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s).square()).sqrt()
        rest = (sigma_s.square() - scale.square()).sqrt()
        return alpha_s * (x_t - sigma_t * noise) / alpha_t + rest * noise, scale

    def reconstruction(self, x_1: Float[Tensor, "batch features"]) -> Distribution:
        r"""The last decoder, :math:`p(x_0 \mid x_1)`; its events are whole rows."""
        mean, scale = self.denoised(x_1, 1), self._at(1, x_1)[1]
        if self.levels is None:
            return Independent(Normal(mean, scale), 1)
        return Independent(DiscretizedNormal(mean, scale, self.levels.to(mean)), 1)

    def _at(self, t: Time, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """The scales at these times, to be multiplied with x."""
        low, high = (t, t) if isinstance(t, int) else (int(t.min()), int(t.max()))
        if not first <= low <= high <= self.num_steps:
            raise ValueError(f"times must be from {first} to {self.num_steps}, got {low} to {high}")
        return self.signal_scale[t].to(x)[..., None], self.noise_scale[t].to(x)[..., None]


def _check_betas(betas: Tensor) -> None:
    _checks.array("betas", betas, ndim=1)
    if len(betas) < 2 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            "betas must be at least 2 variances between 0 and 1, got "
            f"{len(betas)} from {float(betas.min())} to {float(betas.max())}"
        )


class Denoiser(nn.Module):
    r"""Fully connected layers that predict the noise; times come in as cosines.

    With outputs :math:`f` of the layers, for data with a variance near 1,

    .. math::
        \hat\epsilon = \sigma_t x_t + \alpha_t f(x_t, t) .

    At full noise that is :math:`x_t`, as it should be, before anything is learned. Data on levels
    :math:`\ell_k` call for Bayes' rule, once for each feature: the layers give a prior over its
    levels, from the other features, and :math:`x_t` itself gives the likelihood.

    .. math::
        \hat x_{0} = \sum_k \ell_k\, \operatorname{softmax}_k \Bigl( f_k(x_t, t)
        - \frac{(x_t - \alpha_t \ell_k)^2}{2 \sigma_t^2} \Bigr) , \qquad
        \hat\epsilon = \frac{x_t - \alpha_t \hat x_0}{\sigma_t}

    Args:
        num_features: Features of a row of data.
        betas: The schedule of the model that it is for.
        hidden: Widths of the layers.
        levels: The values that data take, rising, where they are discrete.
        num_waves: How many waves of the data, in random directions, the layers get as further
            inputs: with some 30, data of few features are learned in far fewer steps, since layers
            are slow to become steep by themselves. Directions come from torch's global source.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is too small, or betas or levels are not as in :class:`DDPM`.

    Source:
        Salimans and Ho (2022), "Progressive distillation for fast sampling of diffusion models",
        ICLR, for the first formula (their velocity is our f); Tancik et al. (2020), "Fourier
        features let networks learn high frequency functions in low dimensional domains", NeurIPS,
        for the waves.

    Example:
        >>> denoiser = Denoiser(64, noise_schedules.log_snr(50), levels=torch.linspace(-1, 1, 17))
        >>> denoiser(torch.randn(10, 64), torch.full((10,), 50)).shape
        torch.Size([10, 64])
    """

    signal_scale: Tensor
    noise_scale: Tensor
    time_waves: Tensor
    waves: Tensor
    levels: Tensor | None

    def __init__(
        self,
        num_features: int,
        betas: Float[Tensor, " steps"],
        hidden: Sequence[int] = (128, 128),
        levels: Float[Tensor, " levels"] | None = None,
        num_waves: int = 0,
    ) -> None:
        super().__init__()
        num_features = _checks.count("num_features", num_features, minimum=1)
        num_waves = _checks.count("num_waves", num_waves, minimum=0)
        widths = [_checks.count("each of hidden", width, minimum=1) for width in hidden]
        widths = [num_features + 2 * num_waves, *widths]
        _check_betas(betas)
        if levels is not None:
            check_levels(levels)
        signal_scale, noise_scale = noise_schedules.scales(betas)
        self.register_buffer("signal_scale", signal_scale)
        self.register_buffer("noise_scale", noise_scale)
        self.register_buffer("time_waves", math.pi * torch.arange(TIME_WAVES) / len(betas))
        self.register_buffer("waves", WAVE_NUMBER * torch.randn(num_features, num_waves))
        self.register_buffer("levels", levels)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.times = nn.ModuleList(nn.Linear(TIME_WAVES, width) for width in widths[1:])
        self.out = nn.Linear(widths[-1], num_features * (1 if levels is None else len(levels)))

    def forward(
        self, x_t: Float[Tensor, "batch features"], t: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch features"]:
        """Predict the noise in each row, which has its own time."""
        phases = x_t @ self.waves
        h = torch.cat([x_t, phases.sin(), phases.cos()], dim=1)
        times = torch.cos(t[:, None] * self.time_waves).to(x_t)
        for layer, time in zip(self.layers, self.times, strict=True):
            h = silu(layer(h) + time(times))
        outputs = self.out(h)
        alpha, sigma = (table[t, None].to(x_t) for table in (self.signal_scale, self.noise_scale))
        if self.levels is None:
            return sigma * x_t + alpha * outputs
        levels = self.levels.to(x_t)
        misfit = (x_t[..., None] - alpha[..., None] * levels) / sigma[..., None]
        logits = outputs.unflatten(1, (-1, len(levels))) - misfit.square() / 2
        return (x_t - alpha * (logits.softmax(dim=-1) @ levels)) / sigma


# Times are told by this many cosines, of zero to fifteen half waves over all steps.
TIME_WAVES = 16
# Radians for a step of length 1 in the data, times a standard normal number.
WAVE_NUMBER = 3.0


def dense(
    num_features: int,
    betas: Float[Tensor, " steps"],
    *,
    hidden: Sequence[int] = (128, 128),
    levels: Float[Tensor, " levels"] | None = None,
    num_waves: int = 0,
) -> DDPM:
    """A diffusion model of fully connected layers: a :class:`DDPM` around a :class:`Denoiser`.

    The arguments are theirs. Initial weights come from torch's global source of randomness.

    Example:
        >>> dense(2, noise_schedules.log_snr(50)).num_steps
        50
    """
    return DDPM(Denoiser(num_features, betas, hidden, levels, num_waves), betas, levels)


# --- The bound ------------------------------------------------------------------------------------


@torch.no_grad()
def elbo_terms(
    model: DDPM,
    x: Float[Tensor, "rows features"],
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "rows terms"]:
    r"""The ELBO of each row, term by term: column t is what :math:`x_t` adds, and their sum it is.

    .. math::
        \underbrace{\mathbb E_q \log p(x_0 \mid x_1)}_{\text{column } 0}
        \;-\; \sum_{t=1}^{T-1} \underbrace{\mathbb E_q\, \mathrm{KL}\bigl(
        q(x_t \mid x_{t+1}, x_0) \,\|\, p(x_t \mid x_{t+1}) \bigr)}_{\text{column } t}
        \;-\; \underbrace{\mathrm{KL}\bigl( q(x_T \mid x_0) \,\|\, p(x_T) \bigr)}_{\text{column } T}

    Both Gaussians of a KL have the same variance. It is a squared distance between means, and that
    a squared error of the predicted noise:

    .. math::
        \mathrm{KL} = w_{t+1} \lVert \epsilon - \hat\epsilon(x_{t+1}, t + 1) \rVert^2 , \qquad
        w_t = \frac12 \Bigl( \frac{\mathrm{SNR}_{t-1}}{\mathrm{SNR}_t} - 1 \Bigr) , \qquad
        \mathrm{SNR}_t = \frac{\alpha_t^2}{\sigma_t^2} .

    Every term is estimated from one draw of the noise, a new one for each, and without gradients.

    Args:
        model: The model.
        x: Data, shape ``(rows, features)``; on the model's levels, where it has such.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        The terms with their signs, shape ``(rows, T + 1)``, in nats. ``.sum(dim=1)`` is the ELBO.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``x`` is not finite, or is not on the levels.

    Source:
        Ho, Jain and Abbeel (2020), as above, equations 5 and 12; Kingma et al. (2021), as above,
        equation 14.

    Example:
        >>> model = dense(2, noise_schedules.log_snr(50))
        >>> elbo_terms(model, torch.randn(10, 2)).shape
        torch.Size([10, 51])
    """
    _check_rows(model, x, generator)
    terms = []
    for t in range(1, model.num_steps + 1):
        times = torch.full((len(x),), t, device=x.device)
        terms.append(-_cost(model, x, times, normal(x.shape, x, generator), "elbo"))
    return torch.stack([*terms, -_prior_kl(model, x)], dim=1)


def loss(
    model: DDPM,
    x: Float[Tensor, "rows features"],
    weights: Weights = "elbo",
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " rows"]:
    r"""What training minimizes, from one random step of each row's chain.

    - ``"elbo"``: minus the ELBO, unbiased: T times the term of a time drawn evenly from 1 to T,
      with the prior's KL.
    - ``"simple"``: :math:`\lVert \epsilon - \hat\epsilon(x_t, t) \rVert^2`, the same squared error
      with all weights :math:`w_t` replaced by one. No bound on anything; it looks less at the
      little noise that the eye does not see.

    Times are spread evenly over the rows, with one random shift, so that the mean over rows
    scatters less.

    Args:
        model: The model.
        x: Data, shape ``(rows, features)``; on the model's levels, where it has such.
        weights: Which of the two.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        One value a row, with gradients; ``"elbo"`` in nats. Take the mean.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``x`` is not finite or not on the levels, or ``weights`` is unknown.

    Source:
        Ho, Jain and Abbeel (2020), as above, equations 12 and 14; Kingma et al. (2021), as above,
        appendix I.1, for the times.

    Example:
        >>> loss(dense(2, noise_schedules.log_snr(50)), torch.randn(10, 2)).shape
        torch.Size([10])
    """
    _check_rows(model, x, generator)
    _checks.choice("weights", weights, ("elbo", "simple"))
    shift = torch.rand((), generator=generator, dtype=torch.float64, device=x.device)
    even = (shift + torch.arange(len(x), device=x.device) / len(x)) % 1
    t = 1 + (even * model.num_steps).long()
    cost = _cost(model, x, t, normal(x.shape, x, generator), weights)
    return cost if weights == "simple" else model.num_steps * cost + _prior_kl(model, x)


@torch.no_grad()
def chain_elbo(
    model: DDPM,
    x: Float[Tensor, "rows features"],
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " rows"]:
    r"""The same ELBO as for any VAE: draw the whole chain from the encoder, compare both densities.

    .. math::
        \log p(x_0, \dots, x_T) - \sum_{t=1}^T \log q(x_t \mid x_{t-1}) , \qquad
        x_1, \dots, x_T \sim q

    It has the expectation of :func:`elbo_terms`, and knows of no KL.

    Args:
        model: The model.
        x: Data, shape ``(rows, features)``; on the model's levels, where it has such.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        One estimate a row, in nats, without gradients.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``x`` is not finite, or is not on the levels.

    Example:
        >>> chain_elbo(dense(2, noise_schedules.log_snr(50)), torch.randn(10, 2)).shape
        torch.Size([10])
    """
    _check_rows(model, x, generator)
    value, before = torch.zeros_like(x[:, 0]), x
    alphas = (model.signal_scale[1:] / model.signal_scale[:-1]).tolist()
    for t, alpha in enumerate(alphas, start=1):
        q = Normal(alpha * before, (1 - alpha**2) ** 0.5)
        after = q.mean + q.stddev * normal(x.shape, x, generator)
        if t == 1:
            log_p = model.reconstruction(after).log_prob(x)
        else:
            log_p = Normal(*model.reverse(after, t, t - 1)).log_prob(before).sum(dim=1)
        value += log_p - q.log_prob(after).sum(dim=1)
        before = after
    return value + Normal(0, 1).log_prob(before).sum(dim=1)


def _cost(
    model: DDPM, x: Tensor, t: Tensor, noise: Tensor, weights: Weights
) -> Float[Tensor, " rows"]:
    """The squared error at these times; with its weight, and minus log p(x_0 | x_1) at time 1."""
    error = model.predicted_noise(model.noised(x, t, noise), t) - noise
    cost = error.square().sum(dim=1)
    if weights == "simple":
        return cost
    cost = model.weight[t].to(x) * cost
    first = t == 1
    if first.any():
        x_1 = model.noised(x[first], 1, noise[first])
        cost = cost.masked_scatter(first, -model.reconstruction(x_1).log_prob(x[first]))
    return cost


def _prior_kl(model: DDPM, x: Tensor) -> Float[Tensor, " rows"]:
    """KL(q(x_T | x_0) ‖ N(0, I)), exact."""
    alpha, sigma = model._at(model.num_steps, x)
    return ((alpha * x).square() + sigma.square() - 1 - 2 * sigma.log()).sum(dim=1) / 2


def _check_rows(model: DDPM, x: Tensor, generator: torch.Generator | None) -> None:
    if not isinstance(model, DDPM):
        raise TypeError(f"model must be a DDPM, got {type(model).__name__}")
    _checks.array("x", x, ndim=2)
    _checks.generator_or_none(generator)
    if model.levels is not None and not OnLevels(model.levels).check(x).all():
        raise ValueError(
            f"x must take no values but the model's {len(model.levels)} levels, from "
            f"{float(model.levels[0])} to {float(model.levels[-1])}"
        )


def fit(
    model: DDPM,
    x: Float[Tensor, "rows features"],
    weights: Weights = "elbo",
    *,
    num_epochs: int,
    batch_size: int = 128,
    make_optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] = adam,
    decay: bool = True,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Float[Tensor, " epochs"]:
    """Train a model, in place, on the mean of its :func:`loss` over minibatches.

    Args:
        model: The model.
        x: Data, shape ``(rows, features)``; on the model's levels, where it has such.
        weights: As for :func:`loss`.
        num_epochs: How often to go through the data.
        batch_size: Rows of a minibatch.
        make_optimizer: Takes the parameters, returns an optimizer of torch.
        decay: Whether the learning rate falls to zero along a cosine.
        generator: Source of randomness; torch's global one where it is ``None``.
        progress: Whether to show a progress bar.

    Returns:
        The mean of the loss in each epoch.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: As :func:`loss` and :func:`coursepkg.descent.minimize` say.
        RuntimeError: The loss is no longer finite.

    Example:
        >>> model, x = dense(2, noise_schedules.log_snr(50)), torch.randn(100, 2)
        >>> fit(model, x, num_epochs=3, progress=False).shape
        torch.Size([3])
    """
    _check_rows(model, x, generator)
    _checks.choice("weights", weights, ("elbo", "simple"))
    return minimize(
        lambda _, rows: loss(model, rows, weights, generator=generator).mean()[None],
        model.parameters(),
        (x,),
        num_epochs=num_epochs,
        batch_size=batch_size,
        make_optimizer=make_optimizer,
        decay=decay,
        generator=generator,
        progress=progress,
    )[:, 0]


# --- Drawing --------------------------------------------------------------------------------------


@torch.no_grad()
def sample(
    model: DDPM,
    start: Float[Tensor, "draws features"],
    *,
    eta: float = 1.0,
    num_steps: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "times draws features"]:
    r"""Draw from the model: come back from noise to data, all chains at once.

    With ``eta=1`` as the model says (ancestral sampling, DDPM); with ``eta=0`` nothing is random
    but the start, and each draw has a code, its noise (DDIM). That one needs fewer steps.

    Args:
        model: The model.
        start: :math:`x_T`: ``torch.randn(num_draws, num_features)``.
        eta: :math:`\eta`, from 0 to 1; see :meth:`DDPM.reverse`.
        num_steps: How many steps to take, at most T, spread evenly over the times; all of them
            where it is ``None``.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        The chains on their way, shape ``(num_steps + 1, draws, features)``; ``[-1]`` are the draws.
        The last step goes to its mean, :math:`\hat x_0(x_1)`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``start`` is not finite, ``eta`` is not from 0 to 1, or ``num_steps`` not from 1
            to T.

    Source:
        Ho, Jain and Abbeel (2020), as above, algorithm 2; Song, Meng and Ermon (2021), as above.

    Example:
        >>> model = dense(2, noise_schedules.log_snr(50))
        >>> sample(model, torch.randn(10, 2), eta=0, num_steps=5).shape
        torch.Size([6, 10, 2])
    """
    _checks.array("start", start, ndim=2)
    _checks.generator_or_none(generator)
    eta = _checks.scalar("eta", eta)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, got {eta}")
    path = [start]
    for t, s in pairwise([*_times(model, num_steps), 0]):
        mean, scale = model.reverse(path[-1], t, s, eta)
        path.append(mean + scale * normal(mean.shape, mean, generator))
    return torch.stack(path)


def score(
    model: DDPM, x_t: Float[Tensor, "batch features"], t: Time
) -> Float[Tensor, "batch features"]:
    r"""The gradient of the log density of noised data, as the same network knows it.

    .. math::
        \nabla \log q(x_t) \approx -\hat\epsilon(x_t, t) / \sigma_t

    Given :math:`x_0`, the gradient of :math:`\log q(x_t \mid x_0)` is :math:`-\epsilon / \sigma_t`;
    the gradient of :math:`\log q(x_t)` is its mean given :math:`x_t`. Whoever predicts the noise
    with the least squared error has found that mean.

    Args:
        model: The model.
        x_t: Where, shape ``(batch, features)``.
        t: The time, from 1 to T, or one for each row.

    Returns:
        The score, shape ``(batch, features)``.

    Raises:
        ValueError: A time is not from 1 to T.

    Source:
        Vincent (2011), "A connection between score matching and denoising autoencoders", Neural
        Computation 23(7).

    Example:
        >>> score(dense(2, noise_schedules.log_snr(50)), torch.randn(10, 2), 25).shape
        torch.Size([10, 2])
    """
    return -model.predicted_noise(x_t, t) / model._at(t, x_t, first=1)[1]


@torch.no_grad()
def annealed_langevin(
    model: DDPM,
    start: Float[Tensor, "draws features"],
    *,
    num_levels: int | None = None,
    num_steps: int = 10,
    relative_step: float = 0.2,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "draws features"]:
    r"""Draw with the score alone: Langevin chains at one level of noise after the other.

    The chains walk in :math:`y = x_t / \alpha_t`, the data with noise of scale :math:`\sigma_t /
    \alpha_t`, which shrinks from level to level while the data stay. At each level a few steps of
    :class:`coursepkg.langevin.Langevin`, of size :math:`\rho\, \sigma_t^2 / \alpha_t^2`, forget
    what is too wide. At the end the network takes the rest of the noise away.

    No probability of the chain enters, as in :func:`sample`; it is MCMC, never refused, on targets
    that turn slowly into the data.

    Args:
        model: The model.
        start: :math:`x_T`: ``torch.randn(num_draws, num_features)``.
        num_levels: How many levels of noise, at most T; all of them where it is ``None``.
        num_steps: Langevin steps at each.
        relative_step: :math:`\rho`, below 4 or the chains explode.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        Draws, shape ``(draws, features)``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``start`` is not finite, or a number is too small or too large.

    Source:
        Song and Ermon (2019), "Generative modeling by estimating gradients of the data
        distribution", NeurIPS, algorithm 1.

    Example:
        >>> annealed_langevin(dense(2, noise_schedules.log_snr(50)), torch.randn(10, 2)).shape
        torch.Size([10, 2])
    """
    _checks.array("start", start, ndim=2)
    _checks.generator_or_none(generator)
    num_steps = _checks.count("num_steps", num_steps, minimum=1)
    relative_step = _checks.positive("relative_step", relative_step)
    if relative_step >= 4:
        raise ValueError(f"relative_step must be below 4, got {relative_step}")
    times = _times(model, num_levels)
    nothing = start.new_zeros(len(start))  # nobody knows the log density, and no step needs it
    state = State(start / model._at(times[0], start)[0], nothing)
    for t in times:
        alpha, sigma = (float(scale) for scale in model._at(t, start))

        def estimate(y: Tensor, _: Any, t: int = t, alpha: float = alpha) -> tuple[Tensor, Tensor]:
            return nothing, alpha * score(model, alpha * y, t)

        kernel = Langevin(estimate, relative_step * (sigma / alpha) ** 2)
        for _ in range(num_steps):
            state, _ = kernel.step(state, generator=generator)
    return model.denoised(alpha * state.position, t)


def _times(model: DDPM, num_steps: int | None) -> list[int]:
    """This many times from T downwards, spread evenly; all where it is ``None``."""
    if not isinstance(model, DDPM):
        raise TypeError(f"model must be a DDPM, got {type(model).__name__}")
    if num_steps is None:
        num_steps = model.num_steps
    num_steps = _checks.count("the number of times", num_steps, minimum=1)
    if num_steps > model.num_steps:
        raise ValueError(
            f"the number of times must be at most the model's {model.num_steps}, got {num_steps}"
        )
    return [-(-model.num_steps * k // num_steps) for k in range(num_steps, 0, -1)]
