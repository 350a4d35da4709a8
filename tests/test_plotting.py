"""The figures: what is drawn is what was handed in, in colors that can be told apart."""

from __future__ import annotations

import itertools
import math
import sys

import daft
import IPython
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb

from coursepkg import data, plotting
from coursepkg.bayes_linear import GaussianWeights, Predictive
from coursepkg.calibration import Curve
from coursepkg.uncertainty import Variances

X = torch.linspace(-1, 1, 5, dtype=torch.float64)


@pytest.fixture
def ax():
    """An empty figure's axes, closed afterwards."""
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def luminance(color: str) -> float:
    """Relative luminance of a color, as the accessibility guidelines define it (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colors, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


COLORED = sorted(set(plotting.COLORS) - {"ink"})


@pytest.mark.parametrize("color", COLORED)
@pytest.mark.parametrize("page", ["#ffffff", "#14181e"], ids=["light", "dark"])
def test_colors_stand_out_on_light_and_dark_pages(color, page):
    """Graphics need a contrast of 3 to 1 (WCAG 2, 1.4.11)."""
    assert contrast(plotting.COLORS[color], page) >= 3


# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
}  # fmt: skip


def distance(one: str, other: str, vision: np.ndarray) -> float:
    """Distance of two colors in CIE Lab as eyes with this vision see them."""

    def lab(color: str) -> np.ndarray:
        rgb = np.array(to_rgb(color))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        linear = np.clip(vision @ linear, 0, 1)
        xyz = (
            np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
            @ linear
            / np.array([0.9505, 1.0, 1.089])
        )
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    return float(np.linalg.norm(lab(one) - lab(other)))


@pytest.mark.parametrize("vision", VISION)
def test_colors_keep_apart_for_color_vision_deficiencies(vision):
    """A red and a green of one lightness, far apart for most eyes, are refused for the others."""
    for one, other in itertools.combinations(COLORED, 2):
        assert distance(plotting.COLORS[one], plotting.COLORS[other], VISION[vision]) > 20
    assert (distance("#9c5b2e", "#6c7030", VISION[vision]) > 20) == (vision == "normal")


def test_use_style_makes_equal_figures_equal_files():
    """Two runs must give the same SVG, or comparing outputs would always fail."""
    with mpl.rc_context():
        plotting.use_style()
        assert mpl.rcParams["figure.facecolor"] == plotting.PAPER
        assert mpl.rcParams["text.color"] == plotting.INK
        assert mpl.rcParams["svg.hashsalt"]


def test_use_style_asks_a_notebook_for_svg_and_needs_none(monkeypatch):
    """Without a running notebook nothing is set; without IPython nothing fails."""
    from matplotlib_inline import backend_inline

    asked = []
    monkeypatch.setattr(
        backend_inline, "set_matplotlib_formats", lambda *args, **kwargs: asked.append(args)
    )
    with mpl.rc_context():
        plotting.use_style()
        assert not asked
        monkeypatch.setattr(IPython, "get_ipython", lambda: "a running notebook")
        plotting.use_style()
        assert asked == [("svg",)]
        monkeypatch.setitem(sys.modules, "IPython", None)
        plotting.use_style()
        assert asked == [("svg",)]


def test_points_draws_dots_with_bars_of_two_sd(ax):
    plotting.points(ax, X, X**2, noise_scale=0.25)
    (container,) = ax.containers
    dots, _, (bars,) = container
    np.testing.assert_array_equal(dots.get_xydata(), np.stack([X, X**2], axis=1))
    lengths = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(lengths, 4 * 0.25)


def test_measurements_draws_points_and_true_function(ax):
    sensor = data.sine_sensor()
    plotting.measurements(ax, sensor, X)
    curves = [line for line in ax.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(curves[0].get_ydata(), np.sin(X.numpy()))
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_measurements_without_grid_hides_the_truth(ax):
    plotting.measurements(ax, data.sine_sensor())
    assert not [line for line in ax.lines if line.get_linestyle() == "--"]


@pytest.mark.parametrize(("shape", "lines"), [((5,), 1), ((7, 5), 7)])
def test_curves_draws_one_line_a_function_and_one_label(ax, shape, lines):
    plotting.curves(ax, X, torch.ones(shape), label="draws")
    assert len(ax.lines) == lines
    assert ax.get_legend_handles_labels()[1] == ["draws"]


NINE, SIXTEEN = torch.full((5,), 9.0), torch.full((5,), 16.0)


@pytest.mark.parametrize(
    "prediction",
    [
        Predictive(torch.zeros(5), NINE, SIXTEEN),
        Variances(torch.zeros(5), NINE, SIXTEEN, NINE + SIXTEEN),
    ],
)
def test_bands_are_two_sd_of_summed_variances(ax, prediction):
    """3 and 4 add to 5 as standard deviations, not to 7."""
    plotting.bands(ax, X, prediction)
    outer, inner = (collection.get_datalim(ax.transData) for collection in ax.collections)
    assert (outer.y0, outer.y1) == (-10, 10)
    assert (inner.y0, inner.y1) == (-8, 8)


def test_reliability_draws_each_bin_that_has_points(ax):
    """Two of three bins: areas as the points in them, bars of two standard errors each way."""
    nan = float("nan")
    curve = Curve(*torch.tensor([[nan, 0.5, 0.9], [nan, 0.4, 1.0], [0.25, 0.1, 0.05], [0, 5, 20]]))
    plotting.reliability(ax, curve, color="green", label="network")
    dots = ax.collections[-1]
    np.testing.assert_allclose(dots.get_offsets(), [[0.5, 0.4], [0.9, 1.0]])
    assert dots.get_sizes()[1] == 4 * dots.get_sizes()[0]
    (container,) = ax.containers
    lengths = [segment[1, 1] - segment[0, 1] for segment in container[2][0].get_segments()]
    np.testing.assert_allclose(lengths, [4 * 0.1, 4 * 0.05], rtol=1e-6)
    assert ax.get_legend_handles_labels()[1] == ["network"]


def test_weight_ellipses_are_the_covariance(ax):
    """Points on the one-sd ellipse have Mahalanobis distance 1."""
    weights = GaussianWeights(torch.tensor([1.0, -2.0]), torch.tensor([[4.0, 1.5], [1.5, 1.0]]))
    plotting.weight_ellipses(ax, weights)
    one = ax.patches[-1]
    angles = np.linspace(0, 2 * math.pi, 12)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    on_ellipse = torch.tensor(one.get_patch_transform().transform(circle))
    offsets = on_ellipse - weights.mean
    distances = (offsets * torch.linalg.solve(weights.covariance, offsets.T).T).sum(dim=1)
    torch.testing.assert_close(distances, torch.ones(12, dtype=torch.float64))
    assert [round(patch.width / one.width) for patch in ax.patches] == [3, 2, 1]


def test_projection_meets_the_line_at_a_right_angle(ax):
    feature, targets = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
    plotting.projection(ax, feature, targets)
    fit, residual = (np.array(ax.texts[i].xy) - ax.texts[i].xyann for i in (1, 2))
    assert abs(fit @ residual) < 1e-12
    np.testing.assert_allclose(fit + residual, targets.numpy())


BAD_CALLS = {
    "noise": (lambda ax: plotting.points(ax, X, X, noise_scale=-1.0), ("noise_scale", "positive")),
    "points": (lambda ax: plotting.points(ax, X[None], X), ("x", "1 dimension", "(1, 5)")),
    "real data": (
        lambda ax: plotting.measurements(ax, data.DataSet("real", X, X), X), ("data", "real"),
    ),
    "color": (lambda ax: plotting.curves(ax, X, X, color="pink"), ("color", "pink", "blue")),
    "curves": (lambda ax: plotting.curves(ax, X, X[:4]), ("functions", "5", "(4,)")),
    "bands": (
        lambda ax: plotting.bands(ax, X, Predictive(X[:4], X[:4], X[:4])), ("prediction", "5", "4"),
    ),
    "two curves": (
        lambda ax: plotting.reliability(ax, Curve(*torch.ones(4, 2, 3))), ("curve", "(2, 3)"),
    ),
    "reliability": (
        lambda ax: plotting.reliability(ax, Curve(*torch.ones(4, 3)), color="pink"),
        ("color", "pink"),
    ),
    "ellipse": (
        lambda ax: plotting.weight_ellipses(ax, GaussianWeights(torch.zeros(3), torch.eye(3))),
        ("weights", "2", "3"),
    ),
    "projection": (lambda ax: plotting.projection(ax, X, X), ("2 points", "5")),
    "zero": (
        lambda ax: plotting.projection(ax, torch.zeros(2), torch.ones(2)), ("feature", "zero"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", BAD_CALLS)
def test_kind_errors(ax, kind_error, call):
    bad_call, words = BAD_CALLS[call]
    with kind_error(ValueError, *words):
        bad_call(ax)


def test_page_colors_replaces_the_colors_of_another_library():
    """Black lines and gray fills would stay so in dark mode; what is unfilled stays unfilled."""
    graph = daft.PGM(node_fc="none")
    graph.add_node("w", "$w$", 0, 1)
    graph.add_node("s", "$s$", 1, 1, fixed=True)
    graph.add_node("y", "$y$", 0, 0, observed=True)
    graph.add_edge("w", "y")
    graph.add_plate([-0.5, -0.5, 1, 1])
    axes = graph.render()
    before = [to_hex(patch.get_facecolor(), keep_alpha=True) for patch in axes.patches]
    assert plotting.page_colors(axes) is axes
    after = [to_hex(patch.get_facecolor(), keep_alpha=True) for patch in axes.patches]
    page = {"#000000ff": plotting.INK, "#b2b2b2ff": plotting.GRID, "#ffffffff": plotting.PAPER}
    assert after == [page[color] + "ff" if color in page else color for color in before]
    assert {*page, "#00000000"} == set(before)
    assert {to_hex(patch.get_edgecolor()) for patch in axes.patches} == {plotting.INK}
    plt.close(axes.figure)


def test_page_colors_leaves_other_colors_alone(ax):
    (bar,) = ax.bar([0], [1], facecolor=plotting.COLORS["blue"], edgecolor="red")
    plotting.page_colors(ax)
    assert to_hex(bar.get_facecolor()) == plotting.COLORS["blue"]
    assert to_hex(bar.get_edgecolor()) == "#ff0000"


def test_page_colors_switches_a_layout_off_that_would_warn():
    with mpl.rc_context({"figure.constrained_layout.use": True}):
        graph = daft.PGM()
        graph.add_node("w", "$w$")
        axes = graph.render()
        with pytest.warns(UserWarning, match="gridspecs"):
            axes.figure.canvas.draw()
        plotting.page_colors(axes).figure.canvas.draw()
    plt.close(axes.figure)


def banana(theta):
    return -theta[..., 0].square() / 2 - (theta[..., 1] - theta[..., 0].square()).square()


def test_contours_lie_where_the_density_has_fallen_to_their_level(ax):
    x, y = torch.linspace(-2, 2, 201), torch.linspace(-1, 4, 251)
    assert plotting.contours(ax, banana, x, y) is ax
    assert ax.get_xlim() == (-2, 2)
    assert ax.get_ylim() == (-1, 4)
    (drawn,) = ax.collections
    for level, path in zip(drawn.levels, drawn.get_paths(), strict=True):
        on_it = torch.from_numpy(path.vertices)
        assert len(on_it) > 20
        np.testing.assert_allclose(banana(on_it), level, atol=0.02)
    np.testing.assert_allclose(np.exp(drawn.levels[[0, -1]]), [1 / 512, 1 / 2], rtol=1e-6)


def test_a_walk_shows_where_the_chain_was_and_what_it_refused(ax):
    positions = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    proposals = torch.tensor([[1.0, 0.0], [5.0, 5.0], [1.0, 2.0]])
    assert plotting.walk(ax, positions, proposals) is ax
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    assert lines["refused"] == [[5, 5]]
    assert lines["chain"] == positions.tolist()
    assert lines["now"] == [[1, 2]]
    assert [[1, 0], [5, 5]] in lines.values()  # from where it was refused


def test_a_walk_that_has_not_begun_is_a_point(ax):
    plotting.walk(ax, torch.zeros(1, 2), torch.zeros(0, 2))
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    assert lines["refused"] == []
    assert lines["now"] == [[0, 0]]


def test_a_walk_needs_one_position_more_than_proposals(ax, kind_error):
    with kind_error(ValueError, "positions", "3", "one more than proposals", "2"):
        plotting.walk(ax, torch.zeros(2, 2), torch.zeros(2, 2))


def test_traces_are_one_line_a_chain(ax):
    draws = torch.arange(12.0).reshape(3, 4)
    assert plotting.traces(ax, draws) is ax
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == draws.tolist()
    assert len({line.get_color() for line in ax.get_lines()}) == 3
    assert ax.get_xlabel() == "draw"


def test_a_signed_area_parts_what_is_above_from_what_is_below(ax):
    heights = torch.tensor([-1.0, 0.5, 2.0, -0.5, 0.0], dtype=torch.float64)
    assert plotting.signed_area(ax, X, heights) is ax
    above, below = ax.collections
    reach = [
        (path.vertices[:, 1].min(), path.vertices[:, 1].max())
        for path in (above.get_paths()[0], below.get_paths()[0])
    ]
    assert reach == [(0, 2), (-1, 0)]
    assert to_hex(above.get_facecolor()) == plotting.COLORS["orange"]
    assert to_hex(below.get_facecolor()) == plotting.COLORS["blue"]
    (curve,) = ax.get_lines()
    assert curve.get_ydata().tolist() == heights.tolist()


def test_images_stand_row_by_row_with_gaps_that_the_page_shows_through(ax):
    pixels = torch.arange(5 * 2 * 3.0).reshape(5, 2, 3) / 30
    assert plotting.images(ax, pixels, columns=2, row_names=["a", "b", "c"]) is ax
    (drawn,) = ax.images
    grid = drawn.get_array()
    assert grid.shape == (3 * 2 + 2, 2 * 3 + 1)  # three rows of two, a pixel between them
    for number, image in enumerate(pixels.numpy()):
        top, left = 3 * (number // 2), 4 * (number % 2)
        assert np.array_equal(grid[top : top + 2, left : left + 3], image)
    assert grid.mask.sum() == grid.size - pixels.numel()  # the gaps, and the sixth image's place
    assert drawn.cmap(np.ma.masked)[3] == 0
    # Drawn as they are: white is the lower limit, black is the upper one.
    assert drawn.get_clim() == (0, 1)
    assert [to_hex(drawn.cmap(shade)) for shade in (0.0, 1.0)] == ["#ffffff", "#000000"]
    assert drawn.get_interpolation() == "none"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert ax.get_yticks().tolist() == [0.5, 3.5, 6.5]


def test_images_take_limits_and_may_carry_gradients(ax):
    pixels = torch.randn(4, 2, 2, requires_grad=True)
    plotting.images(ax, pixels, columns=4, limits=(-1.0, 1.0))
    assert ax.images[0].get_clim() == (-1, 1)
    assert len(ax.get_yticks()) == 0


def test_images_name_what_is_wrong(ax, kind_error):
    four = torch.zeros(4, 2, 2)
    with kind_error(ValueError, "pixels", "3 dimensions", "(4, 4)"):
        plotting.images(ax, four.flatten(1), columns=2)
    with kind_error(ValueError, "columns", "1", "0"):
        plotting.images(ax, four, columns=0)
    with kind_error(ValueError, "row_names", "2 rows", "3 names"):
        plotting.images(ax, four, columns=2, row_names=["a", "b", "c"])
