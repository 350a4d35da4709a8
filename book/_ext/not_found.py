"""The page that a web server shows for an address that does not exist.

It is served for a missing path of any depth, so its relative links would lead nowhere. A `<base>`
tells the browser to start them all at the root of the book.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from publication import publication
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

NAME = "404"
TITLE = "This page is not here"
BODY = """\
<h1>{title}</h1>
<p>The book has no page at this address. Perhaps it has moved, or a letter of the address is wrong.
Search for what you were after:</p>
<div><form class="bd-search d-flex align-items-center" action="search.html">
<i class="fa-solid fa-magnifying-glass"></i>
<input type="search" class="form-control" name="q" placeholder="{label}" aria-label="{label}">
</form></div>
<p>Or begin at <a href="{first}">the first page of the book</a>: it shows the way to every
chapter.</p>
"""


def page(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Add the page to those that Sphinx writes."""
    body = BODY.format(
        title=TITLE,
        label=escape(app.config.html_theme_options["search_bar_text"]),
        first=app.builder.get_target_uri(app.config.root_doc),
    )
    yield NAME, {"title": TITLE, "body": body}, "page.html"


def start_links_at_the_root(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Put the base before everything in the page that has an address."""
    if page == NAME:
        root = publication(Path(app.srcdir)).base_path
        context["metatags"] = f'<base href="{escape(root)}">' + context.get("metatags", "")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.connect("html-collect-pages", page)
    app.connect("html-page-context", start_links_at_the_root)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
