"""Faults of the extensions that this book uses, each mended here and nowhere else."""

from __future__ import annotations

import gc
import re
from textwrap import dedent
from typing import Any

from docutils import nodes
from myst_nb.ext import execution_tables
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.util.typing import ExtensionMetadata
from sphinx_codeautolink.extension import resolve
from sphinx_codeautolink.extension.block import BUILTIN_BLOCKS, CodeBlockAnalyser

PERMALINK = re.compile(r'<a class="headerlink" href="[^"]*" title="([^"]*)"')


def depart_section(analyser: CodeBlockAnalyser, node: nodes.section) -> None:
    """Pop the title only where the section pushed one.

    sphinx-codeautolink keeps a stack of titles and pops one at the end of each section. The
    directives of sphinx-exercise hold a section without a title: the stack runs empty.
    """
    if any(isinstance(child, nodes.title) for child in node.children):
        analyser.title_stack.pop()


def excerpt(source: str) -> tuple[str, str]:
    """Give a block of code as it is shown, and as it can be parsed.

    sphinx-codeautolink parses each block and fails on an excerpt from the middle of a function.
    """
    return source, dedent(source)


def drop_repeated_ids(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Take away the ids that sphinx-exercise gives to the content of every exercise alike."""
    for section in doctree.findall(nodes.section):
        if section["ids"] in (["exercise-content"], ["solution-content"]):
            section["ids"] = []


def name_chapters(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Show chapters by their titles where myst-nb's table of execution times shows file names."""
    for table in doctree.findall(nodes.table):
        for text in list(table.findall(nodes.Text)):
            if text in app.env.titles:
                title = app.env.titles[text].astext()
                text.parent.replace(text, nodes.Text(title))


def name_permalinks(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Give the links to headings, equations and terms a name: to a screen reader they are "#"."""
    if "body" in context:
        context["body"] = PERMALINK.sub(r'\g<0> aria-label="\1"', context["body"])


def place_index(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Lead on from the index: Sphinx writes it over a page of the book, but not its neighbours."""
    builder = app.builder
    if page == "genindex" and isinstance(builder, StandaloneHTMLBuilder):
        _, *neighbours = builder.relations.get(page, [None, None, None])
        for side, other in zip(("prev", "next"), neighbours, strict=True):
            if other:
                title = builder.render_partial(app.env.titles[other])["title"]
                context[side] = {"link": builder.get_relative_uri(page, other), "title": title}


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    # What Sphinx makes lives to the end of the build: to look for garbage among it again and again
    # takes a tenth of the time.
    gc.set_threshold(200_000, 50, 50)
    app.setup_extension("sphinx_codeautolink")
    CodeBlockAnalyser.depart_section = depart_section
    BUILTIN_BLOCKS["python"] = excerpt
    # It runs the `if TYPE_CHECKING:` parts of all modules that code names: in torch's case, imports
    # of a second and more that no name of ours needs.
    resolve.populate_type_checking = lambda module: None
    # A word for every screen reader and font, instead of a picture.
    execution_tables._key2transform["succeeded"] = lambda ok: "ran" if ok else "failed"
    app.connect("doctree-resolved", drop_repeated_ids)
    app.connect("doctree-resolved", name_chapters)
    app.connect("html-page-context", name_permalinks)
    app.connect("html-page-context", place_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
