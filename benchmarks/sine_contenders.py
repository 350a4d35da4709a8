"""Samplers of the sine network's posterior, ours and our peers', each at its best.

A contender is a function that prepares a sampler (imports, compilation) and returns it with the
seconds that compilation took. A sampler takes a seed, does a whole run from its start on (warm-up
included), and returns weights of shape (chains, draws, 16). Libraries are imported by the contender
that needs them: each runs in a process of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Sampler = Callable[[int], Array]

TRUTH = Path(__file__).resolve().parents[1] / "tests" / "truth" / "sine_network.json"
REFERENCE = {
    name: np.array(values)
    for name, values in json.loads(TRUTH.read_text(encoding="utf-8")).items()
    if isinstance(values, list)
}
X, Y = REFERENCE["x"], REFERENCE["y"]
HIDDEN, WEIGHTS, NOISE = 5, 16, 0.1
# The log posterior's mean is -3.92: a chain whose mean is below this is lost.
LOST = -13.9


def functions(weights: Array, x: Array) -> Array:
    """f(x) of each weight vector: (..., 16) and (points,) to (..., points)."""
    w1, b1, w2 = (weights[..., None, i : i + HIDDEN] for i in range(0, 3 * HIDDEN, HIDDEN))
    return (np.maximum(w1 * x[:, None] + b1, 0) * w2).sum(-1) + weights[..., -1:]


def log_posterior(weights: Array) -> Array:
    """Log prior plus log likelihood, constants included: (..., 16) to (...)."""
    residuals = (functions(weights, X) - Y) / NOISE
    constants = (WEIGHTS + len(X)) / 2 * np.log(2 * np.pi) + len(X) * np.log(NOISE)
    return -((weights**2).sum(-1) + (residuals**2).sum(-1)) / 2 - constants


def loop() -> tuple[Sampler, float]:
    """The Metropolis loop of many tutorials: a new network for every proposal, one short step."""
    import torch
    from torch import nn
    from torch.distributions import Normal
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    x, y = torch.tensor(X).float()[:, None], torch.tensor(Y).float()[:, None]

    def network(weights: Any = None) -> Any:
        net = nn.Sequential(nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        if weights is not None:
            vector_to_parameters(weights, net.parameters())
        return net

    @torch.no_grad()
    def score(weights: Any) -> float:
        fit = Normal(network(weights)(x), NOISE).log_prob(y).sum()
        return float(Normal(0, 1).log_prob(weights).sum() + fit)

    def sample(seed: int) -> Array:
        torch.manual_seed(seed)
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(200):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
        here = parameters_to_vector(net.parameters()).detach()
        height, kept = score(here), []
        for step in range(10_000):
            there = here + 0.01 * torch.randn(WEIGHTS)
            proposed = score(there)
            if float(torch.rand(()).log()) < proposed - height:
                here, height = there, proposed
            if step % 10 == 0:
                kept.append(here.numpy())
        return np.array(kept)[None].astype(float)

    return sample, 0.0


def pyro_model() -> Callable[[], None]:
    """The posterior, in Pyro's words."""
    import pyro as library
    import torch
    from pyro.distributions import Normal

    x, y = torch.tensor(X).float()[:, None], torch.tensor(Y).float()

    def model() -> None:
        w = library.sample("w", Normal(0.0, 1.0).expand([WEIGHTS]).to_event(1))
        hidden = (x * w[:5] + w[5:10]).relu()
        library.sample("y", Normal(hidden @ w[10:15] + w[15], NOISE).to_event(1), obs=y)

    return model


def pyro() -> tuple[Sampler, float]:
    """Pyro's NUTS, one chain, as short as a claim of its effective draws allows."""
    import pyro as library
    from pyro.infer import MCMC, NUTS

    model = pyro_model()

    def sample(seed: int) -> Array:
        library.set_rng_seed(seed)
        run = MCMC(NUTS(model), num_samples=100, warmup_steps=100, disable_progbar=True)
        run.run()
        return run.get_samples()["w"].numpy()[None].astype(float)

    return sample, 0.0


def coursepkg(*, supplied: bool = True) -> tuple[Sampler, float]:
    """Ours, with nothing tuned; its chains start from an annealed population."""
    import torch

    from coursepkg import annealing, mcmc, networks

    posterior = networks.sine_posterior()
    # A plain function has no gradient of its own: autograd takes it.
    target = posterior if supplied else lambda weights: posterior(weights)

    def sample(seed: int) -> Array:
        generator = torch.Generator().manual_seed(seed)
        start = annealing.anneal(target, posterior.dim, 1024, generator=generator)
        chains = mcmc.sample(
            start.kernel, start.position, 50, num_warmup=20, generator=generator, progress=False
        )
        return chains.draws.numpy().astype(float)

    return sample, 0.0


def compiled(run: Callable[[Any], Any]) -> tuple[Sampler, float]:
    """Compile a whole run, a function of JAX's random key, once."""
    import jax

    start = time.process_time()
    program = jax.jit(run).lower(jax.random.key(0)).compile()
    seconds = time.process_time() - start
    return lambda seed: np.asarray(program(jax.random.key(seed)), float), seconds


def numpyro_model() -> Callable[[], None]:
    """The posterior, in NumPyro's words."""
    import jax
    import numpyro as library
    from numpyro.distributions import Normal

    def model() -> None:
        w = library.sample("w", Normal(0, 1).expand([WEIGHTS]).to_event(1))
        hidden = jax.nn.relu(X[:, None] * w[:5] + w[5:10])
        library.sample("y", Normal(hidden @ w[10:15] + w[15], NOISE), obs=Y)

    return model


def numpyro() -> tuple[Sampler, float]:
    """NumPyro's NUTS, four chains side by side."""
    from numpyro.infer import MCMC, NUTS

    model = numpyro_model()

    def run(key: Any) -> Any:
        chains = MCMC(
            NUTS(model),
            num_warmup=500,
            num_samples=500,
            num_chains=4,
            chain_method="vectorized",
            progress_bar=False,
        )
        chains.run(key)
        return chains.get_samples(group_by_chain=True)["w"]

    return compiled(run)


def jax_log_posterior(weights: Any) -> Any:
    """The fastest of the six ways that we tried to write it for XLA: matrix products."""
    import jax

    hidden = jax.nn.relu(weights[:10].reshape(2, HIDDEN).T @ np.stack([X, np.ones_like(X)]))
    residuals = (weights[10:15] @ hidden + weights[15] - Y) / NOISE
    return -(weights @ weights + residuals @ residuals) / 2


def blackjax_nuts() -> tuple[Sampler, float]:
    """BlackJAX's NUTS with its window adaptation, four chains side by side."""
    import blackjax
    import jax

    def chain(key: Any) -> Any:
        start, warm_up, draw = jax.random.split(key, 3)
        adaptation = blackjax.window_adaptation(blackjax.nuts, jax_log_posterior)
        (state, tuned), _ = adaptation.run(warm_up, jax.random.normal(start, (WEIGHTS,)), 500)
        kernel = blackjax.nuts(jax_log_posterior, **tuned)

        def step(state: Any, key: Any) -> Any:
            state, _ = kernel.step(key, state)
            return state, state.position

        return jax.lax.scan(step, state, jax.random.split(draw, 500))[1]

    return compiled(lambda key: jax.vmap(chain)(jax.random.split(key, 4)))


def blackjax_chees() -> tuple[Sampler, float]:
    """BlackJAX's ChEES, tuned by hand to this posterior.

    The diagonal mass matrix, the numbers of chains, warm-up steps and draws, and the trajectory
    length are what delivers the most per second within 51,200 draws. ChEES by itself takes paths
    that are nearly twice as long; other step sizes than its own are worse.
    """
    import blackjax
    import jax
    import optax

    num_chains, num_warmup, num_draws, length = 64, 100, 800, 1.2

    def run(key: Any) -> Any:
        start, warm_up, draw = jax.random.split(key, 3)
        adaptation = blackjax.chees_adaptation(
            jax_log_posterior, num_chains, mass_matrix_estimation="diagonal"
        )
        initial = jax.random.normal(start, (num_chains, WEIGHTS))
        (states, tuned), _ = adaptation.run(warm_up, initial, 0.1, optax.adam(0.02), num_warmup)
        tuned["integration_steps_params"] = (length / tuned["step_size"],)
        kernel = blackjax.dynamic_hmc(jax_log_posterior, **tuned)

        def step(states: Any, key: Any) -> Any:
            states, _ = jax.vmap(kernel.step)(jax.random.split(key, num_chains), states)
            return states, states.position

        return jax.lax.scan(step, states, jax.random.split(draw, num_draws))[1].swapaxes(0, 1)

    return compiled(run)
