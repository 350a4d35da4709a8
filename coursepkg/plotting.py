"""Figures in one style: functions that draw on an ``ax`` and return it.

Call :func:`use_style` once at the head of a notebook. Figures are then SVG, in colors that keep
apart for the common color-vision deficiencies and stand out on white and on black alike. Text,
axes and background have three colors of their own, which the built book replaces by those of the
page, so that a figure reads well in light and in dark mode; in a live notebook they are dark on
white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import seaborn as sns
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor

from coursepkg import _checks
from coursepkg.bayes_linear import GaussianWeights, Predictive
from coursepkg.calibration import Curve
from coursepkg.data import DataSet
from coursepkg.density import LogDensity
from coursepkg.uncertainty import Variances

__all__ = [
    "COLORS",
    "bands",
    "contours",
    "curves",
    "images",
    "measurements",
    "page_colors",
    "points",
    "projection",
    "reliability",
    "signed_area",
    "traces",
    "use_style",
    "walk",
    "weight_ellipses",
]

# Replaced in the built book; elsewhere near black on near white.
INK, PAPER, GRID = "#1a1a1b", "#fefefe", "#cfcfd0"

#: Blue, vermilion and green of Okabe and Ito, and a purple that keeps apart from them for all eyes.
COLORS = {
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#009e73",
    "purple": "#8847ea",
    "ink": INK,
}


def use_style() -> None:
    """Set the course's style for all figures that follow, and SVG output in a notebook."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette=[COLORS[name] for name in ("blue", "orange", "green", "purple")],
        rc={
            "axes.facecolor": PAPER,
            "figure.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "legend.facecolor": PAPER,
            "legend.framealpha": 0.0,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": GRID,
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 12,
            "axes.labelsize": 12,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 11,
            "figure.figsize": (6.0, 3.6),
            "figure.constrained_layout.use": True,
            # An SVG has 72 dots an inch; what is rasterized inside it is sharp on a phone, too.
            "figure.dpi": 144,
            # The same figure gives the same file: outputs can be compared from run to run.
            "svg.hashsalt": "coursepkg",
        },
    )
    try:
        from IPython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if get_ipython() is not None:
        set_matplotlib_formats("svg", metadata={"Date": None})


def _numpy(tensor: Tensor) -> Any:
    return tensor.numpy(force=True)


def points(
    ax: Axes,
    x: Float[Tensor, " points"],
    y: Float[Tensor, " points"],
    *,
    noise_scale: float | None = None,
    label: str | None = "data",
) -> Axes:
    """Draw measurements as dots, with bars of two noise standard deviations if given.

    Args:
        ax: Where to draw.
        x: Inputs, shape ``(points,)``.
        y: Targets, shape ``(points,)``.
        noise_scale: Standard deviation of the noise, for the bars.
        label: Legend entry.

    Returns:
        ``ax``.

    Raises:
        TypeError: ``x`` or ``y`` is not a floating-point tensor.
        ValueError: ``x`` or ``y`` does not have one dimension, is empty or not finite.
    """
    bars = None if noise_scale is None else 2 * _checks.positive("noise_scale", noise_scale)
    ax.errorbar(
        _numpy(_checks.array("x", x, ndim=1)),
        _numpy(_checks.array("y", y, ndim=1)),
        yerr=bars,
        fmt="o",
        markersize=5,
        color=COLORS["orange"],
        elinewidth=1.2,
        label=label,
        zorder=5,
    )
    return ax


def measurements(ax: Axes, data: DataSet, x: Float[Tensor, " points"] | None = None) -> Axes:
    """Draw a data set of one input: its points, its true function, names on the axes.

    Args:
        ax: Where to draw.
        data: A data set with one input.
        x: Where to evaluate the true function, shape ``(points,)``; it is not drawn where this is
            ``None``.

    Returns:
        ``ax``.

    Raises:
        ValueError: ``x`` is given for real data: nobody knows their true function.
    """
    if x is not None:
        if data.function is None:
            raise ValueError(f"data must have a known function, got {data.name!r} with none")
        ax.plot(_numpy(x), _numpy(data.function(x)), "--", color=INK, lw=1.5, label="true function")
    ax.set(xlabel="input $x$", ylabel="measurement $y$")
    return points(ax, data.x, data.y)


def curves(
    ax: Axes,
    x: Float[Tensor, " points"],
    functions: Float[Tensor, "*draws points"],
    *,
    color: str = "blue",
    label: str | None = None,
) -> Axes:
    """Draw one function, or many faintly, one per row.

    Args:
        ax: Where to draw.
        x: Inputs, shape ``(points,)``.
        functions: Values, shape ``(points,)`` or ``(draws, points)``.
        color: A name in :data:`COLORS`.
        label: Legend entry.

    Returns:
        ``ax``.

    Raises:
        ValueError: ``color`` is unknown, or ``functions`` does not end in as many points as ``x``.
    """
    if color not in COLORS:
        raise ValueError(f"color must be one of {sorted(COLORS)}, got {color!r}")
    if functions.ndim not in (1, 2) or functions.shape[-1] != len(x):
        raise ValueError(
            f"functions must have shape ({len(x)},) or (draws, {len(x)}), "
            f"got {tuple(functions.shape)}"
        )
    width, alpha = (2.0, 1.0) if functions.ndim == 1 else (1.0, 0.35)
    lines = ax.plot(_numpy(x), _numpy(functions).T, color=COLORS[color], lw=width, alpha=alpha)
    lines[0].set_label(label if label is not None else "_")
    return ax


def bands(ax: Axes, x: Float[Tensor, " points"], prediction: Predictive | Variances) -> Axes:
    """Draw a prediction: its mean, two sd of the function, two sd of a new observation.

    The outer band is two standard deviations of the *sum* of both variances; adding the two
    standard deviations would draw it up to 1.4 times too wide.

    Args:
        ax: Where to draw.
        x: Inputs, shape ``(points,)``.
        prediction: What :func:`coursepkg.bayes_linear.predictive` or
            :func:`coursepkg.uncertainty.decompose_variance` returns for them.

    Returns:
        ``ax``.

    Raises:
        ValueError: The prediction is for another number of points.
    """
    if len(prediction.mean) != len(x):
        raise ValueError(
            f"prediction must have {len(x)} points, as x has, got {len(prediction.mean)}"
        )
    mean = _numpy(prediction.mean)
    if isinstance(prediction, Variances):
        both, function = prediction.total, prediction.epistemic
    else:
        both, function = prediction.variance, prediction.weight_variance
    for variance, alpha, label in (
        (both, 0.25, "2 sd, new observation"),
        (function, 0.4, "2 sd, function"),
    ):
        width = 2 * _numpy(variance.sqrt())
        ax.fill_between(
            _numpy(x),
            mean - width,
            mean + width,
            color=COLORS["blue"],
            alpha=alpha,
            lw=0,
            label=label,
        )
    ax.plot(_numpy(x), mean, color=COLORS["blue"], lw=2, label="mean")
    return ax


def reliability(ax: Axes, curve: Curve, *, color: str = "blue", label: str | None = None) -> Axes:
    """Draw what was predicted against what happened: on the diagonal where it is calibrated.

    A dot's area is the number of its points; its bar is two standard errors to each side. Bins
    without points are left out.

    Args:
        ax: Where to draw.
        curve: By :func:`coursepkg.calibration.reliability` or
            :func:`coursepkg.calibration.calibration_curve`, of shape ``(bins,)``.
        color: A name in :data:`COLORS`.
        label: Legend entry.

    Returns:
        ``ax``.

    Raises:
        ValueError: ``color`` is unknown, or there is more than one curve.
    """
    _checks.choice("color", color, tuple(COLORS))
    if curve.predicted.ndim != 1:
        raise ValueError(
            f"curve must be one, of shape (bins,), got shape {tuple(curve.predicted.shape)}"
        )
    used = curve.num_points > 0
    predicted, observed, error, num_points = (_numpy(values[used]) for values in curve)
    ax.axline((0, 0), slope=1, color=INK, ls="--", lw=1)
    ax.errorbar(predicted, observed, 2 * error, color=COLORS[color], lw=1.2, label=label)
    ax.scatter(predicted, observed, 80 * num_points / num_points.max(), color=COLORS[color])
    ends = (-0.03, 1.03)  # dots at 0 and 1 are whole
    ax.set(xlim=ends, ylim=ends, xlabel="predicted probability", ylabel="observed share")
    return ax


def weight_ellipses(ax: Axes, weights: GaussianWeights) -> Axes:
    """Draw a Gaussian over an intercept and a slope: ellipses of one, two and three sd.

    Args:
        ax: Where to draw: intercept to the right, slope upwards.
        weights: A Gaussian over two weights.

    Returns:
        ``ax``.

    Raises:
        ValueError: ``weights`` has another number of weights than two.
    """
    if len(weights.mean) != 2:
        raise ValueError(f"weights must have 2 weights, got {len(weights.mean)}")
    variances, axes = torch.linalg.eigh(weights.covariance)
    angle = float(torch.rad2deg(torch.atan2(axes[1, 1], axes[0, 1])))
    for sds in (3, 2, 1):
        height, width = (2 * sds * variances.sqrt()).tolist()
        ax.add_patch(
            Ellipse(
                tuple(weights.mean.tolist()),
                width,
                height,
                angle=angle,
                facecolor=COLORS["blue"],
                edgecolor=COLORS["blue"],
                alpha=0.25,
            )
        )
    ax.plot(*weights.mean.tolist(), "+", color=INK, markersize=9)
    ax.set(xlabel="intercept $w_0$", ylabel="slope $w_1$")
    return ax


def projection(
    ax: Axes, feature: Float[Tensor, " points"], targets: Float[Tensor, " points"]
) -> Axes:
    """Draw least squares as a projection: two points, one feature, so that the space is a plane.

    Args:
        ax: Where to draw. Its two axes are the two points, not input and output.
        feature: The feature's value at the two points, shape ``(2,)``.
        targets: Their targets, shape ``(2,)``.

    Returns:
        ``ax``.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: An argument does not have two finite entries, or ``feature`` is zero.
    """
    feature = _checks.array("feature", feature, ndim=1)
    targets = _checks.array("targets", targets, ndim=1)
    if len(feature) != 2 or len(targets) != 2:
        raise ValueError(
            f"feature and targets must have 2 points, got {len(feature)} and {len(targets)}"
        )
    if not feature.any():
        raise ValueError("feature must not be zero at both points")
    fitted = (feature @ targets / (feature @ feature)) * feature
    reach = 1.25 * max(float(targets.norm()), float(fitted.norm()))
    direction = _numpy(feature / feature.norm())
    ax.axline((0, 0), tuple(direction), color=COLORS["green"], lw=1.5, label="all $w\\,\\phi$")
    arrows = (
        ((0, 0), targets, "orange", "targets $y$"),
        ((0, 0), fitted, "blue", "fit $\\hat y$"),
        (tuple(fitted.tolist()), targets, "purple", "residual"),
    )
    for start, end, color, label in arrows:
        ax.annotate(
            "",
            xy=tuple(end.tolist()),
            xytext=start,
            arrowprops={
                "arrowstyle": "-|>",
                "color": COLORS[color],
                "lw": 2,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
        ax.plot([], [], color=COLORS[color], lw=2, label=label)
    ax.set(
        xlim=(-0.1 * reach, reach),
        ylim=(-0.1 * reach, reach),
        aspect="equal",
        xlabel="value at point 1",
        ylabel="value at point 2",
    )
    return ax


def page_colors(ax: Axes) -> Axes:
    """Give shapes that another library drew in black, gray and white the colors of the page.

    Without it a diagram, such as daft's, would keep its black lines in dark mode.

    Args:
        ax: Where the library has drawn, over the whole of its figure.

    Returns:
        ``ax``.

    Example:
        >>> import daft
        >>> graph = daft.PGM()
        >>> _ = graph.add_node("w", "$w$")
        >>> to_hex(page_colors(graph.render()).patches[0].get_edgecolor()) == INK
        True
    """
    ours = {"#000000ff": INK, "#b2b2b2ff": GRID, "#ffffffff": PAPER}  # what is unfilled has alpha 0
    for patch in ax.patches:
        for color, set_color in (
            (patch.get_facecolor(), patch.set_facecolor),
            (patch.get_edgecolor(), patch.set_edgecolor),
        ):
            if found := ours.get(to_hex(color, keep_alpha=True)):
                set_color(found)
    cast(Figure, ax.figure).set_layout_engine("none")  # there is no room to share out
    return ax


def contours(
    ax: Axes,
    log_density: LogDensity,
    x: Float[Tensor, " columns"],
    y: Float[Tensor, " rows"],
) -> Axes:
    """Draw a density of two parameters by the lines on which it has fallen to 1/2, 1/8 and so on.

    Args:
        ax: Where to draw: the first parameter to the right, the second upwards.
        log_density: A log density of two parameters.
        x: Where to evaluate it along the first, shape ``(columns,)``.
        y: Where to evaluate it along the second, shape ``(rows,)``.

    Returns:
        ``ax``.
    """
    nodes = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    values = log_density(nodes)
    levels = torch.tensor([0.5**power for power in (9, 7, 5, 3, 1)]).log()
    ax.contour(
        _numpy(x),
        _numpy(y),
        _numpy(values - values.max()),
        levels=levels.tolist(),
        colors=COLORS["green"],
        linestyles="solid",
        linewidths=0.8,
    )
    ax.set(
        xlim=(x[0].item(), x[-1].item()),
        ylim=(y[0].item(), y[-1].item()),
        xlabel=r"$\theta_1$",
        ylabel=r"$\theta_2$",
    )
    return ax


def signed_area(ax: Axes, x: Float[Tensor, " points"], heights: Float[Tensor, " points"]) -> Axes:
    """Draw an integrand: its curve, what is above the axis in one color, what is below in another.

    Args:
        ax: Where to draw.
        x: Where the integrand was evaluated, shape ``(points,)``.
        heights: Its values, shape ``(points,)``.

    Returns:
        ``ax``.
    """
    for part, color in ((heights.clamp(min=0), "orange"), (heights.clamp(max=0), "blue")):
        ax.fill_between(_numpy(x), _numpy(part), color=COLORS[color], alpha=0.4, lw=0)
    ax.plot(_numpy(x), _numpy(heights), color=INK, lw=1)
    return ax


def walk(
    ax: Axes, positions: Float[Tensor, "places 2"], proposals: Float[Tensor, "steps 2"]
) -> Axes:
    """Draw the steps of one chain in the plane: where it went, and what it refused.

    Args:
        ax: Where to draw.
        positions: Where the chain was, the start first, shape ``(steps + 1, 2)``.
        proposals: What was proposed at each step, shape ``(steps, 2)``; refused where the next
            position is another.

    Returns:
        ``ax``.

    Raises:
        ValueError: There is not one position more than there are proposals.
    """
    if len(positions) != len(proposals) + 1:
        raise ValueError(
            f"positions must hold {len(proposals) + 1}, one more than proposals, got "
            f"{len(positions)}"
        )
    refused = (positions[1:] != proposals).any(dim=1)
    starts, ends = positions[:-1][refused], proposals[refused]
    orange, blue = COLORS["orange"], COLORS["blue"]
    for start, end in zip(_numpy(starts), _numpy(ends), strict=True):
        ax.plot(*zip(start, end, strict=True), color=orange, lw=0.8, ls=":")
    ax.plot(*_numpy(ends).T, "x", color=orange, markersize=5, label="refused")
    ax.plot(*_numpy(positions).T, "o-", color=blue, lw=1, markersize=3, label="chain")
    ax.plot(*_numpy(positions[-1:]).T, "o", color=INK, markersize=7, label="now")
    return ax


def traces(ax: Axes, draws: Float[Tensor, "chains draws"]) -> Axes:
    """Draw one quantity against the draw's number, a line for each chain.

    Args:
        ax: Where to draw.
        draws: The quantity, shape ``(chains, draws)``.

    Returns:
        ``ax``.
    """
    for chain in _numpy(draws):
        ax.plot(chain, lw=0.8, alpha=0.9)
    ax.set(xlabel="draw")
    return ax


def images(
    ax: Axes,
    pixels: Float[Tensor, "images height width"],
    *,
    columns: int,
    limits: tuple[float, float] = (0.0, 1.0),
    row_names: Sequence[str] = (),
) -> Axes:
    """Draw images row by row, dark where their values are high: one small raster for all of them.

    Args:
        ax: Where to draw.
        pixels: The images, shape ``(images, height, width)``.
        columns: How many images stand in a row.
        limits: The values that are drawn in white and in black.
        row_names: What stands left of each row of images.

    Returns:
        ``ax``.

    Raises:
        TypeError: ``pixels`` is not a floating-point tensor, or ``columns`` is not a whole number.
        ValueError: ``pixels`` does not have three dimensions or is not finite, ``columns`` is below
            1, or there are names for another number of rows.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = images(plt.figure().add_subplot(), torch.rand(6, 8, 8), columns=3)
        >>> ax.images[0].get_array().shape  # two rows of three, with a gap of a pixel between
        (17, 26)
    """
    number, height, width = _checks.array("pixels", pixels, ndim=3).shape
    columns = _checks.count("columns", columns, minimum=1)
    rows = -(-number // columns)
    if row_names and len(row_names) != rows:
        raise ValueError(f"row_names must name {rows} rows, got {len(row_names)} names")
    # Gaps are no numbers, so that the page shows through them.
    tiles = pixels.new_full((rows * columns, height + 1, width + 1), math.nan)
    tiles[:number, :height, :width] = pixels.detach()
    grid = tiles.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2).flatten(0, 1)
    # Not interpolated, the file holds the pixels as they are and the reader's screen enlarges them.
    vmin, vmax = limits
    ax.imshow(_numpy(grid[:-1, :-1]), cmap="gray_r", vmin=vmin, vmax=vmax, interpolation="none")
    middles = [(height - 1) / 2 + row * (height + 1) for row in range(len(row_names))]
    ax.set_xticks([])
    ax.set_yticks(middles, row_names)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return ax
