"""The map of the course: which chapter needs which, drawn from what the chapters say.

A chapter's paragraph that begins with **You need first:** links to the chapters it builds on. The
directive ``{course-map}`` shows them one below the other, in the order of the book, with the lines
at their side, as in a picture of a repository's history: so the map fits a phone, and no line ever
crosses a chapter. The words below each title say the same without the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import docname_join, logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

LOGGER = logging.getLogger(__name__)
WORDS = "You need first:"
LANE = 14  # pixels from a line to the next,
DOT = 26  # from the top of a chapter to its dot,
BEND = 18  # and that a line takes to turn


@dataclass
class Chapter:
    """A chapter as the map shows it; chapters are known by their place in the book, from 0."""

    title: str
    address: str
    needs: set[int]


def drawn(needs: list[set[int]]) -> set[tuple[int, int]]:
    """Choose the lines: one from each needed chapter, unless a longer way leads from it too."""
    before: list[set[int]] = []  # all that a chapter builds on, near and far
    lines = set()
    for chapter, near in enumerate(needs):
        far: set[int] = set().union(*(before[needed] for needed in near))
        before.append(near | far)
        lines |= {(needed, chapter) for needed in near - far}
    return lines


def lanes(lines: set[tuple[int, int]]) -> dict[int, tuple[int, list[int]]]:
    """Give a lane to each chapter with lines that pass others: its number, and where they end.

    Lane 0 is left to the lines from one chapter to the next. Short ways come first, so that they
    lie inside of long ones.
    """
    ends: dict[int, list[int]] = {}
    for start, end in sorted(lines):
        if end > start + 1:
            ends.setdefault(start, []).append(end)
    taken: dict[int, tuple[int, list[int]]] = {}
    for start in sorted(ends, key=lambda s: (ends[s][-1] - s, s)):
        met = {n for s, (n, e) in taken.items() if s < ends[start][-1] and start < e[-1]}
        taken[start] = min(set(range(1, len(taken) + 2)) - met), ends[start]
    return taken


def strokes(row: int, lines: set[tuple[int, int]]) -> str:
    """Draw what is beside one chapter; its height is only known to the browser."""
    taken = lanes(lines)
    outermost = max((lane for lane, _ in taken.values()), default=0)
    trunk = outermost * LANE + LANE // 2
    svg = []

    def upright(x: int, top: str | int, bottom: str | int) -> None:
        svg.append(f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')

    if (row - 1, row) in lines:
        upright(trunk, 0, DOT)
    if (row, row + 1) in lines:
        upright(trunk, DOT, "100%")
    for start, (lane, ends) in taken.items():
        x = trunk - lane * LANE
        if row == start:
            svg.append(f'<path d="M{trunk} {DOT}Q{x} {DOT} {x} {DOT + BEND}"/>')
            upright(x, DOT + BEND, "100%")
        if row in ends:
            svg.append(f'<path d="M{x} {DOT - BEND}Q{x} {DOT} {trunk} {DOT}"/>')
        if start < row <= ends[-1]:
            upright(x, 0, DOT - BEND if row == ends[-1] else "100%")
    svg.append(f'<circle cx="{trunk}" cy="{DOT}" r="5"/>')
    return f'<svg aria-hidden="true" width="{trunk + LANE}">{"".join(svg)}</svg>'


def draw(chapters: list[Chapter]) -> str:
    """Write the map as HTML."""
    lines = drawn([chapter.needs for chapter in chapters])
    items = []
    for place, chapter in enumerate(chapters):
        needs = [chapters[n].title for n in sorted(chapter.needs)]
        leads = [other.title for other in chapters if place in other.needs]
        words = f"<p>Needs {escape('; '.join(needs) or 'no other chapter')}.</p>"
        words += f"<p>Leads to {escape('; '.join(leads))}.</p>" if leads else ""
        items.append(
            f"<li>{strokes(place, lines)}<div>"
            f'<a href="{escape(chapter.address)}">{escape(chapter.title)}</a>'
            f"{words}</div></li>"
        )
    return f'<nav class="course-map" aria-label="Map of the course"><ol>{"".join(items)}</ol></nav>'


def in_order(env: BuildEnvironment, page: str) -> Iterator[str]:
    """List the pages of the table of contents, from one on."""
    yield page
    for child in env.toctree_includes.get(page, []):
        yield from in_order(env, child)


def destination(env: BuildEnvironment, page: str, link: pending_xref) -> str:
    """Find the page that a link leads to."""
    target: str = link["reftarget"]
    if link["refdomain"] == "doc":  # [words](page.md)
        return target
    if link["reftype"] == "doc":  # {doc}`page`
        return docname_join(page, target)
    labels = env.get_domain("std").data["anonlabels"]  # {ref}`label`, [words](#label)
    return str(labels.get(target, [""])[0])


def chapters(env: BuildEnvironment) -> dict[str, dict[str, pending_xref]]:
    """Read which chapters each chapter needs, and by which link it says so."""
    names = [
        page for page in in_order(env, env.config.root_doc) if "kernelspec" in env.metadata[page]
    ]
    needs: dict[str, dict[str, pending_xref]] = {name: {} for name in names}
    for name in names:
        for paragraph in env.get_doctree(name).findall(nodes.paragraph):
            if paragraph.astext().startswith(WORDS):
                found = {destination(env, name, x): x for x in paragraph.findall(pending_xref)}
                needs[name] |= {page: link for page, link in found.items() if page in needs}
    return needs


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Report a chapter that needs a later one."""
    needs = chapters(env)
    places = {name: place for place, name in enumerate(needs)}
    for name, links in needs.items():
        for needed, link in links.items():
            if places[needed] >= places[name]:
                LOGGER.warning(
                    "the chapter needs %s first, which comes no earlier in the book",
                    needed,
                    location=link,
                )


class CourseMap(SphinxDirective):
    """The map of the course."""

    def run(self) -> list[nodes.Node]:
        """Mark the place: the map is drawn when all chapters are read."""
        return [nodes.raw("", "", format="html", course_map=True)]


def put_in(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Draw the map where a page asks for it."""
    for place in list(doctree.findall(nodes.raw)):
        if not place.get("course_map"):
            continue
        needs = chapters(app.env)
        names = list(needs)
        html = draw(
            [
                Chapter(
                    app.env.titles[name].astext(),
                    app.builder.get_relative_uri(docname, name),
                    {names.index(n) for n in needs[name] if names.index(n) < names.index(name)},
                )
                for name in names
            ]
        )
        place.replace_self(nodes.raw("", html, format="html"))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.add_directive("course-map", CourseMap)
    app.connect("env-check-consistency", check)
    app.connect("doctree-resolved", put_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
