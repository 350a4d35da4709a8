"""The menus of a page lead where the book is published, or are not there."""

from __future__ import annotations

import subprocess
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import build_book
import nbformat
import pytest
from browser import show
from bs4 import BeautifulSoup
from package_hash import wheel_version
from playwright.sync_api import Browser
from publication import EDITIONS, OFFLINE, Publication, publication

ROOT = Path(__file__).resolve().parents[2]
COLAB = "https://colab.research.google.com/github/"
FORK = {"Edit this page", "Report a problem", "Open in Colab", "Open in Binder"}


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of the repository."""
    for name in ("GITHUB_REPOSITORY", "BOOK_ADDRESS", "BOOK_JUPYTERHUB"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def menu(page: str) -> dict[str, str]:
    """The links of a page's menus by their text."""
    links = BeautifulSoup(page, "html.parser").select(".page-tools a")
    return {link.get_text().strip(): str(link["href"]) for link in links}


def test_nothing_says_where(tmp_path: Path, unknown: pytest.MonkeyPatch) -> None:
    assert publication(tmp_path) == Publication("", "", "")
    assert Publication().base_path == "/"
    assert Publication().launches("x") == {}


@pytest.mark.parametrize(
    ("repository", "address"),
    [
        ("Ada/course", "https://ada.github.io/course/"),
        ("ada/Course", "https://ada.github.io/Course/"),
        ("Ada/ada.github.io", "https://ada.github.io/"),
    ],
)
def test_the_environment_says_it(
    tmp_path: Path, unknown: pytest.MonkeyPatch, repository: str, address: str
) -> None:
    unknown.setenv("GITHUB_REPOSITORY", repository)
    assert publication(tmp_path) == Publication(repository, address)
    unknown.setenv("BOOK_ADDRESS", "https://course.example.org/book")
    assert publication(tmp_path).address == "https://course.example.org/book/"
    assert publication(tmp_path).base_path == "/book/"


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/eve/fork",
        "https://github.com/eve/fork.git",
        "git@github.com:eve/fork.git",
        "ssh://git@github.com/eve/fork.git",
        "https://someone:token@github.com/eve/fork/",
    ],
)
def test_else_a_remote_on_github_says_it(
    tmp_path: Path, unknown: pytest.MonkeyPatch, remote: str
) -> None:
    for command in (["init", "--quiet"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    assert publication(tmp_path) == Publication("eve/fork", "https://eve.github.io/fork/")


@pytest.mark.parametrize("remote", ["https://example.org/eve/fork", "/srv/git/github.com", "x"])
def test_a_remote_elsewhere_says_nothing(
    tmp_path: Path, unknown: pytest.MonkeyPatch, remote: str
) -> None:
    for command in (["init", "--quiet"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    assert publication(tmp_path) == Publication()


def test_a_hub_pulls_the_branch_and_opens_the_notebook() -> None:
    published = Publication("eve/fork", "https://eve.github.io/fork/", "https://hub.example.org/")
    link = urlsplit(published.launches("elbo")["JupyterHub"])
    assert (link.netloc, link.path) == ("hub.example.org", "/hub/user-redirect/git-pull")
    assert parse_qs(link.query) == {
        "repo": ["https://github.com/eve/fork"],
        "branch": ["gh-pages"],
        "urlpath": ["lab/tree/fork/notebooks/run/elbo.ipynb"],
    }


def test_a_fork_has_its_own_buttons_and_a_book_without_a_home_has_none(
    small_book, unknown: pytest.MonkeyPatch
) -> None:
    small_book.build()
    links = menu(small_book.page())
    assert not links.keys() & FORK
    assert len(links) == len(EDITIONS) + 2
    assert (small_book.root / "_build/html/book" / unquote(links["The package they need"])).exists()
    notebook = (small_book.root / "_build/html/notebooks/run/small.ipynb").read_text()
    assert 'ADDRESS = \\"\\"' in notebook

    unknown.setenv("GITHUB_REPOSITORY", "eve/fork")
    assert not build_book.is_current(small_book.root), "the buttons would stay as they were"
    small_book.build()
    links = menu(small_book.page())
    assert links.keys() >= FORK
    assert links["Open in Colab"] == f"{COLAB}eve/fork/blob/gh-pages/notebooks/run/small.ipynb"
    binder = urlsplit(links["Open in Binder"])
    assert binder.path == "/v2/gh/eve/fork/gh-pages"
    assert parse_qs(binder.query) == {"urlpath": ["lab/tree/notebooks/run/small.ipynb"]}
    assert links["Edit this page"] == "https://github.com/eve/fork/edit/main/book/small.md"
    report = urlsplit(links["Report a problem"])
    assert report.path == "/eve/fork/issues/new"
    query = parse_qs(report.query)
    assert query["title"] == ["A small chapter: "]
    assert "https://eve.github.io/fork/book/small.html" in query["body"][0]
    assert wheel_version(small_book.root) in query["body"][0]
    notebook = (small_book.root / "_build/html/notebooks/run/small.ipynb").read_text()
    assert 'ADDRESS = \\"https://eve.github.io/fork/wheels/coursepkg-' in notebook

    # A page without a notebook can be taken along and mended, not run.
    intro = menu((small_book.root / "_build" / "html" / "book" / "intro.html").read_text())
    assert intro.keys() == {"The whole book, offline", "Edit this page", "Report a problem"}


def test_a_download_is_a_file(chromium: Browser, address: str, html: Path, tmp_path: Path) -> None:
    page = chromium.new_page()
    for path in build_book.chapters(ROOT):
        show(page, f"{address}book/{path.stem}.html")
        for kind, (text, _) in EDITIONS.items():
            page.get_by_role("button", name="Download").click()
            with page.expect_download() as waiting:
                page.get_by_role("link", name=text, exact=True).click()
            suffix = "" if kind == "run" else f"-{kind}"
            assert waiting.value.suggested_filename == f"{path.stem}{suffix}.ipynb"
            waiting.value.save_as(tmp_path / "saved.ipynb")
            published = html / "notebooks" / kind / f"{path.stem}.ipynb"
            assert (tmp_path / "saved.ipynb").read_bytes() == published.read_bytes()
            nbformat.read(tmp_path / "saved.ipynb", as_version=4)
    page.get_by_role("button", name="Download").click()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="The whole book, offline").click()
    assert waiting.value.suggested_filename == OFFLINE
    page.close()
