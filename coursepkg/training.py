r"""Training a network's weights, or their distributions, by minibatches.

What is maximized is the ELBO, :math:`\mathbb E_q[\log p(y \mid w)] - \mathrm{KL}(q \,\|\, p)`, of
which a minibatch of B among N rows sees a part. There are two ways of writing it:

.. math::
    \frac{N}{B} \sum_{n \in \text{batch}} \log p(y_n \mid w) - \mathrm{KL}
    \qquad\text{or}\qquad
    \sum_{n \in \text{batch}} \log p(y_n \mid w) - \pi_i \, \mathrm{KL} , \quad \sum_i \pi_i = 1 .

The first is an estimate of the whole; the second adds up to the whole in an epoch. Each scales
once. Both at once is a widely copied mistake: it weighs the data as if there were many times as
many. A tempering other than one multiplies the KL, on purpose, and what comes out is not the
posterior.

Where a network's outputs have shape ``(*draws, batch, outputs)``, a *likelihood* is a function from
them to a distribution of the targets, with batch shape ``(*draws, batch)``: ``lambda outputs:
Normal(outputs[..., 0], 2.0)``, or ``lambda outputs: Categorical(logits=outputs)``.

Source:
    Graves (2011), "Practical variational inference for neural networks", NeurIPS; Blundell,
    Cornebise, Kavukcuoglu and Wierstra (2015), "Weight uncertainty in neural networks", ICML,
    section 3.4.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution
from tqdm import tqdm

from coursepkg import _checks
from coursepkg._random import global_randomness
from coursepkg.density import unvalidated
from coursepkg.layers import BayesLayer, kl_divergence, many_passes, predict

__all__ = ["History", "Likelihood", "Parts", "elbo", "fit", "kl_weights", "normal_penalty"]

Likelihood = Callable[[Tensor], Distribution]
Penalty = Callable[[nn.Module], Tensor]
Schedule = Literal["uniform", "decreasing"]
# Draws of the weights that judge a validation set.
JUDGES = 32


class Parts(NamedTuple):
    """The ELBO of one minibatch, with gradients, and what it is made of.

    Attributes:
        elbo: What to maximize: log likelihood less KL, each with its factor, in nats.
        log_likelihood: Sum over the minibatch's rows, mean over draws, without a factor.
        kl: The whole KL, or other penalty, without a factor.
    """

    elbo: Float[Tensor, ""]
    log_likelihood: Float[Tensor, ""]
    kl: Float[Tensor, ""]


def elbo(
    model: nn.Module,
    x: Float[Tensor, "batch ..."],
    y: Shaped[Tensor, "batch ..."],
    likelihood: Likelihood,
    *,
    dataset_size: int | None = None,
    kl_weight: float | None = None,
    tempering: float = 1.0,
    num_draws: int = 1,
    penalty: Penalty | None = None,
) -> Parts:
    r"""The ELBO by one minibatch, by exactly one of two factors: that of the data, or of the KL.

    .. math::
        \frac{N}{B} \sum_n \log p(y_n \mid w) - \beta \, \mathrm{KL}
        \qquad\text{or}\qquad
        \sum_n \log p(y_n \mid w) - \beta \pi_i \, \mathrm{KL}

    Args:
        model: The network.
        x: Inputs of the minibatch, a row for each of its B points.
        y: Targets, as many.
        likelihood: From the model's outputs to a distribution of the targets.
        dataset_size: N, for the first form.
        kl_weight: :math:`\pi_i`, for the second, one of :func:`kl_weights`.
        tempering: :math:`\beta`; 1 is the ELBO.
        num_draws: Draws of the weights to average over.
        penalty: From the model to nats to subtract in place of the KL; without it, the KL of the
            model's Bayesian layers, and zero where it has none.

    Returns:
        The ELBO and its parts.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Both or none of ``dataset_size`` and ``kl_weight`` are given, the former is less
            than the rows of ``x``, or the shapes of outputs and targets do not fit.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> noise = lambda outputs: torch.distributions.Normal(outputs[..., 0], 2.0)
        >>> parts = elbo(model, torch.zeros(8, 1), torch.zeros(8), noise, dataset_size=80)
        >>> bool(torch.isclose(parts.elbo, 10 * parts.log_likelihood))
        True
    """
    if (dataset_size is None) == (kl_weight is None):
        given = "neither" if dataset_size is None else "both"
        raise ValueError(
            "exactly one of dataset_size and kl_weight must be given, or the data would be "
            f"weighed twice or not at all, got {given}"
        )
    outputs = model(x) if num_draws == 1 else many_passes(model, x, num_draws)
    each = _checks.log_prob(likelihood, outputs, y)
    log_likelihood = each.sum() * (each.shape[-1] / each.numel())
    kl = (penalty or _usual_penalty(model))(model)
    if kl_weight is not None:
        return Parts(log_likelihood - tempering * kl_weight * kl, log_likelihood, kl)
    scale = _checks.count("dataset_size", dataset_size or 0, minimum=len(x)) / len(x)
    return Parts(scale * log_likelihood - tempering * kl, log_likelihood, kl)


def kl_weights(schedule: Schedule, num_batches: int) -> Float[Tensor, " batches"]:
    r"""The shares of the KL in an epoch's minibatches, which add up to one.

    .. math::
        \pi_i = \frac 1M \quad\text{(uniform)} \qquad\text{or}\qquad
        \pi_i = \frac{2^{M - i}}{2^M - 1}, \quad i = 1, \dots, M \quad\text{(decreasing)}

    Args:
        schedule: ``"uniform"`` (Graves) or ``"decreasing"`` (Blundell and others): the first
            minibatches carry nearly all of the KL, the last ones none of it.
        num_batches: M.

    Returns:
        The shares in float64, shape ``(num_batches,)``.

    Raises:
        TypeError: ``num_batches`` is not a whole number.
        ValueError: It is below 1, or the schedule is unknown.

    Source:
        Graves (2011) and Blundell et al. (2015, equation 9), as above.

    Example:
        >>> 7 * kl_weights("decreasing", 3)
        tensor([4., 2., 1.], dtype=torch.float64)
    """
    _checks.choice("schedule", schedule, ("uniform", "decreasing"))
    num_batches = _checks.count("num_batches", num_batches, minimum=1)
    i = torch.arange(1, num_batches + 1, dtype=torch.float64)
    # Halves, not doubles: 2^M is too large a number where M is a thousand.
    weights = torch.ones_like(i) if schedule == "uniform" else 0.5**i
    return weights / weights.sum()


def normal_penalty(prior_scale: float) -> Penalty:
    r"""Minus the log density of a normal prior on every parameter: with it, a fit is MAP.

    .. math::
        -\log p(w) = \sum_k \frac{w_k^2}{2 s^2} + \log s + \tfrac12 \log 2\pi

    Where parameters are stacked, as those of an ensemble, divide it by the number of members.

    Args:
        prior_scale: Standard deviation :math:`s`.

    Returns:
        A function from a model to nats, for :func:`fit`.

    Raises:
        TypeError: ``prior_scale`` is not a number.
        ValueError: It is not positive.

    Example:
        >>> penalty = normal_penalty(1.0)
        >>> bool(penalty(torch.nn.Linear(10, 1)) > penalty(torch.nn.Linear(1, 1)))
        True
    """
    prior_scale = _checks.positive("prior_scale", prior_scale)
    constant = math.log(prior_scale) + math.log(2 * math.pi) / 2

    def penalty(model: nn.Module) -> Tensor:
        weights = torch.cat([parameter.flatten() for parameter in model.parameters()])
        return weights.square().sum() / (2 * prior_scale**2) + constant * len(weights)

    return penalty


class History(NamedTuple):
    """What happened while a model was trained; each entry stands for an epoch.

    Attributes:
        elbo: Log likelihood less KL, in nats: the bound itself, whatever tempering was in the loss.
        log_likelihood: Of all rows, as the epoch's minibatches met them.
        kl: The KL, or other penalty, at the epoch's last step.
        validation: Log predictive density of a validation row, mean over rows; empty without them.
        best_epoch: The epoch whose weights the model has now: that of the highest validation where
            ``patience`` was asked for, else the last.
    """

    elbo: Float[Tensor, " epochs"]
    log_likelihood: Float[Tensor, " epochs"]
    kl: Float[Tensor, " epochs"]
    validation: Float[Tensor, " judged"]
    best_epoch: int


def adam(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Adam with the learning rate that a fit starts from if it is not told another."""
    # Fused: all parameters in one call, a good part of a step on a small network.
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


def fit(
    model: nn.Module,
    x: Float[Tensor, "points ..."],
    y: Shaped[Tensor, "points ..."],
    likelihood: Likelihood,
    *,
    num_epochs: int = 200,
    batch_size: int | None = None,
    schedule: Schedule | None = None,
    tempering: float = 1.0,
    num_draws: int = 1,
    penalty: Penalty | None = None,
    make_optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] = adam,
    decay: bool = True,
    validation: tuple[Tensor, Tensor] | None = None,
    patience: int | None = None,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> History:
    """Maximize the ELBO of a model, Bayesian or not, in place.

    Without Bayesian layers and without a penalty this is maximum likelihood; with
    :func:`normal_penalty` it is MAP; with Bayesian layers it is Bayes by Backprop.

    Args:
        model: The network; it is in training mode meanwhile.
        x: Inputs, a row for each of the N points.
        y: Targets, as many.
        likelihood: From the model's outputs to a distribution of the targets.
        num_epochs: How often to go through the data.
        batch_size: Rows of a minibatch; all of them where it is ``None``.
        schedule: ``None`` scales each minibatch's log likelihood up to the N points and subtracts
            the whole KL. A schedule of :func:`kl_weights` scales nothing and shares the KL out;
            its gradients are smaller by as many times as there are minibatches.
        tempering: A factor on the KL; 1 is the ELBO.
        num_draws: Draws of the weights in each step.
        penalty: From the model to nats, in place of the KL; see :func:`elbo`.
        make_optimizer: Takes the parameters, returns an optimizer of torch.
        decay: Whether the learning rate falls to zero along a cosine.
        validation: Inputs and targets on which to judge the model after each epoch.
        patience: Stop after so many epochs in which validation was not better than before, and go
            back to the best weights. Needs ``validation``.
        drop_last: Whether to leave out the rows of each epoch that do not fill a minibatch, others
            each time.
        generator: Source of randomness of order and noise; torch's global one where it is ``None``.
        progress: Whether to show a progress bar.

    Returns:
        The history; the model is trained.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Shapes or dtypes do not fit, or a number is out of range.
        RuntimeError: The ELBO is no longer finite.

    Warns:
        UserWarning: ``drop_last`` leaves rows out.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> model = torch.nn.Linear(1, 1)
        >>> noise = lambda outputs: torch.distributions.Normal(outputs[..., 0], 1.0)
        >>> history = fit(model, x, 3 * x[:, 0], noise, batch_size=5, progress=False)
        >>> round(model.weight.item(), 1)
        3.0
    """
    num_epochs = _checks.count("num_epochs", num_epochs, minimum=1)
    num_draws = _checks.count("num_draws", num_draws, minimum=1)
    if _checks.scalar("tempering", tempering) < 0:
        raise ValueError(f"tempering must not be negative, got {tempering}")
    _checks.generator_or_none(generator)
    check_rows(model, x, y, "x", "y")
    if validation is not None:
        check_rows(model, *validation, "validation[0]", "validation[1]")
    if patience is not None:
        _checks.count("patience", patience, minimum=1)
        if validation is None:
            raise ValueError("patience needs validation, rows on which to judge, got None")
    size = len(x) if batch_size is None else _checks.count("batch_size", batch_size, minimum=1)
    used = len(x) - len(x) % size if drop_last else len(x)
    if not used:
        raise ValueError(f"batch_size must be at most {len(x)} with drop_last, got {size}")
    if used < len(x):
        warnings.warn(
            f"drop_last leaves out {len(x) - used} of {len(x)} rows in each epoch", stacklevel=2
        )
    num_batches = math.ceil(used / size)
    shares = kl_weights(schedule, num_batches).tolist() if schedule else [None] * num_batches
    optimizer = make_optimizer(list(model.parameters()))
    if not isinstance(optimizer, torch.optim.Optimizer):
        got = type(optimizer).__name__
        raise TypeError(f"make_optimizer must return a torch.optim.Optimizer, got {got}")
    cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: (1 + math.cos(math.pi * epoch / num_epochs)) / 2 if decay else 1.0
    )
    each = partial(
        elbo,
        model,
        likelihood=likelihood,
        tempering=tempering,
        num_draws=num_draws,
        penalty=penalty or _usual_penalty(model),
    )
    epochs: list[Tensor] = []
    judged: list[float] = []
    best, best_state = -1, {}
    was_training = model.training
    bar = tqdm(range(num_epochs), "fit", delay=1, leave=False, disable=None if progress else True)
    with global_randomness(generator):
        # Distributions check every target here, once: not in every step.
        with torch.no_grad():
            for xs, ys in zip(x.split(size), y.split(size), strict=True):
                _checks.log_prob(likelihood, model.eval()(xs), ys)
        for epoch in bar:
            model.train()
            order = torch.randperm(len(x), device=x.device)[:used]
            minibatches = zip(x[order].split(size), y[order].split(size), shares, strict=True)
            with unvalidated():
                log_likelihood, kl = _epoch(each, minibatches, optimizer, len(x))
            cosine.step()
            epochs.append(torch.stack([log_likelihood * (len(x) / used), kl]))
            if not torch.isfinite(epochs[-1]).all():
                raise RuntimeError(
                    f"the fit diverged: in epoch {epoch} the log likelihood was "
                    f"{float(log_likelihood):.3g} and the KL {float(kl):.3g}. Lower the "
                    "optimizer's learning rate, or scale the data"
                )
            if validation is not None:
                judged.append(_judge(model, *validation, likelihood))
            if patience is not None:
                if judged[-1] == max(judged):
                    best, best_state = epoch, copy.deepcopy(model.state_dict())
                elif epoch - best >= patience:
                    break
    if patience is not None:
        model.load_state_dict(best_state)
    model.train(was_training)
    log_likelihoods, kls = torch.stack(epochs).T
    bounds = log_likelihoods - kls
    reached = best if patience is not None else num_epochs - 1
    return History(bounds, log_likelihoods, kls, torch.tensor(judged), reached)


def _epoch(
    each: Callable[..., Parts],
    minibatches: Iterable[tuple[Tensor, Tensor, float | None]],
    optimizer: torch.optim.Optimizer,
    num_points: int,
) -> tuple[Tensor, Tensor]:
    """A step for each minibatch; return the log likelihood of all of them, and the last KL."""
    total = torch.zeros(())
    for x, y, share in minibatches:
        dataset_size = num_points if share is None else None
        parts = each(x=x, y=y, dataset_size=dataset_size, kl_weight=share)
        optimizer.zero_grad()
        (-parts.elbo).backward()
        optimizer.step()
        total = total + parts.log_likelihood.detach()
    return total, parts.kl.detach()


@torch.no_grad()
def _judge(model: nn.Module, x: Tensor, y: Tensor, likelihood: Likelihood) -> float:
    """Log predictive density of a row, mean over rows."""
    outputs = predict(model, x, JUDGES) if _is_bayesian(model) else model.eval()(x)
    each = _checks.log_prob(likelihood, outputs, y).reshape(-1, len(y))
    return float((each.logsumexp(dim=0) - math.log(len(each))).mean())


def _usual_penalty(model: nn.Module) -> Penalty:
    """The KL of a model's Bayesian layers, zero where it has none."""
    return kl_divergence if _is_bayesian(model) else lambda _: torch.zeros(())


def _is_bayesian(model: nn.Module) -> bool:
    return any(isinstance(module, BayesLayer) for module in model.modules())


def check_rows(model: nn.Module, x: Tensor, y: Tensor, x_name: str, y_name: str) -> None:
    """Inputs and targets that go together, and go with the model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _checks.array(x_name, x)
    if not isinstance(y, Tensor):
        raise TypeError(f"{y_name} must be a torch.Tensor, got {type(y).__name__}")
    if y.is_floating_point():
        _checks.array(y_name, y)
    if x.shape[:1] != y.shape[:1]:
        raise ValueError(
            f"{x_name} and {y_name} must have as many rows, got shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError("model must have parameters to train, got none")
    for name, value in ((x_name, x), (y_name, y)):
        if value.is_floating_point() and value.dtype != parameter.dtype:
            raise ValueError(
                f"{name} must have the model's dtype, {parameter.dtype}, got {value.dtype}; "
                "model.double() or .float() converts either"
            )
