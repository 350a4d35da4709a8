"""Each page in a real browser: laptop and phone, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import MODES, WIDTHS, pages, show, watch
from playwright.sync_api import Browser, Page

CHECKS = """() => {
  const root = document.documentElement;
  const visible = (e) => e.checkVisibility({visibilityProperty: true});
  const text = [...document.querySelectorAll('article p, article li, article td, article dd')]
    .filter((e) => !e.closest('pre, code')).map((e) => {
      const copy = e.cloneNode(true);
      copy.querySelectorAll('pre, code, script, mjx-container').forEach((c) => c.remove());
      return copy.textContent;
    }).join('\\n');
  return {
    sideways: root.scrollWidth - root.clientWidth,
    images: [...document.images].filter((i) => !i.complete || !i.naturalWidth).map((i) => i.src),
    math: document.querySelectorAll('.math').length,
    rendered: document.querySelectorAll('mjx-container').length,
    errors: document.querySelectorAll('mjx-merror, [data-mjx-error]').length,
    raw: (text.match(/\\\\\\(|\\\\\\[|\\$\\$|\\\\begin\\{/g) || []),
    search: [...document.querySelectorAll(
      '.search-button, .search-button-field, .bd-search input')].filter(visible).length,
    overlaps: [...document.querySelectorAll('article section > *')]
      .filter((e) => visible(e) && e.nextElementSibling && visible(e.nextElementSibling))
      .filter((e) => e.getBoundingClientRect().bottom
        > e.nextElementSibling.getBoundingClientRect().top + 2)
      .map((e) => e.textContent.slice(0, 60)),
    pale: [...document.querySelectorAll('.cell_output .text_html, .cell_output img, .cell-figure')]
      .filter(visible).map((e) => getComputedStyle(e).backgroundColor)
      .filter((c) => c !== 'rgba(0, 0, 0, 0)'),
  };
}"""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_whole(
    chromium: Browser, address: str, html: Path, width: int, mode: str
) -> None:
    page = chromium.new_page(
        viewport={"width": width, "height": WIDTHS[width]},
        color_scheme="dark" if mode == "dark" else "light",
    )
    problems = watch(page, address)
    for name in pages(html):
        show(page, address + name)
        seen = page.evaluate(CHECKS)
        where = f"{name} at {width} pixels, {mode}"
        assert problems == [], where
        assert seen["sideways"] <= 0, f"{where} scrolls sideways by {seen['sideways']} pixels"
        assert seen["images"] == [], where
        assert seen["rendered"] >= seen["math"], f"{where}: mathematics left unrendered"
        assert seen["errors"] == 0, f"{where}: mathematics with an error"
        assert seen["raw"] == [], where
        assert seen["search"] == 1, f"{where}: {seen['search']} search fields"
        assert seen["overlaps"] == [], f"{where}: one part lies over the next"
        assert seen["pale"] == [], f"{where}: a box behind a figure"
        assert page.evaluate("document.documentElement.dataset.theme") == mode, where
    page.close()


def test_the_address_of_the_book_leads_to_its_first_page(chromium: Browser, address: str) -> None:
    page = chromium.new_page()
    page.goto(address)
    page.wait_for_url("**/book/intro.html")
    page.close()


def with_frames(html: Path) -> list[str]:
    """The pages that have a figure to play with."""
    return [n for n in pages(html) if 'class="frames"' in (html / n).read_text(encoding="utf-8")]


def shown(page: Page, figure: int) -> list[str]:
    """The settings whose pictures can be seen in a figure."""
    frames = page.locator("figure.frames").nth(figure).locator(".frame")
    return [f.get_attribute("data-value") or "" for f in frames.all() if f.is_visible()]


def test_a_slider_works_by_keyboard_and_by_touch(
    chromium: Browser, address: str, html: Path
) -> None:
    assert with_frames(html)
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    for name in with_frames(html):
        show(page, address + name)
        for number, figure in enumerate(page.locator("figure.frames").all()):
            for slider in figure.locator("input[type=range]").all():
                first, spoken = shown(page, number), slider.get_attribute("aria-valuetext")
                at_end = slider.input_value() == slider.get_attribute("max")
                slider.focus()
                page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
                second = shown(page, number)
                assert len(first) == len(second) == 1, name
                assert first != second, f"{name}: the arrow key changed nothing"
                assert slider.get_attribute("aria-valuetext") != spoken, name

                for edge in (0.02, 0.98):
                    box = slider.bounding_box()
                    assert box is not None
                    target = {"x": edge * box["width"], "y": box["height"] / 2}
                    slider.tap(position={"x": target["x"], "y": target["y"]})
                    third = shown(page, number)
                    assert len(third) == 1, name
                    assert third != second, f"{name}: a tap changed nothing"
                    second = third
    context.close()


def test_without_scripts_a_slider_is_one_still_figure(
    chromium: Browser, address: str, html: Path
) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    for name in with_frames(html):
        page.goto(address + name)
        for number, figure in enumerate(page.locator("figure.frames").all()):
            assert len(shown(page, number)) == 1, name
            assert not figure.locator(".frames-control").is_visible(), name
    context.close()
