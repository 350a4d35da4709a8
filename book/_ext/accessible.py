"""Mend what the theme and the extensions leave in the way of some readers.

Screen readers need true names and roles; the theme's templates and docutils write a few that are
wrong. They are put right in the finished text of each page: no template is copied, so none grows
old. What depends on the width of the screen is done by ``accessible.js``, what can be seen by
``course.css``. ``tests/book/test_accessibility.py`` finds out when one of them is missing.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

MENDED = {
    # The name of a button has to begin with what can be read on it.
    r'(<button class="btn search-button-field[^>]*) aria-label="Search"': r"\1",
    r'<summary aria-label="Toggle hidden content">': "<summary>",
    # What a button leads to, instead of where the theme puts it.
    r'title="Toggle primary sidebar"': 'title="All pages"',
    r'title="Toggle secondary sidebar"': 'title="On this page"',
    r'(title|aria-label)="light/dark"': r'\1="Light or dark"',
    # Everything on a page belongs to a landmark; the book's title is its banner, not a bar that
    # this book leaves empty, and the search field is a search.
    r'(<header class="bd-header[^>]*)(>\s*</header>)': r'\1 role="presentation"\2',
    r'(?s)<a class="navbar-brand logo".*?</a>': r'<div role="banner">\g<0></div>',
    r'<form class="bd-search': r'<form role="search" class="bd-search',
    # A role that is deprecated, inside a list that then has no items.
    r'role="doc-biblioentry"': 'role="listitem"',
    # Tables that only arrange: no cell of theirs has a header.
    r'<table ([^>]*)class="indextable': r'<table \1role="presentation" class="indextable',
}


def mend(page: str) -> str:
    """Put the names and roles of one finished page right."""
    for fault, right in MENDED.items():
        page = re.sub(fault, right, page)
    return page


def mend_pages(app: Sphinx) -> None:
    """Mend each page after the theme's templates have made it."""
    if app.builder.format != "html":
        return
    render = app.builder.templates.render

    def render_and_mend(template: str, context: dict[str, Any]) -> str:
        return mend(render(template, context))

    app.builder.templates.render = render_and_mend


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.add_js_file("accessible.js", loading_method="defer")
    app.connect("builder-inited", mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
