"""The menus of a page: run its notebook elsewhere, download it, edit it, report a problem."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

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
    root = Path(app.srcdir)
    published = publication(root)
    version = wheel_version(root)
    name = PurePosixPath(page).name
    launches = {}
    downloads = [("The whole book, offline", OFFLINE, OFFLINE)]
    if "kernelspec" in app.env.metadata.get(page, {}):
        launches = published.launches(name)
        wheel = f"coursepkg-{version}-py3-none-any.whl"
        notebooks = [
            (text, f"notebooks/{kind}/{name}.ipynb", f"{name}{suffix}.ipynb")
            for kind, (text, _) in EDITIONS.items()
            for suffix in ["" if kind == "run" else f"-{kind}"]
        ]
        downloads = [*notebooks, ("The package they need", f"wheels/{wheel}", wheel), *downloads]
    source = str(app.env.doc2path(page, base=False)) if doctree is not None else ""
    title = app.env.titles[page].astext() if page in app.env.titles else page
    versions = f"course {app.config.release}, coursepkg {version}"
    menus = {
        ("Run this chapter", "fas fa-rocket"): [
            {"text": f"Open in {place}", "url": url} for place, url in launches.items()
        ],
        ("Download", "fas fa-download"): [
            {"text": text, "url": context["pathto"](quote(path), 1), "saved_as": file}
            for text, path, file in downloads
        ],
        ("Improve this page", "fas fa-pencil-alt"): [
            {"text": "Edit this page", "url": published.edit(source) if source else ""},
            {
                "text": "Report a problem",
                "url": published.report(title, f"{page}.html", versions),
            },
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
