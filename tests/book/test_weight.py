"""What a page weighs, what it asks for, and what a reader sees before its scripts have come."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import build_book
import pytest
from browser import MODES, WIDTHS, pages, serve, show, watch
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont
from playwright.sync_api import Browser, Page, Route

# Mathematics is 1.3 MB of it (script and fonts), the theme's sheets and scripts are 0.6.
STATIC_LIMIT = 2_200_000
PAGE_LIMIT = 1_000_000

# A line for each kind of thing that a course like this may write; many need a TeX extension.
FORMULAS = Path(__file__).with_name("formulas.tex").read_text("utf-8").splitlines()
DARK, LIGHT = "rgb(18, 18, 18)", "rgb(255, 255, 255)"


def chapters(html: Path) -> list[str]:
    """The pages that were notebooks."""
    found = build_book.published_notebooks(html.parents[1])
    return [f"book/{path.stem}.html" for path in found]


def static_files(html: Path) -> dict[str, int]:
    """The size of each static file, by its path."""
    files = [path for path in (html / "_static").rglob("*") if path.is_file()]
    return {path.relative_to(html).as_posix(): path.stat().st_size for path in files}


def asked_for(html: Path) -> set[str]:
    """What pages and style sheets ask for, as paths in the book."""
    asks = []
    for name in pages(html):
        page = html / name
        soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
        asks += [(page, str(tag["href"])) for tag in soup.select("link[href]")]
        asks += [(page, str(tag["src"])) for tag in soup.select("script[src], img[src]")]
    for sheet in html.rglob("*.css"):
        loads = r"""(?:url\(["']?|@import ["'])(?!data:)([^"')]+)"""
        found = re.findall(loads, sheet.read_text("utf-8"))
        asks += [(sheet, url) for url in found]
    targets = {
        (page.parent / unquote(urlsplit(url).path)).resolve()
        for page, url in asks
        if not urlsplit(url).scheme
    }
    return {path.relative_to(html).as_posix() for path in targets}


def test_no_static_file_is_missing_or_idle(html: Path) -> None:
    there, asked = set(static_files(html)), asked_for(html)
    missing = {name for name in asked if name.startswith("_static/")} - there
    assert not missing, missing
    scripts = " ".join(path.read_text("utf-8") for path in (html / "_static").rglob("*.js"))
    idle = {
        name
        for name in there - asked
        if Path(name).name not in scripts and "LICENSE" not in Path(name).name
    }
    assert not idle, f"nothing asks for {idle}"
    assert not [name for name in there if name.endswith((".map", ".ttf", ".po", ".mo"))]


def test_static_files_are_within_their_budget(html: Path) -> None:
    sizes = static_files(html)
    heaviest = sorted(sizes.items(), key=lambda item: -item[1])[:10]
    assert sum(sizes.values()) < STATIC_LIMIT, heaviest


def test_each_page_is_within_its_budget(html: Path) -> None:
    for name in pages(html):
        text = (html / name).read_bytes()
        images = BeautifulSoup(text, "html.parser").select("article img[src]")
        urls = [unquote(urlsplit(str(image["src"])).path) for image in images]
        files = {((html / name).parent / url).resolve() for url in urls}
        size = len(text) + sum(file.stat().st_size for file in files)
        print(f"{size:9,} bytes, {len(gzip.compress(text)):7,} of HTML on the way: {name}")
        assert size < PAGE_LIMIT, f"{name} weighs {size:,} bytes, {PAGE_LIMIT:,} is the limit"


def test_every_icon_is_in_the_font(chromium: Browser, address: str, html: Path) -> None:
    (font,) = (html / "_static").rglob("fa-solid-900.woff")
    drawn = TTFont(font)["cmap"].getBestCmap()
    page = chromium.new_page()
    icons = set()
    for name in [*chapters(html), "search.html"]:
        page.goto(address + name)
        icons |= {
            tuple(pair)
            for pair in page.evaluate(
                "[...document.querySelectorAll('[class*=fa-]')].map((i) =>"
                " [i.className, getComputedStyle(i, '::before').content])"
            )
        }
    assert len(icons) > 5
    for name, content in icons:
        assert content.strip('"'), name
        assert ord(content.strip('"')) in drawn, f"{name}: {content!r} has no picture"
    page.close()


def test_the_icon_of_a_search_field_leaves_room_for_its_text(
    chromium: Browser, address: str
) -> None:
    page = chromium.new_page()
    page.goto(address + "search.html")
    field = page.locator("article form.bd-search, main form.bd-search").first
    icon, text = field.locator("i").bounding_box(), field.locator("input").bounding_box()
    assert icon is not None
    assert text is not None
    assert icon["x"] + icon["width"] <= text["x"]
    page.close()


@pytest.mark.parametrize("mode", MODES)
def test_text_and_figures_show_while_scripts_hang(
    chromium: Browser, address: str, html: Path, mode: str
) -> None:
    held: list[Route] = []  # asked for, and never answered
    for name in chapters(html):
        page = chromium.new_page(color_scheme="dark" if mode == "dark" else "light")
        page.route("**/*.js*", lambda route: held.append(route))
        page.goto(address + name, wait_until="commit")
        painted = "performance.getEntriesByName('first-contentful-paint').length"
        page.wait_for_function(painted, timeout=5000)
        page.locator("footer .page-stamp").wait_for(timeout=5000)  # all of the page is there
        check_readable(page, name)
        # The page has its mode from the first, or it would flash.
        assert page.evaluate("document.documentElement.dataset.theme") == mode
        assert background(page) == (DARK if mode == "dark" else LIGHT), name
        assert held
        while held:
            held.pop().abort()
        page.close()


def test_a_page_is_readable_with_scripts_off(chromium: Browser, address: str, html: Path) -> None:
    context = chromium.new_context(java_script_enabled=False, color_scheme="dark")
    page = context.new_page()
    for name in chapters(html):
        page.goto(address + name)
        check_readable(page, name)
        assert background(page) == LIGHT, name
    context.close()


def background(page: Page) -> str:
    """The color behind the text."""
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def check_readable(page: Page, name: str) -> None:
    """See headings, text and figures of a page, each with its place and its colors."""
    assert page.locator("article h1").is_visible()
    assert page.locator("article p").first.is_visible()
    figures = page.locator("article .cell-figure svg, article .frame:not([hidden]) svg").all()
    assert figures, name
    for figure in figures:
        box = figure.bounding_box()
        assert box is not None, name
        assert min(box["width"], box["height"]) > 100, name
    for color in ("--pst-color-text-base", "--figure-grid"):
        style = "getComputedStyle(document.documentElement)"
        assert page.evaluate(f"{style}.getPropertyValue('{color}')"), f"{name}: no {color}"


def test_the_readers_choice_of_mode_wins_from_the_first(
    chromium: Browser, address: str, html: Path
) -> None:
    context = chromium.new_context(color_scheme="light")
    context.add_init_script("localStorage.mode = 'dark'; localStorage.theme = 'light'")
    page = context.new_page()
    page.route("**/*.js*", lambda route: route.abort())
    page.goto(address + chapters(html)[0], wait_until="commit")
    page.locator("footer .page-stamp").wait_for()
    assert background(page) == DARK
    context.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_jumps_while_a_page_loads(
    chromium: Browser, address: str, html: Path, width: int
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": WIDTHS[width]})
    page.add_init_script(
        "window.jumps = [];"
        "new PerformanceObserver((list) => window.jumps.push(...list.getEntries()"
        "  .map((e) => [e.value, ...e.sources.map((s) => s.node?.outerHTML?.slice(0, 80))])))"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    for name in chapters(html):
        show(page, address + name)
        page.evaluate("document.fonts.ready")
        jumps = page.evaluate(
            "new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(jumps))))"
        )
        total = sum(jump[0] for jump in jumps)
        assert total < 0.1, f"{name} at {width} pixels: {total:.3f} {jumps}"
    page.close()


def test_mathematics_of_all_kinds_asks_for_nothing_that_is_not_there(
    small_book, chromium: Browser
) -> None:
    text = "\n\n".join(f"$$\n{formula}\n$$" for formula in FORMULAS)
    (small_book.root / "book" / "intro.md").write_text(f"# Formulas\n\n{text}\n")
    small_book.build()
    page = chromium.new_page()
    with serve(small_book.root / "_build" / "html") as url:
        problems = watch(page, url)
        show(page, url + "book/intro.html")
        page.evaluate("document.fonts.ready")
        wrong = page.evaluate(
            "[...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map((e) =>"
            " e.closest('mjx-container').textContent)"
        )
        assert wrong == []
        assert page.locator("mjx-container").count() >= len(FORMULAS)
        assert problems == []
        fonts = page.evaluate("[...document.fonts].filter((f) => f.status === 'loaded').length")
        assert fonts > 12

        # What the line above looks for is there when a formula is wrong.
        undefined = "MathJax.tex2chtml('\\\\nosuchmacro').querySelector('[data-mjx-error]')"
        assert page.evaluate(f"{undefined} !== null")
    page.close()


HEAVY = """
```{{code-cell}} ipython3
:mystnb: {{image: {{alt: Many points.}}}}
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats
set_matplotlib_formats("svg")
plt.plot(range(4000), [i * 7919 % 1000 for i in range(4000)], ".", rasterized={rasterized})
plt.show()
```
"""


def test_a_heavy_figure_stops_the_build_which_says_what_to_do(small_book) -> None:
    start = small_book.chapter.read_text()
    small_book.chapter.write_text(start + HEAVY.format(rasterized=False))
    with pytest.raises(build_book.BuildError) as caught:
        small_book.build()
    report = str(caught.value)
    assert re.search(r"book/small\.md:\d+.*a figure of \d+ kB, and 250 kB is the limit", report)
    assert "rasterized=True" in report

    small_book.chapter.write_text(start + HEAVY.format(rasterized=True))
    small_book.build()
    assert "data:image/png;base64," in small_book.page()
