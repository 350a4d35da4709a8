r"""Can these draws be trusted? R-hat, effective sample sizes, and Monte Carlo errors.

Draws have shape ``(chains, draws, ...)``; an answer has the shape of what stands at the dots, all
of it computed at once, in float64. For one quantity, chain :math:`m` has draws
:math:`x_{1m}, \dots, x_{Nm}` with mean :math:`\bar x_m` and variance :math:`s_m^2`.

- **R-hat** compares the spread of the chains' means with the spread within chains: 1 where all
  chains have reached the same distribution, above where they have not.
- The **effective sample size** (ESS) is the number of independent draws that would estimate as well
  as these dependent ones do, and the **Monte Carlo standard error** (MCSE) how well that is.

*Splitting* each chain into halves lets a chain that drifts disagree with itself. *Rank
normalization* replaces draws by the normal quantiles of their ranks, so that infinite variances do
no harm. Ties share their average rank, as in ArviZ and in R's package posterior, whose numbers
these are; three things differ from ArviZ on purpose. NaN, infinity and too few draws are errors
here and NaN there. One chain is compared with itself, half with half, and is NaN there. Only draws
that are all equal count as constant (R-hat NaN, ESS their number), not any range below 1e-15.

Source:
    Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), "Rank-normalization, folding, and
    localization: an improved R-hat for assessing convergence of MCMC", Bayesian Analysis 16(2).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from coursepkg import _checks

__all__ = [
    "autocorrelation",
    "bulk_ess",
    "e_bfmi",
    "effective_sample_size",
    "mcse_mean",
    "mcse_quantile",
    "mcse_sd",
    "nested_rhat",
    "quantile_ess",
    "rank_rhat",
    "sd_ess",
    "split_rhat",
    "tail_ess",
]


# --- What the diagnostics share -------------------------------------------------------------------


def _check_draws(draws: Tensor, name: str = "draws") -> Tensor:
    draws = _checks.array(name, draws)
    if draws.ndim < 2:
        raise ValueError(
            f"{name} must have shape (chains, draws, ...), got {tuple(draws.shape)}; "
            f"{name}[None] makes it one chain"
        )
    if draws.shape[1] < 4:
        raise ValueError(
            f"{name} must hold at least 4 draws a chain, got {draws.shape[1]} in shape "
            f"{tuple(draws.shape)}, read as (chains, draws, ...)"
        )
    return draws


def _split(draws: Tensor) -> Tensor:
    """Make two chains of each; of an odd number of draws the middle one is left out."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def _quantile(draws: Tensor, prob: float) -> Tensor:
    """The quantile of all chains together, between two order statistics (R's type 7)."""
    flat = draws.flatten(0, 1)
    num = len(flat)
    position = num * prob + (1 - prob)  # counted from 1
    lower = min(max(int(position), 1), num - 1)
    weight = position - lower
    below, above = flat.kthvalue(lower, dim=0).values, flat.kthvalue(lower + 1, dim=0).values
    return (1 - weight) * below + weight * above


def _rank_normalize(draws: Tensor) -> Tensor:
    """Normal quantiles of the draws' ranks among all chains; ties share one."""
    flat = draws.flatten(0, 1).movedim(0, -1).contiguous()
    num = flat.shape[-1]
    ordered, order = flat.sort(dim=-1)
    # The first and the last rank in each run of equal draws.
    first = _first_places(ordered)
    last = num + 1 - _first_places(ordered.flip(-1)).flip(-1)
    rank = (first + last) / 2
    z = torch.special.ndtri((rank - 3 / 8) / (num + 1 / 4))
    z = torch.empty_like(z).scatter_(-1, order, z)
    return z.movedim(-1, 0).reshape(draws.shape)


def _first_places(ordered: Tensor) -> Tensor:
    """Number the entries from 1; equal neighbours all take the first one's place."""
    places = torch.arange(1, ordered.shape[-1] + 1, device=ordered.device)
    repeated = ordered.diff(dim=-1) == 0
    places = places.expand(ordered.shape).clone()
    places[..., 1:][repeated] = 0
    return places.cummax(dim=-1).values.to(ordered)


# --- R-hat ----------------------------------------------------------------------------------------


def _rhat(draws: Tensor) -> Tensor:
    num_draws = draws.shape[1]
    variances, means = torch.var_mean(draws, dim=1)
    within = variances.mean(dim=0)
    between = num_draws * means.var(dim=0)
    return ((num_draws - 1 + between / within) / num_draws).sqrt()


def split_rhat(
    draws: Float[Tensor, "chains draws *dims"], *, split: bool = True
) -> Float[Tensor, "*dims"]:
    r"""The classic R-hat, by default of chains split into halves.

    .. math::
        \hat R = \sqrt{\frac{N - 1}{N} + \frac{1}{N} \frac{B}{W}}, \qquad
        W = \operatorname{mean}_m s_m^2, \quad B = N \operatorname{var}_m \bar x_m .

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain.
        split: Whether to split the chains; without, it takes at least 2 chains.

    Returns:
        One R-hat a quantity, shape ``(...)``.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor.
        ValueError: It has fewer than 2 dimensions or 4 draws, or is not finite; or there is one
            chain and ``split`` is false.

    Source:
        Gelman and Rubin (1992), "Inference from iterative simulation using multiple sequences",
        Statistical Science 7(4); split as in Vehtari et al. (2021).

    Example:
        >>> draws = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> agree, apart = split_rhat(draws), split_rhat(draws + torch.arange(4.0)[:, None])
        >>> bool(agree < 1.01 < apart)
        True
    """
    draws = _check_draws(draws)
    if not split and len(draws) < 2:
        raise ValueError("draws must hold at least 2 chains to compare, got 1; or leave it split")
    return _rhat(_split(draws) if split else draws)


def rank_rhat(
    draws: Float[Tensor, "chains draws *dims"], *, num_superchains: int | None = None
) -> Float[Tensor, "*dims"]:
    """R-hat of ranks: of the draws, or of their distances from the median if that is larger.

    The ranks work where variances are infinite; the distances show chains of the same mean and
    different spread, which the draws themselves do not.

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain.
        num_superchains: Where given, :func:`nested_rhat` of the ranks instead of split R-hat.

    Returns:
        One R-hat a quantity, shape ``(...)``. Above 1.01 the draws should not be used.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor, or ``num_superchains`` is not a whole
            number.
        ValueError: ``draws`` has fewer than 2 dimensions or 4 draws, or is not finite; or
            ``num_superchains`` does not divide the chains.

    Source:
        Vehtari et al. (2021), as above.

    Example:
        >>> draws = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> wide = draws * torch.tensor([1.0, 1.0, 1.0, 3.0])[:, None]
        >>> bool(split_rhat(wide) < 1.01 < rank_rhat(wide))
        True
    """
    draws = _check_draws(draws)
    if num_superchains is None:
        draws = _split(draws)
    folded = (draws - _quantile(draws, 0.5)).abs()
    ranks, folded_ranks = _rank_normalize(draws), _rank_normalize(folded)
    if num_superchains is None:
        return torch.fmax(_rhat(ranks), _rhat(folded_ranks))
    nested = nested_rhat(ranks, num_superchains)
    return torch.fmax(nested, nested_rhat(folded_ranks, num_superchains))


def nested_rhat(
    draws: Float[Tensor, "chains draws *dims"], num_superchains: int
) -> Float[Tensor, "*dims"]:
    r"""R-hat for many short chains: of groups of chains, the superchains.

    The mean of a short chain is noisy, which alone lifts the usual R-hat above 1.01. The mean of a
    superchain is not. With :math:`\hat\mu_k` the mean of superchain :math:`k`,

    .. math::
        \hat R = \sqrt{1 + \frac{B}{W}}, \qquad B = \operatorname{var}_k \hat\mu_k, \quad
        W = \operatorname{mean}_k \Bigl( \operatorname{var}_{m \in k} \bar x_m
            + \operatorname{mean}_{m \in k} s_m^2 \Bigr) .

    Chains of a superchain must start **at the same point**, and superchains at different ones.
    Superchains put together at random look alike even where no chain ever leaves its mode.
    With one chain a superchain it is the unsplit :func:`split_rhat`, up to
    :math:`1/N`: :math:`\hat R^2 = \hat R_\text{unsplit}^2 + 1/N`.

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain. Chains of a
            superchain are neighbours: the first ``chains / num_superchains`` are the first one.
        num_superchains: How many superchains, at least 2; a divisor of the number of chains.

    Returns:
        One R-hat a quantity, shape ``(...)``; at least 1.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor, or ``num_superchains`` is not a whole
            number.
        ValueError: ``draws`` has fewer than 2 dimensions or 4 draws, or is not finite; or
            ``num_superchains`` is below 2 or does not divide the chains.

    Source:
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman (2024), "Nested R-hat:
        assessing the convergence of Markov chain Monte Carlo when running many short chains",
        Bayesian Analysis.

    Example:
        >>> draws = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
        >>> bool(nested_rhat(draws, num_superchains=4) < 1.01 < nested_rhat(draws, 64))
        True
    """
    superchains = _group(_check_draws(draws), num_superchains)
    variances, means = torch.var_mean(superchains, dim=2)
    within = variances.mean(dim=1)
    if superchains.shape[1] > 1:  # the mean of one chain has no spread
        within = within + means.var(dim=1)
    between = means.mean(dim=1).var(dim=0)
    return (1 + between / within.mean(dim=0)).sqrt()


def _group(draws: Tensor, num_superchains: int) -> Tensor:
    """Give the draws the shape (superchains, chains, draws, ...)."""
    num_superchains = _checks.count("num_superchains", num_superchains, minimum=2)
    if len(draws) % num_superchains:
        raise ValueError(
            f"num_superchains must divide the number of chains, {len(draws)}, got {num_superchains}"
        )
    return draws.unflatten(0, (num_superchains, -1))


# --- Effective sample size ------------------------------------------------------------------------


def _autocovariance(draws: Tensor) -> Tensor:
    """Autocovariances of each chain, divided by the same number at all lags."""
    num_draws = draws.shape[1]
    means = torch.var_mean(draws, dim=1, keepdim=True)[1]  # exact if constant
    # Twice the length, or the chain's end would wrap round to its start.
    transform = torch.fft.rfft(draws - means, n=2 * num_draws, dim=1)
    covariance = torch.fft.irfft(transform.abs() ** 2, n=2 * num_draws, dim=1)
    return covariance[:, :num_draws] / num_draws


def autocorrelation(
    draws: Float[Tensor, "chains draws *dims"],
) -> Float[Tensor, "chains draws *dims"]:
    r"""The autocorrelation of each chain at lags 0, 1, ..., by the fast Fourier transform.

    .. math::
        \hat\rho_t = \sum_{n=1}^{N-t} (x_n - \bar x)(x_{n+t} - \bar x) \Big/
                     \sum_{n=1}^{N} (x_n - \bar x)^2 .

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain.

    Returns:
        Autocorrelations; the second dimension counts the lag. NaN where a chain is constant.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor.
        ValueError: It has fewer than 2 dimensions or 4 draws, or is not finite.

    Example:
        >>> autocorrelation(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
        tensor([[ 1.0000, -0.7500,  0.5000, -0.2500]], dtype=torch.float64)
    """
    covariance = _autocovariance(_check_draws(draws))
    return covariance / covariance[:, :1]


def _ess(draws: Tensor) -> Tensor:
    """The effective sample size of chains as they are, without splitting."""
    num_chains, num_draws = draws.shape[:2]
    covariance = _autocovariance(draws).mean(dim=0)
    within = covariance[0] * num_draws / (num_draws - 1)
    total = covariance[0]
    if num_chains > 1:
        total = total + draws.mean(dim=1).var(dim=0)
    rho = 1 - (within - covariance) / total
    rho[0] = 1
    # Geyer: without noise, sums of two neighbours are positive and fall. So
    # stop before the first negative sum, and cut those that rise.
    num_pairs = max((num_draws - 1) // 2, 1)
    even, odd = rho[: 2 * num_pairs].unflatten(0, (-1, 2)).unbind(dim=1)
    pairs = even + odd
    kept = (pairs[:-1] > 0).cumprod(dim=0)
    falling = pairs.cummin(dim=0).values[:-1]
    # Of the pair at which it stops, the even lag is worth keeping.
    stop = kept.sum(dim=0, keepdim=True)
    last, last_pair = even.gather(0, stop)[0], pairs.gather(0, stop)[0]
    last = last.where((last > 0) | (last_pair >= 0), 0)
    tau = 2 * (kept * falling).sum(dim=0) - 1 + last
    # Antithetic chains beat independent draws, but not without limit.
    num = num_chains * num_draws
    ess = num / tau.clamp(min=1 / math.log10(num))
    constant = (draws == draws[0, 0]).flatten(0, 1).all(dim=0)
    return ess.where(~constant, num)


def effective_sample_size(
    draws: Float[Tensor, "chains draws *dims"], *, split: bool = True
) -> Float[Tensor, "*dims"]:
    r"""How many independent draws would estimate the mean as well.

    .. math::
        \text{ESS} = \frac{M N}{\tau}, \qquad \tau = 1 + 2 \sum_{t \ge 1} \hat\rho_t ,

    with :math:`M` chains and autocorrelations :math:`\hat\rho_t` that count disagreement of the
    chains as correlation at every lag. The sum ends where noise takes over, by Geyer's initial
    monotone sequence, and :math:`\tau` is at least :math:`1 / \log_{10}(M N)`.

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain.
        split: Whether to split the chains into halves.

    Returns:
        One ESS a quantity, shape ``(...)``; the number of draws where all are equal.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor.
        ValueError: It has fewer than 2 dimensions or 4 draws, or is not finite.

    Source:
        Geyer (1992), "Practical Markov chain Monte Carlo", Statistical Science 7(4); for several
        chains Vehtari et al. (2021).

    Example:
        >>> steps = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> walk = steps.cumsum(dim=1)
        >>> bool(effective_sample_size(walk) < 50 < 1000 < effective_sample_size(steps))
        True
    """
    draws = _check_draws(draws)
    return _ess(_split(draws) if split else draws)


def bulk_ess(draws: Float[Tensor, "chains draws *dims"]) -> Float[Tensor, "*dims"]:
    """The ESS of rank-normalized draws: how well the middle of the distribution is known.

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain.

    Returns:
        One ESS a quantity, shape ``(...)``.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor.
        ValueError: It has fewer than 2 dimensions or 4 draws, or is not finite.

    Source:
        Vehtari et al. (2021), as above.

    Example:
        >>> draws = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> bool(bulk_ess(draws.exp()) == bulk_ess(draws))  # the same ranks
        True
    """
    return _ess(_rank_normalize(_split(_check_draws(draws))))


def quantile_ess(draws: Float[Tensor, "chains draws *dims"], prob: float) -> Float[Tensor, "*dims"]:
    r"""The ESS for a quantile: that of the indicator :math:`x \le q`.

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain.
        prob: The quantile's probability, between 0 and 1.

    Returns:
        One ESS a quantity, shape ``(...)``.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor, or ``prob`` is not a real number.
        ValueError: ``draws`` has fewer than 2 dimensions or 4 draws, or is not finite; or ``prob``
            is not between 0 and 1.

    Source:
        Vehtari et al. (2021), as above.

    Example:
        >>> noise = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> draws = torch.where(torch.arange(500) < 25, -3.0, noise)  # started in the tail
        >>> bool(10 * quantile_ess(draws, 0.02) < quantile_ess(draws, 0.5))
        True
    """
    draws, prob = _check_draws(draws), _checks.inside("prob", prob)
    return _ess(_split((draws <= _quantile(draws, prob)).double()))


def tail_ess(draws: Float[Tensor, "chains draws *dims"]) -> Float[Tensor, "*dims"]:
    """The smaller ESS of the 5 % and the 95 % quantile: how well the tails are known.

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain.

    Returns:
        One ESS a quantity, shape ``(...)``.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor.
        ValueError: It has fewer than 2 dimensions or 4 draws, or is not finite.

    Source:
        Vehtari et al. (2021), as above.

    Example:
        >>> draws = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> bool(tail_ess(draws) <= quantile_ess(draws, 0.95))
        True
    """
    return torch.minimum(quantile_ess(draws, 0.05), quantile_ess(draws, 0.95))


def sd_ess(draws: Float[Tensor, "chains draws *dims"]) -> Float[Tensor, "*dims"]:
    """The ESS for the standard deviation: that of squared distances from the mean.

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain.

    Returns:
        One ESS a quantity, shape ``(...)``.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor.
        ValueError: It has fewer than 2 dimensions or 4 draws, or is not finite.

    Source:
        Vehtari et al. (2021), as above.

    Example:
        >>> sizes = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)).abs()
        >>> antithetic = sizes * torch.tensor([1.0, -1.0]).repeat(250)
        >>> bool(sd_ess(antithetic) < 2500 < effective_sample_size(antithetic))
        True
    """
    return _ess(_split(_squared_distances(_check_draws(draws))))


def _squared_distances(draws: Tensor) -> Tensor:
    return (draws - draws.mean(dim=(0, 1))) ** 2


# --- Monte Carlo standard errors ------------------------------------------------------------------


def mcse_mean(draws: Float[Tensor, "chains draws *dims"]) -> Float[Tensor, "*dims"]:
    r"""The Monte Carlo standard error of the mean, :math:`\text{sd} / \sqrt{\text{ESS}}`.

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain.

    Returns:
        One error a quantity, in its unit, shape ``(...)``.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor.
        ValueError: It has fewer than 2 dimensions or 4 draws, or is not finite.

    Source:
        Vehtari et al. (2021), as above.

    Example:
        >>> draws = torch.randn(4, 2500, generator=torch.Generator().manual_seed(0))
        >>> print(f"{mcse_mean(draws).item():.2f}")  # 1 / sqrt(10 000)
        0.01
    """
    draws = _check_draws(draws)
    return draws.flatten(0, 1).std(dim=0) / _ess(_split(draws)).sqrt()


def mcse_sd(draws: Float[Tensor, "chains draws *dims"]) -> Float[Tensor, "*dims"]:
    r"""The Monte Carlo standard error of the standard deviation.

    That of the variance :math:`v = \operatorname{mean} (x - \bar x)^2`, divided by
    :math:`2 \sqrt v` (delta method).

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain.

    Returns:
        One error a quantity, in its unit, shape ``(...)``. NaN where all draws are equal.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor.
        ValueError: It has fewer than 2 dimensions or 4 draws, or is not finite.

    Source:
        Vehtari et al. (2021), as above.

    Example:
        >>> draws = torch.randn(4, 2500, generator=torch.Generator().manual_seed(0))
        >>> print(f"{mcse_sd(draws).item():.3f}")  # 1 / sqrt(20 000)
        0.007
    """
    squares = _squared_distances(_check_draws(draws))
    variance = squares.mean(dim=(0, 1))
    spread = squares.var(dim=(0, 1), correction=0)
    return (spread / _ess(_split(squares)) / variance / 4).sqrt()


def mcse_quantile(
    draws: Float[Tensor, "chains draws *dims"], prob: float
) -> Float[Tensor, "*dims"]:
    r"""The Monte Carlo standard error of a quantile: half the width of a 68 % interval.

    Of :math:`S` independent draws the share below the quantile has a
    :math:`\text{Beta}(S p + 1, S (1 - p) + 1)` distribution. Its 16 % and 84 % points, with
    :math:`S` the ESS, are ranks; the draws at these ranks end the interval.

    Args:
        draws: Draws, shape ``(chains, draws, ...)``, at least 4 draws a chain.
        prob: The quantile's probability, between 0 and 1.

    Returns:
        One error a quantity, in its unit, shape ``(...)``.

    Raises:
        TypeError: ``draws`` is not a floating-point tensor, or ``prob`` is not a real number.
        ValueError: ``draws`` has fewer than 2 dimensions or 4 draws, or is not finite; or ``prob``
            is not between 0 and 1.
        ImportError: SciPy is not installed.

    Source:
        Vehtari et al. (2021), as above.

    Example:
        >>> draws = torch.randn(4, 2500, generator=torch.Generator().manual_seed(0))
        >>> print(f"{mcse_quantile(draws, 0.5).item():.2f}")  # sqrt(pi / 20 000)
        0.01
    """
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise ImportError('mcse_quantile needs SciPy: pip install "coursepkg[arviz]"') from error

    ess = quantile_ess(draws, prob)
    ordered = _check_draws(draws).flatten(0, 1).sort(dim=0).values
    ends = np.array([0.1586553, 0.8413447])  # one standard deviation to either side
    num = ess[..., None].numpy(force=True)
    share = betaincinv(num * prob + 1, num * (1 - prob) + 1, ends)
    ranks = torch.from_numpy(share).to(ess) * len(ordered) - 1
    lower, upper = ranks[..., 0].floor().clamp(min=0), ranks[..., 1].ceil()
    upper = upper.clamp(max=len(ordered) - 1)
    low, high = (ordered.gather(0, rank.long()[None])[0] for rank in (lower, upper))
    return (high - low) / 2


# --- Energy ---------------------------------------------------------------------------------------


def e_bfmi(energy: Float[Tensor, "chains draws"]) -> Float[Tensor, " chains"]:
    r"""How far one momentum draw moves the energy of HMC (energy Bayesian fraction of missing
    information).

    .. math::
        \text{E-BFMI} = \sum_{n=2}^{N} (E_n - E_{n-1})^2 \Big/ \sum_{n=1}^{N} (E_n - \bar E)^2 .

    It is 2 where each draw's energy is independent of the last one's. Below 0.3 the chain crosses
    the energies, and with them the tails, too slowly.

    Args:
        energy: Energy (negative log density plus kinetic energy) in nats, shape
            ``(chains, draws)``, at least 4 draws a chain.

    Returns:
        One number a chain. NaN where the energy is constant.

    Raises:
        TypeError: ``energy`` is not a floating-point tensor.
        ValueError: It does not have 2 dimensions or 4 draws, or is not finite.

    Source:
        Betancourt (2016), "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte
        Carlo", arXiv:1604.00695.

    Example:
        >>> e_bfmi(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([0.6000], dtype=torch.float64)
    """
    energy = _check_draws(_checks.array("energy", energy, ndim=2), "energy")
    jumps = energy.diff(dim=1).square().mean(dim=1)
    return jumps / energy.var(dim=1)
