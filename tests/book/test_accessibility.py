"""Each page for readers who see, point or move differently: axe-core, and what axe cannot see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from browser import MODES, WIDTHS, pages, show
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Browser, Page

OPEN_FOLDS = """() => {
  document.querySelectorAll('details').forEach((fold) => { fold.open = true; });
  document.querySelectorAll('.toggle-button[aria-expanded=false]').forEach((b) => b.click());
}"""

# To axe a picture and a formula are one thing each, with a name; and each kind of word in code need
# be looked at once. Their parts would cost it nine tenths of its time.
WITHOUT_PARTS = """() => {
  document.querySelectorAll('svg[role=img], mjx-math, mjx-assistive-mml')
    .forEach((picture) => picture.replaceChildren());
  const known = new Set();
  document.querySelectorAll('.highlight span[class], .sig span[class]').forEach((word) => {
    const kind = `${word.className} in ${word.parentElement.localName}`;
    if (known.has(kind)) word.replaceWith(word.textContent);
    known.add(kind);
  });
}"""

# All rules but those of WCAG's level AAA: also the best practices and the experimental ones.
AXE = """async (only) => {
  const known = axe.getRules().filter((rule) => !rule.tags.some((t) => /aaa|obsolete/.test(t)));
  const { violations } = await axe.run(document, {
    resultTypes: ['violations'],
    runOnly: only ?? known.map((rule) => rule.ruleId),
  });
  return violations.flatMap((rule) => rule.nodes.map(
    (node) => `${rule.id}: ${node.html.slice(0, 200)}: ${node.failureSummary}`));
}"""


def axe(page: Page, only: list[str] | None = None) -> list[str]:
    """What axe-core objects to."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found: list[str] = page.evaluate(AXE, only)
    return found


def view(chromium: Browser, width: int, **options: Any) -> Page:
    """A window of this width, in which nothing moves."""
    height = WIDTHS.get(width, 640)
    return chromium.new_page(
        viewport={"width": width, "height": height}, reduced_motion="reduce", **options
    )


def load(page: Page, url: str) -> None:
    """Load a page and wait until it is laid out, with its fonts, and has marked what scrolls."""
    show(page, url)
    page.evaluate("() => document.fonts.ready.then(() => undefined)")
    settle(page)


def settle(page: Page) -> None:
    """Let a page lay itself out twice."""
    page.evaluate("() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))")


# Rules about color; the others find the same in both modes, and colors are the same at all widths.
COLORS = ["color-contrast", "link-in-text-block"]


@pytest.mark.parametrize(("width", "modes"), [(1280, ("light", "dark")), (390, ("dark",))])
def test_axe_finds_nothing(
    chromium: Browser, address: str, html: Path, width: int, modes: tuple[Any, ...]
) -> None:
    page = view(chromium, width)
    for name in pages(html):
        page.emulate_media(color_scheme=modes[0])
        load(page, address + name)
        page.evaluate(OPEN_FOLDS)
        settle(page)
        page.evaluate(WITHOUT_PARTS)
        assert axe(page) == [], f"{name} at {width} pixels, {modes[0]}"
        for mode in modes[1:]:
            page.emulate_media(color_scheme=mode)
            page.wait_for_function(f"() => document.documentElement.dataset.theme === '{mode}'")
            assert axe(page, COLORS) == [], f"{name} at {width} pixels, {mode}"
    page.close()


def text(html: Path, name: str) -> str:
    """A page as it was built."""
    return (html / name).read_text(encoding="utf-8")


def chapter(html: Path) -> str:
    """A page with everything: sections, sliders, folds."""
    return next(name for name in pages(html) if '<figure class="frames"' in text(html, name))


@pytest.mark.parametrize("mode", MODES)
def test_axe_finds_nothing_in_what_the_header_opens(
    chromium: Browser, address: str, html: Path, mode: Any
) -> None:
    page = view(chromium, 390, color_scheme=mode)
    # These parts are the same on all pages: the smallest page that has them all will do.
    whole = [name for name in pages(html) if "secondary-toggle" in text(html, name)]
    load(page, address + min(whole, key=lambda name: len(text(html, name))))
    header = page.locator(".bd-header-article")
    buttons = header.locator(".search-button, .sidebar-toggle[aria-expanded]")
    assert buttons.count() >= 3, "search and two sidebars"
    for button in buttons.all():
        button.press("Enter")
        page.wait_for_function("() => document.activeElement.matches('[class*=bd-s] *')")
        assert axe(page) == []
        page.keyboard.press("Escape")
    menus = header.locator(".page-tools > button")
    assert menus.count() >= 1
    for menu in menus.all():
        menu.press("Enter")
        page.wait_for_selector(".page-tools > .show.dropdown-menu")
        assert axe(page) == []
        page.keyboard.press("Escape")
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_menu_opens_by_keyboard_stays_on_the_screen_and_closes_by_escape(
    chromium: Browser, address: str, html: Path, width: int
) -> None:
    page = view(chromium, width)
    load(page, address + chapter(html))
    for tools in page.locator(".page-tools").all():
        button, menu = tools.locator("> button"), tools.locator(".dropdown-menu")
        for key in ("Enter", "Space", "ArrowDown"):
            assert menu.is_hidden()
            button.press(key)
            menu.wait_for(state="visible")
            assert button.get_attribute("aria-expanded") == "true"
            box = menu.bounding_box()
            assert box is not None
            assert 0 <= box["x"] <= box["x"] + box["width"] <= width
            for item in menu.locator(".dropdown-item").all():
                if not item.evaluate("(e) => document.activeElement === e"):
                    page.keyboard.press("ArrowDown")
                assert item.evaluate("(e) => document.activeElement === e")
            page.keyboard.press("Escape")
            menu.wait_for(state="hidden")
            assert button.evaluate("(e) => document.activeElement === e")
    page.close()


# Every element that can be used, in the order of the page, and what is wrong when it has the focus.
RECORD = """() => {
  const all = 'a[href], button, input, select, textarea, summary, audio, video, [tabindex="0"]';
  window.usable = [...document.querySelectorAll(all)].filter((e) => !e.disabled
    && e.checkVisibility({visibilityProperty: true})
    && !e.matches('input[type=radio]:not(:checked)'));
  window.reached = [];
  document.addEventListener('focusin', ({target}) => {
    const style = getComputedStyle(target);
    const seen = target.checkVisibility({visibilityProperty: true, opacityProperty: true});
    const outline = style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2;
    reached.push([usable.indexOf(target), seen && outline, target.outerHTML.slice(0, 200)]);
  });
  return usable.map((e) => e.outerHTML.slice(0, 200));
}"""


@pytest.mark.parametrize("width", WIDTHS)
def test_tab_reaches_everything_in_order_and_shows_where_it_is(
    chromium: Browser, address: str, html: Path, width: int
) -> None:
    page = view(chromium, width)
    # Tab is slow. On a phone only what is around a chapter differs, so that one chapter will do.
    for name in pages(html) if width == max(WIDTHS) else [chapter(html)]:
        load(page, address + name)
        page.evaluate(OPEN_FOLDS)
        settle(page)
        usable = page.evaluate(RECORD)
        for _ in usable:
            page.keyboard.press("Tab")
        # A player of sound has some controls inside, each a stop.
        for _ in range(10 * page.locator("audio").count()):
            if page.evaluate("() => reached.at(-1)[0] === usable.length - 1"):
                break
            page.keyboard.press("Tab")
        reached = page.evaluate("() => reached")
        where = f"{name} at {width} pixels"
        assert len(usable) > 10, where
        missed = set(range(len(usable))) - {index for index, _, _ in reached}
        assert not missed, f"{where}: Tab does not reach {[usable[i] for i in missed]}"
        order = [index for index, _, _ in reached]
        assert order == sorted(order), f"{where}: out of order"
        assert [text for _, seen, text in reached if not seen] == [], f"{where}: focus not seen"
    page.close()


def test_the_skip_link_leads_past_the_menus(chromium: Browser, address: str, html: Path) -> None:
    page = view(chromium, 1280)
    load(page, address + chapter(html))
    page.keyboard.press("Tab")
    skip = page.locator(":focus")
    assert skip.inner_text() == "Skip to main content"
    box = skip.bounding_box()
    assert box is not None
    assert box["y"] >= 0, "the skip link cannot be seen"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
    page.close()


def test_folds_open_and_close_by_keyboard_and_say_so(
    chromium: Browser, address: str, html: Path
) -> None:
    page = view(chromium, 1280)
    count = 0
    for name in pages(html):
        load(page, address + name)
        for fold in page.locator("article summary, article .toggle-button").all():
            count += 1
            box = fold.locator(
                "xpath=ancestor::*[self::details or contains(@class, 'dropdown')][1]"
            )
            content = box.locator("> :not(summary, .admonition-title)").first
            native = fold.evaluate("(e) => e.localName === 'summary'")
            for key, is_open in (("Enter", True), ("Space", False), ("Space", True)):
                fold.press(key)
                assert content.is_visible() == is_open, f"{name}: {key} on {fold}"
                said = fold.get_attribute("aria-expanded")
                assert native or said == str(is_open).lower(), f"{name}: {fold}"
        names = page.locator("article .toggle-button").evaluate_all(
            "(e) => e.map((b) => b.ariaLabel)"
        )
        assert len(set(names)) == len(names), f"{name}: folds of the same name"
    assert count > 5
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_escape_closes_what_the_header_opens_and_leads_back(
    chromium: Browser, address: str, html: Path, width: int
) -> None:
    page = view(chromium, width)
    load(page, address + chapter(html))
    closed = ".bd-header-article .sidebar-toggle[aria-expanded=false]:visible"
    buttons = page.locator(closed).element_handles()
    assert len(buttons) == (0 if width == max(WIDTHS) else 2)
    for button in buttons:
        button.press("Enter")
        page.wait_for_function("() => document.activeElement.closest('[class*=bd-sidebar-]')")
        assert button.get_attribute("aria-expanded") == "true"
        page.keyboard.press("Escape")
        page.wait_for_function("(b) => b.ariaExpanded === 'false'", arg=button)
        assert page.evaluate("(b) => document.activeElement === b", button)

        button.press("Enter")
        page.wait_for_function("() => document.activeElement.closest('[class*=bd-sidebar-]')")
        page.keyboard.press("Shift+Tab")
        page.wait_for_function("(b) => b.ariaExpanded === 'false'", arg=button)

    search = page.locator(".search-button__button:visible").first.element_handle()
    field = page.locator(".search-button__search-container input")
    for key in ("Escape", "Tab"):
        search.press("Enter")
        assert field.is_visible()
        assert field.evaluate("(e) => document.activeElement === e")
        page.keyboard.press(key)
        assert field.is_hidden(), key
        is_back = page.evaluate("(b) => document.activeElement === b", search)
        assert is_back == (key == "Escape"), key
    page.close()


# What is wider than it should be, and what of it can be reached.
LAYOUT = """() => {
  const root = document.documentElement;
  const scrolls = (e) => /auto|scroll/.test(getComputedStyle(e).overflowX);
  const holds = (e) => e && e !== document.body && (scrolls(e) ? e : holds(e.parentElement));
  const visible = [...document.querySelectorAll('article *, .page-stamp')]
    .filter((e) => e.checkVisibility({visibilityProperty: true}))
    .filter((e) => !e.closest('svg, mjx-container > *'));
  const say = (e) => e.outerHTML.slice(0, 200);
  return {
    sideways: root.scrollWidth - root.clientWidth,
    loose: visible.filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1
      && !holds(e)).map(say),
    unreached: visible.filter((e) => scrolls(e) && e.scrollWidth > e.clientWidth
      && (e.tabIndex !== 0 || !e.ariaLabel)).map(say),
    idle: visible.filter((e) => e.matches('[role=group], [role=region]')
      && !(scrolls(e) && e.scrollWidth > e.clientWidth)).map(say),
    cut: visible.filter((e) => /hidden|clip/.test(getComputedStyle(e).overflowY) && !scrolls(e)
      && e.textContent.trim() && !e.matches('.toggle-hidden')
      && e.scrollHeight > e.clientHeight + 1 && e.clientHeight > 1).map(say),
    small: [...document.querySelectorAll('.bd-header-article button, article summary, '
      + '.toggle-button, input[type=range]')]
      .filter((e) => e.checkVisibility({visibilityProperty: true}))
      .filter((e) => e.getBoundingClientRect().height < 24 || e.getBoundingClientRect().width < 24)
      .map(say),
  };
}"""
NOTHING = {"sideways": 0, "loose": [], "unreached": [], "idle": [], "cut": [], "small": []}

# What WCAG 1.4.12 lets every reader ask for.
SPACED = """* { line-height: 1.5 !important; letter-spacing: 0.12em !important;
  word-spacing: 0.16em !important; } p { margin-bottom: 2em !important; }"""


def test_nothing_is_lost_on_small_screens_when_zoomed_or_spaced_out(
    chromium: Browser, address: str, html: Path
) -> None:
    # 640 and 320 pixels are also what is left of 1280 at a zoom of 200 % and of 400 %.
    page = view(chromium, 320)
    for name in pages(html):
        load(page, address + name)
        assert layout(page) == NOTHING, f"{name}, folded"
        page.evaluate(OPEN_FOLDS)
        for width in (320, 390, 640):
            page.set_viewport_size({"width": width, "height": 640})
            assert layout(page) == NOTHING, f"{name} at {width} pixels"
        page.set_viewport_size({"width": 320, "height": 640})
        page.add_style_tag(content=SPACED)
        assert layout(page) == NOTHING, f"{name}, text spaced out"
    page.close()


def layout(page: Page) -> dict[str, Any]:
    """What does not fit, after the page has had the time to mark what scrolls."""
    settle(page)
    found: dict[str, Any] = page.evaluate(LAYOUT)
    return found


def test_nothing_moves_for_who_asked_for_that(chromium: Browser, address: str, html: Path) -> None:
    page = view(chromium, 390)
    load(page, address + chapter(html))
    moving = """() => [...document.querySelectorAll('*')].filter((e) => {
      const style = getComputedStyle(e);
      return style.animationName !== 'none' || parseFloat(style.transitionDuration) > 0
        || style.scrollBehavior !== 'auto';
    }).map((e) => e.outerHTML.slice(0, 100))"""
    assert page.evaluate(moving) == []
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) != []
    page.close()


@pytest.mark.parametrize("mode", MODES)
def test_figures_and_sliders_are_seen_in_forced_colors(
    chromium: Browser, address: str, html: Path, mode: Any
) -> None:
    page = view(chromium, 390, color_scheme=mode, forced_colors="active")
    load(page, address + chapter(html))
    colors = page.evaluate("""() => {
      const color = (e, name) => getComputedStyle(e)[name];
      const picture = document.querySelector('.frame:not([hidden]) svg');
      return [color(picture, 'color'), color(document.body, 'color'),
        color(document.body, 'backgroundColor')];
    }""")
    assert colors[0] == colors[1] != colors[2]
    assert page.locator("figure.frames input[type=range]").first.is_visible()
    page.close()


def test_without_scripts_all_can_be_read(chromium: Browser, address: str, html: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    for name in pages(html):
        page.goto(address + name)
        for fold in page.locator("article summary").all():
            fold.press("Enter")
        hidden = page.locator("article :is(p, li, pre, h1, h2, h3, h4, td, dd, img)").evaluate_all(
            """(all) => all.filter((e) => !e.checkVisibility({visibilityProperty: true,
              opacityProperty: true}) && !e.closest('summary, .frame, .toggler, .explanation')
              && (e.textContent.trim() || e.src)).map((e) => e.outerHTML.slice(0, 200))"""
        )
        assert hidden == [], name
    context.close()


def unheard(page: BeautifulSoup) -> list[Tag]:
    """Sound and film that some readers could not stop, name or read instead."""

    def is_told(media: Tag) -> bool:
        figure = media.find_parent("figure")
        told = f"figcaption, [id='{media.get('aria-describedby')}']"
        words = figure.select_one(told) if figure else None
        named = any(media.get(name) for name in ("aria-label", "aria-labelledby", "title"))
        return media.has_attr("controls") and named and bool(words and words.text.strip())

    return [media for media in page.select("audio, video") if not is_told(media)]


def test_sound_has_controls_a_name_and_words_to_read(html: Path) -> None:
    good = (
        '<figure><audio controls aria-label="The vowel a"></audio>'
        "<figcaption>A low hum that rises.</figcaption></figure>"
    )
    assert not unheard(BeautifulSoup(good, "html.parser"))
    for part in (" controls", ' aria-label="The vowel a"', "A low hum that rises.", "figure"):
        bad = BeautifulSoup(good.replace(part, "div" if part == "figure" else ""), "html.parser")
        assert len(unheard(bad)) == 1, f"without {part}"
    for name in pages(html):
        found = unheard(BeautifulSoup(text(html, name), "html.parser"))
        assert found == [], name
