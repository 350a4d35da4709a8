r"""Speech that is made: vowels from a source and a filter.

A vowel is a source and a filter. The source is the train of pulses that the vocal folds let pass,
whose rate is the *pitch*. The filter is the tube above them, whose resonances, the *formants*, make
the vowel; a longer tube has lower formants. All functions work on a batch of voices at once.

Source:
    Peterson and Barney (1952), "Control methods used in a study of the vowels", Journal of the
    Acoustical Society of America 24(2), for the formants of vowels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coursepkg import _checks
from coursepkg.spectrogram import SAMPLE_RATE

__all__ = [
    "GROUPS",
    "SAMPLE_RATE",
    "VOWELS",
    "Vowels",
    "measured_vowels",
    "synthesize",
    "tract_formants",
    "tract_sizes",
    "vowels",
]

#: Who was measured.
GROUPS = ("men", "women", "children")
#: The vowels that were measured, each by the word that it was said in.
VOWELS = ("heed", "hid", "head", "had", "hud", "hod", "hawed", "hood", "who'd", "heard")

# Pitch and three formants in Hz: means over the recordings of 33 men, 28 women and 15 children.
PETERSON_BARNEY = (
    (
        (136, 267, 2294, 2937),
        (136, 392, 1993, 2569),
        (128, 526, 1854, 2481),
        (125, 664, 1727, 2420),
        (129, 631, 1192, 2377),
        (124, 718, 1091, 2442),
        (127, 568, 836, 2403),
        (136, 437, 1023, 2245),
        (139, 307, 876, 2239),
        (133, 489, 1360, 1709),
    ),
    (
        (231, 310, 2783, 3312),
        (232, 441, 2474, 3063),
        (220, 608, 2334, 2999),
        (208, 863, 2049, 2832),
        (223, 758, 1409, 2768),
        (212, 864, 1229, 2783),
        (217, 587, 915, 2736),
        (234, 469, 1162, 2685),
        (235, 378, 961, 2666),
        (219, 503, 1641, 1977),
    ),
    (
        (270, 360, 3178, 3763),
        (270, 534, 2744, 3604),
        (259, 700, 2616, 3564),
        (248, 1017, 2334, 3366),
        (263, 855, 1592, 3328),
        (258, 1030, 1383, 3188),
        (259, 694, 1064, 3263),
        (273, 560, 1402, 3332),
        (278, 432, 1193, 3250),
        (264, 569, 1806, 2194),
    ),
)

FADE_SECONDS = 0.02
# Above it the air that the folds let through has ever weaker harmonics.
SOURCE_CORNER = 100.0


def measured_vowels() -> Float[Tensor, "groups vowels quantities"]:
    """Mean pitch and formants of American English vowels, as they were measured.

    Returns:
        Pitch and the first three formants in Hz, shape ``(3, 10, 4)``, for each of :data:`GROUPS`
        and each of :data:`VOWELS`; float64.

    Source:
        Peterson and Barney (1952), "Control methods used in a study of the vowels"; means of the
        1,520 recordings, as the program Praat ships them.

    Example:
        >>> measured_vowels()[0, VOWELS.index("heed")]
        tensor([ 136.,  267., 2294., 2937.], dtype=torch.float64)
    """
    return torch.tensor(PETERSON_BARNEY, dtype=torch.float64)


def tract_sizes() -> Float[Tensor, " groups"]:
    r"""How long the vocal tract of each group is, against that of the mean man.

    A tube that is twice as long has resonances half as high: it is the geometric mean of the ratios
    of the formants.

    Returns:
        Ratios, shape ``(3,)``, for each of :data:`GROUPS`; the first is 1.

    Example:
        >>> tract_sizes()
        tensor([1.0000, 0.8598, 0.7384], dtype=torch.float64)
    """
    formants = measured_vowels()[:, :, 1:]
    return (formants[0] / formants).log().mean(dim=(1, 2)).exp()


def tract_formants() -> Float[Tensor, "groups vowels formants"]:
    """The measured formants of each vowel, and a fourth above them, which every tract has.

    It was not measured; at 3,500 Hz in the mean man, and in proportion in shorter tracts, it lifts
    the third as in speech.

    Returns:
        Four formants in Hz, shape ``(3, 10, 4)``, for each of :data:`GROUPS` and :data:`VOWELS`.

    Example:
        >>> tract_formants()[0, VOWELS.index("heed")]
        tensor([ 267., 2294., 2937., 3500.], dtype=torch.float64)
    """
    table = measured_vowels()
    fourth = (3500 / tract_sizes())[:, None, None].expand(-1, len(VOWELS), 1)
    return torch.cat([table[:, :, 1:], fourth], dim=2)


# --- A voice --------------------------------------------------------------------------------------


def synthesize(
    formants: Float[Tensor, "voices formants"],
    pitch: Float[Tensor, "voices samples"],
    *,
    noise_scale: float | Float[Tensor, " voices"] = 0.0,
    bandwidths: Float[Tensor, "voices formants"] | None = None,
    sample_rate: int = SAMPLE_RATE,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "voices samples"]:
    r"""Let pulses at the pitch, and some noise, resound in a tube with these formants.

    The source is a sum of all :math:`K` harmonics below half the sample rate, which has a closed
    form in the phase :math:`\varphi` of the voice, the sum of its pitch up to now:

    .. math:: 2 \sum_{k=1}^K \cos k \varphi = \frac{\sin (K + 1/2) \varphi}{\sin \varphi / 2} - 1.

    The filter is a product: a resonance for each formant :math:`F` with bandwidth :math:`B`, and
    for the folds and the lips a slope of 6 dB per octave down,

    .. math::
        H(f) \propto \frac{i f}{(f_0 + i f)^2}
            \prod_F \frac{1}{1 + \bigl((B/2 + i f) / F\bigr)^2} .

    Args:
        formants: Resonances in Hz, shape ``(voices, formants)``; those of a tube ``c`` times as
            long are ``formants / c``. Those above half the sample rate have an effect below it.
        pitch: Pitch in Hz at each sample, shape ``(voices, samples)``.
        noise_scale: Standard deviation of the breath's noise in the source, whose pulses have 1.
        bandwidths: Width of each resonance in Hz, where its power is half that of its peak;
            :math:`50 + 0.04 F` if not given, as a tube of flesh has.
        sample_rate: Samples a second.
        generator: Source of the noise; torch's global one where it is ``None``.

    Returns:
        Sound with a mean square of 1, faded in and out, shape ``(voices, samples)``, in the dtype
        of ``formants``.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is not positive, shapes do not fit, or a pitch is not below half the
            sample rate.

    Source:
        Fant (1960), "Acoustic theory of speech production".

    Example:
        >>> pitch = torch.full((1, 4000), 120.0)
        >>> synthesize(torch.tensor([[700.0, 1200, 2500]]), pitch).shape
        torch.Size([1, 4000])
    """
    sample_rate = _checks.count("sample_rate", sample_rate, minimum=1)
    _checks.generator_or_none(generator)
    if bandwidths is None:
        bandwidths = 50 + 0.04 * _checks.numbers("formants", formants, positive=True)
    noise_scale = _checks.numbers("noise_scale", noise_scale)
    for name, value in {"formants": formants, "bandwidths": bandwidths, "pitch": pitch}.items():
        _checks.numbers(name, value, positive=True)
        if value.ndim != 2 or len(value) != len(formants):
            raise ValueError(
                f"{name} must have a row for each voice, got shape {tuple(value.shape)}"
            )
    if bandwidths.shape != formants.shape:
        raise ValueError(
            f"bandwidths must have the shape of formants, {tuple(formants.shape)}, got "
            f"{tuple(bandwidths.shape)}"
        )
    if pitch.max() >= sample_rate / 2:
        raise ValueError(
            f"pitch must be below half the sample rate, {sample_rate / 2:g} Hz, got values up to "
            f"{float(pitch.max()):g}"
        )
    if (noise_scale < 0).any() or noise_scale.shape not in ((), (len(formants),)):
        raise ValueError("noise_scale must be one number, or one for each voice, and not negative")
    num_samples = pitch.shape[1]
    dtype = formants.dtype
    noise = torch.randn(pitch.shape, generator=generator, dtype=dtype)
    source = _pulses(pitch, sample_rate).to(dtype) + noise_scale.to(dtype).reshape(-1, 1) * noise

    # A tenth of a second more: what still sounds at the end must not come in at the beginning.
    length = num_samples + sample_rate // 10
    f = 1j * torch.fft.rfftfreq(length, 1 / sample_rate, dtype=dtype)
    spectrum = torch.fft.rfft(source, length) * (f / (SOURCE_CORNER + f).square())
    resonances = zip(formants.T[..., None], bandwidths.T[..., None], strict=True)
    for center, width in resonances:
        spectrum /= 1 + ((width / 2 + f) / center).square()
    wave = torch.fft.irfft(spectrum, length)[:, :num_samples]

    at = torch.arange(num_samples, dtype=dtype) + 0.5
    to_end = torch.minimum(at, num_samples - at) / (FADE_SECONDS * sample_rate)
    wave = wave * torch.sin(to_end.clamp(max=1) * math.pi / 2).square()
    return wave / wave.square().mean(dim=1, keepdim=True).sqrt()


def _pulses(
    pitch: Float[Tensor, "voices samples"], sample_rate: int
) -> Float[Tensor, "voices samples"]:
    """All harmonics with equal amplitudes and a mean square of 1: pulses, without aliases."""
    cycles = (pitch.double() / sample_rate).cumsum(dim=1)
    # From -1/2 to 1/2, and never zero, where the closed form below is 0 / 0.
    phase = math.pi * (cycles - cycles.round())
    phase = torch.where(phase.abs() < 1e-9, 1e-9, phase)
    num_harmonics = ((sample_rate / 2) / pitch.amax(dim=1, keepdim=True)).ceil() - 1
    pulses = torch.sin((2 * num_harmonics + 1) * phase) / torch.sin(phase) - 1
    return pulses / (2 * num_harmonics).sqrt()


# --- A data set -----------------------------------------------------------------------------------


class Vowels(NamedTuple):
    """Utterances of single vowels, and what is known about each.

    Attributes:
        wave: Sound, shape ``(utterances, samples)``, float32.
        vowel: Which of :data:`VOWELS` it is, shape ``(utterances,)``.
        speaker: Who speaks, shape ``(utterances,)``.
        pitch: Geometric mean of the pitch over the utterance in Hz, shape ``(utterances,)``.
        rise: How far the pitch rises from begin to end, in semitones, shape ``(utterances,)``.
        size: Length of the speaker's vocal tract against the mean man's, shape ``(utterances,)``.
    """

    wave: Float[Tensor, "utterances samples"]
    vowel: Int[Tensor, " utterances"]
    speaker: Int[Tensor, " utterances"]
    pitch: Float[Tensor, " utterances"]
    rise: Float[Tensor, " utterances"]
    size: Float[Tensor, " utterances"]


def vowels(
    num_speakers: int,
    *,
    num_repeats: int = 1,
    pitch_range: tuple[float, float] = (90.0, 280.0),
    rise_scale: float = 2.0,
    size_scale: float = 0.04,
    noise_scale: float = 0.05,
    num_samples: int = 3200,
    sample_rate: int = SAMPLE_RATE,
    generator: torch.Generator | None = None,
) -> Vowels:
    r"""Let speakers of all sizes say every vowel, each time at another pitch.

    A speaker is one of :data:`GROUPS`, with a vocal tract that is longer or shorter than theirs:
    all formants are those of the group over a factor of the speaker. Pitch, and its rise or fall,
    belong to the utterance and do not depend on anything else, unlike those of people: whoever
    finds the pitch has not found the speaker's size.

    Args:
        num_speakers: How many speakers.
        num_repeats: How often each speaker says each vowel.
        pitch_range: Lowest and highest pitch in Hz; its logarithm is uniform between them.
        rise_scale: Standard deviation of the rise of the pitch, in semitones.
        size_scale: Standard deviation of the logarithm of the speakers' factors.
        noise_scale: Standard deviation of the breath's noise; see :func:`synthesize`.
        num_samples: Length of an utterance.
        sample_rate: Samples a second.
        generator: Source of randomness; torch's global one where it is ``None``.

    Returns:
        Utterances, ``10 * num_repeats`` of each speaker.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A number is out of range, so that there is no such voice.

    Example:
        >>> said = vowels(3, num_samples=800, generator=torch.Generator().manual_seed(0))
        >>> said.wave.shape, said.speaker.unique()
        (torch.Size([30, 800]), tensor([0, 1, 2]))
    """
    num_speakers = _checks.count("num_speakers", num_speakers, minimum=1)
    num_repeats = _checks.count("num_repeats", num_repeats, minimum=1)
    num_samples = _checks.count("num_samples", num_samples, minimum=2)
    low, high = (_checks.positive("each of pitch_range", value) for value in pitch_range)
    if low > high:
        raise ValueError(f"pitch_range must go from low to high, got {pitch_range}")
    scales = {"rise_scale": rise_scale, "size_scale": size_scale}
    for name, value in scales.items():
        if _checks.scalar(name, value) < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    _checks.generator_or_none(generator)
    group = torch.randint(len(GROUPS), (num_speakers,), generator=generator)
    factor = (size_scale * torch.randn(num_speakers, generator=generator).double()).exp()

    count = num_speakers * num_repeats * len(VOWELS)
    speaker = torch.arange(num_speakers).repeat_interleave(count // num_speakers)
    vowel = torch.arange(len(VOWELS)).repeat(count // len(VOWELS))
    where = torch.rand(count, generator=generator).double()
    pitch = low * (high / low) ** where
    rise = rise_scale * torch.randn(count, generator=generator).double()
    at = torch.linspace(-0.5, 0.5, num_samples, dtype=torch.float64)
    wave = synthesize(
        (tract_formants()[group[speaker], vowel] / factor[speaker, None]).float(),
        pitch[:, None] * 2 ** (rise[:, None] * at / 12),
        noise_scale=noise_scale,
        sample_rate=sample_rate,
        generator=generator,
    )
    size = (tract_sizes()[group] * factor)[speaker]
    return Vowels(wave, vowel, speaker, pitch.float(), rise.float(), size.float())
