r"""Dropout as a guide: keep it switched on after training, and each mask is a draw of a network.

Dropout multiplies each input of a layer by a mask, 0 with probability :math:`r` (the rate) and
:math:`1 / (1 - r)` otherwise. A mask on a layer's inputs is a mask on the columns of its weights,
so that a trained network with dropout is a distribution over networks: of the columns
:math:`m_k = w_k / (1 - r)`, where :math:`w_k` are the weights as torch stores them, each is kept
with probability :math:`1 - r` and zero otherwise. Against the prior
:math:`\mathcal N(0, 1 / \ell^2)` of each weight, where :math:`\ell` is the prior length scale, the
divergence is, up to a constant,

.. math::
    \mathrm{KL} = \sum_k \frac{1 - r}{2}\, \ell^2 \lVert m_k \rVert^2 - K H(r)
    = \frac{\ell^2 \lVert W \rVert^2}{2 (1 - r)} - K H(r) , \qquad
    H(r) = -r \log r - (1 - r) \log(1 - r) ,

with :math:`K` inputs. The constant depends on nothing but the number of weights, and is infinite:
single points have no density. Differences between rates and weights are what counts.

Source:
    Gal and Ghahramani (2016), "Dropout as a Bayesian approximation: representing model uncertainty
    in deep learning", ICML, with its appendix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from coursepkg import _checks
from coursepkg.layers import many_passes

__all__ = ["ConcreteDropout", "kl", "mc_dropout", "precision", "predict", "weight_decay"]

# How sharp the masks of concrete dropout are: nearly 0 or 1, and still with a slope.
TEMPERATURE = 0.1
Layer = nn.Linear | nn.Conv1d | nn.Conv2d
# The dropout that drops whole inputs of a layer: columns of its weights.
PLAIN = ((nn.Linear, nn.Dropout), (nn.Conv1d, nn.Dropout1d), (nn.Conv2d, nn.Dropout2d))


class ConcreteDropout(nn.Module):
    r"""A layer with dropout on its inputs, whose rate is learned.

    A mask of zeros and ones has no slope in the rate :math:`r`. In training it is therefore relaxed
    to :math:`1 - z` with

    .. math::
        z = \operatorname{sigmoid}\Bigl(
            \frac{\operatorname{logit} r + \operatorname{logit} u}{t} \Bigr) ,
        \qquad u \sim \mathcal U(0, 1) ,

    which is above one half with probability :math:`r`, and goes to 0 or 1 as the temperature
    :math:`t` goes to 0; it is 0.1 here. In evaluation nothing is dropped. The noise comes from
    torch's global source of randomness.

    Args:
        layer: A linear or convolutional layer. Of a convolution's inputs, channels are dropped.
        initial_rate: The rate to start from, between 0 and 1.

    Attributes:
        layer: The layer.
        logit: The parameter that is learned, :math:`\operatorname{logit} r`.

    Raises:
        TypeError: ``layer`` is of another kind, or ``initial_rate`` not a number.
        ValueError: ``initial_rate`` is not between 0 and 1.

    Source:
        Gal, Hron and Kendall (2017), "Concrete dropout", NeurIPS.

    Example:
        >>> layer = ConcreteDropout(nn.Linear(3, 2), initial_rate=0.2)
        >>> layer(torch.zeros(7, 3)).shape, f"{layer.rate:.1f}"
        (torch.Size([7, 2]), '0.2')
    """

    inplace = False  # as the other dropout modules have it

    def __init__(self, layer: Layer, initial_rate: float = 0.1) -> None:
        super().__init__()
        if not isinstance(layer, Layer):
            raise TypeError(
                f"layer must be a Linear, Conv1d or Conv2d layer, got {type(layer).__name__}"
            )
        rate = _checks.inside("initial_rate", initial_rate)
        self.layer = layer
        self.logit = nn.Parameter(layer.weight.new_tensor(math.log(rate) - math.log1p(-rate)))

    @property
    def rate(self) -> Float[Tensor, ""]:
        """Probability that an input is dropped."""
        return self.logit.sigmoid()

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The layer's outputs, in training with inputs dropped."""
        if self.training:
            positions = self.layer.weight.ndim - 2  # of a convolution
            shape = x.shape[: x.ndim - positions] + (1,) * positions
            noise = torch.rand(shape, dtype=x.dtype, device=x.device).logit()
            # sigmoid(-a) is 1 - sigmoid(a), here 1 - z and, in the next line, one minus the rate.
            kept = ((self.logit + noise) / -TEMPERATURE).sigmoid()
            x = x * kept / (-self.logit).sigmoid()
        outputs: Tensor = self.layer(x)
        return outputs


Dropout = (
    nn.Dropout
    | nn.Dropout1d
    | nn.Dropout2d
    | nn.Dropout3d
    | nn.AlphaDropout
    | nn.FeatureAlphaDropout
    | ConcreteDropout
)


@contextmanager
def mc_dropout(model: nn.Module) -> Iterator[None]:
    """Switch dropout on, and all else to evaluation: BatchNorm keeps its averages, and uses them.

    ``model.train()`` would switch on both. Afterwards each module has its own mode again.

    Args:
        model: A network with dropout modules.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: It has no dropout module with a rate above 0; or it has dropout that is not a
            module, as ``nn.LSTM`` and ``nn.MultiheadAttention`` have, which cannot be switched on.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 20), nn.BatchNorm1d(20), nn.Dropout(0.5))
        >>> with mc_dropout(model):
        ...     print([module.training for module in model])
        [False, False, True]
    """
    dropouts = _dropouts(model)
    modes = {module: module.training for module in model.modules()}
    # In place, a draw would leave its holes to the next one, and to the caller's input.
    in_place = [module.inplace for module in dropouts]
    model.eval()
    for module in dropouts:
        module.training, module.inplace = True, False
    try:
        yield
    finally:
        for module, inside in zip(dropouts, in_place, strict=True):
            module.inplace = inside
        for each, mode in modes.items():
            each.training = mode


@torch.no_grad()
def predict(
    model: nn.Module,
    x: Float[Tensor, "batch ..."],
    num_draws: int = 100,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "draws batch ..."]:
    """Outputs of networks drawn by dropout: one mask a draw for all rows, all draws at once.

    In a forward pass each row has a mask of its own, and with it a network of its own. Here each
    draw is one function. Rows go through the network as batches of one.

    Args:
        model: A network with dropout modules, whose first dimension is the batch.
        x: Inputs, as for :func:`coursepkg.layers.predict`, and so are the others and the result.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``num_draws`` is below 1; or as for :func:`mc_dropout`.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Dropout(0.2), nn.Linear(20, 1))
        >>> draws = predict(model, torch.zeros(2, 1), num_draws=5)
        >>> draws.shape, torch.allclose(draws[:, 0], draws[:, 1])  # the same input, the same output
        (torch.Size([5, 2, 1]), True)
    """

    def row(x: Tensor) -> Tensor:
        outputs: Tensor = model(x[None])
        return outputs[0]

    function = torch.vmap(row, randomness="same")
    with mc_dropout(model):
        return many_passes(function, x, num_draws, generator=generator)


def weight_decay(length_scale: float, rate: float, dataset_size: int, precision: float) -> float:
    r"""The weight decay that a prior on weights asks for, as torch's optimizers take it.

    .. math::
        \texttt{weight\_decay} = \frac{\ell^2}{(1 - r)\, N\, \tau} \qquad \text{beside the loss}
        \qquad \frac{1}{N} \sum_n \frac{1}{2} (y_n - f(x_n))^2 .

    An optimizer adds ``weight_decay`` times the weights to the gradient: half of it times the
    squared weights to the loss. Where the loss is a mean without the half, as of ``nn.MSELoss``,
    double it; where it is the mean of a negative log likelihood, set the precision to 1. In the
    paper, where dropout does not divide by :math:`1 - r`, the mean of half squared errors stands
    beside :math:`\lambda \lVert M \rVert^2` with :math:`\lambda = (1 - r) \ell^2 / (2 N \tau)` and
    :math:`M = W / (1 - r)`: the same.

    Args:
        length_scale: Prior length scale :math:`\ell`: each weight has the prior standard deviation
            :math:`1 / \ell` before masks.
        rate: Rate :math:`r` of the dropout on the layer's inputs; 0 without, and for biases.
        dataset_size: Number of points :math:`N` in the whole data set.
        precision: Precision of the noise :math:`\tau`, one over its variance.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The rate is not from 0 to below 1, or another number is not positive.

    Source:
        Gal and Ghahramani (2016), as above, equation 7, solved for the weight decay.

    Example:
        >>> weight_decay(length_scale=1.0, rate=0.2, dataset_size=100, precision=0.25)
        0.05
    """
    noise = _checks.positive("precision", precision)
    return _prior_precision(length_scale, rate, dataset_size) / noise


def precision(length_scale: float, rate: float, dataset_size: int, weight_decay: float) -> float:
    r"""The noise that a weight decay takes for granted: the inverse of :func:`weight_decay`.

    .. math::
        \tau = \frac{\ell^2}{(1 - r)\, N \cdot \texttt{weight\_decay}}

    Who trains with a fixed weight decay and a fixed length scale has said how large the noise is,
    :math:`\tau^{-1/2}`, knowingly or not.

    Args:
        length_scale: As for :func:`weight_decay`, and so are the two after it.
        weight_decay: As torch's optimizers take it, beside a mean of half squared errors.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: As for :func:`weight_decay`.

    Example:
        >>> precision(length_scale=1.0, rate=0.2, dataset_size=100, weight_decay=0.05)
        0.25
    """
    decay = _checks.positive("weight_decay", weight_decay)
    return _prior_precision(length_scale, rate, dataset_size) / decay


def kl(model: nn.Module, length_scale: float = 1.0) -> Float[Tensor, ""]:
    r"""The divergence of a network with dropout from its prior, in nats, but for a constant.

    It is the penalty for ``training.fit``: ``penalty=lambda model: dropout.kl(model)``. It keeps
    rates that are learned from going to zero. Each linear and convolutional layer counts, by the
    formula at the top of this module with the rate on its inputs: its own in
    :class:`ConcreteDropout`, that of the dropout module before it in ``nn.Sequential``, or 0. A
    bias is a weight that is never dropped.

    Args:
        model: A network of such layers.
        length_scale: Prior length scale :math:`\ell`, one over the prior standard deviation.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``length_scale`` is not positive, the network has no dropout, or it has some
            that is not right before the layer whose inputs it drops: ``nn.Dropout`` before
            ``nn.Linear``, ``nn.Dropout2d`` before ``nn.Conv2d``, and so on.

    Source:
        Gal, Hron and Kendall (2017), "Concrete dropout", NeurIPS.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(layer.weight)
        >>> f"{kl(nn.Sequential(nn.Dropout(0.5), layer)):.4f}"  # 2 / (2 · 0.5) - 2 log 2
        '0.6137'
    """
    length_scale = _checks.positive("length_scale", length_scale)
    rates = _rates(model)
    total = []
    for layer in model.modules():
        if isinstance(layer, Layer):
            weight = layer.weight
            rate = rates.get(layer, 0.0) * weight.new_ones(())
            entropy = torch.special.entr(rate) + torch.special.entr(1 - rate)
            total.append(length_scale**2 * weight.square().sum() / (2 * (1 - rate)))
            total.append(-weight.shape[1] * getattr(layer, "groups", 1) * entropy)
            if layer.bias is not None:
                total.append(length_scale**2 * layer.bias.square().sum() / 2)
    return torch.stack(total).sum()


def _prior_precision(length_scale: float, rate: float, dataset_size: int) -> float:
    """What stands above the fraction line, a point."""
    length_scale = _checks.positive("length_scale", length_scale)
    rate = _checks.scalar("rate", rate)
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be at least 0 and below 1, got {rate}")
    return length_scale**2 / ((1 - rate) * _checks.count("dataset_size", dataset_size, minimum=1))


def _dropouts(model: nn.Module) -> list[Dropout]:
    """The dropout modules of a model, each once; an error where there is nothing to switch on."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0:
            raise ValueError(
                f"model must have its dropout in modules of their own, got a "
                f"{type(module).__name__} that drops out inside itself"
            )
    found = [module for module in model.modules() if isinstance(module, Dropout)]
    if not any(isinstance(module, ConcreteDropout) or module.p > 0 for module in found):
        raise ValueError(
            f"model must have a dropout module with a rate above 0, got {len(found)} dropout "
            f"module(s) in a {type(model).__name__}"
        )
    return found


def _rates(model: nn.Module) -> dict[nn.Module, Any]:
    """The rate of the dropout on each layer's inputs."""
    rates: dict[nn.Module, Any] = {}
    unclear = set(_dropouts(model))
    for module in model.modules():
        if isinstance(module, ConcreteDropout):
            rates[module.layer] = module.rate
            unclear.discard(module)
        elif isinstance(module, nn.Sequential):
            for before, layer in pairwise(module):
                if any(isinstance(layer, a) and isinstance(before, b) for a, b in PLAIN):
                    rates[layer] = before.p
                    unclear.discard(before)
    if unclear:
        kinds = ", ".join(sorted({type(module).__name__ for module in unclear}))
        raise ValueError(
            f"model must have each dropout module right before the layer whose inputs it drops, in "
            f"nn.Sequential (nn.Dropout before nn.Linear, nn.Dropout2d before nn.Conv2d), or be "
            f"made of ConcreteDropout layers; got {kinds} elsewhere"
        )
    return rates
