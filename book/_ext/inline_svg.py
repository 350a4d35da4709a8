"""Put a cell's SVG figure into the page itself, where it takes the page's colors.

An image in an ``<img>`` cannot know whether the page is light or dark. Inline it can: our
matplotlib style draws with three sentinel colors, and here they become "nothing",
"the color of the text" and a variable of the style sheet. Compressed on its way, each of our
figures is also smaller than its picture in 256 colors at double resolution, by a factor of 2 to
20. That turns with the number of points, so a figure has a limit.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

LOGGER = logging.getLogger(__name__)
LIMIT = 250  # kB a figure
SENTINELS = {"#fefefe": "none", "#1a1a1b": "currentColor", "#cfcfd0": "var(--figure-grid)"}
SENTINEL = re.compile("|".join(SENTINELS), re.IGNORECASE)
TAG = re.compile(r"<[a-z][^<>]*#[^<>]*>", re.IGNORECASE)  # code that names a color stays as it is
SVG = re.compile(r"<svg\b.*?</svg>", re.DOTALL)
# What matplotlib writes for a stand-alone file. Its style rule has the selector `*`, which in a
# page would apply to every icon; course.css sets the same properties for figures only.
FILE_ONLY = re.compile(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", re.DOTALL)
REFERENCE = re.compile(r'(href="#|url\(#)([^")]+)')
COORDINATES = re.compile(r'\s(?:d|x|y)="[^"]*"')
INDENTATION = re.compile(r">\s+<")
LONG_NUMBER = re.compile(r"(\.\d\d)\d+")
ID = re.compile(r'\sid="([^"]*)"')
DRAWINGS: dict[str, list[str]] = {}  # by page, while the pages are made
PLACE = "<!-- drawing {} --></svg>"


def inline(svg: str, alt: str) -> str:
    """Turn an SVG file into an element of a page, with its description."""
    size = re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', svg)
    wide = size is not None and float(size[1]) > 2 * float(size[2])
    element = svg[svg.index("<svg") :].removeprefix("<svg")
    figure = f'<svg role="img" aria-label="{html.escape(alt)}"{element}'
    return f'<div class="cell-figure{" wide" if wide else ""}">{figure}</div>'


class InlineFigures(SphinxPostTransform):
    """Replace the images that cells made; an image without a description is an error."""

    default_priority = 900  # after myst-nb has chosen each output's format
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Visit the images of one page."""
        executed = Path(self.app.outdir).parent / "jupyter_execute"
        for image in list(self.document.findall(nodes.image)):
            path = Path(self.app.srcdir, image["uri"]).resolve()
            if not path.is_relative_to(executed.resolve()):
                continue
            if not image.get("alt"):
                LOGGER.warning(
                    "a figure has no alt text: give its cell `mystnb: image: alt:`", location=image
                )
            elif path.suffix == ".svg":
                figure = inline(path.read_text(encoding="utf-8"), image["alt"])
                image.replace_self(nodes.raw("", figure, format="html"))
                check_weight(figure, image)
        for output in self.document.findall(nodes.raw):
            if 'class="frames"' in output.astext():
                check_weight(output.astext(), output)


def check_weight(figure: str, location: nodes.Element) -> None:
    """Say what to do about a figure that is too heavy for a phone."""
    size = len(SVG.sub(lambda match: part_of_a_page(match[0], ""), figure)) // 1000
    if size > LIMIT:
        LOGGER.warning(
            f"a figure of {size} kB, and {LIMIT} kB is the limit: give the artist with the many "
            "points `rasterized=True` (text and axes stay sharp), or draw fewer points or settings",
            location=location,
        )


def part_of_a_page(svg: str, prefix: str) -> str:
    """Drop a file's own parts, unused ids and indentation; make the other ids the figure's."""
    svg = FILE_ONLY.sub("", svg)
    used = {name for _, name in REFERENCE.findall(svg)}
    svg = ID.sub(lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    svg = INDENTATION.sub("><", COORDINATES.sub(rounded, svg))
    return REFERENCE.sub(lambda m: f"{m[1]}{prefix}{m[2]}", svg)


def rounded(match: re.Match[str]) -> str:
    """Cut coordinates to a hundredth of a point: half the weight, and no eye can tell."""
    return LONG_NUMBER.sub(r"\1", match[0])


def page_colors(match: re.Match[str]) -> str:
    """Replace the sentinel colors in one tag."""
    return SENTINEL.sub(lambda color: SENTINELS[color[0].lower()], match[0])


def finish_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Color the figures of a page, also those that cells printed as HTML.

    What is drawn in them is most of a page. It is put aside until the page is written: others read
    the page in between, and parse each line of a drawing for nothing.
    """
    if "body" not in context:
        return
    drawings = DRAWINGS[page] = []

    def put_aside(match: re.Match[str]) -> str:
        figure = part_of_a_page(match[0], f"svg{len(drawings)}-")
        start = figure.index(">") + 1
        drawings.append(TAG.sub(page_colors, figure[start:]))
        return f"{figure[:start]}{PLACE.format(len(drawings) - 1)}"

    context["body"] = TAG.sub(page_colors, SVG.sub(put_aside, context["body"]))


def draw(app: Sphinx, exception: Exception | None) -> None:
    """Put the drawings into the written pages."""
    for page, drawings in DRAWINGS.items() if exception is None else ():
        path = Path(app.outdir, page).with_suffix(".html")
        text = path.read_text("utf-8")
        for number, drawing in enumerate(drawings):
            text = text.replace(PLACE.format(number), drawing, 1)
        path.write_text(text, "utf-8")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.add_post_transform(InlineFigures)
    app.connect("html-page-context", finish_page)
    app.connect("build-finished", draw, priority=600)  # after sphinx_codeautolink
    return {"parallel_read_safe": True, "parallel_write_safe": False}  # DRAWINGS is one process's
