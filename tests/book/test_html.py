"""What can be seen in the built pages without a browser."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import pages
from bs4 import BeautifulSoup, Tag
from package_hash import package_hash

ROOT = Path(__file__).resolve().parents[2]
DIRECTIVE = re.compile(
    r"^\s*(`{3,}|:{3,})\s*\{[\w:-]+\}|\{(ref|eq|glue\S*|term|cite\S*|doc)\}`", re.M
)


@cache
def soup(path: Path) -> BeautifulSoup:
    """A parsed page; parsed once, since several tests look at each."""
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def ids(path: Path) -> frozenset[str]:
    """Where links into a page may lead."""
    found = soup(path).find_all(attrs={"id": True}) + soup(path).find_all("a", attrs={"name": True})
    return frozenset(str(tag.get("id") or tag.get("name")) for tag in found)


@pytest.fixture(scope="module")
def book(html: Path) -> list[Path]:
    """All pages."""
    found = [html / name for name in pages(html)]
    assert len(found) > 5
    return found


def test_every_page_says_what_made_it(book: list[Path]) -> None:
    for page in book:
        stamp = soup(page).select_one(".page-stamp")
        assert stamp is not None, page
        assert package_hash(ROOT)[:12] in stamp.text, page
        assert "torch 2" in stamp.text, page


def test_every_figure_has_a_text_alternative(book: list[Path]) -> None:
    figures = 0
    for page in book:
        for tag in soup(page).select("article img, article svg[role=img], article .frame"):
            figures += 1
            text = tag.get("alt") or tag.get("aria-label")
            assert text, f"{page}: {str(tag)[:200]}"
            assert not re.search(r"\.(svg|png)$", str(text)), f"{page}: a file name is no alt text"
        for image in soup(page).select(".cell_output img[src$='.svg']"):
            pytest.fail(f"{page}: {image['src']} was not put into the page")
    assert figures


def test_ids_are_unique_on_each_page(book: list[Path]) -> None:
    for page in book:
        found = [tag["id"] for tag in soup(page).find_all(attrs={"id": True})]
        twice = {name for name in found if found.count(name) > 1}
        if page.name == "search.html":
            twice.discard("search-input")  # the theme's: the field of the page and of each page
        assert not twice, f"{page}: {twice}"


def test_figures_take_the_colors_of_the_page(book: list[Path]) -> None:
    for page in book:
        for svg in soup(page).select("article svg"):
            assert not re.search("#fefefe|#1a1a1b|#cfcfd0", str(svg), re.I), page
            assert svg.find("style") is None, f"{page}: a figure's style rule would rule the page"


def test_internal_links_and_anchors_resolve(book: list[Path]) -> None:
    broken, checked = [], 0
    for page in book:
        for link in soup(page).select("a[href], img[src]"):
            url = str(link.get("href") or link.get("src"))
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            checked += 1
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            fragment = unquote(parts.fragment)
            if not target.exists():
                broken.append(f"{page.name}: {url} (no such file)")
            elif fragment and target.suffix == ".html" and fragment not in ids(target):
                broken.append(f"{page.name}: {url} (no such anchor)")
    assert not broken, "\n".join(broken)
    assert checked > 100


def test_what_search_finds_is_there(html: Path) -> None:
    text = (html / "searchindex.js").read_text("utf-8")
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    targets = [*index["alltitles"].values(), *(e for e in index["indexentries"].values())]
    places = [(place[0], place[1]) for found in targets for place in found]
    assert len(places) > 100
    for document, anchor in places:
        page = html / f"{index['docnames'][document]}.html"
        assert page.exists(), page
        assert not anchor or anchor in ids(page), f"{page.name}#{anchor}"


def resources(page: Path) -> list[Tag]:
    """What a browser loads by itself."""
    return soup(page).select(
        "script[src], img[src], source[src], iframe[src], audio[src], video[src], link[href]"
    )


def test_nothing_is_loaded_from_elsewhere(book: list[Path]) -> None:
    for page in book:
        for tag in resources(page):
            address = str(tag.get("src") or tag.get("href"))
            if tag.get("rel") == ["canonical"]:
                continue
            assert not re.match(r"(https?:)?//", address), f"{page}: {address}"


def test_no_directive_or_role_is_left_raw(book: list[Path]) -> None:
    for page in book:
        article = soup(page).select_one("article")
        if article is None or "_modules" in page.parts:
            continue
        prose = BeautifulSoup(str(article), "html.parser")
        for code in prose.select("pre, code"):
            code.decompose()
        left = DIRECTIVE.search(prose.text)
        assert not left, f"{page}: {left}"
        assert "{{" not in prose.text, page


def test_names_in_code_cells_lead_to_the_reference(book: list[Path]) -> None:
    chapters = [page for page in book if soup(page).select(".cell_input")]
    assert chapters
    for page in chapters:
        links = soup(page).select(".cell_input a.sphinx-codeautolink-a")
        assert any(re.search(r"api\w*\.html#coursepkg\.", str(link["href"])) for link in links), (
            page
        )


def test_the_reference_links_to_source_lines(html: Path) -> None:
    pages = list((html / "book").glob("api*.html"))
    assert len(pages) == 5
    for page in pages:
        objects = soup(page).select("dl.function > dt, dl.class > dt")
        assert objects
        for signature in objects:
            source = signature.select_one("a.reference.internal[href*='_modules/']")
            assert source is not None, signature.text


def test_the_status_page_lists_each_chapter_and_its_time(html: Path) -> None:
    rows = [
        [cell.text.strip() for cell in row.select("td")]
        for table in soup(html / "book" / "status.html").select("table")
        for row in table.select("tbody tr")
    ]
    chapters = {row[0]: row[3:] for row in rows if len(row) == 5}
    assert "Bayesian linear regression" in chapters
    for seconds, verdict in chapters.values():
        assert float(seconds) > 0
        assert verdict == "ran"
