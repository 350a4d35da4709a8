r"""Langevin kernels that never refuse: with the whole gradient, or with that of a minibatch (SGLD).

With :math:`\varepsilon` the step size and :math:`g` the gradient of the log density, or an unbiased
estimate of it, each step is

.. math::
    \theta' = \theta + \tfrac{\varepsilon}{2}\, g(\theta) + \sqrt{\varepsilon}\, \eta ,
    \qquad \eta \sim \mathcal N(0, I) ,

so that the noise has *variance* :math:`\varepsilon`. As :math:`\varepsilon \to 0` the draws become
those of the target. At any other step size they are draws of something else, mostly of something
wider, and no refusal corrects it. (One leapfrog step of :func:`coursepkg.hmc.hmc` with step size
:math:`\sqrt\varepsilon` proposes the same move, and may refuse it.)

Source:
    Welling and Teh (2011), "Bayesian learning via stochastic gradient Langevin dynamics",
    International Conference on Machine Learning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coursepkg import _checks
from coursepkg.density import LogDensity, value_and_grad
from coursepkg.mcmc import Info, State, normal_like

__all__ = ["Langevin", "Minibatch", "sgld", "unadjusted_langevin"]

Estimate = Callable[[Tensor, torch.Generator | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Langevin:
    """The kernel that :func:`unadjusted_langevin` and :func:`sgld` make.

    Attributes:
        estimate: Takes positions and a generator; returns log densities and gradients there, or
            unbiased estimates of them.
        step_size: Variance of the noise of a step.
    """

    estimate: Estimate
    step_size: float

    def init(self, position: Float[Tensor, "chains dim"]) -> State:
        """Evaluate the density at the positions, for a minibatch on any one."""
        generator = torch.Generator(position.device).manual_seed(0)
        return State(position, self.estimate(position, generator)[0])

    def step(self, state: State, *, generator: torch.Generator | None = None) -> tuple[State, Info]:
        """Follow the gradient half a step, and add noise; the log density is that of before."""
        log_density, gradient = self.estimate(state.position, generator)
        noise = normal_like(state.position, generator)
        drift = self.step_size / 2 * gradient
        position = state.position + drift + self.step_size**0.5 * noise
        info = Info(log_density, torch.ones_like(log_density))
        return State(position, log_density), info

    def warm_up(
        self,
        state: State,
        num_steps: int,
        *,
        generator: torch.Generator | None = None,
        tick: Callable[[], object] = lambda: None,
    ) -> tuple[Langevin, State]:
        """Move the chains; there is nothing to tune."""
        for _ in range(num_steps):
            state, _ = self.step(state, generator=generator)
            tick()
        return self, state


@dataclass(frozen=True)
class Minibatch:
    r"""The log joint density and its gradient, from a minibatch of each chain's own.

    .. math::
        \log p(\theta) + \frac{N}{B} \sum_{n \in \text{batch}} \log p(y_n \mid \theta)

    It is unbiased, and only here is anything scaled.

    Attributes:
        log_prior: As for :func:`sgld`.
        log_likelihood: As for :func:`sgld`.
        dataset_size: :math:`N`.
        batch_size: :math:`B`.
    """

    log_prior: LogDensity
    log_likelihood: Callable[[Tensor, Tensor], Tensor]
    dataset_size: int
    batch_size: int

    def __call__(
        self, theta: Float[Tensor, "chains dim"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, " chains"], Float[Tensor, "chains dim"]]:
        """Draw minibatches, with replacement, and estimate from them."""
        shape = (len(theta), self.batch_size)
        rows = torch.randint(self.dataset_size, shape, generator=generator, device=theta.device)
        return value_and_grad(lambda theta: self._log_joint(theta, rows), theta)

    def _log_joint(self, theta: Tensor, rows: Int[Tensor, "chains batch"]) -> Tensor:
        terms = self.log_likelihood(theta, rows)
        if not isinstance(terms, Tensor) or terms.shape != rows.shape:
            got = tuple(terms.shape) if isinstance(terms, Tensor) else type(terms).__name__
            raise ValueError(
                "log_likelihood must return one value for each chain and row, a tensor of shape "
                f"{tuple(rows.shape)}, got {got}; do not sum over the rows, and do not scale"
            )
        return self.log_prior(theta) + self.dataset_size * terms.mean(dim=-1)


def unadjusted_langevin(log_density: LogDensity, step_size: float) -> Langevin:
    r"""Langevin dynamics in steps, without a correction for their size.

    On a Gaussian target of precision :math:`\lambda` the mean is right, and the variance is

    .. math::
        \frac{1}{\lambda} \cdot \frac{1}{1 - \varepsilon \lambda / 4} ,

    without any bound from :math:`\varepsilon = 4 / \lambda` on.

    Args:
        log_density: The target.
        step_size: :math:`\varepsilon`, the variance of the noise, in squared units of the
            parameters.

    Returns:
        A kernel for :func:`coursepkg.mcmc.sample`.

    Raises:
        TypeError: ``log_density`` cannot be called, or ``step_size`` is not a number.
        ValueError: ``step_size`` is not positive.

    Source:
        Roberts and Tweedie (1996), "Exponential convergence of Langevin distributions and their
        discrete approximations", Bernoulli 2(4).

    Example:
        >>> from coursepkg.mcmc import sample
        >>> kernel = unadjusted_langevin(lambda theta: -theta.square().sum(-1) / 2, step_size=0.1)
        >>> sample(kernel, torch.zeros(4, 2), num_draws=100, progress=False).draws.shape
        torch.Size([4, 100, 2])
    """
    _checks.function("log_density", log_density)
    step_size = _checks.positive("step_size", step_size)
    return Langevin(lambda theta, _: value_and_grad(log_density, theta), step_size)


def sgld(
    log_prior: LogDensity,
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    *,
    dataset_size: int,
    batch_size: int,
    step_size: float,
) -> Langevin:
    r"""Stochastic gradient Langevin dynamics: a step sees a minibatch of the data and no more.

    The noise of the minibatch comes on top of the noise that belongs there. If it gives the
    gradient the variance :math:`v`, then on a Gaussian posterior of precision :math:`\lambda` the
    mean is right, and the variance is

    .. math::
        \frac{1}{\lambda} \cdot \frac{1 + \varepsilon v / 4}{1 - \varepsilon \lambda / 4} .

    Args:
        log_prior: Log density of the parameters before any data, from ``(chains, dim)`` to
            ``(chains,)``.
        log_likelihood: Takes parameters of shape ``(chains, dim)`` and row numbers of shape
            ``(chains, batch_size)``, and returns the log probability of each of these data points,
            in the same shape: not summed, not scaled. The kernel scales, once.
        dataset_size: How many data points there are, :math:`N`.
        batch_size: How many of them a step sees, :math:`B`, drawn with replacement and anew for
            each chain.
        step_size: :math:`\varepsilon`, the variance of the noise, in squared units of the
            parameters.

    Returns:
        A kernel for :func:`coursepkg.mcmc.sample`. Its log densities are estimates.

    Raises:
        TypeError: A function cannot be called, or a number is of the wrong kind.
        ValueError: A number is not positive; later, ``log_likelihood`` does not return one value
            for each chain and row.

    Source:
        Welling and Teh (2011), as above, equation 4, at a constant step size.

    Example:
        >>> from coursepkg.mcmc import sample
        >>> y = torch.randn(100, generator=torch.Generator().manual_seed(0))
        >>> kernel = sgld(
        ...     lambda theta: -theta.square().sum(-1) / 2,
        ...     lambda theta, rows: -(y[rows] - theta).square() / 2,
        ...     dataset_size=100, batch_size=10, step_size=0.001,
        ... )
        >>> sample(kernel, torch.zeros(4, 1), num_draws=50, progress=False).draws.shape
        torch.Size([4, 50, 1])
    """
    _checks.function("log_prior", log_prior)
    _checks.function("log_likelihood", log_likelihood)
    dataset_size = _checks.count("dataset_size", dataset_size, minimum=1)
    batch_size = _checks.count("batch_size", batch_size, minimum=1)
    step_size = _checks.positive("step_size", step_size)
    return Langevin(Minibatch(log_prior, log_likelihood, dataset_size, batch_size), step_size)
