"""How tests examine Markov kernels: a skewed target with exact draws, z scores, wrong kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coursepkg.density import LogDensity, value_and_grad
from coursepkg.hmc import HMC, HMCInfo, HMCState
from coursepkg.mcmc import Info, Metropolis, State, accept, normal_like

ROOT = torch.tensor([[1.0, 0.0], [-0.8, 0.7]], dtype=torch.float64)
SHAPES = torch.tensor([1.0, 3.0], dtype=torch.float64)


def skewed(theta: Tensor) -> Tensor:
    """Two logarithms of gamma variables, mixed: skewed, correlated, of different scales.

    A sign error that a symmetric target hides shows here.
    """
    logs = torch.linalg.solve_triangular(ROOT.to(theta), theta.T, upper=False).T
    return (SHAPES.to(theta) * logs - logs.exp()).sum(-1)


def exact_draws(count: int, generator: torch.Generator) -> Tensor:
    """Independent draws of the skewed target: sums of one and of three exponential variables."""
    waits = torch.empty(count, 4, dtype=torch.float64).exponential_(generator=generator)
    return torch.stack([waits[:, 0], waits[:, 1:].sum(1)], dim=1).log() @ ROOT.T


EXACT_MEAN = ROOT @ torch.tensor(
    [-0.5772156649, 0.9227843351], dtype=torch.float64
)  # digamma(1, 3)
EXACT_VARIANCE = ROOT.square() @ torch.tensor(
    [math.pi**2 / 6, math.pi**2 / 6 - 1.25], dtype=torch.float64
)


def z_scores(values: Tensor) -> Tensor:
    """Means of independent rows over their standard errors; infinite where nothing is finite."""
    z = values.mean(0) / (values.std(0) / len(values) ** 0.5)
    return z.nan_to_num(nan=torch.inf).abs()


def largest_z(kernel: Any, before: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """One step from exact draws: largest z score against an invariant target, and a reversible one.

    The target is invariant where every function has the same mean before and after; the kernel is
    reversible where a step is as likely as its reverse: g(x, x') has the mean of g(x', x).
    """
    after = kernel.step(kernel.init(before), generator=generator)[0].position

    def functions(x: Tensor) -> Tensor:
        return torch.cat([x, x.square(), x.sin(), x.tanh(), (x < 0).to(x), x.prod(1)[:, None]], 1)

    f, g = functions(before), functions(after)
    pairs = [f[:, i] * g[:, j] - g[:, i] * f[:, j] for i in range(11) for j in range(i)]
    return float(z_scores(g - f).max()), float(z_scores(torch.stack(pairs, 1)).max())


# --- Wrong kernels --------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlantedMetropolis(Metropolis):
    """Metropolis with a mistake planted by name; "none" is right, and so is "drift, corrected"."""

    bug: str = "none"

    def step(self, state: State, *, generator: torch.Generator | None = None) -> tuple[State, Info]:
        drift = 0.5 if "drift" in self.bug else 0.0
        noise = self.step_size * normal_like(state.position, generator)
        proposal = self.init(state.position + drift + noise)
        log_ratio = proposal.log_density - state.log_density
        if self.bug == "drift, corrected":
            there, back = noise.square().sum(-1), (noise + 2 * drift).square().sum(-1)
            log_ratio = log_ratio + (there - back) / (2 * self.step_size**2)
        if self.bug == "inverted ratio":
            log_ratio = -log_ratio
        if self.bug == "always accepted":
            log_ratio = torch.zeros_like(log_ratio)
        if self.bug == "square root of the ratio":
            log_ratio = log_ratio / 2
        after, acceptance = accept(log_ratio, proposal, state, generator=generator)
        if self.bug == "rejected draws thrown away":
            stayed = after.position[:, 0] == state.position[:, 0]
            if stayed.any():
                rest = State(*(field[stayed] for field in state))
                again = self.step(rest, generator=generator)[0]
                for field, new in zip(after, again, strict=True):
                    field[stayed] = new
        return after, Info(after.log_density, acceptance)


@dataclass(frozen=True)
class PlantedHMC(HMC):
    """HMC of few lines, identity or diagonal mass, with a mistake planted by name."""

    bug: str = "none"
    num_steps: int = 5

    def step(
        self, state: HMCState, *, generator: torch.Generator | None = None
    ) -> tuple[HMCState, HMCInfo]:
        inverse_mass = torch.ones(2) if self.inverse_mass is None else self.inverse_mass
        inverse_mass = inverse_mass.to(state.position)
        p = normal_like(state.position, generator) / inverse_mass.sqrt()
        if self.bug == "momentum not refreshed":  # the same one at every step
            p = normal_like(state.position, torch.Generator().manual_seed(1))
        kinetic_mass = torch.ones_like(inverse_mass) if "mass ignored" in self.bug else inverse_mass

        def energy(p: Tensor, value: Tensor) -> Tensor:
            kinetic = (p.square() * kinetic_mass).sum(-1) / 2
            return kinetic * (self.bug != "kinetic energy forgotten") - value

        start = energy(p, state.log_density)
        x, gradient = state.position, state.gradient
        half = self.step_size / 2
        for i in range(self.num_steps):
            p = p + (2 * half if i or self.bug == "half step forgotten" else half) * gradient
            x = x + self.step_size * inverse_mass * p
            value, gradient = value_and_grad(self.log_density, x)
        if self.bug != "half step forgotten":
            p = p + half * gradient
        end = HMCState(x, value, gradient)
        log_ratio = start - energy(p, value)
        if self.bug == "inverted ratio":
            log_ratio = -log_ratio
        if self.bug == "always accepted":
            log_ratio = torch.zeros_like(log_ratio)
        after, acceptance = accept(log_ratio, end, state, generator=generator)
        return after, HMCInfo(after.log_density, acceptance, start, acceptance < 0)


def planted_hmc(log_density: LogDensity, bug: str, step_size: float, **fields: Any) -> PlantedHMC:
    return replace(PlantedHMC(log_density, step_size), bug=bug, **fields)


Kernels = dict[str, Callable[[LogDensity], Any]]
