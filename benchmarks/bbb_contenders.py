"""Bayes by Backprop of one small network, ours and our peers', each at its best.

The network 1-20-20-2 with ReLU gives a mean and a log variance; 92 points of 10 sin(2πx) with noise
2 are met in minibatches of 8, for 200 epochs. Each weight has a normal guide and the prior N(0, 1).
All maximize the same ELBO, from the same start, by Adam.

A contender loads a guide, trains it, and draws functions from it. Libraries are imported by the
contender that needs them: each runs in a process of its own.
"""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# By layer: means and standard deviations, shape (2, outputs, inputs + 1), the bias last.
Guide = list[Array]

WIDTHS = (1, 20, 20, 2)
LAYERS = tuple(pairwise(WIDTHS))
BATCH, EPOCHS, RATE, INITIAL_SCALE = 8, 200, 0.01, 0.05
NOISE = 2.0


def points(num_points: int, seed: int) -> tuple[Array, Array]:
    """Inputs, equally spaced, and targets."""
    x = np.linspace(-0.5, 0.5, num_points)
    noise = np.random.default_rng(seed).standard_normal(num_points)
    return x, 10 * np.sin(2 * np.pi * x) + NOISE * noise


X, Y = points(92, seed=0)
NEW_X, NEW_Y = points(1000, seed=1)
BATCHES = math.ceil(len(X) / BATCH)
STEPS = EPOCHS * BATCHES


def start(seed: int) -> Guide:
    """Means as torch's layers have them at first, and small standard deviations."""
    rng = np.random.default_rng(seed)
    shapes = [(outputs, inputs + 1) for inputs, outputs in LAYERS]
    means = [rng.uniform(-1, 1, shape) / (shape[1] - 1) ** 0.5 for shape in shapes]
    return [np.stack([mean, np.full_like(mean, INITIAL_SCALE)]) for mean in means]


# What follows judges, and knows no library.


def functions(guide: Guide, x: Array, num_draws: int, seed: int = 0) -> Array:
    """Outputs of networks drawn from a guide, shape (draws, points, 2)."""
    rng = np.random.default_rng(seed)
    values = np.broadcast_to(x[:, None], (num_draws, len(x), 1))
    for index, (mean, scale) in enumerate(guide):
        weights = mean + scale * rng.standard_normal((num_draws, *mean.shape))
        values = values @ weights[..., :-1].swapaxes(1, 2) + weights[:, None, :, -1]
        values = np.maximum(values, 0) if index < len(guide) - 1 else values
    return values


def log_likelihood(outputs: Array, y: Array) -> Array:
    """Log density of each point: (draws, points, 2) to (draws, points)."""
    mean, log_variance = outputs[..., 0], outputs[..., 1]
    squares = (y - mean) ** 2 / np.exp(log_variance)
    return -(squares + log_variance + np.log(2 * np.pi)) / 2


def kl(guide: Guide) -> float:
    """KL(guide‖N(0, 1)), in nats."""
    return float(sum((m**2 + s**2 - 1 - 2 * np.log(s)).sum() / 2 for m, s in guide))


def elbo(guide: Guide, rows: int = len(X), num_draws: int = 2000) -> tuple[float, float]:
    """The ELBO by fresh draws, on the first rows for all, and its standard error."""
    each = log_likelihood(functions(guide, X[:rows], num_draws), Y[:rows])
    sums = len(X) / rows * each.sum(1)
    return float(sums.mean()) - kl(guide), float(sums.std() / num_draws**0.5)


def surprise(guide: Guide, num_draws: int = 500) -> float:
    """Minus the log predictive density of a new point, mean over points."""
    each = log_likelihood(functions(guide, NEW_X, num_draws), NEW_Y)
    top = each.max(0)
    return float(-(top + np.log(np.exp(each - top).mean(0))).mean())


class Contender(ABC):
    """A library's way of Bayes by Backprop."""

    @abstractmethod
    def load(self, guide: Guide) -> None:
        """Set means and standard deviations."""

    @abstractmethod
    def guide(self) -> Guide:
        """Give them back."""

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Start the random numbers anew."""

    @abstractmethod
    def loss(self, rows: int) -> float:
        """One draw of what it minimizes, on the first rows: its mean is minus the ELBO."""

    @abstractmethod
    def train(self) -> None:
        """All epochs."""

    @abstractmethod
    def predict(self, x: Array, num_draws: int) -> Array:
        """Outputs of drawn functions, shape (draws, points, 2)."""

    def compile(self) -> float:
        """Seconds of CPU time ahead of the first training, where there is a compiler."""
        return 0.0


class InTorch(Contender):
    """The same training for all libraries on torch, without needless work."""

    def __init__(self) -> None:
        import torch

        self.x, self.y = torch.tensor(X).float()[:, None], torch.tensor(Y).float()
        self.model = self.network()
        # What torch loads when the first optimizer of a process is made counts for nobody.
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])

    @abstractmethod
    def network(self) -> Any:
        """A module with the parameters."""

    @abstractmethod
    def objective(self, x: Any, y: Any) -> Any:
        """Minus the ELBO by one draw and some of the points."""

    def seed(self, seed: int) -> None:
        import torch

        torch.manual_seed(seed)

    def loss(self, rows: int) -> float:
        return float(self.objective(self.x[:rows], self.y[:rows]).detach())

    def minibatches(self) -> Iterator[tuple[Any, Any]]:
        """An epoch, in an order of its own."""
        import torch

        order = torch.randperm(len(X))
        return zip(self.x[order].split(BATCH), self.y[order].split(BATCH), strict=True)

    def train(self) -> None:
        import torch

        optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE, fused=True)
        for _ in range(EPOCHS):
            for x, y in self.minibatches():
                optimizer.zero_grad()
                self.objective(x, y).backward()
                optimizer.step()

    def predict(self, x: Array, num_draws: int) -> Array:
        import torch

        inputs = torch.tensor(x).float()[:, None]
        with torch.no_grad():
            return self.passes(inputs, num_draws).numpy()

    def passes(self, inputs: Any, num_draws: int) -> Any:
        """Draw by draw, where there is no other way."""
        import torch

        return torch.stack([self.model(inputs) for _ in range(num_draws)])


class InLayers(InTorch):
    """Libraries that offer Bayesian layers."""

    def network(self) -> Any:
        from torch import nn

        first, *others = (self.layer(*sizes) for sizes in LAYERS)
        return nn.Sequential(first, *(part for layer in others for part in (nn.ReLU(), layer)))

    @abstractmethod
    def layer(self, inputs: int, outputs: int) -> Any:
        """A linear layer, its prior N(0, 1)."""

    def kl(self) -> Any:
        """KL of all weights, after a forward pass."""
        raise NotImplementedError

    def layers(self) -> list[Any]:
        """What has the parameters, layer by layer."""
        return list(self.model[::2])

    @abstractmethod
    def pairs(self, layer: Any) -> list[tuple[Any, Any]]:
        """Means and free parameters of a layer's weights, and those of its biases."""

    def scale(self, free: Any) -> Any:
        """From free parameters to standard deviations."""
        import torch

        return torch.nn.functional.softplus(free)

    def free(self, scale: Any) -> Any:
        """And back."""
        return scale.expm1().log()

    def load(self, guide: Guide) -> None:
        import torch

        for layer, table in zip(self.layers(), guide, strict=True):
            parts = torch.tensor(table).float().split([table.shape[2] - 1, 1], dim=2)
            for (mean, free), part in zip(self.pairs(layer), parts, strict=True):
                mean.data.copy_(part[0].view_as(mean))
                free.data.copy_(self.free(part[1]).view_as(free))

    def guide(self) -> Guide:
        return [
            np.concatenate(
                [
                    np.stack([each.detach().numpy() for each in (mean, self.scale(free))])
                    .astype(float)
                    .reshape(2, outputs, -1)
                    for mean, free in self.pairs(layer)
                ],
                axis=2,
            )
            for layer, outputs in zip(self.layers(), WIDTHS[1:], strict=True)
        ]

    def objective(self, x: Any, y: Any) -> Any:
        from torch.distributions import Normal

        outputs = self.model(x)
        # As in ours, nobody checks the same targets in each step.
        noise = Normal(outputs[:, 0], (outputs[:, 1] / 2).exp(), validate_args=False)
        return self.kl() - len(X) / len(x) * noise.log_prob(y).sum()


class Coursepkg(InLayers):
    """Ours, with weights shared by the rows of a minibatch."""

    estimator = "shared"

    def layer(self, inputs: int, outputs: int) -> Any:
        from coursepkg.layers import BayesLinear

        return BayesLinear(inputs, outputs, estimator=self.estimator)

    def kl(self) -> Any:
        from coursepkg.layers import kl_divergence

        return kl_divergence(self.model)

    def pairs(self, layer: Any) -> list[tuple[Any, Any]]:
        return [(layer.mean[:, part], layer.free[:, part]) for part in (slice(-1), slice(-1, None))]

    def train(self) -> None:
        from coursepkg import training, uncertainty

        training.fit(
            self.model,
            self.x,
            self.y,
            uncertainty.heteroscedastic,
            num_epochs=EPOCHS,
            batch_size=BATCH,
            decay=False,
            progress=False,
        )

    def passes(self, inputs: Any, num_draws: int) -> Any:
        from coursepkg.layers import predict

        return predict(self.model, inputs, num_draws)


class CoursepkgLocal(Coursepkg):
    """Ours, by local reparameterization."""

    estimator = "local"


class Loop(InLayers):
    """The layer of many tutorials: densities of the drawn weights in each pass; plain Adam."""

    def layer(self, inputs: int, outputs: int) -> Any:
        import torch
        from torch import nn
        from torch.distributions import Normal

        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w_mu = nn.Parameter(torch.zeros(outputs, inputs))
                self.w_rho = nn.Parameter(torch.zeros(outputs, inputs))
                self.b_mu = nn.Parameter(torch.zeros(outputs))
                self.b_rho = nn.Parameter(torch.zeros(outputs))
                self.prior = Normal(0, 1)

            def forward(self, x: Any) -> Any:
                w_sigma = torch.log(1 + torch.exp(self.w_rho))
                b_sigma = torch.log(1 + torch.exp(self.b_rho))
                w = self.w_mu + w_sigma * torch.randn_like(w_sigma)
                b = self.b_mu + b_sigma * torch.randn_like(b_sigma)
                self.log_prior = self.prior.log_prob(w).sum() + self.prior.log_prob(b).sum()
                log_w = Normal(self.w_mu, w_sigma).log_prob(w).sum()
                self.log_posterior = log_w + Normal(self.b_mu, b_sigma).log_prob(b).sum()
                return nn.functional.linear(x, w, b)

        return Layer()

    def kl(self) -> Any:
        return sum(layer.log_posterior - layer.log_prior for layer in self.layers())

    def pairs(self, layer: Any) -> list[tuple[Any, Any]]:
        return [(layer.w_mu, layer.w_rho), (layer.b_mu, layer.b_rho)]

    def objective(self, x: Any, y: Any) -> Any:
        from torch.distributions import Normal

        outputs = self.model(x)
        noise = Normal(outputs[:, 0], (outputs[:, 1] / 2).exp())
        return self.kl() - len(X) / len(x) * noise.log_prob(y).sum()

    def train(self) -> None:
        import torch

        optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)
        for _ in range(EPOCHS):
            for x, y in self.minibatches():
                optimizer.zero_grad()
                self.objective(x, y).backward()
                optimizer.step()


class BayesianTorch(InLayers):
    """Its own KL is a mean over weights: times their number, tensor by tensor, it is the KL."""

    def layer(self, inputs: int, outputs: int) -> Any:
        from bayesian_torch.layers import LinearReparameterization

        layer = LinearReparameterization(inputs, outputs)
        layer.dnn_to_bnn_flag = True  # a pass returns outputs alone
        return layer

    def kl(self) -> Any:
        total: Any = 0
        for layer in self.layers():
            for name in ("weight", "bias"):
                mean = getattr(layer, f"mu_{name}")
                scale = self.scale(getattr(layer, f"rho_{name}"))
                prior = (getattr(layer, f"prior_{name}_{part}") for part in ("mu", "sigma"))
                total = total + mean.numel() * layer.kl_div(mean, scale, *prior)
        return total

    def pairs(self, layer: Any) -> list[tuple[Any, Any]]:
        return [(layer.mu_weight, layer.rho_weight), (layer.mu_bias, layer.rho_bias)]


class Blitz(InLayers):
    """Its KL is one draw of log q - log p, with a floor of 1e-6 under the prior's density."""

    def layer(self, inputs: int, outputs: int) -> Any:
        from blitz.modules import BayesianLinear
        from torch.distributions import Normal

        return BayesianLinear(inputs, outputs, prior_dist=Normal(0.0, 1.0))

    def kl(self) -> Any:
        from blitz.losses import kl_divergence_from_nn

        return kl_divergence_from_nn(self.model)

    def pairs(self, layer: Any) -> list[tuple[Any, Any]]:
        samplers = (layer.weight_sampler, layer.bias_sampler)
        return [(sampler.mu, sampler.rho) for sampler in samplers]


class Torchbnn(InLayers):
    """Torch's vmap goes through its layers: all draws at once, which it does not offer itself."""

    def layer(self, inputs: int, outputs: int) -> Any:
        from torchbnn import BayesLinear

        return BayesLinear(prior_mu=0, prior_sigma=1, in_features=inputs, out_features=outputs)

    def kl(self) -> Any:
        from torchbnn.functional import bayesian_kl_loss

        return bayesian_kl_loss(self.model, reduction="sum")

    def pairs(self, layer: Any) -> list[tuple[Any, Any]]:
        return [
            (layer.weight_mu, layer.weight_log_sigma),
            (layer.bias_mu, layer.bias_log_sigma),
        ]

    def scale(self, free: Any) -> Any:
        return free.exp()

    def free(self, scale: Any) -> Any:
        return scale.log()

    def passes(self, inputs: Any, num_draws: int) -> Any:
        import torch

        draw: Callable[[Any], Any] = torch.vmap(
            lambda _: self.model(inputs), randomness="different"
        )
        return draw(torch.empty(num_draws))


class Tyxe(InLayers):
    """On Pyro: torch's network, a prior, a guide, and a training loop of its own.

    With a patch, since it calls a function that Pyro no longer has. Its likelihood has a softplus
    for the scale; ours stands in its place.
    """

    def network(self) -> Any:
        import operator

        import pyro as library

        library.enable_validation(False)
        util: Any = library.util
        util.deep_getattr = lambda module, name: operator.attrgetter(name)(module)
        import tyxe

        class Noise(tyxe.likelihoods.HeteroskedasticGaussian):  # type: ignore[misc]
            def _predictive_loc_scale(self, outputs: Any) -> Any:
                mean, log_variance = outputs.chunk(2, dim=-1)
                return mean, (log_variance / 2).exp()

        prior = tyxe.priors.IIDPrior(library.distributions.Normal(0.0, 1.0))
        network = super().network()
        self.bnn = tyxe.VariationalBNN(network, prior, Noise(len(X)), tyxe.guides.AutoNormal)
        self.y = self.y[:, None]
        self.bnn.guide((self.x,), self.y)  # the first pass makes the parameters
        return network

    def layer(self, inputs: int, outputs: int) -> Any:
        from torch import nn

        return nn.Linear(inputs, outputs)

    def layers(self) -> list[Any]:
        return list(self.bnn.net_guide.net.children())

    def pairs(self, layer: Any) -> list[tuple[Any, Any]]:
        return [
            (each.loc_unconstrained, each.scale_unconstrained)
            for each in (layer.weight, layer.bias)
        ]

    def scale(self, free: Any) -> Any:
        return free.exp()

    def free(self, scale: Any) -> Any:
        return scale.log()

    def objective(self, x: Any, y: Any) -> Any:
        from pyro.infer import Trace_ELBO

        return Trace_ELBO().differentiable_loss(self.bnn.model, self.bnn.guide, (x,), y)

    def train(self) -> None:
        import torch
        from pyro.optim import PyroOptim

        class Epochs:
            def __iter__(_) -> Iterator[tuple[Any, Any]]:
                return self.minibatches()

        # A drawn KL costs less than its closed form here.
        optimizer = PyroOptim(torch.optim.Adam, {"lr": RATE, "fused": True})
        self.bnn.fit(Epochs(), optimizer, EPOCHS, closed_form_kl=False)

    def passes(self, inputs: Any, num_draws: int) -> Any:
        return self.bnn.predict(inputs, num_predictions=num_draws, aggregate=False)


class Pyro(InTorch):
    """SVI with AutoNormal, traced by torch's compiler; the model takes many draws at once."""

    def network(self) -> Any:
        import pyro as library
        import torch
        from pyro import distributions as dist
        from pyro.infer import JitTrace_ELBO
        from pyro.infer.autoguide import AutoNormal

        library.enable_validation(False)
        library.clear_param_store()
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # Pyro's compiler

        def model(x: Any, factor: Any, y: Any = None) -> None:
            values = x
            for index, (inputs, outputs) in enumerate(LAYERS):
                prior = dist.Normal(0.0, 1.0).expand([outputs, inputs + 1]).to_event(2)
                table = library.sample(f"w{index}", prior)
                values = values @ table[..., :-1].mT + table[..., None, :, -1]
                values = values.relu() if index < len(LAYERS) - 1 else values
            if y is None:
                library.deterministic("outputs", values)
                return
            noise = dist.Normal(values[..., 0], (values[..., 1] / 2).exp())
            with library.poutine.scale(scale=factor):
                library.sample("y", noise.to_event(1), obs=y)

        self.pyro_model = model
        self.elbo = JitTrace_ELBO(ignore_jit_warnings=True)
        # A tensor, since the trace would keep a number of its first minibatch.
        self.factors = {rows: torch.tensor(len(X) / rows) for rows in (BATCH, len(X) % BATCH)}
        guide = AutoNormal(model)
        guide(self.x, torch.tensor(1.0), self.y)
        return guide

    def load(self, guide: Guide) -> None:
        import torch

        for index, table in enumerate(guide):
            mean, scale = torch.tensor(table).float()
            setattr(self.model.locs, f"w{index}", mean)
            setattr(self.model.scales, f"w{index}", scale)

    def guide(self) -> Guide:
        tables = [
            [getattr(part, f"w{index}") for part in (self.model.locs, self.model.scales)]
            for index in range(len(LAYERS))
        ]
        return [
            np.stack([part.detach().numpy() for part in table]).astype(float) for table in tables
        ]

    def objective(self, x: Any, y: Any) -> Any:
        import torch

        factor = self.factors.get(len(x), torch.tensor(len(X) / len(x)))
        return self.elbo.differentiable_loss(self.pyro_model, self.model, x, factor, y)

    def passes(self, inputs: Any, num_draws: int) -> Any:
        from pyro.infer import Predictive

        draw = Predictive(
            self.pyro_model,
            guide=self.model,
            num_samples=num_draws,
            parallel=True,
            return_sites=("outputs",),
        )
        return draw(inputs, 1.0)["outputs"]


class Numpyro(Contender):
    """SVI with AutoNormal, the whole training one compiled program, and so a prediction."""

    def __init__(self) -> None:
        import jax
        import numpyro as library
        import optax
        from jax import numpy as jnp
        from numpyro.distributions import Normal
        from numpyro.infer import SVI, TraceMeanField_ELBO
        from numpyro.infer.autoguide import AutoNormal

        def network(tables: Any, x: Any) -> Any:
            values = x[:, None]
            for index, table in enumerate(tables):
                values = values @ table[:, :-1].T + table[:, -1]
                values = jax.nn.relu(values) if index < len(LAYERS) - 1 else values
            return values

        def model(x: Any, y: Any, factors: Any) -> None:
            tables = [
                library.sample(f"w{index}", Normal().expand([outputs, inputs + 1]).to_event(2))
                for index, (inputs, outputs) in enumerate(LAYERS)
            ]
            outputs = network(tables, x)
            with library.handlers.scale(scale=factors):
                library.sample("y", Normal(outputs[:, 0], jnp.exp(outputs[:, 1] / 2)), obs=y)

        guide = AutoNormal(model)
        inference = SVI(model, guide, optax.adam(RATE), TraceMeanField_ELBO())
        # The last minibatch is filled up with rows of factor zero.
        rows = np.minimum(BATCH, len(X) - BATCH * np.arange(BATCHES))[:, None]
        factors = np.where(np.arange(BATCH) < rows, len(X) / rows, 0.0)

        def train(key: Any, guide: Any) -> Any:
            def epoch(state: Any, key: Any) -> Any:
                order = jax.random.permutation(key, len(X))
                order = jnp.resize(order, (BATCHES, BATCH))
                return jax.lax.scan(step, state, (order, factors))[0], None

            def step(state: Any, minibatch: Any) -> Any:
                order, factors = minibatch
                x, y = jnp.asarray(X)[order], jnp.asarray(Y)[order]
                return inference.update(state, x, y, factors)[0], None

            first, second = jax.random.split(key)
            state = inference.init(first, X, Y, 1.0, init_params=guide)
            keys = jax.random.split(second, EPOCHS)
            return inference.get_params(jax.lax.scan(epoch, state, keys)[0])

        def loss(key: Any, guide: Any, x: Any, y: Any) -> Any:
            first, second = jax.random.split(key)
            state = inference.init(first, x, y, 1.0, init_params=guide)
            return inference.evaluate(state._replace(rng_key=second), x, y, len(X) / len(x))

        def predict(key: Any, params: Any, x: Any, num_draws: int) -> Any:
            draws = guide.sample_posterior(key, params, sample_shape=(num_draws,))
            tables = [draws[f"w{index}"] for index in range(len(LAYERS))]
            return jax.vmap(network, in_axes=(0, None))(tables, x)

        # The guide learns of its model here; within a program it would keep what is traced.
        inference.init(jax.random.key(0), X, Y, 1.0)
        self.training, self.one_loss = jax.jit(train), jax.jit(loss)
        self.prediction = jax.jit(predict, static_argnums=3)
        self.seed(0)

    def seed(self, seed: int) -> None:
        import jax

        self.keys = iter(jax.random.split(jax.random.key(seed), 1000))

    def load(self, guide: Guide) -> None:
        self.params = {
            f"w{index}_auto_{name}": part.astype(np.float32)
            for index, table in enumerate(guide)
            for name, part in zip(("loc", "scale"), table, strict=True)
        }

    def guide(self) -> Guide:
        return [
            np.stack([self.params[f"w{index}_auto_{name}"] for name in ("loc", "scale")]).astype(
                float
            )
            for index in range(len(LAYERS))
        ]

    def loss(self, rows: int) -> float:
        return float(self.one_loss(next(self.keys), self.params, X[:rows], Y[:rows]))

    def train(self) -> None:
        self.params = self.training(next(self.keys), self.params)
        self.params["w0_auto_loc"].block_until_ready()

    def predict(self, x: Array, num_draws: int) -> Array:
        key = next(self.keys)
        return np.asarray(self.prediction(key, self.params, x.astype(np.float32), num_draws))

    def compile(self) -> float:
        begin = time.process_time()
        self.training = self.training.lower(next(self.keys), self.params).compile()
        return time.process_time() - begin


# By name: the class, and the packages whose versions matter, the first its own.
CONTENDERS: dict[str, tuple[type[Contender], tuple[str, ...]]] = {
    "coursepkg": (Coursepkg, ("torch",)),
    "coursepkg-local": (CoursepkgLocal, ("torch",)),
    "loop": (Loop, ("torch",)),
    "bayesian-torch": (BayesianTorch, ("bayesian-torch", "torch")),
    "blitz": (Blitz, ("blitz-bayesian-pytorch", "torch")),
    "torchbnn": (Torchbnn, ("torchbnn", "torch")),
    "tyxe": (Tyxe, ("tyxe", "pyro-ppl", "torch")),
    "pyro": (Pyro, ("pyro-ppl", "torch")),
    "numpyro": (Numpyro, ("numpyro", "jax")),
}
