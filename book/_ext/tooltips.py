"""Show what a term or a citation means beside its link, on hover and on keyboard focus.

Each page carries the definitions that it links to, once, hidden; `tooltips.js` shows them. Nothing
is fetched, and a screen reader finds the definition as the link's description.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, cast

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.domains.std import StandardDomain
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import ExtensionMetadata
from sphinxcontrib.bibtex.domain import BibtexDomain
from sphinxcontrib.bibtex.transforms import BibliographyTransform

LINK = re.compile(r'<a class="reference internal" href="[^"#]*#((?:term|cite)-[^"]+)"')


@cache
def definitions(env: BuildEnvironment) -> dict[str, list[nodes.Element]]:
    """Collect the explanations of all terms and citations, by the anchor of each."""
    found: dict[str, list[nodes.Element]] = {}
    terms = cast(StandardDomain, env.get_domain("std")).objects
    pages = {page for (kind, _), (page, _) in terms.items() if kind == "term"}
    for page in pages:
        for item in env.get_doctree(page).findall(nodes.definition_list_item):
            *terms, definition = item
            for link in list(definition.findall(pending_xref)):
                link.replace_self(link.children)  # a tooltip holds no links
            found |= {id_: list(definition) for term in terms for id_ in term["ids"]}
    for citation in cast(BibtexDomain, env.get_domain("cite")).citations:
        entry = BibliographyTransform.backend.paragraph(citation.formatted_entry)
        found[citation.citation_id] = [entry]
    return found


def add(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Describe the links of a page, and put the descriptions at its end."""
    builder = app.builder
    if doctree is None or not isinstance(builder, StandaloneHTMLBuilder):
        return
    known = definitions(app.env)
    wanted = dict.fromkeys(id_ for id_ in LINK.findall(context["body"]) if id_ in known)
    if not wanted:
        return
    tips = []
    for id_ in wanted:
        if any(any(node.findall(nodes.math)) for node in known[id_]):
            app.env.get_domain("math").data["has_equations"][page] = True  # so MathJax is loaded
        html = "".join(builder.render_partial(node)["fragment"] for node in known[id_])
        tips.append(f'<div class="explanation" role="tooltip" id="tip-{id_}" hidden>{html}</div>')
    body = LINK.sub(
        lambda m: f'{m[0]} aria-describedby="tip-{m[1]}"' if m[1] in wanted else m[0],
        context["body"],
    )
    context["body"] = body + "".join(tips)
    app.add_js_file("tooltips.js", loading_method="defer")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.connect("html-page-context", add, priority=400)  # before MathJax is added to the page
    return {"parallel_read_safe": True, "parallel_write_safe": True}
