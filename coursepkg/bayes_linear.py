r"""Bayesian linear regression in closed form: posterior, predictive, evidence.

The model is :math:`y = \Phi w + \epsilon` with Gaussian noise of known scale and a Gaussian prior
on the weights :math:`w`. Everything follows from one least-squares problem in *whitened* weights
:math:`z`, where :math:`w = m_0 + L_0 z` and the prior of :math:`z` is :math:`\mathcal N(0, I)`:

.. math::
    \min_z \; \lVert (y - \Phi m_0) / \sigma - (\Phi L_0 / \sigma) z \rVert^2 + \lVert z \rVert^2 .

Its solution is the posterior mean of :math:`z`, its triangular factor :math:`R` the Cholesky factor
of the posterior precision of :math:`z` (found by QR, without squaring the condition number), and
its minimum together with :math:`\det R` gives the evidence.

Source:
    Bishop (2006), Pattern Recognition and Machine Learning, sections 3.3 to 3.5.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from coursepkg import _checks
from coursepkg._random import normal

__all__ = [
    "EvidenceFit",
    "GaussianWeights",
    "Predictive",
    "log_evidence",
    "maximize_evidence",
    "normal_prior",
    "posterior",
    "predictive",
]


class GaussianWeights:
    r"""A Gaussian over weight vectors, :math:`\mathcal N(m, S)`: a prior or a posterior.

    Args:
        mean: :math:`m`, shape ``(features,)``.
        covariance: :math:`S`, symmetric and positive definite, shape ``(features, features)``.

    Attributes:
        mean: The mean, float64.
        scale_tril: Lower Cholesky factor :math:`L` with :math:`S = L L^\top`, float64.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: Shapes do not fit, values are not finite, or ``covariance`` is not symmetric
            and positive definite.

    Example:
        >>> weights = GaussianWeights(torch.zeros(2), torch.tensor([[4.0, 0.0], [0.0, 9.0]]))
        >>> weights.scale
        tensor([2., 3.], dtype=torch.float64)
    """

    mean: Float[Tensor, " features"]
    scale_tril: Float[Tensor, "features features"]

    def __init__(
        self, mean: Float[Tensor, " features"], covariance: Float[Tensor, "features features"]
    ) -> None:
        self.mean = _checks.array("mean", mean, ndim=1)
        covariance = _checks.array("covariance", covariance, ndim=2)
        if covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"covariance must have shape {(len(mean), len(mean))}, a row and a column for each "
                f"entry of mean, got {tuple(covariance.shape)}"
            )
        asymmetry = float((covariance - covariance.T).abs().max())
        if asymmetry > 1e-6 * covariance.abs().max():
            raise ValueError(f"covariance must be symmetric, got entries {asymmetry:.3g} apart")
        self.scale_tril, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            smallest = torch.linalg.eigvalsh(covariance).min().item()
            raise ValueError(
                f"covariance must be positive definite, got a smallest eigenvalue of {smallest:.3g}"
            )

    @classmethod
    def _from_root(
        cls, mean: Float[Tensor, " features"], root: Float[Tensor, "features features"]
    ) -> GaussianWeights:
        """Build from any square root of the covariance, S = root @ root.T, without forming S."""
        upper = torch.linalg.qr(root.T, mode="r").R
        signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(upper)
        weights = cls.__new__(cls)
        weights.mean, weights.scale_tril = mean, (upper * signs[:, None]).T.contiguous()
        return weights

    @property
    def covariance(self) -> Float[Tensor, "features features"]:
        """The covariance :math:`S`, shape ``(features, features)``."""
        return self.scale_tril @ self.scale_tril.T

    @property
    def scale(self) -> Float[Tensor, " features"]:
        """The standard deviation of each weight, shape ``(features,)``."""
        return torch.linalg.vector_norm(self.scale_tril, dim=1)

    def sample(
        self, num_draws: int, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "draws features"]:
        r"""Draw weight vectors :math:`m + L \epsilon`.

        Args:
            num_draws: How many, at least 1.
            generator: Source of randomness; torch's global one where it is ``None``.

        Returns:
            Draws, shape ``(draws, features)``. ``draws @ features.T`` are their functions.

        Raises:
            TypeError: ``num_draws`` is not a whole number, or ``generator`` is no generator.
            ValueError: ``num_draws`` is below 1.
        """
        num_draws = _checks.count("num_draws", num_draws, minimum=1)
        _checks.generator_or_none(generator)
        noise = normal((num_draws, len(self.mean)), self.mean, generator)
        return self.mean + noise @ self.scale_tril.T

    def log_prob(self, weights: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """Log density at weight vectors, in nats.

        Args:
            weights: Weight vectors, shape ``(..., features)``.

        Returns:
            Log densities, shape ``(...)``.

        Raises:
            TypeError: ``weights`` is not a floating-point tensor.
            ValueError: Its last dimension does not fit the mean, or it is not finite.
        """
        weights = _checks.array("weights", weights)
        if weights.ndim == 0 or weights.shape[-1] != len(self.mean):
            raise ValueError(
                f"weights must have a last dimension of {len(self.mean)}, "
                f"got shape {tuple(weights.shape)}"
            )
        q = torch.distributions.MultivariateNormal(self.mean, scale_tril=self.scale_tril)
        return q.log_prob(weights)

    def __repr__(self) -> str:
        return f"GaussianWeights(mean={self.mean.tolist()}, scale={self.scale.tolist()})"


def normal_prior(
    num_features: int, scale: float | Float[Tensor, ""], *, device: torch.device | None = None
) -> GaussianWeights:
    r"""The prior most often used: independent weights, :math:`\mathcal N(0, s^2 I)`.

    Args:
        num_features: How many weights, at least 1.
        scale: Prior standard deviation :math:`s` of each weight.
        device: Where the data are; the CPU where it is ``None``.

    Returns:
        The prior, in float64.

    Raises:
        TypeError: ``num_features`` is not a whole number, or ``scale`` is not a real number.
        ValueError: ``num_features`` is below 1, or ``scale`` is not positive.

    Example:
        >>> normal_prior(2, scale=5.0).covariance
        tensor([[25.,  0.],
                [ 0., 25.]], dtype=torch.float64)
    """
    num_features = _checks.count("num_features", num_features, minimum=1)
    scale = _checks.positive("scale", scale)
    identity = torch.eye(num_features, dtype=torch.float64, device=device)
    return GaussianWeights(identity.new_zeros(num_features), scale**2 * identity)


class _Whitened(NamedTuple):
    """The solved least-squares problem of the module's docstring."""

    solution: Float[Tensor, " features"]
    r: Float[Tensor, "features features"]
    minimum: Float[Tensor, ""]


def _solve(
    features: Tensor, targets: Tensor, prior: GaussianWeights, noise_scale: float | Tensor
) -> _Whitened:
    """Check the arguments of a regression and solve it in whitened weights."""
    features, targets = _checks.design(features, targets)
    if not isinstance(prior, GaussianWeights):
        raise TypeError(
            f"prior must be GaussianWeights, got {type(prior).__name__}; "
            "normal_prior(num_features, scale) makes the usual one"
        )
    _check_columns(features, prior)
    noise_scale = _checks.positive("noise_scale", noise_scale)

    num_features = features.shape[1]
    identity = torch.eye(num_features, dtype=features.dtype, device=features.device)
    matrix = torch.cat([features @ prior.scale_tril / noise_scale, identity])
    residuals = (targets - features @ prior.mean) / noise_scale
    right = torch.cat([residuals, residuals.new_zeros(num_features)])
    q, r = torch.linalg.qr(matrix)
    solution = torch.linalg.solve_triangular(r, (q.T @ right)[:, None], upper=True)[:, 0]
    return _Whitened(solution, r, ((right - matrix @ solution) ** 2).sum())


def _check_columns(features: Tensor, weights: GaussianWeights) -> None:
    if features.shape[1] != len(weights.mean):
        raise ValueError(
            f"features must have one column per weight ({len(weights.mean)}), "
            f"got shape {tuple(features.shape)}"
        )


def posterior(
    features: Float[Tensor, "points features"],
    targets: Float[Tensor, " points"],
    prior: GaussianWeights,
    noise_scale: float | Float[Tensor, ""],
) -> GaussianWeights:
    r"""The posterior of the weights, :math:`p(w \mid y) = \mathcal N(m_N, S_N)`.

    .. math::
        S_N = (S_0^{-1} + \Phi^\top \Phi / \sigma^2)^{-1}, \qquad
        m_N = S_N (S_0^{-1} m_0 + \Phi^\top y / \sigma^2) .

    A posterior is a fine prior: to see the points one after another, hand each posterior to the
    next call. The end is the same as with all points at once. Fewer points than features and
    dependent columns are no trouble: where the data are silent the prior speaks.

    Args:
        features: Design matrix :math:`\Phi`, shape ``(points, features)``.
        targets: :math:`y`, shape ``(points,)``.
        prior: :math:`\mathcal N(m_0, S_0)` over the weights.
        noise_scale: Known standard deviation :math:`\sigma` of the noise, in the unit of ``y``.

    Returns:
        The posterior, in float64.

    Raises:
        TypeError: ``features`` or ``targets`` is not a floating-point tensor, ``prior`` is not
            :class:`GaussianWeights`, or ``noise_scale`` is not a real number.
        ValueError: Shapes do not fit, values are missing or not finite, or ``noise_scale`` is not
            positive.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, equations 3.50 and 3.51.

    Example:
        >>> one = torch.ones(1, 1)
        >>> posterior(one, torch.tensor([2.0]), normal_prior(1, scale=1.0), noise_scale=1.0).mean
        tensor([1.0000], dtype=torch.float64)
    """
    solved = _solve(features, targets, prior, noise_scale)
    factor = prior.scale_tril
    mean = prior.mean + factor @ solved.solution
    root = torch.linalg.solve_triangular(solved.r, factor, upper=True, left=False)
    return GaussianWeights._from_root(mean, root)


def log_evidence(
    features: Float[Tensor, "points features"],
    targets: Float[Tensor, " points"],
    prior: GaussianWeights,
    noise_scale: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    r"""Log evidence: the log density of the targets with the weights integrated out.

    .. math::
        \log p(y) = \log \mathcal N(y \mid \Phi m_0, \; \sigma^2 I + \Phi S_0 \Phi^\top) .

    Args:
        features: Design matrix :math:`\Phi`, shape ``(points, features)``.
        targets: :math:`y`, shape ``(points,)``.
        prior: :math:`\mathcal N(m_0, S_0)` over the weights.
        noise_scale: Known standard deviation :math:`\sigma` of the noise.

    Returns:
        The log evidence in nats, a scalar.

    Raises:
        TypeError: As for :func:`posterior`.
        ValueError: As for :func:`posterior`.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, equation 3.86.

    Example:
        >>> one = torch.ones(1, 1)
        >>> log_evidence(one, torch.tensor([0.0]), normal_prior(1, scale=1.0), noise_scale=1.0)
        tensor(-1.2655, dtype=torch.float64)
    """
    solved = _solve(features, targets, prior, noise_scale)
    log_noise = math.log(_checks.positive("noise_scale", noise_scale))
    constant = len(targets) * (log_noise + 0.5 * math.log(2 * math.pi))
    return -constant - solved.r.diagonal().abs().log().sum() - 0.5 * solved.minimum


class Predictive(NamedTuple):
    """A Gaussian prediction at each input, its variance split by cause.

    Attributes:
        mean: Mean of the function and of a new observation, shape ``(points,)``.
        noise_variance: The noise of a new observation: no amount of data takes it away.
        weight_variance: What is not known about the function: more data shrink it.
    """

    mean: Float[Tensor, " points"]
    noise_variance: Float[Tensor, " points"]
    weight_variance: Float[Tensor, " points"]

    @property
    def variance(self) -> Float[Tensor, " points"]:
        """Variance of a new observation, the sum of both."""
        return self.noise_variance + self.weight_variance

    @property
    def scale(self) -> Float[Tensor, " points"]:
        """Standard deviation of a new observation."""
        return self.variance.sqrt()


def predictive(
    features: Float[Tensor, "points features"],
    weights: GaussianWeights,
    noise_scale: float | Float[Tensor, ""],
) -> Predictive:
    r"""The predictive distribution at new inputs, before or after the data.

    .. math::
        p(y_* \mid x_*) = \mathcal N\bigl(\phi_*^\top m, \;
        \underbrace{\sigma^2}_{\text{noise}} + \underbrace{\phi_*^\top S \phi_*}_{\text{weights}}
        \bigr), \qquad \phi_* = \phi(x_*) .

    Args:
        features: Features of the new inputs, shape ``(points, features)``; the same functions as
            in the fit, the constant included.
        weights: Posterior (or prior) of the weights.
        noise_scale: Standard deviation :math:`\sigma` of the noise on a new observation.

    Returns:
        Mean and both variances, each of shape ``(points,)``, float64.

    Raises:
        TypeError: ``features`` is not a floating-point tensor, ``weights`` is not
            :class:`GaussianWeights`, or ``noise_scale`` is not a real number.
        ValueError: ``features`` does not have one column per weight, is empty or not finite, or
            ``noise_scale`` is not positive.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, equations 3.58 and 3.59.

    Example:
        >>> at = predictive(torch.tensor([[1.0, 2.0]]), normal_prior(2, scale=1.0), noise_scale=2.0)
        >>> at.noise_variance, at.weight_variance
        (tensor([4.], dtype=torch.float64), tensor([5.], dtype=torch.float64))
    """
    features = _checks.array("features", features, ndim=2)
    if not isinstance(weights, GaussianWeights):
        raise TypeError(f"weights must be GaussianWeights, got {type(weights).__name__}")
    _check_columns(features, weights)
    noise_scale = _checks.positive("noise_scale", noise_scale)
    return Predictive(
        mean=features @ weights.mean,
        noise_variance=features.new_full((len(features),), noise_scale**2),
        # The diagonal of Phi S Phi^T as row norms: no points-by-points matrix.
        weight_variance=((features @ weights.scale_tril) ** 2).sum(dim=1),
    )


class EvidenceFit(NamedTuple):
    """Prior and noise scale chosen by the data.

    Attributes:
        prior_scale: Standard deviation of the prior, one for all weights.
        noise_scale: Standard deviation of the noise, in the unit of the targets.
        weights: Posterior of the weights at these two scales.
        log_evidence: The largest log evidence, in nats.
    """

    prior_scale: Float[Tensor, ""]
    noise_scale: Float[Tensor, ""]
    weights: GaussianWeights
    log_evidence: Float[Tensor, ""]


def maximize_evidence(
    features: Float[Tensor, "points features"], targets: Float[Tensor, " points"]
) -> EvidenceFit:
    r"""Choose prior and noise scale by maximum evidence (type-II maximum likelihood).

    The prior is :math:`\mathcal N(0, s^2 I)`. For a given ratio :math:`\lambda = \sigma^2 / s^2`
    the best noise is known in closed form, so that the evidence is a curve over
    :math:`\log \lambda`. It is evaluated on a grid, all points at once, which then zooms in on the
    highest one: unlike the usual fixed-point updates this cannot stop at a lower peak.

    Args:
        features: Design matrix :math:`\Phi`, shape ``(points, features)``. All columns share one
            prior: give them comparable units. To leave an intercept free, center features and
            targets instead of adding a constant column.
        targets: :math:`y`, shape ``(points,)``, at least 2.

    Returns:
        Both scales, the posterior and the log evidence, in float64.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: Shapes do not fit, values are missing or not finite, there are fewer than 2
            points, or the evidence has no maximum at positive finite scales: it grows without end
            as the noise vanishes (an exact fit), or as the prior scale does (features that tell
            nothing about the targets).

    Source:
        MacKay (1992), "Bayesian interpolation", Neural Computation 4(3); Bishop (2006), section
        3.5.

    Example:
        >>> x = torch.tensor([[-1.0], [0.0], [1.0]])
        >>> fit = maximize_evidence(x, torch.tensor([-2.1, 0.2, 2.0]))
        >>> bool(fit.noise_scale < 0.2 < fit.prior_scale)
        True
    """
    features, targets = _checks.design(features, targets)
    num_points, num_features = features.shape
    if num_points < 2:
        raise ValueError(
            f"targets must have at least 2 points to tell noise from prior, got {num_points}"
        )
    left, singular_values, _ = torch.linalg.svd(features, full_matrices=False)
    if not singular_values[0] > 0:
        raise ValueError("features must not be all zero")
    rounding = torch.finfo(features.dtype).eps * max(num_points, num_features)
    independent = singular_values > rounding * singular_values[0]
    left, squares = left[:, independent], singular_values[independent] ** 2
    projections = (left.T @ targets) ** 2
    outside = ((targets - left @ (left.T @ targets)) ** 2).sum()
    if outside < 1e-24 * (targets**2).sum():
        outside = outside.new_zeros(())  # A fit to twelve digits: what is left is rounding.

    def profile(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """The log evidence at the best noise for each ratio, and the variance of that noise."""
        shrunk = log_ratio.exp()[:, None] / (squares + log_ratio.exp()[:, None])
        variance = (outside + (shrunk * projections).sum(dim=1)) / num_points
        value = -0.5 * num_points * (torch.log(2 * math.pi * variance) + 1)
        return value + 0.5 * shrunk.log().sum(dim=1), variance

    # Beyond these ends the curve has reached its asymptotes: the prior outweighs every direction
    # above; below, what it takes from the fit is less than the smallest noise let through.
    low = float(squares[-1].log()) - 65
    high = float(squares[0].log()) + 30
    grid = torch.linspace(low, high, 1001, dtype=squares.dtype, device=squares.device)
    values, _ = profile(grid)
    best = int(values.argmax())
    margin = 1e-9 * num_points
    if not values[best] > values[0] + margin:
        raise ValueError(
            "the evidence grows as the noise vanishes: the features fit the targets (almost) "
            "exactly; use fewer features, or set noise_scale yourself"
        )
    if not values[best] > values[-1] + margin:
        raise ValueError(
            "the evidence grows as the prior scale vanishes: the features tell nothing about the "
            "targets; center them, or set the prior scale yourself"
        )
    while grid[1] - grid[0] > 1e-7:
        ends = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
        grid = torch.linspace(*ends, 101, dtype=squares.dtype, device=squares.device)
        values, variances = profile(grid)
        best = int(values.argmax())
    noise_scale = variances[best].sqrt()
    prior_scale = noise_scale * torch.exp(-0.5 * grid[best])
    prior = normal_prior(num_features, prior_scale, device=features.device)
    weights = posterior(features, targets, prior, noise_scale)
    return EvidenceFit(prior_scale, noise_scale, weights, values[best])
