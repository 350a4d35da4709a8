"""Let sphinx-codeautolink pass the sections that have no title.

It keeps a stack of titles and pops one at the end of each section. The directives of
sphinx-exercise hold a section without a title, on which the stack runs empty and the build stops.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from sphinx_codeautolink.extension.block import CodeBlockAnalyser


def depart_section(analyser: CodeBlockAnalyser, node: nodes.section) -> None:
    """Pop the title only where the section pushed one."""
    if any(isinstance(child, nodes.title) for child in node.children):
        analyser.title_stack.pop()


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.setup_extension("sphinx_codeautolink")
    CodeBlockAnalyser.depart_section = depart_section
    return {"parallel_read_safe": True, "parallel_write_safe": True}
