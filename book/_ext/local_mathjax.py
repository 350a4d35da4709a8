"""Serve MathJax from the book itself, so that mathematics needs no network.

The pip package has all of MathJax (22 MB). The book takes the parts that turn TeX into HTML, and
MathML for screen readers, and joins them into one script. ``tex-full`` has every TeX extension in
it: nothing is fetched when a formula happens to use one, so no chapter to come can ask for a file
that is not here.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.typing import ExtensionMetadata

FONTS = "output/chtml/fonts/woff-v2"
# The order counts: each part enrols with those before it. The work begins when the script has run.
PARTS = (
    "startup",
    "core",
    "input/tex-full",
    "output/chtml",
    "output/chtml/fonts/tex",
    "a11y/assistive-mml",
)


def configure(app: Sphinx, config: Config) -> None:
    """Name the script, and make a mistake in TeX an error that the tests see, not red text."""
    config.mathjax_path = "mathjax/mathjax.js"
    config.mathjax3_config = {"tex": {"packages": {"[-]": ["noerrors", "noundefined"]}}}


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy what a page needs into the built book's static files."""
    if exception is not None or app.builder.format != "html":
        return
    package = find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("sphinx-mathjax-offline: install the `book` extra")
    source = Path(package.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    (target / FONTS).mkdir(parents=True)
    script = "\n".join((source / f"{part}.js").read_text("utf-8") for part in PARTS)
    (target / "mathjax.js").write_text(script, "utf-8")
    for font in (source / FONTS).iterdir():
        if font.name in script:
            shutil.copy2(font, target / FONTS)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.connect("config-inited", configure)
    app.connect("build-finished", copy_mathjax, priority=950)  # when lean_static has cleared up
    return {"parallel_read_safe": True, "parallel_write_safe": True}
