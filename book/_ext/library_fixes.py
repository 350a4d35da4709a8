"""Faults of the extensions that this book uses, each mended here and nowhere else."""

from __future__ import annotations

from textwrap import dedent

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from sphinx_codeautolink.extension.block import BUILTIN_BLOCKS, CodeBlockAnalyser


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


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.setup_extension("sphinx_codeautolink")
    CodeBlockAnalyser.depart_section = depart_section
    BUILTIN_BLOCKS["python"] = excerpt
    app.connect("doctree-resolved", drop_repeated_ids)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
