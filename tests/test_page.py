"""What goes onto a page: glued numbers, answers, and figures with sliders."""

from __future__ import annotations

import base64
import io
import itertools
import wave

import pytest
import torch
from bs4 import BeautifulSoup
from IPython import display

from coursepkg import page

SLIDERS = {"noise": [0.5, 1, 2], "prior scale": [1, 5]}


def make_frames(**changes):
    """A figure with six pictures, each a dot at its setting."""
    arguments = {
        "sliders": SLIDERS,
        "draw": lambda ax, noise, scale: ax.plot([noise], [scale], "o"),
        "describe": lambda noise, scale: f"a two-part dot at <{noise:g}, {scale:g}>, not -1",
        "background": lambda ax: ax.set(xlim=(0, 3), ylim=(0, 6), xlabel="noise"),
        "caption": "Dots & settings",
        "start": [1, 5],
    }
    return page.frames(**(arguments | changes))


@pytest.fixture(scope="module")
def figure():
    return make_frames()


def test_frames_draws_every_setting(figure):
    assert list(figure.pictures) == list(itertools.product([0.5, 1, 2], [1, 5]))
    assert len(set(figure.pictures.values())) == 6


def test_frames_shows_one_picture_before_scripts_run(figure):
    soup = BeautifulSoup(figure._repr_html_(), "html.parser")
    pictures = soup.select(".frame")
    shown = [picture for picture in pictures if not picture.has_attr("hidden")]
    assert [picture["data-value"] for picture in shown] == ["1, 5"]
    assert soup.select_one(".frames-control").has_attr("hidden")
    assert soup.select_one(".frames-text").text == "a two-part dot at <1, 5>, not −1"
    assert soup.figcaption.text == "Dots & settings"


def test_frames_describes_each_picture_to_those_who_cannot_see_it(figure):
    soup = BeautifulSoup(figure._repr_html_(), "html.parser")
    labels = {picture["data-value"]: picture["aria-label"] for picture in soup.select(".frame")}
    assert labels["0.5, 1"] == "a two-part dot at <0.5, 1>, not −1"
    assert len(set(labels.values())) == 6


def test_frames_has_one_labelled_slider_a_parameter(figure):
    soup = BeautifulSoup(figure._repr_html_(), "html.parser")
    sliders = soup.select("label input[type=range]")
    assert [slider["data-values"] for slider in sliders] == ["0.5 1 2", "1 5"]
    assert [slider["value"] for slider in sliders] == ["1", "1"]
    assert [slider["max"] for slider in sliders] == ["2", "1"]
    assert "noise" in sliders[0].parent.text


def test_frames_html_is_the_same_in_every_run(figure):
    assert figure._repr_html_() == make_frames()._repr_html_()
    assert repr(figure) == "Frames(['noise', 'prior scale'], 6 pictures)"


def test_two_figures_on_one_page_do_not_share_an_id(figure):
    other = make_frames(draw=lambda ax, noise, scale: ax.plot([noise], [scale], "s"))
    ids = [BeautifulSoup(f._repr_html_(), "html.parser").figure["id"] for f in (figure, other)]
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    [
        (ValueError, ("number of sliders", "at least 1"), {"sliders": {}, "start": []}),
        (ValueError, ("'a'", "at least 2", "got 1"), {"sliders": {"a": [1]}, "start": [1]}),
        (ValueError, ("start", "(3, 5)"), {"start": [3, 5]}),
        (TypeError, ("describe", "words"), {"describe": lambda noise, scale: ""}),
    ],
)
def test_frames_kind_errors(kind_error, error, words, changes):
    with kind_error(error, *words):
        make_frames(**changes)


def test_glue_publishes_a_record_that_a_notebook_does_not_show(monkeypatch):
    records = []
    monkeypatch.setattr(
        display, "publish_display_data", lambda data, metadata: records.append((data, metadata))
    )
    page.glue(slope="-0.50")
    ((data, metadata),) = records
    assert data == {"application/papermill.record/text/plain": "'\N{MINUS SIGN}0.50'"}
    assert metadata["scrapbook"]["name"] == "slope"


def test_glue_leaves_the_rounding_to_the_author(kind_error):
    with kind_error(TypeError, "slope", "float", "round"):
        page.glue(slope=0.33271)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (..., "No answer yet"),
        (3, "Right."),
        (4, "Not yet. Hint: count again."),
        ("three", "Not yet."),
    ],
)
def test_check_says_what_to_do_next(capsys, answer, said):
    page.check(answer, lambda value: abs(value - 3) < 0.5, hint="count again")
    assert capsys.readouterr().out.startswith(said)


def test_a_sound_is_a_file_in_the_page_with_controls_a_name_and_words():
    tone = 3 * torch.sin(torch.arange(800) / 5)
    sound = page.audio(tone, 16_000, "Tone <1>", "rises & falls, -2")
    (figure,) = BeautifulSoup(sound._repr_html_(), "html.parser").select("figure")
    assert figure.audio.has_attr("controls")
    assert figure.audio["aria-label"] == "Tone <1>"
    assert figure.figcaption.text == "Tone <1>: rises & falls, −2"
    assert figure.script is None
    kind, text = figure.audio["src"].split(",")
    assert kind == "data:audio/wav;base64"
    with wave.open(io.BytesIO(base64.b64decode(text))) as file:
        assert file.getparams()[:4] == (1, 2, 16_000, 800)
        heard = torch.frombuffer(bytearray(file.readframes(800)), dtype=torch.int16)
    expected = tone * 0.9 * 32_767 / tone.abs().max()
    torch.testing.assert_close(heard.float(), expected, atol=0.51, rtol=0)
    assert repr(sound) == "Audio('Tone <1>', 1,644 bytes)"


def test_silence_is_a_sound_too():
    data = page.audio(torch.zeros(100), 8000, "Silence", "nothing").data
    assert data[44:] == bytes(200)


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    [
        (ValueError, ("sound", "1 dimension", "(2, 4)"), {"sound": torch.ones(2, 4)}),
        (ValueError, ("sound", "finite"), {"sound": torch.full((4,), torch.nan)}),
        (TypeError, ("sample_rate", "whole"), {"sample_rate": 8e3}),
        (TypeError, ("name", "text", "int"), {"name": 3}),
        (ValueError, ("description", "words"), {"description": " "}),
    ],
)
def test_audio_kind_errors(kind_error, error, words, changes):
    good = {"sound": torch.ones(4), "sample_rate": 8000, "name": "A", "description": "a click"}
    with kind_error(error, *words):
        page.audio(**(good | changes))
