"""How the cost of one batched gradient of a network's log density grows.

All chains advance in one batch, and a leapfrog step is one gradient, so that this is what a draw's
cost is made of. One quantity grows at a time: chains, weights, or data points.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from harness import Row, one_core, versions

CHAINS, HIDDEN, POINTS = 256, 5, 20
CASES = (
    *((chains, HIDDEN, POINTS) for chains in (16, 64, 256, 1024)),
    *((CHAINS, hidden, POINTS) for hidden in (20, 100)),
    *((CHAINS, HIDDEN, points) for points in (200, 2000)),
)
ROUNDS = 7


def cost(chains: int, hidden: int, points: int) -> tuple[int, dict[str, float]]:
    """The number of weights, and microseconds a gradient: supplied, and by autograd."""
    import torch

    from coursepkg import data, density, networks

    sensor = data.sine_sensor(points)
    network = networks.MLP((1, hidden, 1))
    posterior = networks.log_joint(network, sensor.x, sensor.y, networks.Gaussian(0.1))
    generator = torch.Generator().manual_seed(0)
    # Column by column, as the engine stores its chains.
    weights = torch.randn(posterior.dim, chains, generator=generator).T
    targets: dict[str, density.LogDensity] = {
        "coursepkg": posterior,
        "coursepkg-autograd": lambda w: posterior(w),
    }
    times: dict[str, list[float]] = {name: [] for name in targets}
    for _ in range(ROUNDS):
        for name, target in targets.items():
            start, count = time.process_time(), 0
            while time.process_time() - start < 0.1:
                density.gradient(target, weights)
                count += 1
            times[name].append((time.process_time() - start) / count * 1e6)
    return posterior.dim, {name: statistics.median(found) for name, found in times.items()}


def measure() -> Iterator[Row]:
    """One row for each case, with the gradient supplied and by autograd."""
    note, known = f"median of {ROUNDS}, CPU time, float32", versions("torch")
    with one_core(), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
        for chains, hidden, points in CASES:
            weights, found = worker.submit(cost, chains, hidden, points).result()
            metric = f"µs a gradient: {chains} chains, {weights} weights, {points} points"
            for name, value in found.items():
                ratio = None if name == "coursepkg" else value / found["coursepkg"]
                yield Row("gradient-cost", name, metric, value, ratio, note, known)
