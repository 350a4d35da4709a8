"""The offline book on a reader's disk, with no server and no network."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import pages, show, watch
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page
from publication import OFFLINE


@pytest.fixture(scope="module")
def folder(html: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the book lies when its archive is unpacked."""
    place = tmp_path_factory.mktemp("offline")
    with zipfile.ZipFile(html / OFFLINE) as archive:
        archive.extractall(place)
    (top,) = place.iterdir()
    return top


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page without a network."""
    context = chromium.new_context()
    context.set_offline(True)
    yield context.new_page()
    context.close()


def with_first(folder: Path, mark: str) -> str:
    """The address of the first page that has something in it."""
    texts = ((folder / name, (folder / name).read_text("utf-8")) for name in pages(folder))
    return next(path.as_uri() for path, text in texts if mark in text)


def test_the_offline_book_has_all_and_links_to_nothing_that_it_lacks(
    folder: Path, html: Path
) -> None:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert names >= {"README.txt", "index.html", "book/intro.html", "notebooks/run", "wheels"}
    whole = {p.relative_to(html).as_posix() for p in html.rglob("*")}
    assert whole - names == {OFFLINE} | ({"404.html"} & whole)
    for page in folder.rglob("*.html"):
        soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
        assert not soup.select("a[download]"), f"{page}: a download from the disk"
        for menu in soup.select(".page-tools .dropdown-menu"):
            assert menu.select("a, button"), f"{page}: a menu with nothing in it"
            assert "whole book" not in menu.text


def test_every_page_opens(page: Page, folder: Path) -> None:
    problems = watch(page, folder.as_uri())
    formulas = 0
    for name in pages(folder):
        show(page, (folder / name).as_uri())
        page.evaluate("document.fonts.ready")
        assert problems == [], name
        formulas += page.locator("mjx-container").count()
        assert page.locator("mjx-container").count() >= page.locator(".math").count(), name
        # A family counts as loaded only when the page has text in it and its file has come.
        loaded = set(
            page.evaluate(
                "[...document.fonts].filter((f) => f.status === 'loaded').map((f) => f.family)"
            )
        )
        assert any("Font Awesome" in family for family in loaded), f"{name}: no icons"
        if page.locator("mjx-container").count():
            assert any(family.strip('"').startswith("MJX") for family in loaded), name
        failed = page.evaluate("[...document.fonts].filter((f) => f.status === 'error').length")
        assert failed == 0, name
    assert formulas > 100


def test_a_slider_moves(page: Page, folder: Path) -> None:
    show(page, with_first(folder, '<figure class="frames"'))
    figure = page.locator("figure.frames").first
    before = figure.locator(".frame:not([hidden])").get_attribute("data-value")
    slider = figure.locator("input").first
    slider.focus()
    at_end = slider.input_value() == slider.get_attribute("max")
    page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
    assert figure.locator(".frame:not([hidden])").get_attribute("data-value") != before


def test_the_mode_can_be_changed_and_is_kept(page: Page, folder: Path) -> None:
    show(page, with_first(folder, "cell_input"))
    theme = "document.documentElement.dataset.theme"
    first = page.evaluate(theme)
    for _ in range(3):  # automatic, light, dark in some order
        page.locator(".theme-switch-button:visible").first.click()
        if page.evaluate(theme) != first:
            break
    changed = page.evaluate(theme)
    assert changed != first
    page.reload()
    assert page.evaluate(theme) == changed


def test_the_next_page_is_one_click_away(page: Page, folder: Path) -> None:
    show(page, with_first(folder, "right-next"))
    before = page.url
    page.locator("a.right-next").click()
    page.wait_for_url(lambda url: url != before)
    assert page.url.startswith(folder.as_uri())
    assert page.locator("article h1").is_visible()
