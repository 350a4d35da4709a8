r"""Neural networks as probabilistic models: an MLP as a function of one flat weight vector.

With a likelihood and a Gaussian prior on the weights a network is a log density
(:func:`log_joint`), which every engine of the book can take. Many weight vectors are one batch: a
network of few units is evaluated for hundreds of Markov chains in about the time of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor
from torch.nn import functional

from coursepkg import _checks, data
from coursepkg.density import LogDensity, value_and_grad

__all__ = [
    "MLP",
    "Bernoulli",
    "Categorical",
    "Fit",
    "Gaussian",
    "Likelihood",
    "LogJoint",
    "fit_map",
    "fit_mle",
    "log_joint",
    "sine_posterior",
]

Activation = Callable[[Tensor], Tensor]
# What backpropagation needs of an activation: delta times its slope, known from its *output*.
# These are autograd's own; the slopes are 1 above zero, 1 - output² and output (1 - output).
BACKWARD: dict[Activation, Callable[[Tensor, Tensor], Tensor]] = {
    torch.relu: lambda delta, output: torch.ops.aten.threshold_backward(delta, output, 0),
    torch.tanh: torch.ops.aten.tanh_backward,
    torch.sigmoid: torch.ops.aten.sigmoid_backward,
}
# Wide layers with more products than this leave them to matrix multiplication: they no longer fit
# the processor's cache.
MANY = 2**21


def _sum_products(left: Tensor, right: Tensor, axis: int) -> Tensor:
    """Multiply two tensors over (points, outputs, inputs, chains), and sum over one of these.

    For layers of few units this is several times faster than one small matrix product for each
    chain, since the arithmetic runs along the chains.
    """
    outputs, inputs = left.shape[-3], max(left.shape[-2], right.shape[2])
    if min(outputs, inputs) == 1 or len(right) * outputs * inputs * left.shape[-1] <= MANY:
        product = left * right
        return product.squeeze(axis) if product.shape[axis] == 1 else product.sum(dim=axis)
    left = left if left.ndim == 4 else left[None]
    return torch.einsum("noic,noic->" + "noic".replace("noic"[axis], ""), left, right)


@dataclass(frozen=True)
class MLP:
    r"""A multilayer perceptron of any widths, as a pure function of its weights.

    .. math::
        z^{(0)} = x , \qquad z^{(l)} = g(W^{(l)} z^{(l-1)} + b^{(l)}) , \qquad
        f = W^{(L)} z^{(L-1)} + b^{(L)}

    The flat vector holds, layer by layer, the matrix :math:`W^{(l)}` row by row (a row for each
    unit) and then :math:`b^{(l)}`: the order of ``torch.nn.Linear``.

    Args:
        widths: Inputs, units of each hidden layer, outputs: ``(1, 5, 1)``.
        activation: :math:`g`, such as ``torch.relu``, ``torch.tanh`` or ``torch.sin``.

    Raises:
        TypeError: ``activation`` cannot be called, or a width is not a whole number.
        ValueError: There are fewer than two widths, or one is below 1.

    Example:
        >>> network = MLP((1, 5, 1), torch.relu)
        >>> network.num_weights
        16
        >>> network(torch.zeros(3, 16), torch.zeros(7)).shape
        torch.Size([3, 7, 1])
    """

    widths: tuple[int, ...]
    activation: Activation = torch.relu

    def __post_init__(self) -> None:
        _checks.count("the number of widths", len(self.widths), minimum=2)
        for width in self.widths:
            _checks.count("each width", width, minimum=1)
        _checks.function("activation", self.activation)

    @cached_property
    def _sizes(self) -> list[int]:
        """How many entries each layer's matrix and biases have."""
        layers = pairwise(self.widths)
        return [size for inputs, outputs in layers for size in (inputs * outputs, outputs)]

    @cached_property
    def num_weights(self) -> int:
        """How many weights and biases there are."""
        return sum(self._sizes)

    def __call__(
        self, weights: Float[Tensor, "*batch weights"], x: Float[Tensor, "..."]
    ) -> Float[Tensor, "*batch points outputs"]:
        """Evaluate the network of each weight vector at each input.

        Args:
            weights: Weight vectors, shape ``(..., num_weights)``.
            x: Inputs, shape ``(points, inputs)``; ``(points,)`` where there is one input.

        Returns:
            Outputs, shape ``(..., points, outputs)``.

        Raises:
            TypeError: An argument is not a floating-point tensor.
            ValueError: A shape does not fit the widths.
        """
        if not isinstance(weights, Tensor) or weights.shape[-1:] != (self.num_weights,):
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise ValueError(
                f"weights must have {self.num_weights} entries in the last dimension, for widths "
                f"{self.widths}, got {got}"
            )
        columns = weights.reshape(-1, self.num_weights).T
        outputs = self.layers(columns, self.inputs(x)[..., None].to(weights))[0][-1]
        return outputs.permute(2, 0, 1).reshape(*weights.shape[:-1], *outputs.shape[:2])

    def inputs(self, x: Float[Tensor, "..."]) -> Float[Tensor, "points inputs"]:
        """Check inputs and give them their second dimension."""
        x = _checks.array("x", x)
        if x.ndim == 1 and self.widths[0] == 1:
            x = x[:, None]
        if x.ndim != 2 or x.shape[1] != self.widths[0]:
            raise ValueError(
                f"x must have shape (points, {self.widths[0]}) for widths {self.widths}, got "
                f"{tuple(x.shape)}"
            )
        return x

    def layers(
        self, columns: Float[Tensor, "weights chains"], x: Float[Tensor, "points inputs 1"]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run through the layers; chains stand last, where neighbours in memory are.

        Args:
            columns: Weight vectors, one a column.
            x: Inputs, the same for all chains.

        Returns:
            What goes into each layer and, last, the outputs, each of shape
            ``(points, units, chains)``; and each layer's matrix, ``(outputs, inputs, chains)``.
        """
        pieces = columns.split(self._sizes)
        signals: list[Tensor] = [x]
        matrices: list[Tensor] = []
        for inputs, matrix, bias in zip(self.widths, pieces[::2], pieces[1::2], strict=False):
            if matrices:
                signals[-1] = self.activation(signals[-1])
            matrices.append(matrix.reshape(-1, inputs, matrix.shape[1]))
            signals.append(_sum_products(matrices[-1], signals[-1][:, None], axis=2) + bias)
        return signals, matrices

    def backpropagate(
        self,
        signals: list[Tensor],
        matrices: list[Tensor],
        delta: Float[Tensor, "points outputs chains"],
    ) -> Float[Tensor, "weights chains"]:
        """Gradient in the weights of a function of the outputs whose gradient there is ``delta``.

        Backwards through what :meth:`layers` returned: in each layer ``delta`` becomes the gradient
        in its sums before the activation.
        """
        pieces: list[Tensor] = []
        for below, matrix in zip(signals[-2::-1], matrices[::-1], strict=True):
            wide = delta[:, :, None]
            pieces += [delta.sum(dim=0), _sum_products(wide, below[:, None], axis=0).flatten(0, 1)]
            if matrix is not matrices[0]:
                delta = BACKWARD[self.activation](_sum_products(matrix, wide, axis=1), below)
        return torch.cat(pieces[::-1])


@runtime_checkable
class Likelihood(Protocol):
    """How targets scatter about a network's outputs."""

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log probability of each point's target, shape ``(points, chains)``, in nats."""
        ...

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Gradient of ``log_prob`` in the outputs, shape ``(points, outputs, chains)``."""
        ...

    def targets(self, y: Tensor, num_outputs: int) -> Tensor:
        """Check targets and bring them to shape ``(points, outputs, 1)``."""
        ...


@dataclass(frozen=True)
class Gaussian:
    r"""Targets with Gaussian noise: :math:`y \sim \mathcal N(f, \sigma^2)`.

    Its negative log probability is the squared error over :math:`2\sigma^2`, and a constant.

    Args:
        noise_scale: :math:`\sigma`, in the units of the targets.

    Raises:
        TypeError: ``noise_scale`` is not a number.
        ValueError: It is not positive.
    """

    noise_scale: float

    def __post_init__(self) -> None:
        _checks.positive("noise_scale", self.noise_scale)

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log probability of each point's target, shape ``(points, chains)``, in nats."""
        constant = len(y[0]) * (math.log(self.noise_scale) + math.log(2 * math.pi) / 2)
        return (y - outputs).square().sum(dim=1) / (-2 * self.noise_scale**2) - constant

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Gradient of ``log_prob`` in the outputs, shape ``(points, outputs, chains)``."""
        return (y - outputs) / self.noise_scale**2

    def targets(self, y: Tensor, num_outputs: int) -> Tensor:
        """Check targets and bring them to shape ``(points, outputs, 1)``."""
        y = _checks.array("y", y)
        y = y[:, None] if y.ndim == 1 else y
        if y.ndim != 2 or y.shape[1] != num_outputs:
            raise ValueError(
                f"y must have {num_outputs} column(s), one for each output, got {tuple(y.shape)}"
            )
        return y[..., None]


@dataclass(frozen=True)
class Bernoulli:
    r"""Targets 0 or 1 with probability :math:`1 / (1 + e^{-f})` of 1; the output is a logit.

    Its negative log probability is the cross-entropy.
    """

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log probability of each point's target, shape ``(points, chains)``, in nats."""
        return (y * outputs - functional.softplus(outputs)).sum(dim=1)

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Gradient of ``log_prob`` in the outputs, shape ``(points, outputs, chains)``."""
        return y - outputs.sigmoid()

    def targets(self, y: Tensor, num_outputs: int) -> Tensor:
        """Check targets and bring them to shape ``(points, outputs, 1)``."""
        y = Gaussian(1.0).targets(y.double() if isinstance(y, Tensor) else y, num_outputs)
        if not ((y == 0) | (y == 1)).all():
            raise ValueError("y must hold nothing but 0 and 1 for a Bernoulli likelihood")
        return y


@dataclass(frozen=True)
class Categorical:
    r"""Targets that name one of several classes, with probabilities softmax(:math:`f`).

    Its negative log probability is the cross-entropy.
    """

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log probability of each point's target, shape ``(points, chains)``, in nats."""
        return (y * outputs.log_softmax(dim=1)).sum(dim=1)

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Gradient of ``log_prob`` in the outputs, shape ``(points, outputs, chains)``."""
        return y - outputs.softmax(dim=1)

    def targets(self, y: Tensor, num_outputs: int) -> Tensor:
        """Check class numbers and turn them into indicators, shape ``(points, outputs, 1)``."""
        if not isinstance(y, Tensor) or y.ndim != 1 or not y.numel():
            raise ValueError("y must be a tensor of class numbers, shape (points,)")
        classes = y.long()
        if (classes != y).any() or classes.min() < 0 or classes.max() >= num_outputs:
            raise ValueError(
                f"y must hold whole numbers from 0 to {num_outputs - 1}, a class for each output, "
                f"got {y.unique().tolist()[:10]}"
            )
        return functional.one_hot(classes, num_outputs).double()[..., None]


class LogJoint:
    r"""The log joint density of data and weights, as a function of the weights.

    .. math::
        \log p(y, w) = \sum_n \log p(y_n \mid f_w(x_n)) + \sum_k \log \mathcal N(w_k \mid 0, s^2)

    Up to the evidence, a constant, it is the log posterior. :func:`log_joint` makes it.

    Attributes:
        network: The network.
        likelihood: How targets scatter about its outputs.
        prior_scale: :math:`s`, the prior standard deviation of each weight.
        dim: How many weights there are.
        x: Inputs, shape ``(points, inputs)``.
        y: Targets, shape ``(points, outputs, 1)``.
    """

    def __init__(
        self, network: MLP, x: Tensor, y: Tensor, likelihood: Likelihood, prior_scale: float
    ) -> None:
        self.network, self.likelihood = network, likelihood
        self.prior_scale = _checks.positive("prior_scale", prior_scale)
        self.dim = network.num_weights
        self.x = network.inputs(x)
        self.y = likelihood.targets(y, network.widths[-1])
        if len(self.x) != len(self.y):
            raise ValueError(f"x and y must have as many rows, got {len(self.x)} and {len(self.y)}")
        self._ready = self.x[..., None], self.y
        if network.activation in BACKWARD:
            self.value_and_grad, self.gradient = self._value_and_grad, self._gradient

    def __call__(self, weights: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch"]:
        """Log joint density in nats, normalized in the data and in the weights."""
        return self.log_likelihood(weights) + self.log_prior(weights)

    def log_prior(self, weights: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch"]:
        """Log density of the prior, in nats."""
        constant = self.dim * (math.log(self.prior_scale) + math.log(2 * math.pi) / 2)
        return weights.square().sum(dim=-1) / (-2 * self.prior_scale**2) - constant

    def log_likelihood(self, weights: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch"]:
        """Log probability of all targets, in nats."""
        return self._each(weights, slice(None)).sum(dim=0).reshape(weights.shape[:-1])

    def pointwise(
        self, weights: Float[Tensor, "*batch weights"], rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, "*batch rows"]:
        """Log probability of single targets, those of the given rows, in nats."""
        return self._each(weights, rows).T.reshape(*weights.shape[:-1], len(rows))

    def _each(self, weights: Tensor, rows: Tensor | slice) -> Tensor:
        """Log probabilities of targets, shape ``(rows, weight vectors)``."""
        x, y = self._data(weights)
        signals, _ = self.network.layers(weights.reshape(-1, self.dim).T, x[rows])
        return self.likelihood.log_prob(signals[-1], y[rows])

    def _data(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets in the weights' dtype and on their device."""
        if self._ready[0].dtype != weights.dtype or self._ready[0].device != weights.device:
            self._ready = self.x[..., None].to(weights), self.y.to(weights)
        return self._ready

    def sample_prior(
        self, num_draws: int, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "draws weights"]:
        """Draw weight vectors from the prior."""
        return self.prior_scale * torch.randn(num_draws, self.dim, generator=generator)

    def _value_and_grad(
        self, weights: Float[Tensor, "*batch weights"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch weights"]]:
        """Log joint and its gradient, from one pass through the network."""
        outputs, gradient = self._backpropagate(weights)
        each = self.likelihood.log_prob(outputs, self._data(weights)[1])
        value = each.sum(dim=0).reshape(weights.shape[:-1]) + self.log_prior(weights)
        return value.detach(), gradient

    def _gradient(
        self, weights: Float[Tensor, "*batch weights"]
    ) -> Float[Tensor, "*batch weights"]:
        """Gradient of the log joint."""
        return self._backpropagate(weights)[1]

    def _backpropagate(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and gradient, by backpropagation written out for all chains at once."""
        x, y = self._data(weights)
        columns = weights.reshape(-1, self.dim).T
        signals, matrices = self.network.layers(columns, x)
        score = self.likelihood.score(signals[-1], y)
        gradient = self.network.backpropagate(signals, matrices, score)
        gradient = gradient.sub_(columns, alpha=self.prior_scale**-2).T.reshape(weights.shape)
        return signals[-1], gradient


def log_joint(
    network: MLP,
    x: Float[Tensor, "..."],
    y: Real[Tensor, "..."],
    likelihood: Likelihood,
    prior_scale: float = 1.0,
) -> LogJoint:
    r"""The log joint density of a network's weights and the data, for every engine of the book.

    Args:
        network: The network.
        x: Inputs, shape ``(points, inputs)``; ``(points,)`` where there is one input.
        y: Targets, shape ``(points, outputs)`` or, for one output, ``(points,)``; class numbers of
            shape ``(points,)`` for :class:`Categorical`.
        likelihood: :class:`Gaussian`, :class:`Bernoulli` or :class:`Categorical`.
        prior_scale: Standard deviation of the normal prior on each weight and bias.

    Returns:
        The log density; it supplies its gradient where the activation is ``torch.relu``,
        ``torch.tanh`` or ``torch.sigmoid``, for others autograd takes it.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes do not fit, or ``prior_scale`` is not positive.

    Example:
        >>> sensor = data.sine_sensor()
        >>> posterior = log_joint(MLP((1, 5, 1)), sensor.x, sensor.y, Gaussian(noise_scale=0.1))
        >>> posterior(torch.zeros(100, 16)).shape
        torch.Size([100])
    """
    return LogJoint(network, x, y, likelihood, prior_scale)


def sine_posterior() -> LogJoint:
    """The posterior that this book solves by every method: 16 weights, 20 measurements of a sine.

    One hidden layer of 5 ReLU units, a prior N(0, 1) on each weight, Gaussian noise of 0.1, and the
    data of :func:`coursepkg.data.sine_sensor`.

    Example:
        >>> sine_posterior().dim
        16
    """
    sensor = data.sine_sensor()
    return log_joint(MLP((1, 5, 1)), sensor.x, sensor.y, Gaussian(0.1), prior_scale=1.0)


class Fit(NamedTuple):
    """The best point that an optimizer found.

    Attributes:
        weights: The best weight vector, shape ``(weights,)``.
        value: The objective there, in nats.
        restarts: Where each restart ended, shape ``(restarts, weights)``.
        values: The objective there, shape ``(restarts,)``.
        history: The objective on the way, shape ``(steps, restarts)``.
    """

    weights: Float[Tensor, " weights"]
    value: float
    restarts: Float[Tensor, "restarts weights"]
    values: Float[Tensor, " restarts"]
    history: Float[Tensor, "steps restarts"]


def fit_mle(
    posterior: LogJoint,
    *,
    num_restarts: int = 32,
    num_steps: int = 2000,
    learning_rate: float = 0.03,
    generator: torch.Generator | None = None,
) -> Fit:
    """Maximum likelihood: least squares for a Gaussian, cross-entropy for classes.

    Args:
        posterior: The model; its prior is used for the starting points only.
        num_restarts: How many starting points to train from, all in one batch.
        num_steps: How many steps of Adam; the learning rate falls to zero along a cosine.
        learning_rate: The first learning rate.
        generator: Source of randomness.

    Returns:
        The best fit; ``value`` is the log likelihood.
    """
    return _fit(
        posterior.log_likelihood, posterior, num_restarts, num_steps, learning_rate, generator
    )


def fit_map(
    posterior: LogJoint,
    *,
    num_restarts: int = 32,
    num_steps: int = 2000,
    learning_rate: float = 0.03,
    generator: torch.Generator | None = None,
) -> Fit:
    """Maximum a posteriori: the likelihood times the prior, that is, L2 regularization.

    One point, however good: it says nothing about how uncertain it is.

    Args:
        posterior: The model.
        num_restarts: How many starting points to train from, all in one batch.
        num_steps: How many steps of Adam; the learning rate falls to zero along a cosine.
        learning_rate: The first learning rate.
        generator: Source of randomness.

    Returns:
        The best fit; ``value`` is the log joint density.
    """
    return _fit(posterior, posterior, num_restarts, num_steps, learning_rate, generator)


def _fit(
    objective: LogDensity,
    posterior: LogJoint,
    num_restarts: int,
    num_steps: int,
    learning_rate: float,
    generator: torch.Generator | None,
) -> Fit:
    num_restarts = _checks.count("num_restarts", num_restarts, minimum=1)
    num_steps = _checks.count("num_steps", num_steps, minimum=1)
    learning_rate = _checks.positive("learning_rate", learning_rate)
    weights = posterior.sample_prior(num_restarts, generator=generator)
    optimizer = torch.optim.Adam([weights], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    history = []
    for _ in range(num_steps):
        value, gradient = value_and_grad(objective, weights)
        weights.grad = -gradient
        optimizer.step()
        schedule.step()
        history.append(value)
    values = objective(weights).detach()
    best = int(values.argmax())
    return Fit(weights[best], float(values[best]), weights, values, torch.stack(history))
