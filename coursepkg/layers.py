r"""Layers whose weights are distributions: Bayes by Backprop.

Each weight has a guide of its own, :math:`q(w) = \mathcal N(m, s^2)`, and a prior :math:`p(w)`. A
layer owns the means, the scales and the divergence between the two; a subclass supplies nothing
but the operation. A loss is then

.. math::
    -\mathrm{ELBO} = -\mathbb E_q[\log p(y \mid w)]
    + \sum_{\text{layers}} \mathrm{KL}(q \,\|\, p) ,

the last part by :func:`kl_divergence`. Each forward pass draws noise, in training and evaluation
alike; how, is a choice (:mod:`coursepkg.weight_noise`). ``forward`` takes no generator, so that
layers fit into ``nn.Sequential``: it uses torch's global source of randomness.

Source:
    Graves (2011), "Practical variational inference for neural networks", NeurIPS; Blundell,
    Cornebise, Kavukcuoglu and Wierstra (2015), "Weight uncertainty in neural networks", ICML.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal

from coursepkg import _checks, weight_noise
from coursepkg._random import global_randomness, normal

__all__ = [
    "BayesLayer",
    "BayesLinear",
    "Estimator",
    "kl_divergence",
    "many_passes",
    "one_function",
    "predict",
    "scale_mixture",
]

Estimator = Literal["shared", "local", "flipout"]
ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "shared": weight_noise.draw_weights,
    "local": weight_noise.draw_outputs,
    "flipout": weight_noise.flip_noise,
}
# Draws of each weight for a divergence that has no closed form.
KL_DRAWS = 16


class BayesLayer(nn.Module):
    r"""Weights with normal guides, in one table: a row for each output, the bias last.

    Args:
        outputs: How many outputs there are.
        inputs: How many weights an output has, without the bias.
        bias: Whether there is a bias.
        prior: Of each weight; its batch shape must broadcast to that of the table.
        estimator: How a forward pass draws its noise.
        initial_scale: Standard deviations to start from. The means start as torch's own layers do.

    Attributes:
        mean: Means, shape ``(outputs, inputs + 1)``, or ``(outputs, inputs)`` without a bias.
        free: Numbers whose softplus is the standard deviations, of the same shape.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is too small, the estimator is unknown, or the prior does not fit.
    """

    num_positions = 0

    def __init__(
        self,
        outputs: int,
        inputs: int,
        *,
        bias: bool = True,
        prior: Distribution | None = None,
        estimator: Estimator = "shared",
        initial_scale: float = 0.05,
    ) -> None:
        super().__init__()
        _checks.choice("estimator", estimator, tuple(ESTIMATORS))
        initial_scale = _checks.positive("initial_scale", initial_scale)
        self.has_bias, self.estimator = bias, estimator
        self.prior = Normal(0.0, 1.0) if prior is None else prior
        shape = (outputs, inputs + bias)
        _check_prior(self.prior, shape)
        bound = inputs**-0.5
        self.mean = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.free = nn.Parameter(torch.full(shape, math.log(math.expm1(initial_scale))))

    @property
    def scale(self) -> Float[Tensor, "outputs weights"]:
        """Standard deviations."""
        return F.softplus(self.free)

    def operation(self, x: Tensor, table: Tensor) -> Tensor:
        """What the layer does with one table of weights."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Outputs, with noise."""
        draw = ESTIMATORS[self.estimator]
        extra = {"num_positions": self.num_positions} if self.estimator == "flipout" else {}
        return draw(self.operation, x, self.mean, self.scale, **extra)

    def kl(self) -> Float[Tensor, ""]:
        """KL(q‖prior) of all weights, in nats: exact where torch has it, else from draws."""
        q = Normal(self.mean, self.scale, validate_args=False)
        try:
            return torch.distributions.kl_divergence(q, self.prior).sum()
        except NotImplementedError:
            noise = normal((KL_DRAWS, *q.batch_shape), q.loc)
            log_prior = self.prior.log_prob(q.loc + q.scale * noise)
            return -q.entropy().sum() - log_prior.mean(dim=0).sum()

    def split(self, table: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights and biases of a table."""
        return (table[:, :-1], table[:, -1]) if self.has_bias else (table, None)

    def extra_repr(self) -> str:
        """What ``print`` shows of a layer."""
        outputs, weights = self.mean.shape
        return f"{outputs}×{weights} weights, prior={self.prior}, estimator={self.estimator!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the prior along with the parameters: ``.to(device)``, ``.double()``."""
        self.prior = _moved(self.prior, fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class BayesLinear(BayesLayer):
    """A linear layer with Gaussian weights, in place of ``nn.Linear``.

    Args:
        in_features: How many inputs.
        out_features: How many outputs.
        bias: Whether there is a bias.
        options: ``prior``, ``estimator`` and ``initial_scale`` of :class:`BayesLayer`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: As for :class:`BayesLayer`.

    Example:
        >>> layer = BayesLinear(3, 2, prior=Normal(0.0, 0.5))
        >>> layer(torch.zeros(7, 3)).shape, layer.mean.shape
        (torch.Size([7, 2]), torch.Size([2, 4]))
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, **options: Any
    ) -> None:
        in_features = _checks.count("in_features", in_features, minimum=1)
        out_features = _checks.count("out_features", out_features, minimum=1)
        super().__init__(out_features, in_features, bias=bias, **options)

    def operation(self, x: Tensor, table: Tensor) -> Tensor:
        """Inputs times weights, plus biases."""
        weight, bias = self.split(table)
        if x.ndim != 2:
            return F.linear(x, weight, bias)
        # The same with the rows last in memory: a third less time for many draws at once.
        columns = weight @ x.mT
        if bias is not None:
            columns += bias[:, None]
        return columns.mT


def kl_divergence(model: nn.Module) -> Float[Tensor, ""]:
    """KL(q‖prior) of a whole model, in nats: the sum over its Bayesian layers, each counted once.

    Raises:
        ValueError: The model has no Bayesian layer.

    Example:
        >>> model = nn.Sequential(BayesLinear(1, 20), nn.Tanh(), BayesLinear(20, 1))
        >>> bool(kl_divergence(model) == model[0].kl() + model[2].kl())
        True
    """
    return torch.stack([layer.kl() for layer in _layers(model)]).sum()


@contextmanager
def one_function(model: nn.Module) -> Iterator[None]:
    """Let each forward pass be one function: weights drawn once for all rows, dropout off.

    Other noise than that of the weights, and averages that move, are switched off: the model is in
    evaluation mode meanwhile.
    """
    layers, modes = _layers(model), {module: module.training for module in model.modules()}
    estimators = [layer.estimator for layer in layers]
    model.eval()
    for layer in layers:
        layer.estimator = "shared"
    try:
        yield
    finally:
        for layer, estimator in zip(layers, estimators, strict=True):
            layer.estimator = estimator
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def predict(
    model: nn.Module,
    x: Float[Tensor, "batch ..."],
    num_draws: int = 100,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "draws batch ..."]:
    """Outputs of functions drawn from the posterior: one function a draw, all draws at once.

    Args:
        model: A model with Bayesian layers.
        x: Inputs, a batch of them.
        num_draws: How many functions.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        The model's outputs, shape ``(draws, batch, …)``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``num_draws`` is below 1, or the model has no Bayesian layer.

    Example:
        >>> model = nn.Sequential(BayesLinear(1, 20), nn.Tanh(), BayesLinear(20, 1))
        >>> draws = predict(model, torch.zeros(2, 1), num_draws=5)
        >>> draws.shape, bool((draws[:, 0] == draws[:, 1]).all())  # the same input, the same output
        (torch.Size([5, 2, 1]), True)
    """
    with one_function(model):
        return many_passes(model, x, num_draws, generator=generator)


def many_passes(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch ..."],
    num_draws: int,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "draws batch ..."]:
    """Outputs of so many passes through a model, with noise of their own, all at once."""
    num_draws = _checks.count("num_draws", num_draws, minimum=1)
    _checks.generator_or_none(generator)
    passes: Callable[[Tensor], Tensor] = torch.vmap(lambda _: model(x), randomness="different")
    with global_randomness(generator):
        return passes(torch.empty(num_draws))


def scale_mixture(
    wide_scale: float = 1.0, narrow_scale: float = 0.0025, wide_share: float = 0.5
) -> MixtureSameFamily:
    r"""A prior with a spike and a slab, :math:`\pi \mathcal N(0, s_1^2) + (1 - \pi) \mathcal N(0,
    s_2^2)`: most weights near zero, some far from it.

    Args:
        wide_scale: :math:`s_1`.
        narrow_scale: :math:`s_2`.
        wide_share: :math:`\pi`, between 0 and 1.

    Raises:
        TypeError: An argument is not a number.
        ValueError: A scale is not positive, or the share not between 0 and 1.

    Source:
        Blundell et al. (2015), as above, equation 7.

    Example:
        >>> f"{scale_mixture().stddev:.3f}"
        '0.707'
    """
    wide = _checks.positive("wide_scale", wide_scale)
    narrow = _checks.positive("narrow_scale", narrow_scale)
    share = _checks.inside("wide_share", wide_share)
    parts = Normal(torch.zeros(2), torch.tensor([wide, narrow]))
    return MixtureSameFamily(Categorical(torch.tensor([share, 1 - share])), parts)


def _layers(model: nn.Module) -> list[BayesLayer]:
    found = [module for module in model.modules() if isinstance(module, BayesLayer)]
    if not found:
        raise ValueError(
            f"model must have Bayesian layers, got a {type(model).__name__} without; bayesianize "
            "makes them of its linear and convolutional ones"
        )
    return found


def _check_prior(prior: Distribution, shape: tuple[int, int]) -> None:
    _checks.distribution("prior", prior)
    if prior.event_shape:
        raise ValueError(
            f"prior must be of one weight, got an event shape {tuple(prior.event_shape)}"
        )
    if _checks.broadcast(prior=prior.batch_shape, weights=torch.Size(shape)) != shape:
        raise ValueError(
            f"prior must broadcast to the weights, {shape}, got {tuple(prior.batch_shape)}"
        )


def _moved(prior: Distribution, fn: Callable[[Tensor], Tensor]) -> Distribution:
    """A copy of a distribution whose tensors, and those of its parts, went through a function."""
    moved = copy.copy(prior)
    for name, value in vars(prior).items():
        if isinstance(value, Tensor):
            setattr(moved, name, fn(value))
        elif isinstance(value, Distribution):
            setattr(moved, name, _moved(value, fn))
    return moved
