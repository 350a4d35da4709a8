"""Draws put together: a table that says in words what speaks against them, and export to ArviZ.

Every number is of :mod:`coursepkg.diagnostics`.
"""

from __future__ import annotations

import html
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from coursepkg.diagnostics import (
    _check_draws,
    _quantile,
    bulk_ess,
    e_bfmi,
    mcse_mean,
    rank_rhat,
    tail_ess,
)
from coursepkg.mcmc import Chains

if TYPE_CHECKING:
    from arviz import InferenceData
else:
    InferenceData = Any

__all__ = ["Summary", "summary", "to_arviz"]

RHAT_LIMIT = 1.01
# Four chains of 100 effective draws are the usual rule. What it asks for is a total: the mean to a
# twentieth of a standard deviation, and autocorrelations known well enough to say so. These are
# averaged over chains, so that many short chains need no more in all than a few long ones.
ESS_LIMIT = 400
E_BFMI_LIMIT = 0.3
# In tens of thousands of draws a path or two runs away by chance; where a region is missed, it is
# more than one in a thousand. The caption counts every one.
DIVERGED_LIMIT = 1e-3
HARDLY_MOVED, ALL_ACCEPTED = 0.05, 0.99  # mean acceptance probabilities
MANY_CHAINS = 16  # From here on superchains are worth a word.


@dataclass(frozen=True, eq=False, repr=False)
class Summary:
    """A table of quantities, and what speaks against trusting it. Printing it shows both.

    Attributes:
        names: One name a quantity; ``log density`` is the last where it is known.
        mean, sd: Mean and standard deviation of all draws, shape ``(quantities,)``.
        quantile_05, quantile_95: The 5 % and 95 % quantiles.
        mcse: Monte Carlo standard error of the mean.
        bulk_ess, tail_ess: Effective sample sizes.
        rhat: Rank-normalized R-hat; nested where superchains are given.
        caption: How many chains and draws, and the mean acceptance probability.
        warnings: Sentences that say what was seen and what to try; empty for draws to be trusted.
    """

    names: tuple[str, ...]
    mean: Float[Tensor, " quantities"]
    sd: Float[Tensor, " quantities"]
    quantile_05: Float[Tensor, " quantities"]
    quantile_95: Float[Tensor, " quantities"]
    mcse: Float[Tensor, " quantities"]
    bulk_ess: Float[Tensor, " quantities"]
    tail_ess: Float[Tensor, " quantities"]
    rhat: Float[Tensor, " quantities"]
    caption: str
    warnings: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        """Whether there are no warnings."""
        return not self.warnings

    def _verdict(self) -> str:
        if self.trusted:
            return "Nothing speaks against these draws."
        return "Do not trust these draws:"

    def _table(self) -> list[list[str]]:
        columns = {
            "mean": (self.mean, ".4g"),
            "sd": (self.sd, ".4g"),
            "5 %": (self.quantile_05, ".4g"),
            "95 %": (self.quantile_95, ".4g"),
            "MCSE": (self.mcse, ".2g"),
            "bulk ESS": (self.bulk_ess, ".0f"),
            "tail ESS": (self.tail_ess, ".0f"),
            "R-hat": (self.rhat, ".3f"),
        }
        cells = [[f"{x:{digits}}" for x in values.tolist()] for values, digits in columns.values()]
        return [["quantity", *columns], *map(list, zip(self.names, *cells, strict=True))]

    def __repr__(self) -> str:
        table = self._table()
        first, *widths = (max(map(len, column)) for column in zip(*table, strict=True))
        rows = [[row[0].ljust(first), *map(str.rjust, row[1:], widths)] for row in table]
        doubts = [f"- {warning}" for warning in self.warnings]
        return "\n".join([self.caption, *map("  ".join, rows), self._verdict(), *doubts])

    def _repr_html_(self) -> str:
        """The same as a table that a screen reader can follow."""
        table = [[html.escape(cell) for cell in row] for row in self._table()]
        rows = ["".join(f'<th scope="col">{cell}</th>' for cell in table[0])]
        for name, *cells in table[1:]:
            data = "".join(f"<td>{cell}</td>" for cell in cells)
            rows.append(f'<th scope="row">{name}</th>{data}')
        head, *body = [f"<tr>{row}</tr>" for row in rows]
        doubts = "".join(f"<li>{html.escape(warning)}</li>" for warning in self.warnings)
        return (
            f"<table><caption>{self.caption}</caption><thead>{head}</thead>"
            f"<tbody>{''.join(body)}</tbody></table><p>{self._verdict()}</p>"
        ) + (doubts and f"<ul>{doubts}</ul>")


def summary(
    chains_or_draws: Chains | Float[Tensor, "chains draws *dims"],
    *,
    names: Sequence[str] | None = None,
    num_superchains: int | None = None,
) -> Summary:
    """Summarize draws, quantity by quantity, and say in words why not to trust them.

    Warnings are given for draws that are not finite or constant, for stuck chains, R-hat above
    1.01, and an ESS below 400 in all. :class:`~coursepkg.mcmc.Chains` know more: divergences in
    more than one draw of a thousand, E-BFMI below 0.3, acceptance near 0 or 1, and chains lost at a
    far lower log density.

    Args:
        chains_or_draws: Chains, or their draws of shape ``(chains, draws, ...)``, at least 4 draws
            a chain. Unlike elsewhere draws may be NaN or infinite: their quantity is reported so.
        names: One name a quantity, in the order of the flattened dimensions; ``theta[0]`` and so
            on where it is ``None``.
        num_superchains: Where given, nested R-hat decides. It is meant for many short chains, whose
            split R-hat is too large; see :func:`~coursepkg.diagnostics.nested_rhat` for how such
            chains must start.

    Returns:
        The summary. Its ``trusted`` is true where there are no warnings.

    Raises:
        TypeError: The draws are not a floating-point tensor, ``names`` is a text, or
            ``num_superchains`` is not a whole number.
        ValueError: The draws have fewer than 2 dimensions or 4 draws, there is not one name a
            quantity, or ``num_superchains`` is below 2 or does not divide the chains.

    Example:
        >>> draws = torch.randn(4, 500, 2, generator=torch.Generator().manual_seed(0))
        >>> summary(draws, names=["slope", "noise"]).trusted
        True
        >>> summary(draws + 10 * torch.arange(4)[:, None, None]).trusted
        False
    """
    draws, info, names = _unpack(chains_or_draws, names)
    if hasattr(info, "log_density"):
        draws = torch.cat([draws, info.log_density.to(draws)[..., None]], dim=2)
        names = (*names, "log density")
    finite = draws.isfinite().flatten(0, 1).all(dim=0)
    usable = draws.where(finite, 0)

    values = {
        "mean": usable.mean(dim=(0, 1)),
        "sd": usable.std(dim=(0, 1)),
        "quantile_05": _quantile(usable, 0.05),
        "quantile_95": _quantile(usable, 0.95),
        "mcse": mcse_mean(usable),
        "bulk_ess": bulk_ess(usable),
        "tail_ess": tail_ess(usable),
        "rhat": rank_rhat(usable, num_superchains=num_superchains),
    }
    values = {name: value.where(finite, torch.nan) for name, value in values.items()}
    caption = f"{len(draws)} chain{'s' * (len(draws) > 1)} of {draws.shape[1]} draws"
    if num_superchains is not None:
        caption += f" in {num_superchains} superchains"
    if hasattr(info, "acceptance"):
        caption += f", mean acceptance {info.acceptance.double().mean():.2f}"
    if hasattr(info, "diverged") and info.diverged.any():
        caption += f", {int(info.diverged.sum())} divergent"
    found = [*_doubts_of_draws(draws, names, values, num_superchains), *_doubts_of_info(info)]
    return Summary(names=names, caption=caption, warnings=tuple(found), **values)


def _unpack(
    chains_or_draws: Any, names: Sequence[str] | None
) -> tuple[Tensor, Any, tuple[str, ...]]:
    """Draws of shape (chains, draws, quantities), what else the sampler told, and the names."""
    draws = getattr(chains_or_draws, "draws", chains_or_draws)
    # NaN is not refused: the summary reports it.
    _check_draws(draws.nan_to_num(0, 0, 0) if isinstance(draws, Tensor) else draws)
    if names is None:
        places = itertools.product(*map(range, draws.shape[2:]))
        names = [f"theta{list(place)}" if place else "theta" for place in places]
    elif isinstance(names, str):
        raise TypeError(f"names must be a sequence of texts, got one, {names!r}")
    draws = draws.double().reshape(*draws.shape[:2], -1)
    if len(names) != draws.shape[2]:
        raise ValueError(f"names must hold {draws.shape[2]}, one a quantity, got {len(names)}")
    return draws, getattr(chains_or_draws, "info", None), tuple(names)


def _some(names: Sequence[str], chosen: Tensor) -> str:
    """Name the chosen ones, three at most."""
    all_chosen = list(itertools.compress(names, chosen.tolist()))
    more = f" and {len(all_chosen) - 3} more" if len(all_chosen) > 3 else ""
    return ", ".join(all_chosen[:3]) + more


def _chains(chosen: Tensor) -> str:
    numbers = list(map(str, range(len(chosen))))
    return f"{int(chosen.sum())} of {len(chosen)} (number {_some(numbers, chosen)})"


def _doubts_of_draws(
    draws: Tensor, names: Sequence[str], values: dict[str, Tensor], num_superchains: int | None
) -> Iterator[str]:
    infinite = ~draws.isfinite().flatten(0, 1).all(dim=0)
    if infinite.any():
        yield (
            f"Draws that are NaN or infinite: {_some(names, infinite)}. The log density or its "
            "gradient left the range of numbers; look at the model there first."
        )
    constant = (draws == draws[0, 0]).flatten(0, 1).all(dim=0)
    if constant.any():
        yield (
            f"All draws are equal: {_some(names, constant)}. That says nothing about convergence; "
            "leave a quantity out if it is constant by design."
        )
    stuck = ((draws == draws[:, :1]).all(dim=1) & ~constant).any(dim=1)
    if stuck.any():
        yield (
            f"Stuck chains: {_chains(stuck)}. All their draws are equal, for every proposal was "
            "refused. Try smaller steps or other starting points."
        )
    rhat = values["rhat"]
    high = rhat > RHAT_LIMIT
    if high.any():
        advice = "run longer, or ask whether there are several modes."
        if num_superchains is None and len(draws) >= MANY_CHAINS:
            advice += (
                " Chains that are many and short raise it by themselves: start groups of them at "
                "one point each, and give the number of groups as num_superchains."
            )
        yield (
            f"R-hat up to {rhat[high].max():.2f}, above {RHAT_LIMIT}: {_some(names, high)}. The "
            f"chains have not reached the same distribution: {advice}"
        )
    for part, what in (("bulk", "means"), ("tail", "5 % and 95 % quantiles")):
        ess = values[f"{part}_ess"]
        low = ess < ESS_LIMIT
        if low.any():
            yield (
                f"Effective sample size ({part}) down to {ess[low].min():.0f}, below {ESS_LIMIT}: "
                f"{_some(names, low)}. The {what} are not known well: draw more, or use a sampler "
                "whose draws depend less on one another."
            )


def _doubts_of_info(info: Any) -> Iterator[str]:
    if hasattr(info, "diverged") and info.diverged.double().mean() > DIVERGED_LIMIT:
        yield (
            f"Divergent transitions: {int(info.diverged.sum())} of {info.diverged.numel()}. The "
            "density bends too sharply for the step size somewhere, and the chains miss that "
            "part. Try smaller steps, or other parameters (a non-centred form)."
        )
    if hasattr(info, "acceptance"):
        acceptance = info.acceptance.double().mean(dim=1)
        refused = acceptance < HARDLY_MOVED
        if refused.any():
            yield (
                f"Acceptance near 0 in chains: {_chains(refused)}. They hardly moved: try smaller "
                "steps or other starting points."
            )
        if acceptance.mean() > ALL_ACCEPTED:
            yield (
                "Acceptance near 1: steps so small that nothing is refused explore slowly; try "
                "larger ones. A sampler that never refuses has a bias that no number here shows."
            )
    if hasattr(info, "energy") and info.energy.isfinite().all():
        fraction = e_bfmi(info.energy)
        low = fraction < E_BFMI_LIMIT
        if low.double().mean() > 1 / 20:  # of many short chains some seem low by chance
            yield (
                f"E-BFMI down to {fraction[low].min():.2f}, below {E_BFMI_LIMIT}, in chains: "
                f"{_chains(low)}. The energy changes too slowly to visit the tails: try other "
                "parameters (a non-centred form)."
            )
    if hasattr(info, "log_density"):
        lost = _lost(info.log_density.double())
        if lost.any():
            yield (
                f"Lost chains: {_chains(lost)}. Their mean log density is far below the others', "
                "in a region of little probability. Start them better; to drop them is no cure, "
                "for the others may have missed a region too."
            )


def _lost(log_density: Tensor) -> Tensor:
    """Find chains whose mean log density is far below the median chain's.

    Far is ten times as far as chains typically lie from the median one: medians hardly change as
    chains are lost. It is also twice as far as the log density varies within a chain: three chains
    may agree by chance, and the fourth is not lost for that.
    """
    means = log_density.mean(dim=1)
    depth = means.quantile(0.5) - means
    typical = depth.abs().quantile(0.5)
    within = log_density.std(dim=1).quantile(0.5)
    return depth > torch.maximum(10 * typical, 2 * within)


def to_arviz(
    chains: Chains | Float[Tensor, "chains draws *dims"], *, names: Sequence[str] | None = None
) -> InferenceData:
    """Hand chains to ArviZ, for its plots and comparisons.

    Args:
        chains: Chains, or their draws of shape ``(chains, draws, ...)``.
        names: One name a quantity, each a variable of its own; one variable ``theta`` where it is
            ``None``.

    Returns:
        ``arviz.InferenceData`` with the draws as ``posterior`` and, from chains, ``sample_stats``
        under ArviZ's own names: ``lp``, ``acceptance_rate``, ``energy``, ``diverging``.

    Raises:
        TypeError: The draws are not a floating-point tensor, or ``names`` is a text.
        ValueError: The draws have fewer than 2 dimensions or 4 draws, or there is not one name a
            quantity.
        ImportError: ArviZ is not installed.

    Example:
        >>> to_arviz(torch.zeros(4, 100, 2), names=["slope", "noise"]).posterior.slope.shape
        (4, 100)
    """
    with warnings.catch_warnings():
        # ArviZ announces its next version, and takes many short chains for a mistake.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "More chains", UserWarning)
        try:
            import arviz
        except ImportError as error:
            raise ImportError('to_arviz needs ArviZ: pip install "coursepkg[arviz]"') from error

        draws, info, labels = _unpack(chains, names)
        if names is None:
            whole = chains if isinstance(chains, Tensor) else chains.draws
            posterior = {"theta": whole.numpy(force=True)}
        else:
            posterior = dict(zip(labels, draws.numpy(force=True).transpose(2, 0, 1), strict=True))
        theirs = {
            "log_density": "lp",
            "acceptance": "acceptance_rate",
            "energy": "energy",
            "diverged": "diverging",
        }
        stats = {
            name: getattr(info, field).numpy(force=True)
            for field, name in theirs.items()
            if hasattr(info, field)
        }
        return arviz.from_dict(posterior=posterior, sample_stats=stats or None)
