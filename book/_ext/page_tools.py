"""The menus of a page: run its notebook elsewhere, download it, edit it, report a problem."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from package_hash import wheel_version
from publication import EDITIONS, OFFLINE, publication
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.typing import ExtensionMetadata


def add_menus(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Put the menus into the header; a menu without links is left out."""
    published = publication(Path(app.srcdir))
    name = PurePosixPath(page).name
    is_chapter = "kernelspec" in app.env.metadata.get(page, {})
    pathto = context["pathto"]

    launches = published.launches(name) if is_chapter else {}
    downloads = EDITIONS if is_chapter else {}
    versions = f"course {app.config.release}, coursepkg {wheel_version(Path(app.srcdir))}"
    source = str(app.env.doc2path(page, base=False)) if doctree is not None else ""
    title = app.env.titles[page].astext() if page in app.env.titles else page
    problem = published.report(title, f"{page}.html", versions)
    menus = {
        ("Run this chapter", "fas fa-rocket"): [
            {"text": f"Open in {place}", "url": url} for place, url in launches.items()
        ],
        ("Download", "fas fa-download"): [
            *(
                {
                    "text": text,
                    "url": pathto(f"notebooks/{kind}/{name}.ipynb", 1),
                    "saved_as": f"{name}.ipynb" if kind == "run" else f"{name}-{kind}.ipynb",
                }
                for kind, (text, _) in downloads.items()
            ),
            {"text": "The whole book, offline", "url": pathto(OFFLINE, 1), "saved_as": OFFLINE},
        ],
        ("Improve this page", "fas fa-pencil-alt"): [
            {"text": "Edit this page", "url": published.edit(source) if source else ""},
            {"text": "Report a problem", "url": problem},
        ],
    }
    context["page_tools"] = [
        {"label": label, "icon": icon, "links": shown, "prints": label == "Download"}
        for (label, icon), links in menus.items()
        if (shown := [link for link in links if link["url"]])
    ]


def show_menus(app: Sphinx, config: Config) -> None:
    """Tell the theme where the menus go."""
    config.templates_path.append(str(Path(__file__).parents[1] / "_templates"))
    shown = ["page-tools.html", "article-header-buttons.html"]
    config.html_theme_options["article_header_end"] = shown


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.connect("config-inited", show_menus)
    app.connect("html-page-context", add_menus)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
