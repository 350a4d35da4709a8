"""A reader finds the way: the map, the next page, the search, definitions, links to headings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote, urljoin

import build_book
import pytest
import yaml
from browser import pages, serve, show, watch
from bs4 import BeautifulSoup, Tag
from course_map import Chapter, draw, drawn, lanes
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (1280, 390, 320)

# A course as it may be one day: (title, what it needs).
COURSE: list[tuple[str, set[int]]] = [
    ("Linear regression", set()),
    ("Bayesian linear regression", {0}),
    ("Networks as probabilistic models", {1}),
    ("Markov chain Monte Carlo", {2}),
    ("Hamiltonian Monte Carlo and its diagnostics", {3}),
    ("The KL divergence and the ELBO", {1}),
    ("Gradients of expectations: reparameterization", {5}),
    ("Variational inference", {2, 6}),
    ("Bayes by Backprop", {7}),
    ("Monte Carlo dropout, Laplace and ensembles", {2, 8}),
    ("Uncertainty and calibration", {8, 9}),
    ("Variational autoencoders, speech and diffusion", {5, 6, 7}),
    ("Pyro", {4, 7, 11}),
]


def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def toc() -> list[str]:
    """The pages of the book in its order, read without Sphinx."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [contents["root"], *(c["file"] for part in contents["parts"] for c in part["chapters"])]


def chapters() -> list[str]:
    return [path.relative_to(ROOT).with_suffix("").as_posix() for path in build_book.chapters(ROOT)]


def title(html: Path, name: str) -> str:
    heading = soup(html / f"{name}.html").select_one("article h1")
    assert heading is not None
    return heading.text.removesuffix("#")


@pytest.fixture(params=["http", "file"])
def book(request: pytest.FixtureRequest, html: Path, address: str) -> str:
    """The book as a server hands it out, and as it lies on a disk."""
    return address if request.param == "http" else html.as_uri() + "/"


# The map of the course


@st.composite
def courses(draw: st.DrawFn) -> list[set[int]]:
    size = draw(st.integers(1, 14))
    return [set(draw(st.lists(st.integers(0, n - 1)))) if n else set() for n in range(size)]


def reached(size: int, lines: set[tuple[int, int]]) -> list[set[int]]:
    """What each chapter builds on, near and far."""
    before: list[set[int]] = []
    for chapter in range(size):
        near = {start for start, end in lines if end == chapter}
        before.append(near.union(*(before[n] for n in near)))
    return before


@given(courses())
def test_the_lines_say_what_the_chapters_need_and_no_more(needs: list[set[int]]) -> None:
    size, lines = len(needs), drawn(needs)
    said = {(n, chapter) for chapter, near in enumerate(needs) for n in near}
    assert lines <= said
    assert reached(size, lines) == reached(size, said)
    for line in lines:
        assert reached(size, lines - {line}) != reached(size, lines), f"{line} could be left out"


@given(courses())
def test_each_line_has_its_own_place(needs: list[set[int]]) -> None:
    lines = drawn(needs)
    taken = lanes(lines)
    beside = {(start, end) for start, (_, ends) in taken.items() for end in ends}
    assert beside == {(start, end) for start, end in lines if end > start + 1}
    spans = [(lane, start, max(ends)) for start, (lane, ends) in taken.items()]
    for lane, start, end in spans:
        assert lane >= 1, "the place of the lines from one chapter to the next"
        others = [s for s in spans if s[0] == lane and s[1] != start]
        assert all(last <= start or end <= first for _, first, last in others)


def test_the_map_says_what_each_chapter_says(html: Path) -> None:
    first = html / "book" / "intro.html"
    links = soup(first).select('nav[aria-label="Map of the course"] li a')
    assert [urljoin("book/intro.html", str(a["href"])) for a in links] == [
        f"{name}.html" for name in chapters()
    ]
    titles = {name: title(html, name) for name in chapters()}
    needs: dict[str, list[str]] = {}
    for name in titles:
        (words,) = (
            p
            for p in soup(html / f"{name}.html").select("article p")
            if p.text.startswith("You need first:")
        )
        targets = [urljoin(f"{name}.html", str(a["href"])).split("#")[0] for a in words.select("a")]
        needs[name] = [n for n in titles if f"{n}.html" in targets]
    assert any(needs.values())
    for name, link in zip(titles, links, strict=True):
        assert link.text == titles[name]
        box = link.find_parent("li")
        assert box is not None
        said = [p.text for p in box.select("p")]
        needed = "; ".join(titles[n] for n in needs[name])
        assert said[0] == f"Needs {needed or 'no other chapter'}."
        leads = [titles[other] for other in titles if name in needs[other]]
        assert said[1:] == ([f"Leads to {'; '.join(leads)}."] if leads else [])


def test_a_chapter_that_needs_a_later_one_stops_the_build(small_book) -> None:
    later = small_book.root / "book" / "later.md"
    later.write_text(small_book.chapter.read_text() + "\n```{code-cell} ipython3\n'later'\n```\n")
    contents = small_book.root / "_toc.yml"
    contents.write_text(contents.read_text() + "  - file: book/later\n")
    with small_book.chapter.open("a") as file:
        file.write("\n**You need first:** [Later](later.md), and [the start](intro.md).\n")
    with pytest.raises(build_book.BuildError) as caught:
        small_book.build()
    report = str(caught.value)
    assert "small.md" in report
    assert "the chapter needs book/later first, which comes no earlier in the book" in report
    assert "intro" not in report


def boxes(page: Page, selector: str) -> list[dict[str, float]]:
    found = [element.bounding_box() for element in page.locator(selector).all()]
    assert found
    return [dict(box) for box in found if box is not None]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_map_stays_clear(chromium: Browser, address: str, width: int) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 800})
    show(page, address + "book/intro.html")
    long = draw([Chapter(name, "#", needs) for name, needs in COURSE])
    page.evaluate("html => {document.querySelector('.course-map').outerHTML = html}", long)
    frames = boxes(page, ".course-map li > div")
    assert len(frames) == len(COURSE)
    for above, below in pairwise(frames):
        assert above["y"] + above["height"] < below["y"]
    for shape in boxes(page, ".course-map svg > *"):
        assert shape["x"] + shape["width"] < frames[0]["x"], "a line crosses a chapter"
        assert shape["x"] >= 0
    dots = boxes(page, ".course-map circle")
    for dot, frame in zip(dots, frames, strict=True):
        assert frame["y"] < dot["y"] < frame["y"] + frame["height"]
    # The lines of a row begin where those of the row above end.
    rows = boxes(page, ".course-map svg")
    for above, below in pairwise(rows):
        assert above["y"] + above["height"] == pytest.approx(below["y"], abs=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_the_map_works_by_keyboard(chromium: Browser, book: str) -> None:
    page = chromium.new_page()
    problems = watch(page, book)
    show(page, book + "book/intro.html")
    link = page.locator(".course-map a").nth(1)
    page.locator(".course-map a").first.focus()
    page.keyboard.press("Tab")
    expect(link).to_be_focused()
    ring = "e => getComputedStyle(e, '::after').outlineStyle + getComputedStyle(e, '::after').width"
    assert link.evaluate(ring).startswith("solid")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{book}{chapters()[1]}.html")
    assert problems == []
    page.close()


# The next page


def test_every_page_leads_to_the_next_and_back(html: Path) -> None:
    order = toc()
    for place, name in enumerate(order):
        page = soup(html / f"{name}.html")
        for kind, other in (("left-prev", place - 1), ("right-next", place + 1)):
            found = [
                urljoin(f"{name}.html", str(a["href"]))
                for a in page.select(f".prev-next-area .{kind}")
            ]
            there = [f"{order[other]}.html"] if 0 <= other < len(order) else []
            assert found == there, f"{name}: {kind}"


# The search


def search(page: Page, book: str, query: str) -> list[str]:
    """Where the results of a search lead to."""
    page.goto(f"{book}search.html?q={quote(query)}")
    expect(page.locator(".search-summary")).not_to_be_empty()
    links = page.locator("#search-results li a")
    return [str(a.get_attribute("href")) for a in links.all()]


LINEAR, BAYES = "book/linear_regression.html", "book/bayesian_linear_regression.html"
LAMBDA = "book/notation.html#symbol-lambda-sigma-2-s-2"
SEARCHES = {
    # what is typed: (what comes first, what else must be found)
    "fit_ols": ("book/api.html#coursepkg.linear.fit_ols", {LINEAR}),
    "coursepkg.linear.fit_ols": ("book/api.html#coursepkg.linear.fit_ols", set()),
    "log_evidence": (
        "book/api",  # any page of the reference
        {"book/api.html#coursepkg.bayes_linear.log_evidence", BAYES, "book/notation.html"},
    ),
    "noise_scale": ("book/api", {BAYES, LINEAR, "book/notation.html"}),
    "posterior": (
        "book/glossary.html#term-posterior",
        {"book/api.html#coursepkg.bayes_linear.posterior", BAYES},
    ),
    "σ": ("book/notation.html#symbol-sigma", {LINEAR, BAYES}),
    "sigma": ("book/notation.html#symbol-sigma", {LINEAR, BAYES}),
    "\\sigma": ("book/notation.html#symbol-sigma", {LINEAR, BAYES}),
    "σ²": ("book/notation.html#symbol-", {LINEAR, BAYES}),
    # Λ is found as well: capital letters are not told apart.
    "λ": ("book/notation.html#symbol-", {LAMBDA, LINEAR}),
    "lambda": ("book/notation.html#symbol-", {LAMBDA, LINEAR}),
    "Φ": ("book/notation.html#symbol-", {"book/notation.html#symbol-Phi", LINEAR, BAYES}),
    "Phi": ("book/notation.html#symbol-", {"book/notation.html#symbol-Phi", LINEAR, BAYES}),
    "R²": ("book/notation.html#symbol-R-2", set()),
    "R squared": ("book/glossary.html#term-R-squared", set()),
    "m_N": ("book/notation.html#symbol-m_N-S_N", {BAYES}),
    "β": ("book/notation.html#symbol-", {BAYES}),
}


def test_the_search_finds_functions_and_symbols(chromium: Browser, book: str) -> None:
    page = chromium.new_page()
    problems = watch(page, book)
    for query, (first, others) in SEARCHES.items():
        found = search(page, book, query)
        assert found, query
        assert found[0].startswith(first), f"{query}: {found}"
        assert others <= set(found), f"{query}: {others - set(found)} not in {found}"
    assert problems == []
    page.close()


def test_every_symbol_of_the_notation_is_found(chromium: Browser, address: str, html: Path) -> None:
    table = soup(html / "book" / "notation.html").select("table tbody tr")
    index = (html / "searchindex.js").read_text("utf-8").removeprefix("Search.setIndex(")[:-1]
    kinds = {int(n): name[1] for n, name in json.loads(index)["objnames"].items()}
    names: dict[str, str] = {}
    for prefix, objects in json.loads(index)["objects"].items():
        for _, kind, _, anchor, name in objects:
            if kinds[kind] == "symbol":
                names[anchor] = f"{prefix}.{name}" if prefix else name
    assert [str(row["id"]) for row in table] == sorted(
        names, key=[str(row.get("id")) for row in table].index
    ), "each row has an address and an entry"
    page = chromium.new_page()
    search(page, address, "σ")
    find = "query => Search._performSearch(...Search._parseQuery(query)).map(r => r[0] + r[2])"
    for anchor, name in names.items():
        assert "\\" not in name, f"{name}: a command of TeX is left"
        symbol = re.split(r"[\s,;:]", name)[0]
        assert f"book/notation#{anchor}" in page.evaluate(find, symbol), name
    page.close()


def test_a_symbol_found_is_shown_in_its_row(chromium: Browser, book: str) -> None:
    page = chromium.new_page()
    row = page.locator("#symbol-sigma")
    color = "row => getComputedStyle(row.cells[0]).backgroundColor"
    page.goto(book + "book/notation.html")
    before = row.evaluate(color)
    search(page, book, "σ")
    page.locator("#search-results li a").first.click()
    page.wait_for_url("**/notation.html#symbol-sigma")
    expect(row).to_be_in_viewport()
    assert row.evaluate(color) != before
    page.close()


def test_a_search_without_result_says_so_kindly(chromium: Browser, book: str) -> None:
    page = chromium.new_page()
    problems = watch(page, book)
    assert search(page, book, "xylophone<qq>") == []
    words = page.locator(".search-summary").inner_text()
    assert words.startswith("Nothing was found for “xylophone<qq>”.")
    assert "fit_ols" in words
    assert problems == []
    page.close()


def test_the_search_opens_by_keyboard(chromium: Browser, book: str) -> None:
    page = chromium.new_page()
    problems = watch(page, book)
    for name in (*toc(), "search", "_modules/coursepkg/linear"):
        page.goto(f"{book}{name}.html")
        page.keyboard.press("Control+k")
        field = page.locator("input[name=q]:focus")
        expect(field).to_be_visible()
        assert field.get_attribute("aria-label"), name
    field.fill("fit_ols")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=fit_ols")
    expect(page.locator("#search-results li a").first).to_have_text("coursepkg.linear.fit_ols")
    assert problems == []
    page.close()


def test_the_page_found_marks_words_and_not_letters(chromium: Browser, address: str) -> None:
    page = chromium.new_page()
    search(page, address, "R squared")
    page.locator("#search-results li a").first.click()
    page.wait_for_url("**/glossary.html#term-R-squared")
    expect(page.locator(".highlighted").first).to_be_attached()
    marked = {text.lower() for text in page.locator(".highlighted").all_text_contents()}
    assert marked == {"squared"}
    page.close()


# Definitions beside their links


def with_tips(html: Path) -> list[str]:
    return [name for name in pages(html) if 'role="tooltip"' in (html / name).read_text("utf-8")]


def test_every_term_and_citation_is_explained_on_its_page(html: Path) -> None:
    links = 0
    for name in pages(html):
        page = soup(html / name)
        for word in page.select("article a .std-term, article .bibtex-citation a"):
            link = word if word.name == "a" else word.find_parent("a")
            assert isinstance(link, Tag)
            links += 1
            tip = page.find(id=str(link.get("aria-describedby")))
            assert isinstance(tip, Tag), f"{name}: {link}"
            assert tip["role"] == "tooltip"
            target, anchor = urljoin(name, str(link["href"])).split("#")
            source = soup(html / target).find(id=anchor)
            assert isinstance(source, Tag)
            text = source.find_next("dd") if source.name == "dt" else source.find("p")
            assert text is not None
            assert tip.text.split() == text.text.split()
            assert not tip.select("a, [id]"), f"{name}: a link or an id in a definition"
            assert not link.get("title"), f"{name}: a second tooltip, the browser's"
    assert links > 20


@pytest.fixture
def laptop(chromium: Browser) -> Iterator[Page]:
    page = chromium.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    yield page
    page.close()


def first_link(page: Page, book: str) -> tuple[str, str]:
    """Open a chapter; the selectors of a link and its definition, which has a formula in it."""
    show(page, book + LINEAR)
    return "a[aria-describedby=tip-term-design-matrix] >> nth=0", "#tip-term-design-matrix"


def test_a_definition_opens_on_hover_and_can_be_hovered(laptop: Page, book: str) -> None:
    problems = watch(laptop, book)
    link, tip = first_link(laptop, book)
    expect(laptop.locator(tip)).to_be_hidden()
    laptop.locator(link).hover()
    expect(laptop.locator(tip)).to_be_visible()
    assert laptop.locator(f"{tip} mjx-container").count() == 1, "the formula is not typeset"
    laptop.locator(tip).hover()
    laptop.wait_for_timeout(500)  # longer than the way from the link to the definition may take
    expect(laptop.locator(tip)).to_be_visible()
    laptop.mouse.move(0, 0)
    expect(laptop.locator(tip)).to_be_hidden()
    assert problems == []


def test_a_definition_opens_on_focus_and_goes_with_escape(laptop: Page, book: str) -> None:
    link, tip = first_link(laptop, book)
    laptop.keyboard.press("Tab")
    laptop.locator(link).focus()
    expect(laptop.locator(tip)).to_be_visible()
    laptop.keyboard.press("Escape")
    expect(laptop.locator(tip)).to_be_hidden()
    expect(laptop.locator(link)).to_be_focused()
    laptop.keyboard.press("Shift+Tab")
    laptop.keyboard.press("Tab")
    expect(laptop.locator(tip)).to_be_visible()
    laptop.keyboard.press("Tab")
    expect(laptop.locator(tip)).to_be_hidden()
    laptop.locator(link).hover()
    expect(laptop.locator(tip)).to_be_visible()
    laptop.keyboard.press("Escape")
    expect(laptop.locator(tip)).to_be_hidden()


def test_a_screen_reader_gets_the_definition(laptop: Page, address: str) -> None:
    link, _ = first_link(laptop, address)
    expect(laptop.locator(link)).to_have_accessible_description(
        re.compile("one row per data point and one column per feature")
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_no_definition_leaves_the_window(
    chromium: Browser, address: str, html: Path, width: int
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 640}, reduced_motion="reduce")
    seen = 0
    for name in with_tips(html):
        show(page, address + name)
        page.keyboard.press("Tab")
        for link in page.locator("article a[aria-describedby^=tip-]").all():
            if not link.is_visible():  # in a folded solution
                continue
            seen += 1
            link.focus()
            tip = page.locator(f"#{link.get_attribute('aria-describedby')}")
            expect(tip).to_be_visible()
            box, at = tip.bounding_box(), link.bounding_box()
            assert box is not None
            assert at is not None
            where = f"{name}, {width} pixels: {link.text_content()}"
            assert box["x"] >= 0, where
            assert box["x"] + box["width"] <= width, where
            assert box["y"] >= 0, where
            assert box["y"] + box["height"] <= 640, where
            assert (
                box["y"] >= at["y"] + 0.5 * at["height"] or box["y"] + box["height"] <= at["y"] + 1
            ), f"{where}: over its own link"
            assert page.evaluate("document.documentElement.scrollWidth") <= width, where
            color = tip.evaluate("(e) => getComputedStyle(e).backgroundColor")
            assert color.startswith("rgb("), f"{where}: what is behind it shines through"
    assert seen > 20
    page.close()


def test_a_finger_follows_the_link(chromium: Browser, book: str) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    link, _ = first_link(page, book)
    page.evaluate(
        "() => {window.opened = 0; new MutationObserver(() => opened++).observe("
        "document.querySelector('article'), {subtree: true, attributeFilter: ['hidden']})}"
    )
    # Stay on the page, to see whether anything opened.
    page.evaluate("addEventListener('click', (e) => { window.followed = !e.defaultPrevented })")
    page.evaluate("addEventListener('click', (e) => e.preventDefault())")
    page.locator(link).tap()
    assert page.evaluate("[window.followed, window.opened]") == [True, 0]
    context.close()


def test_without_scripts_a_term_is_a_plain_link(chromium: Browser, address: str) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address + LINEAR)
    assert not any(tip.is_visible() for tip in page.locator("[role=tooltip]").all())
    page.locator("a[aria-describedby=tip-term-prior]").first.click()
    page.wait_for_url("**/glossary.html#term-prior")
    context.close()


# Links to headings


def test_every_heading_has_a_permanent_address_and_a_named_link(html: Path) -> None:
    for name in toc()[:-1]:  # the last is the index, whose headings are letters
        headings = soup(html / f"{name}.html").select("article :is(h1, h2, h3, h4, h5, h6)")
        assert headings, name
        for heading in headings:
            links = heading.select("a.headerlink")
            assert len(links) == 1, f"{name}: {heading.text}"
            assert links[0]["aria-label"] == "Link to this heading"
            anchor = str(links[0]["href"]).removeprefix("#")
            home = heading.find_parent(id=anchor)
            assert home is not None, f"{name}: {heading.text} leads elsewhere"
            assert not re.fullmatch(r"id\d+", anchor), (
                f"{name}: “{heading.text}” needs a label above it, its words make no address"
            )


def test_numbered_equations_and_entries_keep_their_addresses(html: Path) -> None:
    numbers = 0
    for name in toc():
        page = soup(html / f"{name}.html")
        for equation in page.select("article div.math:has(.eqno)"):
            numbers += 1
            assert str(equation.get("id")).startswith("equation-"), name
            assert equation.select_one("a.headerlink[aria-label]") is not None
    assert numbers
    entries = soup(html / "book" / "bibliography.html").select("div.citation")
    assert entries
    for entry in entries:
        assert str(entry["id"]).startswith("cite-"), entry.text


def test_the_link_of_a_heading_shows_on_hover_and_on_focus(laptop: Page, address: str) -> None:
    show(laptop, address + LINEAR)
    heading = laptop.locator("article h2").nth(1)
    link = heading.locator("a.headerlink")
    expect(link).to_have_css("opacity", "0")
    heading.hover()
    expect(link).to_have_css("opacity", "1")
    laptop.mouse.move(0, 0)
    expect(link).to_have_css("opacity", "0")
    laptop.keyboard.press("Tab")
    link.focus()
    expect(link).to_have_css("opacity", "1")
    expect(link).to_have_accessible_name("Link to this heading")


# A page that is not there


def see_missing_page(chromium: Browser, html: Path, base: str, width: int) -> None:
    """Ask for pages that do not exist, and go on from there."""
    with serve(html, base) as address:
        page = chromium.new_page(viewport={"width": width, "height": 800})
        problems = watch(page, address)
        for path in ("404.html", "gone.html", "book/no/such/deep/page.html", "book/"):
            page.goto(address + path)
            assert page.locator("article h1").inner_text() == "This page is not here"
            # A style sheet that has not come would leave the list of chapters over the page.
            expect(page.locator("article")).to_have_css("position", "relative")
            assert page.evaluate("document.fonts.status") in ("loaded", "loading")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            page.keyboard.press("Control+k")
            page.locator("main input[name=q]:focus").fill("posterior")
            page.keyboard.press("Enter")
            page.wait_for_url(f"{address}search.html?q=posterior")
            page.goto(address + path)
            page.locator("article a").first.click()
            page.wait_for_url(f"{address}book/intro.html")
        missing = [words for words in problems if not re.search("404", words)]
        assert missing == []
        wrong = [words for words in problems if re.match(r"404: .*(_static|search|intro)", words)]
        assert wrong == []
        page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_missing_page_helps_on(chromium: Browser, html: Path, width: int) -> None:
    base = soup(html / "404.html").select_one("base")
    assert base is not None
    see_missing_page(chromium, html, str(base["href"]), width)


def test_a_missing_page_helps_on_below_a_path(
    chromium: Browser, small_book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOK_ADDRESS", "https://owner.github.io/course/")
    small_book.build()
    see_missing_page(chromium, small_book.root / "_build" / "html", "/course/", 390)
