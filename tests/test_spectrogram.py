"""Spectrograms, and the way back, against librosa."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
from bad_input import bad_input

from coursepkg import divergence, spectrogram, speech

RATE = spectrogram.SAMPLE_RATE


@pytest.fixture(scope="module")
def men():
    """The ten vowels of the mean man."""
    pitch = speech.measured_vowels()[0, :, :1].expand(-1, 4000)
    return speech.synthesize(speech.tract_formants()[0], pitch)


@pytest.mark.parametrize(
    ("rate", "size", "mels"), [(8000, 512, 64), (22050, 2048, 128), (1800, 256, 10)]
)
def test_mel_filters_are_those_of_librosa(rate, size, mels):
    theirs = librosa.filters.mel(sr=rate, n_fft=size, n_mels=mels, dtype=np.float64)
    ours = spectrogram.mel_filters(mels, fft_size=size, sample_rate=rate)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12 * theirs.max())


@pytest.mark.parametrize("samples", [4000, 4096])
def test_spectrograms_are_those_of_librosa(men, samples):
    wave = men[:, :samples]
    theirs = librosa.stft(wave.numpy(), n_fft=512, hop_length=128)
    np.testing.assert_allclose(
        spectrogram.stft(wave).numpy(), theirs, atol=1e-12 * np.abs(theirs).max()
    )
    mel = librosa.feature.melspectrogram(
        y=wave.numpy(), sr=RATE, n_fft=512, hop_length=128, n_mels=64
    )
    ours = spectrogram.mel_spectrogram(wave).numpy()
    # librosa's filters are in single precision.
    np.testing.assert_allclose(ours, mel, rtol=1e-5, atol=1e-6 * mel.max())


def test_a_mel_spectrogram_is_inverted_as_well_as_by_librosa(men):
    mel = spectrogram.mel_spectrogram(men[:3])
    filters = spectrogram.mel_filters()

    def misfit(magnitude):
        return float((filters @ magnitude**2 - mel).norm() / mel.norm())

    theirs = librosa.feature.inverse.mel_to_stft(mel.numpy(), sr=RATE, n_fft=512, power=2)
    ours = [misfit(spectrogram.invert_mel(mel, num_steps=steps)) for steps in (1, 10, 50, 200)]
    assert ours == sorted(ours, reverse=True)
    assert ours[-1] < misfit(torch.from_numpy(theirs)) or ours[-1] < 1e-3
    one = spectrogram.invert_mel(mel[1])
    torch.testing.assert_close(one, spectrogram.invert_mel(mel)[1])
    assert (one >= 0).all()


def test_silence_stays_silent():
    assert spectrogram.invert_mel(torch.zeros(64, 5)).abs().max() == 0
    assert spectrogram.griffin_lim(torch.zeros(257, 5)).abs().max() == 0


def test_griffin_lim_is_as_good_as_librosas(men):
    """On the ten vowels from ten random phases each, with as many steps."""
    magnitude = spectrogram.stft(men[:, :3840]).abs()
    found, theirs = [], []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        ours = spectrogram.griffin_lim(magnitude, generator=generator)
        found.append(spectrogram.spectral_convergence(ours, magnitude))
        wave = librosa.griffinlim(
            magnitude.numpy(), n_iter=32, hop_length=128, n_fft=512, random_state=seed
        )
        theirs.append(spectrogram.spectral_convergence(torch.from_numpy(wave), magnitude))
    difference = divergence.mean_with_error((torch.stack(found) - torch.stack(theirs)).flatten())
    assert difference.value < 3 * difference.standard_error
    plain = spectrogram.griffin_lim(magnitude, momentum=0.0, generator=generator)
    assert (
        spectrogram.spectral_convergence(plain, magnitude).mean() > 1.2 * torch.stack(found).mean()
    )


def test_spectral_convergence_is_a_relative_error(men):
    magnitude = spectrogram.stft(men).abs()
    torch.testing.assert_close(
        spectrogram.spectral_convergence(1.25 * men, magnitude), torch.full((10,), 0.25).double()
    )
    assert spectrogram.spectral_convergence(men[4], magnitude[4]) == 0


MEL = torch.ones(64, 3)
test_bad_input = bad_input(
    [
        (lambda: spectrogram.stft(torch.ones(0)), ValueError, ("wave", "empty")),
        (lambda: spectrogram.stft(torch.tensor(1.0)), ValueError, ("wave", "samples")),
        (lambda: spectrogram.stft(torch.ones(800), hop=0), ValueError, ("hop", "1")),
        (lambda: spectrogram.mel_filters(400), ValueError, ("num_mels", "400", "512")),
        (lambda: spectrogram.mel_filters(0), ValueError, ("num_mels", "1")),
        (lambda: spectrogram.invert_mel(-MEL), ValueError, ("mel", "negative")),
        (lambda: spectrogram.invert_mel(MEL, num_steps=0), ValueError, ("num_steps", "1")),
        (lambda: spectrogram.griffin_lim(MEL[:, :1]), ValueError, ("magnitude", "2 frames")),
        (lambda: spectrogram.griffin_lim(-MEL), ValueError, ("magnitude", "negative")),
        (lambda: spectrogram.griffin_lim(MEL, momentum=1.0), ValueError, ("momentum", "1")),
        (lambda: spectrogram.griffin_lim(MEL, num_steps=0), ValueError, ("num_steps", "1")),
        (
            lambda: spectrogram.spectral_convergence(torch.ones(800), torch.ones(257, 9)),
            ValueError,
            ("frames", "(257, 9)", "(257, 7)"),
        ),
    ]
)
