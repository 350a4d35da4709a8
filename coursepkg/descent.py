"""Minimizing the mean of a loss over the rows of a data set, by minibatches.

One loop for whatever is trained row by row: autoencoders, variational or not, and diffusion models.
(:func:`coursepkg.training.fit` is for weights that are themselves random: there the KL is one for
the whole data set, here each row has its own.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm import tqdm

from coursepkg import _checks
from coursepkg.density import unvalidated

__all__ = ["adam", "minimize"]


def adam(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Adam at its usual learning rate; fused, which saves a good part of a step."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def minimize(
    parts: Callable[..., Float[Tensor, " parts"]],
    parameters: Iterable[Tensor],
    data: tuple[Shaped[Tensor, "rows ..."], ...],
    *,
    num_epochs: int,
    batch_size: int = 128,
    make_optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] = adam,
    decay: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Float[Tensor, "epochs parts"]:
    """Move parameters, in place, to where a loss is small.

    Args:
        parts: Called as ``parts(epoch, *minibatch)``; returns means over the minibatch's rows. The
            first of them is minimized, the others are recorded.
        parameters: What to move.
        data: Tensors with a row for each example.
        num_epochs: How often to go through the data.
        batch_size: Rows of a minibatch; the last one of an epoch may have less.
        make_optimizer: Takes the parameters, returns an optimizer of torch.
        decay: Whether the learning rate falls to zero along a cosine.
        generator: Source of randomness of the order; torch's global one where it is ``None``.
        progress: Whether to show a progress bar.

    Returns:
        The mean of each part over each epoch's rows, as its minibatches met them.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: There are no rows, or not as many in each tensor, or a number is below 1.
        RuntimeError: A part is no longer finite.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [6.0]])
        >>> center = torch.zeros(1, requires_grad=True)
        >>> sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
        >>> squares = lambda epoch, x: (x - center).square().mean()[None]
        >>> found = minimize(squares, [center], (x,), num_epochs=99, make_optimizer=sgd)
        >>> f"{center.item():.2f}"  # their mean
        '3.00'
    """
    _checks.function("parts", parts)
    num_epochs = _checks.count("num_epochs", num_epochs, minimum=1)
    batch_size = _checks.count("batch_size", batch_size, minimum=1)
    _checks.generator_or_none(generator)
    if not isinstance(data, tuple):
        raise TypeError(f"data must be a tuple of tensors, got {type(data).__name__}")
    rows = [len(each) for each in data]
    if not rows or min(rows) == 0 or len(set(rows)) > 1:
        raise ValueError(f"data must be tensors with as many rows, at least one, got {rows} rows")
    optimizer = make_optimizer(list(parameters))
    if not isinstance(optimizer, torch.optim.Optimizer):
        got = type(optimizer).__name__
        raise TypeError(f"make_optimizer must return a torch.optim.Optimizer, got {got}")
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)
    device = generator.device if generator else None
    history = []
    bar = tqdm(range(num_epochs), "fit", delay=1, leave=False, disable=None if progress else True)
    with unvalidated():
        for epoch in bar:
            order = torch.randperm(rows[0], generator=generator, device=device)
            # One shuffle and its slices: a loader that collects row by row takes longer.
            slices = [each[order.to(each.device)].split(batch_size) for each in data]
            total = []
            for minibatch in zip(*slices, strict=True):
                found = parts(epoch, *minibatch)
                if not isinstance(found, Tensor) or found.ndim != 1:
                    raise TypeError(f"parts must return a tensor of one dimension, got {found!r}")
                optimizer.zero_grad()
                found[0].backward()
                optimizer.step()
                total.append(found.detach() * len(minibatch[0]))
            history.append(torch.stack(total).sum(dim=0) / rows[0])
            if not torch.isfinite(history[-1]).all():
                raise RuntimeError(
                    f"the fit diverged: in epoch {epoch} the parts were {history[-1].tolist()}. "
                    "Lower the optimizer's learning rate, or scale the data"
                )
            if decay:
                cosine.step()
    return torch.stack(history)
