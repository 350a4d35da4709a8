"""From sound to spectrogram and back: mel bands, and Griffin-Lim for the phases.

A spectrogram says how much power a sound has at each frequency, frame by frame; it forgets the
phases. A *mel* spectrogram also gathers frequencies into bands as wide as the ear's. Neither step
can be undone exactly, and both nearly.

Source:
    Griffin and Lim (1984), "Signal estimation from modified short-time Fourier transform", IEEE
    Transactions on Acoustics, Speech, and Signal Processing 32(2).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from coursepkg import _checks

__all__ = [
    "SAMPLE_RATE",
    "griffin_lim",
    "invert_mel",
    "mel_filters",
    "mel_spectrogram",
    "spectral_convergence",
    "stft",
]

#: Samples a second unless told otherwise; those of a telephone, enough for vowels.
SAMPLE_RATE = 8000
# A frame of 64 ms every 16 ms: long enough to tell the harmonics of a voice apart.
FFT_SIZE, HOP, NUM_MELS = 512, 128, 64


def stft(
    wave: Float[Tensor, "*batch samples"], *, fft_size: int = FFT_SIZE, hop: int = HOP
) -> Tensor:
    """Short-time Fourier transform: the spectrum in a window that slides along the wave.

    Args:
        wave: Sound, shape ``(*batch, samples)``.
        fft_size: Samples of a frame, under a Hann window.
        hop: Samples from one frame to the next.

    Returns:
        Complex amplitudes, shape ``(*batch, fft_size // 2 + 1, 1 + samples // hop)``; frame ``t``
        is centered at sample ``t * hop``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``wave`` is empty or not finite, ``fft_size`` is below 2, or ``hop`` below 1.

    Example:
        >>> stft(torch.zeros(2, 4000)).shape
        torch.Size([2, 257, 32])
    """
    wave = _checks.numbers("wave", wave)
    fft_size = _checks.count("fft_size", fft_size, minimum=2)
    hop = _checks.count("hop", hop, minimum=1)
    if wave.ndim == 0:
        raise ValueError("wave must have a dimension for the samples, got shape ()")
    window = torch.hann_window(fft_size, dtype=wave.dtype, device=wave.device)
    flat = wave.reshape(-1, wave.shape[-1])
    spectrum = torch.stft(
        flat, fft_size, hop, window=window, pad_mode="constant", return_complex=True
    )
    return spectrum.reshape(*wave.shape[:-1], *spectrum.shape[-2:])


def mel_filters(
    num_mels: int = NUM_MELS, *, fft_size: int = FFT_SIZE, sample_rate: int = SAMPLE_RATE
) -> Float[Tensor, "mels bins"]:
    r"""Triangles that gather a spectrum's bins into bands, as the ear does.

    Their corners are equally spaced in *mel*, a scale that is linear up to 1,000 Hz and logarithmic
    above, and each triangle has the same area:

    .. math:: \text{mel}(f) = 3 f / 200 \;\; (f < 1000), \qquad
        15 + 27 \log_{6.4} (f / 1000) \;\; (f \ge 1000).

    Args:
        num_mels: Number of bands.
        fft_size: Samples of a frame.
        sample_rate: Samples a second.

    Returns:
        Weights of the frequency bins, shape ``(num_mels, fft_size // 2 + 1)``, float64.

    Raises:
        TypeError: An argument is not a whole number.
        ValueError: An argument is too small; or a band is so narrow that it holds no bin.

    Source:
        Slaney (1998), "Auditory toolbox", Interval Research Corporation, technical report 1998-010.

    Example:
        >>> mel_filters(40).shape
        torch.Size([40, 257])
    """
    num_mels = _checks.count("num_mels", num_mels, minimum=1)
    fft_size = _checks.count("fft_size", fft_size, minimum=2)
    sample_rate = _checks.count("sample_rate", sample_rate, minimum=1)
    log_step = math.log(6.4) / 27
    top = sample_rate / 2
    last = 3 * top / 200 if top < 1000 else 15 + math.log(top / 1000) / log_step
    mels = torch.linspace(0, last, num_mels + 2, dtype=torch.float64)
    corners = torch.where(mels < 15, 200 * mels / 3, 1000 * torch.exp(log_step * (mels - 15)))
    bins = torch.fft.rfftfreq(fft_size, 1 / sample_rate, dtype=torch.float64)
    left, center, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rise, fall = (bins - left) / (center - left), (right - bins) / (right - center)
    filters = torch.minimum(rise, fall).clamp(min=0) * 2 / (right - left)
    empty = int((filters.amax(dim=1) == 0).sum())
    if empty:
        raise ValueError(
            f"num_mels must be smaller, or fft_size larger: of {num_mels} bands {empty} hold no "
            f"frequency of a frame of {fft_size} samples"
        )
    return filters


def mel_spectrogram(
    wave: Float[Tensor, "*batch samples"],
    *,
    num_mels: int = NUM_MELS,
    fft_size: int = FFT_SIZE,
    hop: int = HOP,
    sample_rate: int = SAMPLE_RATE,
) -> Float[Tensor, "*batch mels frames"]:
    """The power of a sound, frame by frame, in bands as wide as the ear's.

    Args:
        wave: Sound, shape ``(*batch, samples)``.
        num_mels: Number of bands.
        fft_size: Samples of a frame.
        hop: Samples from one frame to the next.
        sample_rate: Samples a second.

    Returns:
        Power, shape ``(*batch, num_mels, 1 + samples // hop)``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: As for :func:`stft` and :func:`mel_filters`.

    Example:
        >>> mel_spectrogram(torch.zeros(2, 4000)).shape
        torch.Size([2, 64, 32])
    """
    power = stft(wave, fft_size=fft_size, hop=hop).abs().square()
    return mel_filters(num_mels, fft_size=fft_size, sample_rate=sample_rate).to(power) @ power


def invert_mel(
    mel: Float[Tensor, "*batch mels frames"],
    *,
    num_steps: int = 200,
    fft_size: int = FFT_SIZE,
    sample_rate: int = SAMPLE_RATE,
) -> Float[Tensor, "*batch bins frames"]:
    r"""Magnitudes of the frequencies that explain a mel spectrogram: non-negative least squares.

    There are fewer bands than frequencies, so many spectra fit; a power cannot be negative, which
    excludes most of them. Each step multiplies by a ratio, so that what is positive stays positive,
    and never makes :math:`\lVert M S - m \rVert^2` larger:

    .. math:: S \leftarrow S \circ \frac{M^\top m}{M^\top M S} .

    Args:
        mel: Power in each band, not negative, shape ``(*batch, mels, frames)``.
        num_steps: How many steps to take.
        fft_size: Samples of a frame.
        sample_rate: Samples a second.

    Returns:
        Magnitudes, the roots of the powers :math:`S`; shape
        ``(*batch, fft_size // 2 + 1, frames)``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``mel`` is negative somewhere; or as for :func:`mel_filters`.

    Source:
        Lee and Seung (2000), "Algorithms for non-negative matrix factorization", Advances in Neural
        Information Processing Systems 13.

    Example:
        >>> invert_mel(torch.ones(64, 3)).shape
        torch.Size([257, 3])
    """
    mel = _checks.numbers("mel", mel)
    if mel.ndim < 2 or (mel < 0).any():
        raise ValueError("mel must have dimensions (…, mels, frames) and no negative power")
    num_steps = _checks.count("num_steps", num_steps, minimum=1)
    filters = mel_filters(mel.shape[-2], fft_size=fft_size, sample_rate=sample_rate).to(mel)
    target = filters.T @ mel
    squared = filters.T @ filters
    power = target.clone()
    tiny = torch.finfo(mel.dtype).tiny
    for _ in range(num_steps):
        power *= target / (squared @ power).clamp(min=tiny)
    return power.sqrt()


def griffin_lim(
    magnitude: Float[Tensor, "*batch bins frames"],
    *,
    num_steps: int = 32,
    hop: int = HOP,
    momentum: float = 0.99,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch samples"]:
    """A sound whose spectrogram has nearly these magnitudes: phases found by going to and fro.

    Frames overlap, so that magnitudes tell most of the phases. From random ones, go back to a
    sound and forward to its spectrogram, keep the phases that it has, and restore the magnitudes.
    The momentum makes it faster.

    Args:
        magnitude: Magnitudes, not negative, shape ``(*batch, bins, frames)``, as of :func:`stft`.
        num_steps: How often to go to and fro.
        hop: Samples from one frame to the next.
        momentum: How far to go on in the direction of the last step, from 0 to below 1.
        generator: Source of the first phases; torch's global one where it is ``None``.

    Returns:
        Sound, shape ``(*batch, hop * (frames - 1))``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``magnitude`` is negative somewhere or has fewer than 2 frames, or a number is
            out of range.

    Source:
        Griffin and Lim (1984), "Signal estimation from modified short-time Fourier transform";
        Perraudin, Balazs and Søndergaard (2013), "A fast Griffin-Lim algorithm", IEEE Workshop on
        Applications of Signal Processing to Audio and Acoustics.

    Example:
        >>> wave = torch.sin(torch.arange(4096) / 5)
        >>> again = griffin_lim(stft(wave).abs())
        >>> bool(spectral_convergence(again, stft(wave).abs()) < 0.1)
        True
    """
    magnitude = _checks.numbers("magnitude", magnitude)
    if magnitude.ndim < 2 or magnitude.shape[-1] < 2 or (magnitude < 0).any():
        raise ValueError(
            "magnitude must have dimensions (…, bins, frames), at least 2 frames and no negative "
            f"value, got shape {tuple(magnitude.shape)}"
        )
    num_steps = _checks.count("num_steps", num_steps, minimum=1)
    hop = _checks.count("hop", hop, minimum=1)
    _checks.generator_or_none(generator)
    momentum = _checks.scalar("momentum", momentum)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be from 0 to below 1, got {momentum}")
    flat = magnitude.reshape(-1, *magnitude.shape[-2:])
    fft_size = 2 * (flat.shape[1] - 1)
    window = torch.hann_window(fft_size, dtype=flat.dtype, device=flat.device)
    turns = torch.rand(flat.shape, generator=generator, dtype=flat.dtype, device=flat.device)
    phases, before = torch.polar(torch.ones_like(flat), 2 * math.pi * turns), torch.zeros(())
    tiny = torch.finfo(flat.dtype).tiny
    for _ in range(num_steps):
        wave = torch.istft(flat * phases, fft_size, hop, window=window)
        now = stft(wave, fft_size=fft_size, hop=hop)
        ahead = now - momentum / (1 + momentum) * before
        phases, before = ahead / ahead.abs().clamp(min=tiny), now
    wave = torch.istft(flat * phases, fft_size, hop, window=window)
    return wave.reshape(*magnitude.shape[:-2], -1)


def spectral_convergence(
    wave: Float[Tensor, "*batch samples"],
    magnitude: Float[Tensor, "*batch bins frames"],
    *,
    hop: int = HOP,
) -> Float[Tensor, "*batch"]:
    r"""How far a sound's spectrogram is from the one that was asked for.

    .. math:: \lVert\, \lvert \mathrm{STFT}(x) \rvert - S \,\rVert \big/ \lVert S \rVert

    Args:
        wave: Sound, shape ``(*batch, samples)``.
        magnitude: Magnitudes :math:`S`, shape ``(*batch, bins, frames)``.
        hop: Samples from one frame to the next.

    Returns:
        The relative error, shape ``(*batch)``; 0 is best.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The sound has another number of frames, or another batch.

    Source:
        Sturmel and Daudet (2011), "Signal reconstruction from STFT magnitude: A state of the art",
        International Conference on Digital Audio Effects.

    Example:
        >>> wave = torch.randn(4096)
        >>> float(spectral_convergence(wave, stft(wave).abs()))
        0.0
    """
    magnitude = _checks.numbers("magnitude", magnitude)
    found = stft(wave, fft_size=2 * (magnitude.shape[-2] - 1), hop=hop).abs()
    if found.shape != magnitude.shape:
        raise ValueError(
            f"wave must have the frames of magnitude, {tuple(magnitude.shape)}, got "
            f"{tuple(found.shape)}"
        )
    error = (found - magnitude).square().sum(dim=(-2, -1)).sqrt()
    return error / magnitude.square().sum(dim=(-2, -1)).sqrt()
