"""What a chapter hands to its page: numbers for the prose, answers, sound, figures to play with.

In a live notebook :func:`glue` shows nothing and :func:`frames` shows the same figure as the page,
slider included.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import itertools
import re
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from coursepkg import _checks
from coursepkg.plotting import PAPER

__all__ = ["Audio", "Frames", "audio", "check", "frames", "glue"]


def glue(**numbers: str) -> None:
    """Hand computed numbers to the prose, where ``{glue:text}`` puts them.

    Args:
        **numbers: Numbers as text, by name. Round to digits that hold on another machine. A
            hyphen before a digit becomes a minus sign.

    Raises:
        TypeError: A value is not text: how to round is the author's decision.
        ImportError: IPython is not installed, which is there in every notebook.
    """
    from IPython.display import publish_display_data

    for name, text in numbers.items():
        if not isinstance(text, str):
            raise TypeError(
                f"{name} must be text, got {type(text).__name__}; round it, f'{{x:.2f}}'"
            )
        # MyST-NB reads this record; a notebook does not know its kind and shows nothing. The record
        # is the text's repr, or "0.50" would be taken for the number 0.5.
        prefix = "application/papermill.record/"
        publish_display_data(
            {f"{prefix}text/plain": repr(_with_minus_signs(text))},
            metadata={"scrapbook": {"name": name, "mime_prefix": prefix}},
        )


def check(answer: Any, is_right: Callable[[Any], bool], hint: str) -> None:
    """Say whether the answer to an exercise is right, and give a hint where it is not.

    Args:
        answer: What the reader put in the place of the dots; the dots themselves (``...``) mean
            that there is no answer yet.
        is_right: Whether an answer is right.
        hint: What to think of next, without giving the answer away.
    """
    if answer is ...:
        print("No answer yet: replace the dots.")
        return
    try:
        right = bool(is_right(answer))
    except (TypeError, ValueError):  # an answer of another kind, such as text, is not right
        right = False
    print("Right." if right else f"Not yet. Hint: {hint}.")


@dataclass(frozen=True)
class Frames:
    """A figure with one picture for each setting of its sliders; see :func:`frames`.

    Attributes:
        sliders: The settings of each slider, by label.
        caption: What the figure shows.
        start: The setting that is shown first, and the only one where scripts are off.
        descriptions: What each picture shows, in words with its numbers, by setting.
        pictures: The pictures as SVG, by setting.
        background: Axes, labels and whatever all pictures share, as SVG.
    """

    sliders: Mapping[str, Sequence[float]]
    caption: str
    start: tuple[float, ...]
    descriptions: Mapping[tuple[float, ...], str]
    pictures: Mapping[tuple[float, ...], str]
    background: str

    def __repr__(self) -> str:
        return f"Frames({list(self.sliders)}, {len(self.pictures)} pictures)"

    def _repr_html_(self) -> str:
        """The figure as HTML that needs no server and no library, and no script to be read."""
        content = "".join(self.pictures.values()) + self.background
        key = "frames-" + hashlib.sha256(content.encode()).hexdigest()[:12]
        pictures = "".join(
            f'<div class="frame" data-value="{", ".join(f"{v:g}" for v in setting)}" role="img" '
            f'aria-label="{html.escape(self.descriptions[setting])}" style="grid-area:1/1"'
            f"{'' if setting == self.start else ' hidden'}>{picture}</div>"
            for setting, picture in self.pictures.items()
        )
        sliders = "".join(
            f'<label>{html.escape(label)} <input type="range" min="0" max="{len(values) - 1}" '
            f'value="{list(values).index(first)}" aria-valuetext="{first:g}" '
            f'data-values="{" ".join(f"{v:g}" for v in values)}"></label> '
            f"<output>{first:g}</output> "
            for (label, values), first in zip(self.sliders.items(), self.start, strict=True)
        )
        return (
            f'<figure class="frames" id="{key}" style="margin:1em 0">'
            f'<div style="display:grid;background:{PAPER};max-width:36rem">{pictures}'
            f'<div aria-hidden="true" style="grid-area:1/1;pointer-events:none">'
            f"{self.background}</div></div>"
            f'<div class="frames-control" hidden>{sliders}</div>'
            f'<p class="frames-text" aria-live="polite">'
            f"{html.escape(self.descriptions[self.start])}</p>"
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
            f"<script>({_SCRIPT})({key!r})</script>"
        )


# Shows the sliders (without scripts they would do nothing) and, on input, the picture they ask for.
_SCRIPT = """(key) => {
  const figure = document.getElementById(key);
  const pictures = [...figure.querySelectorAll(".frame")];
  const sliders = [...figure.querySelectorAll("input")];
  const text = figure.querySelector(".frames-text");
  figure.querySelector(".frames-control").hidden = false;
  const show = () => {
    const setting = sliders.map((slider) => {
      const value = slider.dataset.values.split(" ")[slider.value];
      slider.setAttribute("aria-valuetext", value);
      slider.closest("label").nextElementSibling.value = value;
      return value;
    }).join(", ");
    for (const picture of pictures) {
      picture.hidden = picture.dataset.value !== setting;
      if (!picture.hidden) text.textContent = picture.getAttribute("aria-label");
    }
  };
  sliders.forEach((slider) => slider.addEventListener("input", show));
  show();
}"""


def frames(
    sliders: Mapping[str, Sequence[float]],
    draw: Callable[..., object],
    describe: Callable[..., str],
    background: Callable[[Axes], object],
    caption: str,
    *,
    start: Sequence[float],
) -> Frames:
    """Draw a figure for every setting of one or two sliders, to be played with in a static page.

    Args:
        sliders: The values of each slider, by label.
        draw: Called as ``draw(ax, value, ...)`` with one value per slider; draws on axes that have
            the background's limits.
        describe: Called as ``describe(value, ...)``: says in words what the picture shows, its
            numbers included. It stands below the picture, and is all that some readers have.
        background: Called once as ``background(ax)``: sets labels and limits, and draws what does
            not change.
        caption: What the figure shows and what to try.
        start: The setting that is shown first.

    Returns:
        The figure; as the last expression of a cell it is shown.

    Raises:
        ValueError: There are no sliders, a slider has fewer than 2 values, or ``start`` is no
            setting of the sliders.
        TypeError: ``describe`` returns no text.
    """
    _checks.count("the number of sliders", len(sliders), minimum=1)
    for label, values in sliders.items():
        _checks.count(f"the number of values of slider {label!r}", len(values), minimum=2)
    settings = list(itertools.product(*sliders.values()))
    if tuple(start) not in settings:
        raise ValueError(f"start must be one of the sliders' settings, got {tuple(start)}")
    descriptions = {setting: describe(*setting) for setting in settings}
    if not all(isinstance(text, str) and text for text in descriptions.values()):
        raise TypeError("describe must return in words what the picture shows")
    descriptions = {setting: _with_minus_signs(text) for setting, text in descriptions.items()}

    size = (6.0, 3.8)
    base, base_ax = plt.subplots(figsize=size)
    background(base_ax)
    base_svg = _svg(base)
    pictures = {}
    for setting in settings:
        figure = plt.figure(figsize=size, layout="none")
        ax = figure.add_axes(base_ax.get_position().bounds)
        ax.set(xlim=base_ax.get_xlim(), ylim=base_ax.get_ylim(), autoscale_on=False)
        ax.set_axis_off()
        draw(ax, *setting)
        pictures[setting] = _svg(figure)
    return Frames(sliders, caption, tuple(start), descriptions, pictures, base_svg)


@dataclass(frozen=True)
class Audio:
    """A sound to be played in a page; see :func:`audio`.

    Attributes:
        name: What it is called.
        description: What is heard.
        data: The sound as a file in the format WAV, 16 bit, one channel.
    """

    name: str
    description: str
    data: bytes

    def __repr__(self) -> str:
        return f"Audio({self.name!r}, {len(self.data):,} bytes)"

    def _repr_html_(self) -> str:
        """The sound as HTML that needs no server, no library and no script."""
        text = base64.b64encode(self.data).decode()
        return (
            '<figure class="sound" style="margin:1em 0">'
            f'<audio controls preload="metadata" aria-label="{html.escape(self.name)}" '
            f'style="max-width:100%" src="data:audio/wav;base64,{text}"></audio>'
            f"<figcaption>{html.escape(self.name)}: {html.escape(self.description)}</figcaption>"
            "</figure>"
        )


def audio(sound: Float[Tensor, " samples"], sample_rate: int, name: str, description: str) -> Audio:
    """Put a sound onto the page, with controls to play it and words for those who cannot hear it.

    Args:
        sound: Its samples, in any unit: it is scaled so that the loudest is nearly full scale.
        sample_rate: Samples a second.
        name: What it is called, in a few words; two sounds of a page need two names.
        description: What is heard, in words. It stands below the controls.

    Returns:
        The sound; as the last expression of a cell it is shown.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``sound`` has not one dimension, is empty or not finite; ``sample_rate`` is
            below 1; or a text is empty.

    Example:
        >>> audio(torch.sin(torch.arange(800) / 3), 8000, "A tone", "a steady tone of 424 hertz")
        Audio('A tone', 1,644 bytes)
    """
    sound = _checks.array("sound", sound, ndim=1)
    sample_rate = _checks.count("sample_rate", sample_rate, minimum=1)
    for label, text in {"name": name, "description": description}.items():
        if not isinstance(text, str):
            raise TypeError(f"{label} must be text, got {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"{label} must say what is heard, got no words")
    # A silent sound stays silent.
    full = 0.9 * (2**15 - 1) / sound.abs().max().clamp(min=torch.finfo(sound.dtype).tiny)
    samples = (sound * full).round().to(torch.int16).numpy(force=True)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return Audio(name, _with_minus_signs(description), buffer.getvalue())


def _with_minus_signs(text: str) -> str:
    return re.sub(r"-(?=\d)", "\N{MINUS SIGN}", text)


def _svg(figure: Figure) -> str:
    """The figure as an SVG element without background, as wide as its box; closes the figure."""
    buffer = io.StringIO()
    # Without a fixed salt the ids, and with them the page, would differ from run to run.
    with plt.rc_context({"svg.hashsalt": "coursepkg"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return svg.replace("<svg ", '<svg style="width:100%;height:auto;display:block" ', 1)
