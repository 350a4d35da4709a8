"""What every workload shares: rows, interleaved rounds, honest gaps.

A workload is a file ``bench_<name>.py`` in this folder with a function ``measure()`` that yields
rows; ``run.py`` finds it by its name. Contenders take turns within each round, so that a machine
that grows slow slows all of them, and the median over rounds is reported.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from tqdm import tqdm

Result = TypeVar("Result")


@dataclass
class Row:
    """One line of the table.

    Attributes:
        workload: What was done, the same for all contenders.
        contender: Who did it; ``coursepkg`` is ours.
        metric: What the value measures, with its unit.
        value: The median over the rounds; ``None`` where the contender could not run.
        ratio: Ours over theirs, above 1 where ours is better; ``None`` for ours and for gaps.
        quality: What the value bought, or why there is none.
        versions: The versions that matter, by package.
        threads: How many threads a process could use.
    """

    workload: str
    contender: str
    metric: str
    value: float | None
    ratio: float | None = None
    quality: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    threads: int = 1


def versions(*packages: str) -> dict[str, str]:
    """Look up installed versions; a package that is missing is left out."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def digits(value: float) -> str:
    """Three digits, with no power of ten."""
    return f"{float(f'{value:.3g}'):,g}"


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def one_core() -> Iterator[None]:
    """Processes started within this have one core (where the system can say so) and one thread."""
    before, can_pin = dict(os.environ), hasattr(os, "sched_setaffinity")
    allowed = os.sched_getaffinity(0) if can_pin else set()
    os.environ.update(
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    )
    try:
        if can_pin:
            os.sched_setaffinity(0, {max(allowed)})
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        if can_pin:
            os.sched_setaffinity(0, allowed)


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Let the contenders measure themselves in turn; report each one's median.

    Args:
        contenders: By name, a function that does the work and returns its measure.
        rounds: How often each has its turn.

    Returns:
        The medians by name.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            values[name].append(measure())
    return {name: statistics.median(found) for name, found in values.items()}


def race(
    work: Callable[[str, int], Result], rounds: Mapping[str, int]
) -> dict[str, list[Result] | str]:
    """Let contenders work in turns, each in a process of its own, on one core.

    Args:
        work: Takes a contender's name and the round, and returns what is to be judged.
        rounds: How often each contender has its turn, by name.

    Returns:
        The results by name; or why there are none, where a package is missing or cannot do it.
    """
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, list[Result] | str] = {}
    with one_core():
        workers = {name: ProcessPoolExecutor(1, spawn) for name in rounds}
        for turn in tqdm(range(max(rounds.values())), "rounds", disable=None):
            for name, worker in workers.items():
                results = found.setdefault(name, [])
                if isinstance(results, str) or turn >= rounds[name]:
                    continue
                try:
                    results.append(worker.submit(work, name, turn).result())
                except ImportError as missing:
                    found[name] = f"not installed: {missing.name}"
                except NotImplementedError as reason:
                    found[name] = str(reason)
        for worker in workers.values():
            worker.shutdown()
    return found
