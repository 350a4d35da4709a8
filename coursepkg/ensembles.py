r"""Deep ensembles: several networks from different starts, trained and evaluated as one module.

Nothing ties the members to a posterior: each one finds an optimum of its own, and where they
disagree, the data have not decided. They predict as a mixture,

.. math::
    p(y \mid x) = \frac 1M \sum_{m = 1}^M p(y \mid f_m(x)) .

Their weights are stacked, so that a training step for all of them is one operation on larger
tensors, not a loop.

Source:
    Lakshminarayanan, Pritzel and Blundell (2017), "Simple and scalable predictive uncertainty
    estimation using deep ensembles", NeurIPS.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from coursepkg import _checks
from coursepkg._random import normal
from coursepkg.layers import BayesLayer

__all__ = ["Ensemble", "anchored_penalty"]


class Ensemble(nn.Module):
    """Equally built networks as one module, whose outputs have a dimension for the members first.

    ``training.fit(Ensemble(members), x, y, likelihood)`` trains all of them at once: the log
    likelihood is a mean over members, so that each one's gradient is its own, divided by their
    number, which Adam does not notice. All see the same minibatches. A penalty on the weights adds
    up over the members: divide it by ``len(ensemble)``.

    Each member draws its own dropout masks and keeps its own averages of batch normalization.

    Args:
        members: Networks that differ in nothing but their numbers; they are copied.
        own_inputs: Whether each member has inputs of its own.

    Attributes:
        member: A member whose parameters are those of all, stacked: it cannot be called itself.

    Raises:
        TypeError: ``members`` holds something else than modules.
        ValueError: There are none, they are built differently, have Bayesian layers, or have no
            parameters.

    Example:
        >>> ensemble = Ensemble(nn.Linear(2, 1) for _ in range(5))
        >>> ensemble(torch.zeros(7, 2)).shape, len(ensemble)
        (torch.Size([5, 7, 1]), 5)
    """

    def __init__(self, members: Iterable[nn.Module], *, own_inputs: bool = False) -> None:
        super().__init__()
        members = list(members)
        _check_members(members)
        self.size, self.own_inputs = len(members), own_inputs
        parameters, buffers = stack_module_state(members)
        self.member = copy.deepcopy(members[0])
        for name, parameter in self.member.named_parameters():
            parameter.data = parameters[name].detach()
        for name, buffer in self.member.named_buffers():
            buffer.data = buffers[name]

    def __len__(self) -> int:
        """How many members there are."""
        return self.size

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "members batch ..."]:
        """Evaluate every member.

        Args:
            x: Inputs, shape ``(batch, …)``, the same for all members, or ``(members, batch, …)``
                with ``own_inputs``.

        Raises:
            ValueError: With ``own_inputs``, the first dimension of ``x`` is not the members'.
        """
        if self.own_inputs and x.shape[:1] != (self.size,):
            raise ValueError(
                f"x must have shape ({self.size}, batch, …), inputs for each member, got "
                f"{tuple(x.shape)}"
            )
        numbers = dict(self.member.named_parameters()) | dict(self.member.named_buffers())
        in_dims = (None, 0, 0 if self.own_inputs else None)
        evaluate = torch.vmap(functional_call, in_dims=in_dims, randomness="different")
        return evaluate(self.member, numbers, x)


def anchored_penalty(
    ensemble: Ensemble, prior_scale: float, *, generator: torch.Generator | None = None
) -> Callable[[nn.Module], Tensor]:
    r"""Pull each member towards a draw from the prior of its own: its weights' anchor.

    .. math::
        -\frac 1M \sum_m \log \mathcal N(w_m \mid a_m, s^2 I) , \qquad a_m \sim \mathcal N(0, s^2 I)

    With a prior around zero all members are pulled to the same place, and agree where there are no
    data. With anchors they disagree there as much as the prior does. If the targets of each member
    had noise of their own as well, a linear model's members would be exact draws from its
    posterior; without it they are closer together than the posterior, near the data.

    Args:
        ensemble: The members, for their number and the shapes of their weights.
        prior_scale: Standard deviation :math:`s` of the prior.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        A penalty for ``training.fit``: from the ensemble to nats, the mean over members.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``prior_scale`` is not positive.

    Source:
        Pearce, Leibfried and Brintrup (2020), "Uncertainty in neural networks: approximately
        Bayesian ensembling", AISTATS.

    Example:
        >>> ensemble = Ensemble(nn.Linear(2, 1) for _ in range(5))
        >>> penalty = anchored_penalty(ensemble, prior_scale=1.0)
        >>> penalty(ensemble).shape
        torch.Size([])
    """
    if not isinstance(ensemble, Ensemble):
        raise TypeError(f"ensemble must be an Ensemble, got {type(ensemble).__name__}")
    prior_scale = _checks.positive("prior_scale", prior_scale)
    _checks.generator_or_none(generator)
    weights = nn.utils.parameters_to_vector(ensemble.parameters()).detach()
    anchors = prior_scale * normal(weights.shape, weights, generator)
    constant = len(anchors) * (math.log(prior_scale) + math.log(2 * math.pi) / 2)

    def penalty(model: nn.Module) -> Tensor:
        offsets = nn.utils.parameters_to_vector(model.parameters()) - anchors
        return (offsets.square().sum() / (2 * prior_scale**2) + constant) / len(ensemble)

    return penalty


def _check_members(members: list[nn.Module]) -> None:
    if not members:
        raise ValueError("members must be at least one network, got none")
    for number, member in enumerate(members):
        if not isinstance(member, nn.Module):
            raise TypeError(
                f"members must be torch.nn.Modules, got {type(member).__name__} at {number}"
            )
        if next(member.parameters(), None) is None:
            raise ValueError(f"members must have parameters, got {member} at {number}")
        if any(isinstance(module, BayesLayer) for module in member.modules()):
            raise ValueError(
                f"members must have plain layers, got Bayesian ones at {number}: their KLs would "
                "add up while log likelihoods are averaged"
            )
        # Only the first one's forward pass is run: another activation would go unnoticed.
        if _build(member) != _build(members[0]):
            raise ValueError(
                f"members must be built alike, got {members[0]} and, at {number}, {member}"
            )


def _build(member: nn.Module) -> tuple[object, ...]:
    """What a module is, beside its numbers."""
    state = member.state_dict()
    sizes = {name: (value.shape, value.dtype) for name, value in state.items()}
    return type(member), repr(member), sizes
