r"""Laplace's approximation: a Gaussian around a mode, as wide as the curvature says.

At a mode :math:`\hat w` the log joint density is :math:`\log p(y, \hat w) - \tfrac12 (w - \hat w)
^\top P (w - \hat w) + \dots`, where :math:`P` is minus its Hessian. To stop there gives

.. math::
    p(w \mid y) \approx \mathcal N(\hat w, P^{-1}) , \qquad
    \log p(y) \approx \log p(y, \hat w) + \tfrac D2 \log 2\pi - \tfrac12 \log \det P .

It sees one mode, and nothing of what is not quadratic there. Where a likelihood depends on weights
by outputs :math:`f_n` with Jacobians :math:`J_n`, and :math:`\Lambda_n` is minus the Hessian of
:math:`\log p(y_n \mid f_n)`, the generalized Gauss-Newton matrix :math:`\sum_n J_n^\top \Lambda_n
J_n` plus the prior's precision stands in for P: it leaves out how the network curves, and is
positive definite wherever the likelihood is log-concave in the outputs.

Source:
    MacKay (1992), "A practical Bayesian framework for backpropagation networks", Neural Computation
    4(3); Daxberger, Kristiadi, Immer, Eschenhagen, Bauer and Hennig (2021), "Laplace redux:
    effortless Bayesian deep learning", NeurIPS.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from coursepkg import _checks
from coursepkg._random import normal
from coursepkg.density import LogDensity, unvalidated, value_and_grad
from coursepkg.guides import FullRankNormal, Guide
from coursepkg.networks import MLP, LogJoint

__all__ = ["Fit", "LastLayer", "Linearized", "full", "last_layer", "linearized"]

# Rows of a Hessian computed at once: what a network of hundreds of weights has memory for.
ROWS = 64
# Where a Newton step promises more than this, in nats, the point is no mode.
LARGEST_GAIN = 1.0
# The search for the mode of a last layer: how many steps, and what a last one would have to gain.
MAX_STEPS, TOLERANCE = 100, 1e-10


class Fit(NamedTuple):
    """A Gaussian around a mode.

    Attributes:
        q: The approximate posterior, in float64.
        log_evidence: The approximate log evidence in nats, where the density is a log joint.
    """

    q: FullRankNormal
    log_evidence: Float[Tensor, ""]


def full(
    log_density: LogDensity,
    mode: Float[Tensor, " dim"],
    *,
    curvature: Literal["hessian", "ggn"] = "hessian",
) -> Fit:
    r"""A Gaussian with the full covariance, for up to about a thousand weights.

    Args:
        log_density: The log joint density of data and parameters; it is evaluated in float64.
        mode: :math:`\hat w`, where it is highest, shape ``(dim,)``.
        curvature: ``"hessian"``, or ``"ggn"`` for the generalized Gauss-Newton matrix, which needs
            a log density of ``networks.log_joint``.

    Returns:
        The Gaussian and the log evidence.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``mode`` is no finite vector or no mode, or the curvature there is not positive
            definite.

    Source:
        MacKay (1992), as above.

    Example:
        >>> normal = torch.distributions.Normal(torch.tensor([1.0, 2.0]), 0.5)
        >>> fit = full(lambda w: normal.log_prob(w).sum(dim=-1), torch.tensor([1.0, 2.0]))
        >>> fit.q.variance, abs(round(float(fit.log_evidence), 6))
        (tensor([0.2500, 0.2500], dtype=torch.float64), 0.0)
    """
    _checks.function("log_density", log_density)
    mode = _checks.array("mode", mode, ndim=1).detach()
    _checks.choice("curvature", curvature, ("hessian", "ggn"))
    if curvature == "hessian":
        with unvalidated():
            slope = torch.func.grad(log_density)
            precision = -torch.func.jacrev(slope, chunk_size=ROWS)(mode)
    elif isinstance(log_density, LogJoint):
        precision = _gauss_newton(log_density, mode)
    else:
        raise TypeError(
            "log_density must come from networks.log_joint where curvature is 'ggn', got "
            f"{type(log_density).__name__}"
        )
    return _gaussian(log_density, mode, precision)


class Linearized(NamedTuple):
    r"""The distribution of a network's outputs that is linear in its weights.

    Attributes:
        mean: Outputs at the weights' mean, shape ``(points, outputs)``.
        root: :math:`J L`, where :math:`L L^\top` is the weights' covariance, shape
            ``(points, outputs, noise)``: its products are the covariances between all outputs.
    """

    mean: Float[Tensor, "points outputs"]
    root: Float[Tensor, "points outputs noise"]

    @property
    def variance(self) -> Float[Tensor, "points outputs"]:
        """Variance of each output."""
        return self.root.square().sum(dim=-1)

    def sample(
        self, num_draws: int = 100, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "draws points outputs"]:
        """Draw functions: the outputs at all points together.

        Args:
            num_draws: How many.
            generator: Source of randomness; torch's global one where it is ``None``.

        Raises:
            TypeError: ``num_draws`` is no whole number, or ``generator`` no generator.
            ValueError: ``num_draws`` is below 1.
        """
        num_draws = _checks.count("num_draws", num_draws, minimum=1)
        _checks.generator_or_none(generator)
        noise = normal((num_draws, self.root.shape[-1]), self.root, generator)
        return self.mean + torch.einsum("pok,dk->dpo", self.root, noise)


def linearized(network: MLP, q: Guide, x: Float[Tensor, "..."]) -> Linearized:
    r"""What a Gaussian over weights says about the outputs, by the tangent at its mean.

    .. math::
        f_w(x) \approx f_m(x) + J(x) (w - m) , \qquad
        f(x) \sim \mathcal N(f_m(x), \; J(x) \, \Sigma \, J(x)^\top)

    A Gauss-Newton covariance is that of the tangent, and wrong for the network itself: draws of its
    weights, put into the network, underfit.

    Args:
        network: The network.
        q: One guide over its weights, such as that of :func:`full`.
        x: Inputs, shape ``(points, inputs)``; ``(points,)`` where there is one input.

    Returns:
        Mean and variance of each output; draws of functions.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``q`` is a batch, or not over the weights of ``network``; or ``x`` does not fit.

    Source:
        Immer, Korzepa and Bauer (2021), "Improving predictions of Bayesian neural nets via local
        linearization", AISTATS.

    Example:
        >>> q = FullRankNormal(torch.ones(2), 0.1 * torch.eye(2))
        >>> linearized(MLP((1, 1)), q, torch.tensor([0.0, 3.0])).variance.T
        tensor([[0.0100, 0.1000]])
    """
    if not isinstance(network, MLP):
        raise TypeError(f"network must be a networks.MLP, got {type(network).__name__}")
    if not isinstance(q, Guide):
        raise TypeError(f"q must be a guide such as FullRankNormal, got {type(q).__name__}")
    if q.mean.shape != (network.num_weights,):
        raise ValueError(
            f"q must be one guide over {network.num_weights} weights, got a mean of shape "
            f"{tuple(q.mean.shape)}"
        )
    q = q.detach()
    x = network.inputs(x).to(q.mean)
    # Guides are affine in their noise: unit noise shows the columns of L.
    columns = q.transform(torch.eye(q.num_noise).to(q.mean)) - q.mean
    return Linearized(network(q.mean, x), _jacobian(network, q.mean, x) @ columns.T)


@dataclass(frozen=True)
class LastLayer:
    """A network whose last layer has a distribution; :func:`last_layer` makes it.

    Attributes:
        model: The network, a copy in evaluation mode.
        q: Over the last layer's weights, for each output its weights and then its bias, float64.
        log_evidence: The approximate log evidence in nats, given the features.
    """

    model: nn.Module
    q: FullRankNormal
    log_evidence: Float[Tensor, ""]

    def predict(
        self,
        x: Float[Tensor, "batch ..."],
        num_draws: int = 100,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "draws batch outputs"]:
        """Outputs of networks drawn from the posterior; features are computed once.

        Args:
            x: Inputs, a batch of them.
            num_draws: How many networks.
            generator: Source of randomness; torch's global one where it is ``None``.

        Returns:
            Outputs in float64, shape ``(draws, batch, outputs)``.

        Raises:
            TypeError: ``num_draws`` is no whole number, or ``generator`` no generator.
            ValueError: ``num_draws`` is below 1.
        """
        features = _features(self.model, x)
        weights = self.q.rsample(num_draws, generator=generator)
        return features @ weights.unflatten(-1, (-1, features.shape[1])).mT


def last_layer(
    model: nn.Module,
    x: Float[Tensor, "points ..."],
    y: Shaped[Tensor, "points ..."],
    likelihood: Callable[[Tensor], Distribution],
    prior_scale: float = 1.0,
) -> LastLayer:
    r"""Laplace's approximation for the last layer alone: the others only make features.

    Outputs are linear in the last layer's weights, so that its Hessian is its Gauss-Newton matrix,
    :math:`\sum_n \Lambda_n \otimes \phi_n \phi_n^\top`, and a batch of data is passed through the
    network once. The weights move to their mode under the prior first, by Newton's method. The
    covariance is full: some thousand weights take half a minute.

    Args:
        model: A trained network that ends in an ``nn.Linear``.
        x: The inputs it was trained on.
        y: Their targets.
        likelihood: From outputs of shape ``(*draws, batch, outputs)`` to a distribution of targets.
        prior_scale: Standard deviation of the normal prior on each weight and bias of that layer.

    Returns:
        The network with its posterior.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The model does not end in a linear layer, shapes do not fit, ``prior_scale`` is
            not positive, or the curvature at the mode is not positive definite.
        RuntimeError: No mode was found.

    Source:
        Daxberger et al. (2021), as above; for the last layer alone: Kristiadi, Hein and Hennig
        (2020), "Being Bayesian, even just a bit, fixes overconfidence in ReLU networks", ICML.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> noise = lambda outputs: Normal(outputs[..., 0], 0.1)
        >>> fit = last_layer(nn.Linear(1, 1), x, 2 * x[:, 0], noise, prior_scale=10.0)
        >>> fit.predict(torch.ones(1, 1), num_draws=1000).shape
        torch.Size([1000, 1, 1])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _checks.function("likelihood", likelihood)
    prior_scale = _checks.positive("prior_scale", prior_scale)
    model = copy.deepcopy(model).eval()
    layer, features = _last(model), _features(model, x)
    parts = [part.detach().reshape(layer.out_features, -1) for part in layer.parameters()]
    table = torch.cat(parts, dim=1).double()
    targets = y.double() if y.is_floating_point() else y
    _checks.log_prob(likelihood, features @ table.mT, targets)  # torch checks the targets, once
    head = _Head(features, targets, likelihood, prior_scale)
    with unvalidated():
        mode = _climb(head, table.flatten())
        return LastLayer(model, *_gaussian(head, mode, head.precision(mode)))


@dataclass(frozen=True)
class _Head:
    """The log joint density of a last layer, as a function of its flat weights."""

    features: Tensor
    targets: Tensor
    likelihood: Callable[[Tensor], Distribution]
    prior_scale: float

    def __call__(self, weights: Tensor) -> Tensor:
        log_prior = Normal(0.0, self.prior_scale).log_prob(weights).sum(dim=-1)
        return self.log_likelihood(self.outputs(weights)).sum(dim=-1) + log_prior

    def log_likelihood(self, outputs: Tensor) -> Tensor:
        return self.likelihood(outputs).log_prob(self.targets)

    def outputs(self, weights: Tensor) -> Tensor:
        return self.features @ weights.unflatten(-1, (-1, self.features.shape[1])).mT

    def precision(self, weights: Tensor) -> Tensor:
        """Minus the Hessian."""
        curvature, phi = _curvature(self.log_likelihood, self.outputs(weights)), self.features
        # The rows of one output after another: all at once would fill the memory.
        rows = [phi.T @ (c[..., None] * phi[:, None]).flatten(1) for c in curvature.unbind(1)]
        return torch.cat(rows) + torch.eye(len(weights)).to(weights) / self.prior_scale**2


def _climb(head: _Head, weights: Tensor) -> Tensor:
    """A mode, by Newton's method: damped as little as makes each step one uphill."""
    damping, least = 0.0, head.prior_scale**-2
    eye = torch.eye(len(weights)).to(weights)
    for _ in range(MAX_STEPS):
        height, slope = value_and_grad(head, weights)
        factor, failed = torch.linalg.cholesky_ex(head.precision(weights) + damping * eye)
        step = torch.cholesky_solve(slope[:, None], factor)[:, 0]
        if not failed and damping <= least and slope @ step < TOLERANCE * (1 + height.abs()):
            return weights + step
        if not failed and head(weights + step) > height:
            weights, damping = weights + step, damping / 10 if damping > least else 0.0
        else:
            damping = max(10 * damping, least)
    raise RuntimeError(
        f"the last layer's weights found no mode in {MAX_STEPS} steps: train the model first, or "
        "scale its features"
    )


def _gaussian(log_density: LogDensity, mode: Tensor, precision: Tensor) -> Fit:
    """The Gaussian of a mode and a precision, if they are such."""
    precision = (precision + precision.mT) / 2
    if not torch.isfinite(precision).all():
        raise ValueError("log_density must have finite second derivatives at mode, got others")
    eigenvalues = torch.linalg.eigvalsh(precision)
    if not eigenvalues[0] > len(mode) * torch.finfo(mode.dtype).eps * eigenvalues[-1].abs():
        raise ValueError(
            "the curvature at mode must be positive definite, got a smallest eigenvalue of "
            f"{float(eigenvalues[0]):.3g}: mode may be no maximum, or the prior be missing; for a "
            "network of networks.log_joint there is curvature='ggn'"
        )
    # P = U Uᵀ with U upper triangular, by turning rows and columns round; then Σ = U⁻ᵀ U⁻¹.
    upper = torch.linalg.cholesky(precision.flip(0, 1)).flip(0, 1)
    eye = torch.eye(len(mode)).to(mode)
    q = FullRankNormal(mode, torch.linalg.solve_triangular(upper.mT, eye, upper=False))
    height, slope = value_and_grad(log_density, mode)
    gain = float((q.scale_tril.mT @ slope).square().sum()) / 2
    if not gain < LARGEST_GAIN:
        raise ValueError(
            f"mode must be where log_density is highest, got a point from which a Newton step "
            f"promises {gain:.3g} nats more; networks.fit_map looks for modes"
        )
    return Fit(q, height + q.entropy() - len(mode) / 2)


def _gauss_newton(posterior: LogJoint, mode: Tensor) -> Tensor:
    """The generalized Gauss-Newton matrix of the log likelihood, and the prior's precision."""
    x, y = posterior.x.to(mode), posterior.y.to(mode)

    def log_likelihood(outputs: Tensor) -> Tensor:
        return posterior.likelihood.log_prob(outputs[..., None], y)[:, 0]

    jacobian = _jacobian(posterior.network, mode, x)
    curvature = _curvature(log_likelihood, posterior.network(mode, x))
    precision = jacobian.flatten(0, 1).mT @ (curvature @ jacobian).flatten(0, 1)
    return precision + torch.eye(len(mode)).to(mode) / posterior.prior_scale**2


def _curvature(log_likelihood: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """Minus each point's second derivatives in its outputs, shape ``(points, outputs, outputs)``.

    Points do not interact: a derivative of the sum of all slopes is each point's own.
    """
    slope = torch.func.grad(lambda outputs: log_likelihood(outputs).sum())
    backward = torch.func.vjp(slope, outputs)[1]
    units = torch.eye(outputs.shape[1]).to(outputs)
    return -torch.stack([backward(unit.expand_as(outputs))[0] for unit in units], dim=-1)


def _jacobian(network: MLP, weights: Tensor, x: Tensor) -> Tensor:
    """Derivatives of each point's outputs in the weights, shape ``(points, outputs, weights)``."""

    def at(weights: Tensor, point: Tensor) -> Tensor:
        return network.layers(weights[:, None], point[None, :, None])[0][-1][0, :, 0]

    return torch.vmap(torch.func.jacrev(at), in_dims=(None, 0))(weights, x)


def _last(model: nn.Module) -> nn.Linear:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"model must end in an nn.Linear, got a {type(model).__name__} without")
    return layers[-1]


@torch.no_grad()
def _features(model: nn.Module, x: Tensor) -> Float[Tensor, "points features"]:
    """What goes into the last layer, in float64, with a one for the bias."""
    layer, caught = _last(model), list[Tensor]()
    handle = layer.register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0]))
    try:
        outputs = model(x)
    finally:
        handle.remove()
    if outputs.ndim != 2 or not caught or not torch.equal(layer(caught[-1]), outputs):
        raise ValueError(
            f"model must end in its nn.Linear and return (points, outputs), got {model} with "
            f"outputs of shape {tuple(outputs.shape)}"
        )
    features = caught[-1].double()
    ones = torch.ones_like(features[:, :1])
    return features if layer.bias is None else torch.cat([features, ones], dim=1)
