"""Summaries: the numbers of the functions, words for each doubt, tables that can be read, ArviZ."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from draws import autoregressive, close, normals, tensor
from torch import Tensor

from coursepkg import diagnostics, summaries
from coursepkg.hmc import HMCInfo
from coursepkg.mcmc import Chains, Info

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # once a day it announces its next version
    import arviz

NAN, INF = math.nan, math.inf


def good_chains(num_chains: int = 4, num_draws: int = 400) -> Chains:
    draws = normals(num_chains, num_draws, 2, seed=5)
    log_density = -draws.square().sum(dim=2) / 2
    shape = num_chains, num_draws
    energy = normals(*shape, seed=6).square() - log_density
    info = HMCInfo(log_density, torch.full(shape, 0.8), energy, torch.zeros(shape).bool())
    return Chains(draws, info, None)


def with_info(chains: Chains, **changed: Tensor) -> Chains:
    return chains._replace(info=chains.info._replace(**changed))


@pytest.mark.parametrize(("num_chains", "num_superchains"), [(4, None), (100, None), (100, 5)])
def test_well_mixed_chains_are_trusted(num_chains: int, num_superchains: int | None) -> None:
    chains = good_chains(num_chains)
    for given_ in (chains, chains.draws):
        summary = summaries.summary(given_, num_superchains=num_superchains)
        assert summary.warnings == ()
        assert summary.trusted


def test_summary_holds_the_numbers_of_the_functions() -> None:
    chains = good_chains()
    summary = summaries.summary(chains, names=["a", "b"])
    draws = torch.cat([chains.draws, chains.info.log_density[..., None]], dim=2)
    assert summary.names == ("a", "b", "log density")
    flat = draws.flatten(0, 1)
    close(summary.mean, flat.mean(dim=0))
    close(summary.sd, flat.std(dim=0))
    close(summary.quantile_05, flat.quantile(0.05, dim=0))
    close(summary.quantile_95, flat.quantile(0.95, dim=0))
    close(summary.mcse, diagnostics.mcse_mean(draws), rtol=0)
    close(summary.bulk_ess, diagnostics.bulk_ess(draws), rtol=0)
    close(summary.tail_ess, diagnostics.tail_ess(draws), rtol=0)
    close(summary.rhat, diagnostics.rank_rhat(draws), rtol=0)
    nested = summaries.summary(chains, num_superchains=2)
    close(nested.rhat, diagnostics.rank_rhat(draws, num_superchains=2), rtol=0)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((), ("theta",)),
        ((2,), ("theta[0]", "theta[1]")),
        ((1, 2), ("theta[0, 0]", "theta[0, 1]")),
    ],
)
def test_quantities_without_names_are_numbered(
    shape: tuple[int, ...], names: tuple[str, ...]
) -> None:
    assert summaries.summary(normals(2, 10, *shape)).names == names


def _apart() -> Chains:
    chains = good_chains()
    return chains._replace(draws=chains.draws + tensor([0.0, 0, 0, 3])[:, None, None])


def _slow() -> Chains:
    return good_chains()._replace(draws=autoregressive(0.97, 4, 400, 2, seed=2))


def _short() -> Chains:
    return good_chains(4, 60)


def _not_finite() -> Chains:
    chains = good_chains()
    chains.draws[1, 7, 1] = NAN
    chains.draws[2, 9, 1] = INF
    return chains


def _constant() -> Chains:
    chains = good_chains()
    chains.draws[..., 0] = 0.1
    return chains


def _stuck() -> Chains:
    chains = good_chains()
    chains.draws[3] = chains.draws[3, 0].clone()
    return chains


def _diverged() -> Chains:
    chains = good_chains()
    chains.info.diverged[0, :3] = True
    return chains


def _refused() -> Chains:
    chains = good_chains()
    chains.info.acceptance[2] = 0.01
    return chains


def _all_accepted() -> Chains:
    return with_info(good_chains(), acceptance=torch.full((4, 400), 0.999))


def _slow_energy() -> Chains:
    return with_info(good_chains(), energy=autoregressive(0.97, 4, 400))


def _lost() -> Chains:
    chains = good_chains(20)
    chains.info.log_density[11] -= 8
    return chains


WARNINGS: dict[str, tuple[Callable[[], Chains], tuple[str, ...]]] = {
    "R-hat": (_apart, ("above 1.01: theta[0], theta[1].",)),
    "Effective sample size (bulk)": (_slow, ("below 400: theta[0], theta[1].",)),
    "Effective sample size (tail)": (_short, ("below 400: theta[0], theta[1], log density.",)),
    "Draws that are NaN or infinite": (_not_finite, ("theta[1].",)),
    "All draws are equal": (_constant, ("theta[0].",)),
    "Stuck chains": (_stuck, ("1 of 4 (number 3)",)),
    "Divergent transitions": (_diverged, ("3 of 1600",)),
    "Acceptance near 0": (_refused, ("1 of 4 (number 2)",)),
    "Acceptance near 1": (_all_accepted, ("larger",)),
    "E-BFMI": (_slow_energy, ("below 0.3", "4 of 4 (number 0, 1, 2 and 1 more)")),
    "Lost chains": (_lost, ("1 of 20 (number 11)",)),
}


@pytest.mark.parametrize("start", WARNINGS)
def test_each_doubt_is_put_into_words(start: str) -> None:
    """It appears where it should, with its numbers; well mixed chains above give none."""
    make, words = WARNINGS[start]
    summary = summaries.summary(make())
    (sentence,) = (warning for warning in summary.warnings if warning.startswith(start))
    assert all(word in sentence for word in words), sentence
    assert not summary.trusted


ALONE = ["Divergent transitions", "Acceptance near 0", "Acceptance near 1", "E-BFMI"]


@pytest.mark.parametrize("start", ["All draws are equal", "Draws that are NaN or infinite", *ALONE])
def test_a_doubt_about_one_thing_accuses_nothing_else(start: str) -> None:
    (only,) = summaries.summary(WARNINGS[start][0]()).warnings
    assert only.startswith(start)


def starts(summary: summaries.Summary) -> set[str]:
    return {start for start in WARNINGS if any(w.startswith(start) for w in summary.warnings)}


def test_rows_that_are_not_finite_are_empty_and_the_others_are_not() -> None:
    summary = summaries.summary(_not_finite())
    others = summaries.summary(good_chains())
    for name in ("mean", "sd", "quantile_05", "mcse", "bulk_ess", "tail_ess", "rhat"):
        values, expected = getattr(summary, name), getattr(others, name)
        assert values[1].isnan()
        close(values[[0, 2]], expected[[0, 2]], rtol=0)


def test_a_log_density_that_is_not_finite_is_reported_and_not_searched_for_lost_chains() -> None:
    chains = good_chains()
    chains.info.log_density[0, 0] = -INF
    chains.info.energy[0, 0] = INF
    assert starts(summaries.summary(chains)) == {"Draws that are NaN or infinite"}


def test_many_short_chains_are_judged_by_superchains() -> None:
    """The same draws: split R-hat accuses them, and says how to do better; nested does not."""
    draws = autoregressive(0.8, 256, 40, seed=3)
    plain, nested = summaries.summary(draws), summaries.summary(draws, num_superchains=4)
    assert starts(plain) == {"R-hat"}
    assert "num_superchains" in plain.warnings[0]
    assert nested.trusted
    modes = draws + torch.arange(4.0).repeat_interleave(64)[:, None]
    assert "R-hat" in starts(summaries.summary(modes, num_superchains=4))


def test_few_chains_are_not_sent_to_superchains() -> None:
    assert "num_superchains" not in str(summaries.summary(_apart()))


def test_400_effective_draws_are_enough_however_many_the_chains() -> None:
    draws = normals(256, 8)
    assert "Effective sample size (bulk)" not in starts(summaries.summary(draws))


def test_one_slow_energy_among_many_short_chains_is_noise_and_one_of_four_is_not() -> None:
    slow = autoregressive(0.97, 1, 400)[0]
    for num_chains, accused in ((4, True), (100, False)):
        chains = good_chains(num_chains)
        chains.info.energy[0] = slow
        summary = summaries.summary(chains, num_superchains=2)
        assert ("E-BFMI" in starts(summary)) == accused


@pytest.mark.parametrize("num_chains", [3, 4, 128])
@pytest.mark.parametrize("dim", [2, 16])
def test_chains_of_one_distribution_are_not_called_lost(num_chains: int, dim: int) -> None:
    """10 repetitions of correlated chains, of skewed log densities."""
    for seed in range(10):
        draws = autoregressive(0.8, num_chains, 100, dim, seed=seed)
        log_density = -draws.square().sum(dim=2) / 2
        chains = Chains(draws, Info(log_density, torch.full_like(log_density, 0.5)), None)
        assert "Lost chains" not in starts(summaries.summary(chains))


@pytest.mark.parametrize(("num_chains", "num_lost"), [(4, 1), (256, 1), (256, 80)])
def test_lost_chains_are_found_among_few_and_many(num_chains: int, num_lost: int) -> None:
    chains = good_chains(num_chains)
    chains.info.log_density[:num_lost] -= 6
    (found,) = (w for w in summaries.summary(chains).warnings if w.startswith("Lost chains"))
    assert f"{num_lost} of {num_chains} " in found
    chains.info.log_density[:num_lost] += 12
    assert "Lost chains" not in starts(summaries.summary(chains)), "a higher density is no loss"


@pytest.mark.parametrize(
    ("means", "spread"),
    [
        ([0.0, -1, -2, -3, -4, -5, -6, -7], 0.1),  # all differ: no chain stands out
        ([0.001, 0.0, -0.001, -0.5], 1.0),  # three agree by chance
    ],
)
def test_a_chain_is_lost_only_when_it_stands_out_by_both_measures(
    means: list[float], spread: float
) -> None:
    chains = good_chains(len(means))
    noise = normals(len(means), 400)
    noise = spread * (noise - noise.mean(dim=1, keepdim=True))
    for lowest, lost in ((means[-1], False), (-40.0, True)):
        levels = tensor([*means[:-1], lowest])[:, None]
        summary = summaries.summary(with_info(chains, log_density=noise + levels))
        assert ("Lost chains" in starts(summary)) == lost


def test_more_than_three_names_are_counted() -> None:
    draws = normals(4, 200, 5) + 5 * torch.arange(4)[:, None, None]
    assert "theta[0], theta[1], theta[2] and 2 more." in summaries.summary(draws).warnings[0]


class Table(HTMLParser):
    """Collects the elements of a page, their attributes, and the text of the cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        assert not self.open, "all elements are closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1], []).append(data)


def test_the_table_can_be_read_by_a_screen_reader() -> None:
    summary = summaries.summary(_apart(), names=["<b>", "c & d"])
    table = Table(summary._repr_html_())
    scopes = [attributes.get("scope") for tag, attributes in table.elements if tag == "th"]
    assert scopes == ["col"] * 9 + ["row"] * 3
    assert table.texts["caption"] == ["4 chains of 400 draws, mean acceptance 0.80"]
    assert table.texts["th"][9:] == ["<b>", "c & d", "log density"]
    assert len(table.texts["td"]) == 3 * 8
    assert tuple(table.texts["li"]) == summary.warnings
    assert "style" not in summary._repr_html_()
    good = Table(summaries.summary(good_chains())._repr_html_())
    assert good.texts["p"] == ["Nothing speaks against these draws."]
    assert "li" not in good.texts


def test_the_printed_table_has_a_row_a_quantity_and_says_what_is_wrong() -> None:
    summary = summaries.summary(_apart(), names=["a", "long name"])
    assert str(summary) == repr(summary)
    caption, header, *rows = str(summary).splitlines()
    assert caption == "4 chains of 400 draws, mean acceptance 0.80"
    assert re.split(r"  +", header) == [
        *("quantity", "mean", "sd", "5 %", "95 %", "MCSE", "bulk ESS", "tail ESS", "R-hat")
    ]
    assert [row[:11] for row in rows[:3]] == ["a          ", "long name  ", "log density"]
    assert len({len(line) for line in (header, *rows[:3])}) == 1, "the columns are aligned"
    assert rows[0].endswith(f"{summary.rhat[0]:.3f}")
    assert rows[3] == "Do not trust these draws:"
    assert rows[4:] == [f"- {warning}" for warning in summary.warnings]
    assert str(summaries.summary(normals(1, 10))).startswith("1 chain of 10 draws\n")
    nested = summaries.summary(normals(6, 10), num_superchains=3)
    assert nested.caption == "6 chains of 10 draws in 3 superchains"


# --- Export ---------------------------------------------------------------------------------------


def test_arviz_gets_the_draws_and_its_own_names_and_finds_the_same_numbers() -> None:
    chains = good_chains(20, 10)  # more chains than draws, which ArviZ finds odd
    data = summaries.to_arviz(chains)
    close(torch.from_numpy(data.posterior["theta"].to_numpy()), chains.draws)
    stats = data.sample_stats
    assert set(stats) == {"lp", "acceptance_rate", "energy", "diverging"}
    close(torch.from_numpy(stats["lp"].to_numpy()), chains.info.log_density)
    close(torch.from_numpy(stats["energy"].to_numpy()), chains.info.energy)
    close(torch.tensor(stats["acceptance_rate"].to_numpy()).double(), chains.info.acceptance)
    assert not stats["diverging"].any()
    close(torch.from_numpy(arviz.bfmi(data)), diagnostics.e_bfmi(chains.info.energy))
    table = arviz.summary(data, round_to="none")
    ours = summaries.summary(chains)
    close(ours.bulk_ess[:2], table["ess_bulk"].to_numpy())
    close(ours.tail_ess[:2], table["ess_tail"].to_numpy())
    close(ours.mcse[:2], table["mcse_mean"].to_numpy())
    close(ours.rhat[:2], table["r_hat"].to_numpy())


def test_arviz_gets_named_quantities_and_only_what_the_sampler_told() -> None:
    chains = good_chains()
    told = Chains(chains.draws, Info(chains.info.log_density, chains.info.acceptance), None)
    data = summaries.to_arviz(told, names=["a", "b"])
    assert set(data.posterior.data_vars) == {"a", "b"}
    close(torch.from_numpy(data.posterior["b"].to_numpy()), chains.draws[..., 1])
    assert set(data.sample_stats) == {"lp", "acceptance_rate"}
    assert summaries.to_arviz(normals(4, 9, 2, 3)).posterior["theta"].shape == (4, 9, 2, 3)
    assert summaries.to_arviz(normals(4, 9)).groups() == ["posterior"]


def test_names_fit_the_quantities(kind_error: Any) -> None:
    for function in (summaries.summary, summaries.to_arviz):
        with kind_error(ValueError, "names must hold 2", "got 3"):
            function(normals(4, 10, 2), names=["a", "b", "c"])
        with kind_error(TypeError, "names must be a sequence", "'ab'"):
            function(normals(4, 10, 2), names="ab")


def test_a_divergence_in_thousands_is_counted_and_no_reason_for_distrust() -> None:
    chains = good_chains()
    chains.info.diverged[0, 0] = True  # 1 of 1600
    summary = summaries.summary(chains)
    assert summary.trusted
    assert summary.caption.endswith("1 divergent")
    chains.info.diverged[0, :2] = True
    assert not summaries.summary(chains).trusted
