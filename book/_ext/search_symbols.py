"""Let the search find symbols, however they are typed: σ, sigma or \\sigma.

Sphinx indexes words. Mathematics is in the page as TeX, so "sigma" is found by itself; here each
page also gets the letter σ as a keyword, and each row of the Notation table becomes an entry of
its own, with an address. `search.js` shows these first.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any, cast

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.std import StandardDomain
from sphinx.util.typing import ExtensionMetadata

COMMAND = re.compile(r"\\([A-Za-z]+)")
FONTS = re.compile(r"\\(math[a-z]+|text|[lr]Vert|left|right|[,;! ])\s*")
POWER = re.compile(r"\^\{?(\d)\}?")
DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


def letter(command: re.Match[str]) -> str:
    """Replace a command by what it prints: HTML has names for it, and they are those of TeX."""
    character = unescape(f"&{command[1]};")
    return character if len(character) == 1 else command[0].removeprefix("\\")


def readable(tex: str) -> str:
    """Write TeX in letters: σ² for \\sigma^2."""
    letters = COMMAND.sub(letter, FONTS.sub("", tex))
    return POWER.sub(lambda power: DIGITS[int(power[1])], letters).translate(
        str.maketrans("", "", "{}")
    )


def spelled(tex: str) -> list[str]:
    """Name the letters of TeX that no keyboard has."""
    return [c[1] for c in COMMAND.finditer(tex) if letter(c).isalpha() and len(letter(c)) == 1]


def add_keywords(app: Sphinx, doctree: nodes.document) -> None:
    """Let each page be found by the letters of its mathematics."""
    words: set[str] = set()
    for node in (*doctree.findall(nodes.math), *doctree.findall(nodes.math_block)):
        for word in re.findall(r"\w+", readable(node.astext())):
            if not word.isascii():
                words |= {word, *re.findall(r"[^\W\d_]", word)}
    if words:
        doctree += nodes.meta(name="keywords", content=", ".join(sorted(words)))


def add_symbols(app: Sphinx, doctree: nodes.document) -> None:
    """Give the rows of a table of symbols an address and an entry in the search."""
    domain = cast(StandardDomain, app.env.get_domain("std"))
    for table in doctree.findall(nodes.table):
        rows = list(table.findall(nodes.row))
        if rows[0][0].astext() != "symbol":
            continue
        for row in rows[1:]:
            formulas = [node.astext() for node in row[0].findall(nodes.math)]
            tex = " ".join(formulas)
            names = list(dict.fromkeys(spelled(tex)))
            symbols = ", ".join(map(readable, formulas)) + (
                f" ({', '.join(names)})" if names else ""
            )
            meaning = "".join(map(in_words, row[1].findall(nodes.Text)))
            row["ids"] = ["symbol-" + re.sub(r"\W+", "-", tex).strip("-")]
            domain.note_object("symbol", f"{symbols}: {meaning}", row["ids"][0], location=row)


def in_words(text: nodes.Text) -> str:
    """Write a piece of a cell in letters, also where it is a formula."""
    return readable(text) if isinstance(text.parent, nodes.math) else text.astext()


def add_script(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: None
) -> None:
    """Give the search page its script."""
    if page == "search":
        app.add_js_file("search.js")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.add_object_type("symbol", "symbol", objname="symbol")
    app.connect("doctree-read", add_keywords)
    app.connect("doctree-read", add_symbols)
    app.connect("html-page-context", add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
