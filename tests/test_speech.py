"""Synthesised speech against Praat and the measured table; spectrograms against librosa."""

from __future__ import annotations

import math

import librosa
import numba
import numpy as np
import parselmouth
import pytest
import torch
from bad_input import bad_input
from parselmouth.praat import call
from scipy import stats

from coursepkg import divergence, speech

# librosa loads its parts when they are first used. Its loops are short here; to compile them takes
# far longer than running them.
numba.config.DISABLE_JIT = True

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


# --- A spectrogram, and back ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "size", "mels"), [(8000, 512, 64), (22050, 2048, 128), (1800, 256, 10)]
)
def test_mel_filters_are_those_of_librosa(rate, size, mels):
    theirs = librosa.filters.mel(sr=rate, n_fft=size, n_mels=mels, dtype=np.float64)
    ours = speech.mel_filters(mels, fft_size=size, sample_rate=rate)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12 * theirs.max())


@pytest.mark.parametrize("samples", [4000, 4096])
def test_spectrograms_are_those_of_librosa(men, samples):
    wave = men[:, :samples]
    theirs = librosa.stft(wave.numpy(), n_fft=512, hop_length=128)
    np.testing.assert_allclose(speech.stft(wave).numpy(), theirs, atol=1e-12 * np.abs(theirs).max())
    mel = librosa.feature.melspectrogram(
        y=wave.numpy(), sr=RATE, n_fft=512, hop_length=128, n_mels=64
    )
    ours = speech.mel_spectrogram(wave).numpy()
    # librosa's filters are in single precision.
    np.testing.assert_allclose(ours, mel, rtol=1e-5, atol=1e-6 * mel.max())


def test_a_mel_spectrogram_is_inverted_as_well_as_by_librosa(men):
    mel = speech.mel_spectrogram(men[:3])
    filters = speech.mel_filters()

    def misfit(magnitude):
        return float((filters @ magnitude**2 - mel).norm() / mel.norm())

    theirs = librosa.feature.inverse.mel_to_stft(mel.numpy(), sr=RATE, n_fft=512, power=2)
    ours = [misfit(speech.invert_mel(mel, num_steps=steps)) for steps in (1, 10, 50, 200)]
    assert ours == sorted(ours, reverse=True)
    assert ours[-1] < misfit(torch.from_numpy(theirs)) or ours[-1] < 1e-3
    one = speech.invert_mel(mel[1])
    torch.testing.assert_close(one, speech.invert_mel(mel)[1])
    assert (one >= 0).all()


def test_silence_stays_silent():
    assert speech.invert_mel(torch.zeros(64, 5)).abs().max() == 0
    assert speech.griffin_lim(torch.zeros(257, 5)).abs().max() == 0


def test_griffin_lim_is_as_good_as_librosas(men):
    """On the ten vowels from ten random phases each, with as many steps."""
    magnitude = speech.stft(men[:, :3840]).abs()
    found, theirs = [], []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        ours = speech.griffin_lim(magnitude, generator=generator)
        found.append(speech.spectral_convergence(ours, magnitude))
        wave = librosa.griffinlim(
            magnitude.numpy(), n_iter=32, hop_length=128, n_fft=512, random_state=seed
        )
        theirs.append(speech.spectral_convergence(torch.from_numpy(wave), magnitude))
    difference = divergence.mean_with_error((torch.stack(found) - torch.stack(theirs)).flatten())
    assert difference.value < 3 * difference.standard_error
    plain = speech.griffin_lim(magnitude, momentum=0.0, generator=generator)
    assert speech.spectral_convergence(plain, magnitude).mean() > 1.2 * torch.stack(found).mean()


def test_spectral_convergence_is_a_relative_error(men):
    magnitude = speech.stft(men).abs()
    torch.testing.assert_close(
        speech.spectral_convergence(1.25 * men, magnitude), torch.full((10,), 0.25).double()
    )
    assert speech.spectral_convergence(men[4], magnitude[4]) == 0


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


FORMANTS, PITCH, MEL = (
    torch.tensor([[500.0, 1500.0]]),
    torch.full((1, 800), 100.0),
    torch.ones(64, 3),
)
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
        (lambda: speech.stft(torch.ones(0)), ValueError, ("wave", "empty")),
        (lambda: speech.stft(torch.tensor(1.0)), ValueError, ("wave", "samples")),
        (lambda: speech.stft(torch.ones(800), hop=0), ValueError, ("hop", "1")),
        (lambda: speech.mel_filters(400), ValueError, ("num_mels", "400", "512")),
        (lambda: speech.mel_filters(0), ValueError, ("num_mels", "1")),
        (lambda: speech.invert_mel(-MEL), ValueError, ("mel", "negative")),
        (lambda: speech.invert_mel(MEL, num_steps=0), ValueError, ("num_steps", "1")),
        (lambda: speech.griffin_lim(MEL[:, :1]), ValueError, ("magnitude", "2 frames")),
        (lambda: speech.griffin_lim(-MEL), ValueError, ("magnitude", "negative")),
        (lambda: speech.griffin_lim(MEL, momentum=1.0), ValueError, ("momentum", "1")),
        (lambda: speech.griffin_lim(MEL, num_steps=0), ValueError, ("num_steps", "1")),
        (
            lambda: speech.spectral_convergence(torch.ones(800), torch.ones(257, 9)),
            ValueError,
            ("frames", "(257, 9)", "(257, 7)"),
        ),
        (lambda: speech.vowels(0), ValueError, ("num_speakers", "1")),
        (lambda: speech.vowels(1, pitch_range=(200, 100)), ValueError, ("pitch_range",)),
        (lambda: speech.vowels(1, rise_scale=-1.0), ValueError, ("rise_scale", "negative")),
    ]
)
