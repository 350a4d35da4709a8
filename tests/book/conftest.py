"""The built book, and a small book to break."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import build_book
import pytest
from browser import executable, launch, serve
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[2]

NOTEBOOK = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  name: python3
---
# A small chapter

```{code-cell} ipython3
from coursepkg import answer
```

```{code-cell} ipython3
print("the answer is", answer.value())
```

```{code-cell} ipython3
:mystnb: {image: {alt: A bar as long as the answer.}}
answer.Bar()
```
"""
PAGE_ROOT = "# A small book\n\nWith one chapter.\n"
TOC = "format: jb-book\nroot: book/intro\nchapters:\n  - file: book/small\n"
MODULE = '''"""An answer."""


def value():
    """The answer."""
    return {value!r}


class Bar:
    """The answer as a figure."""

    def __repr__(self):
        return "Bar()"

    def _repr_svg_(self):
        return f"<svg viewBox='0 0 100 1'><path d='M0 0h{{value()}}'/></svg>"
'''


class SmallBook:
    """A book of one notebook and a package of one module, built by the real tools."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("book/_ext", "book/_static", "book/_inventories"):
            shutil.copytree(ROOT / folder, root / folder)
        shutil.copytree(ROOT / "book" / "_templates", root / "book" / "_templates")
        for name in ("_config.yml", "constraints.txt", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, root / name)
        (root / "_toc.yml").write_text(TOC)
        (root / "book" / "references.bib").write_text("")
        (root / "book" / "intro.md").write_text(PAGE_ROOT)
        (root / "coursepkg").mkdir()
        (root / "coursepkg" / "__init__.py").write_text('__version__ = "0.0.1"\n')
        self.chapter = root / "book" / "small.md"
        self.chapter.write_text(NOTEBOOK)
        self.answer(41)

    def answer(self, value: object) -> None:
        """Change the package."""
        (self.root / "coursepkg" / "answer.py").write_text(MODULE.format(value=value))

    def build(self) -> None:
        """Build it as `make book` does."""
        build_book.build(self.root, workers=1)

    def page(self) -> str:
        """The chapter as published."""
        return (self.root / "_build" / "html" / "book" / "small.html").read_text()


@pytest.fixture
def small_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallBook:
    """A fresh small book, not yet built, whose repository nobody knows."""
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    return SmallBook(tmp_path)


@pytest.fixture(scope="session")
def html() -> Path:
    """The folder of the built book, which must be made from the sources as they are now."""
    if not build_book.is_current(ROOT):
        pytest.fail("the built book is not up to date: run `make book` first")
    return ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests."""
    if executable() is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs a browser: apt-get install chromium")
        pytest.skip("no Chromium here, the pages are not tested in a browser")
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def address(html: Path) -> Iterator[str]:
    """The book on a local port."""
    with serve(html) as url:
        yield url
