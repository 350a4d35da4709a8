"""Synthesised speech against Praat and the measured table."""

from __future__ import annotations

import math

import numpy as np
import parselmouth
import pytest
import torch
from bad_input import bad_input
from parselmouth.praat import call
from scipy import stats

from coursepkg import divergence, speech

RATE = speech.SAMPLE_RATE
TABLE = speech.measured_vowels()


def steady(hertz: float, voices: int = 1, samples: int = 4000) -> torch.Tensor:
    return torch.full((voices, samples), hertz, dtype=torch.float64)


@pytest.fixture(scope="module")
def men():
    """The ten vowels of the mean man."""
    return speech.synthesize(speech.tract_formants()[0], TABLE[0, :, :1].expand(-1, 4000))


@pytest.fixture(scope="module")
def said():
    return speech.vowels(6, num_repeats=2, generator=torch.Generator().manual_seed(1))


# --- The table ------------------------------------------------------------------------------------


def test_measured_vowels_are_the_means_of_the_table_that_praat_ships():
    table = call("Create formant table (Peterson & Barney 1952)")
    columns = ["Type", "Vowel", "F0", "F1", "F2", "F3"]
    rows = [
        [call(table, "Get value", row + 1, column) for column in columns]
        for row in range(call(table, "Get number of rows"))
    ]
    assert len(rows) == 1520
    codes = ["iy", "ih", "eh", "ae", "ah", "aa", "ao", "uh", "uw", "er"]
    for group, kind in enumerate("mwc"):
        for vowel, code in enumerate(codes):
            found = [list(map(float, row[2:])) for row in rows if row[:2] == [kind, code]]
            mean = np.mean(found, axis=0)
            assert np.abs(mean - TABLE[group, vowel].numpy()).max() <= 0.5001, (kind, code)


# --- A voice --------------------------------------------------------------------------------------


def test_praat_measures_the_formants_and_the_pitch_that_were_asked_for(men):
    """To a quarter of the distance of the harmonics, between which nobody can see a resonance."""
    for wave, (pitch, *formants) in zip(men, TABLE[0].tolist(), strict=True):
        sound = parselmouth.Sound(wave.numpy(), RATE)
        heard = call(sound.to_pitch(), "Get mean", 0, 0, "Hertz")
        assert abs(heard / pitch - 1) < 0.005
        # Seven poles: two for each formant below the fourth, one for the slope of the source.
        praat = sound.to_formant_burg(
            max_number_of_formants=3.5, maximum_formant=RATE / 2, window_length=0.05
        )
        for number, formant in enumerate(formants, start=1):
            assert abs(praat.get_value_at_time(number, 0.25) - formant) < pitch / 4


def response(f: np.ndarray, formants: list[float], bandwidths: list[float]) -> np.ndarray:
    """The filter by its poles, as Praat and Fant write it: each pair, the folds and the lips."""
    poles = [
        -b / 2 + sign * 1j * math.sqrt(x * x)
        for x, b in zip(formants, bandwidths, strict=True)
        for sign in (1, -1)
    ]
    s = 1j * f
    return s / (100 + s) ** 2 / np.prod([(s - p) / abs(p) for p in poles], axis=0)


def harmonics(wave: torch.Tensor, hertz: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and amplitudes of the harmonics, from a middle part of whole periods."""
    middle = wave[RATE // 4 : RATE // 4 + RATE // 2].numpy()  # half a second
    spectrum = np.abs(np.fft.rfft(middle)) * 2 / len(middle)
    every = round(hertz / 2)
    return np.arange(len(spectrum))[every::every] * 2.0, spectrum[every::every]


def test_each_harmonic_has_the_height_that_the_filter_gives_it():
    formants, bandwidths = [700.0, 1200.0, 2500.0], [80.0, 100.0, 160.0]
    (wave,) = speech.synthesize(
        torch.tensor([formants]).double(),
        steady(20, samples=RATE),
        bandwidths=torch.tensor([bandwidths]).double(),
    )
    f, heights = harmonics(wave, 20)
    f, heights = f[:-1], heights[:-1]  # the last is half the sample rate, which has no harmonic
    ratio = heights / np.abs(response(f, formants, bandwidths))
    assert ratio.max() / ratio.min() < 1 + 1e-3
    default = speech.synthesize(torch.tensor([formants]).double(), steady(20, samples=RATE))
    given = speech.synthesize(
        torch.tensor([formants]).double(),
        steady(20, samples=RATE),
        bandwidths=torch.tensor([[78.0, 98.0, 150.0]]).double(),
    )
    torch.testing.assert_close(default, given)


def test_a_bandwidth_is_where_the_power_is_half():
    f = np.array([1450.0, 1500.0, 1550.0])
    power = np.abs(response(f, [1500.0], [100.0]) / response(f, [], [])) ** 2
    np.testing.assert_allclose(power / power[1], [0.5, 1, 0.5], atol=0.03)


def test_pulses_are_the_sum_of_all_harmonics_below_half_the_sample_rate():
    pitch = torch.linspace(180, 230, 1000, dtype=torch.float64)[None]
    phase = 2 * math.pi * (pitch / RATE).cumsum(dim=1)
    each = [torch.cos(k * phase) for k in range(1, 18)]  # 17 · 230 < 4000 < 18 · 230
    torch.testing.assert_close(speech._pulses(pitch, RATE), sum(each) * (2 / 17) ** 0.5)


def test_no_harmonic_comes_back_from_beyond_half_the_sample_rate():
    (wave,) = speech.synthesize(torch.tensor([[500.0]]).double(), steady(1900, samples=RATE))
    spectrum = torch.fft.rfft(wave * torch.hann_window(RATE, dtype=wave.dtype)).abs()
    spectrum[1890:1911] = spectrum[3790:3811] = 0
    # Over ten seconds a harmonic would stand out; only the Hann window's skirts are left.
    assert spectrum.max() < 1e-3 * torch.fft.rfft(wave).abs().max()


def test_a_resonance_sounds_after_its_pulse_and_not_before():
    (wave,) = speech.synthesize(torch.tensor([[800.0, 1500.0]]), steady(20, samples=RATE).float())
    # A pulse every 400 samples, from sample 399 on; rolled, each row of 400 has its own at 200.
    around = wave[2000:6000].roll(201).reshape(10, 400).square().mean(dim=0)
    assert around[200:300].sum() > 100 * around[90:190].sum()


def test_noise_has_the_power_that_was_asked_for(generator):
    """Between the harmonics is noise; its power there, and theirs, follow from the filter."""
    formants, bandwidths = [500.0, 1500.0], [70.0, 110.0]
    waves = speech.synthesize(
        torch.tensor([formants] * 40).double(),
        steady(100, voices=40, samples=RATE),
        noise_scale=torch.tensor([0.1, 0.4]).repeat(20),
        bandwidths=torch.tensor([bandwidths] * 40).double(),
        generator=generator,
    )
    middle = waves[:, RATE // 4 : RATE // 4 + RATE // 2].numpy()
    power = np.abs(np.fft.rfft(middle)) ** 2 / len(middle[0]) ** 2 * 2
    harmonic = np.arange(power.shape[1]) % 50 == 0
    f = np.arange(power.shape[1]) * 2.0
    gain = np.abs(response(f[1:], formants, bandwidths)) ** 2
    # A source of mean square 1: each of 39 harmonics has 1 / 39, noise 1 / 2000 in each bin.
    expected = gain[~harmonic[1:]].sum() / 2000 / (gain[harmonic[1:]][:39].sum() / 39)
    for scale, voices in ((0.1, power[0::2]), (0.4, power[1::2])):
        noise = voices[:, ~harmonic].sum(axis=1)
        ratio = noise / (voices[:, harmonic].sum(axis=1) - noise / 49)
        mean = divergence.mean_with_error(torch.from_numpy(ratio / expected / scale**2))
        assert abs(mean.value - 1) < 4 * mean.standard_error < 0.2


def test_voices_do_not_hear_one_another(men):
    alone = speech.synthesize(speech.tract_formants()[0, 3:4], TABLE[0, 3:4, :1].expand(-1, 4000))
    torch.testing.assert_close(alone[0], men[3])
    assert men.dtype == torch.float64
    torch.testing.assert_close(men.square().mean(dim=1), torch.ones(10, dtype=torch.float64))
    assert men[:, [0, -1]].abs().max() < 1e-3


def test_a_shorter_tract_sounds_like_the_women_and_the_children():
    """The ratios are geometric means, and the first formants of a group are near theirs."""
    sizes = speech.tract_sizes()
    formants = TABLE[:, :, 1:].numpy()
    for group in range(3):
        ratio = (formants[0] / formants[group]).prod() ** (1 / 30)
        assert float(sizes[group]) == pytest.approx(ratio)
    fourth = speech.tract_formants()[:, :, 3]
    torch.testing.assert_close(fourth * sizes[:, None], torch.full_like(fourth, 3500))
    torch.testing.assert_close(speech.tract_formants()[:, :, :3], TABLE[:, :, 1:])


# --- A data set -----------------------------------------------------------------------------------


def test_every_speaker_says_every_vowel(said):
    assert said.wave.shape == (120, 3200)
    assert said.wave.dtype == said.pitch.dtype == torch.float32
    pairs = torch.stack([said.speaker, said.vowel]).unique(dim=1, return_counts=True)
    assert pairs[0].shape == (2, 60)
    assert (pairs[1] == 2).all()
    for speaker in range(6):
        assert len(said.size[said.speaker == speaker].unique()) == 1
    assert len(said.pitch.unique()) == 120


def test_praat_finds_the_pitch_and_its_rise(said):
    for wave, pitch, rise in zip(said.wave[:40], said.pitch[:40], said.rise[:40], strict=True):
        heard = parselmouth.Sound(wave.double().numpy(), RATE).to_pitch(pitch_floor=75)
        hertz, at = heard.selected_array["frequency"], heard.xs()
        kept = hertz > 0
        slope, level = np.polyfit(at[kept] - 0.2, 12 * np.log2(hertz[kept]), 1)
        assert abs(level - 12 * math.log2(pitch)) < 0.1  # of a semitone
        assert abs(slope * 0.4 - rise) < 0.2


def test_the_logarithm_of_the_pitch_is_uniform_and_the_speakers_sizes_are_lognormal():
    said = speech.vowels(300, num_samples=2, generator=torch.Generator().manual_seed(5))
    share = (said.pitch / 90).log() / math.log(280 / 90)
    assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(said.pitch.numpy(), stats.uniform(90, 190).cdf).pvalue < 1e-6
    assert stats.kstest(said.rise.numpy() / 2, "norm").pvalue > 1e-3
    sizes = said.size[::10]
    nearest = (sizes[:, None] / speech.tract_sizes()).log().abs().min(dim=1)
    signed = (sizes / speech.tract_sizes()[nearest.indices]).log() / 0.04
    assert stats.kstest(signed.numpy(), "norm").pvalue > 1e-3
    assert nearest.indices.bincount().min() > 60


def test_a_speakers_size_moves_all_formants():
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    small, large = (
        speech.vowels(4, size_scale=scale, noise_scale=0.0, generator=generator)
        for scale, generator in zip((1e-6, 0.2), generators, strict=True)
    )
    factor = large.size / small.size
    assert factor.log().abs().min() > 0.01
    formants = speech.tract_formants()
    for i in range(40):
        ((group,),) = torch.nonzero((speech.tract_sizes() - small.size[i]).abs() < 1e-3)
        pitch = large.pitch[i] * 2 ** (large.rise[i] * torch.linspace(-0.5, 0.5, 3200) / 12)
        one = speech.synthesize(
            (formants[group, large.vowel[i]] / factor[i]).float()[None], pitch[None]
        )
        torch.testing.assert_close(one[0], large.wave[i], atol=0.02, rtol=0)


def test_the_same_generator_says_the_same():
    a, b, c = (
        speech.vowels(1, num_samples=400, generator=torch.Generator().manual_seed(seed)).wave
        for seed in (3, 3, 4)
    )
    assert a.equal(b)
    assert not a.equal(c)


FORMANTS, PITCH = torch.tensor([[500.0, 1500.0]]), torch.full((1, 800), 100.0)
test_bad_input = bad_input(
    [
        (lambda: speech.synthesize(FORMANTS[0], PITCH), ValueError, ("formants", "row")),
        (lambda: speech.synthesize(FORMANTS, PITCH[0]), ValueError, ("pitch", "row")),
        (lambda: speech.synthesize(-FORMANTS, PITCH), ValueError, ("formants", "positive")),
        (lambda: speech.synthesize(FORMANTS, 0 * PITCH), ValueError, ("pitch", "positive")),
        (lambda: speech.synthesize(FORMANTS, 50 * PITCH), ValueError, ("pitch", "half", "4000")),
        (
            lambda: speech.synthesize(FORMANTS, PITCH, bandwidths=FORMANTS[:, :1]),
            ValueError,
            ("bandwidths", "(1, 2)", "(1, 1)"),
        ),
        (lambda: speech.synthesize(FORMANTS, PITCH, noise_scale=-1), ValueError, ("noise_scale",)),
        (lambda: speech.synthesize(FORMANTS, PITCH, sample_rate=8e3), TypeError, ("sample_rate",)),
        (lambda: speech.synthesize(FORMANTS, PITCH, generator=0), TypeError, ("generator",)),
        (lambda: speech.vowels(0), ValueError, ("num_speakers", "1")),
        (lambda: speech.vowels(1, pitch_range=(200, 100)), ValueError, ("pitch_range",)),
        (lambda: speech.vowels(1, rise_scale=-1.0), ValueError, ("rise_scale", "negative")),
    ]
)
