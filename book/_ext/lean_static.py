"""Publish what a page asks for, in an order that shows its text before any script has come.

The theme brings 5 MB, loads a script of 1.5 MB ahead of the text and draws a dozen icons with fonts
of 300 kB. After the build each page's head is put in order, the icon fonts are cut to the icons
that are used, and every static file that nothing names any more is removed.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from fontTools import subset
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

# The theme knows the mode only when its script at the page's end has run: until then a reader who
# prefers dark sees white. Without scripts a page is light.
MODE = """{
    const mode = localStorage.getItem("mode") || "auto";
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    document.documentElement.dataset.mode = mode;
    document.documentElement.dataset.theme = mode === "auto" ? system : mode;
  }"""
HEAD = [
    (re.compile(r'(<html[^>]*data-theme=")auto'), r"\1light"),
    (re.compile(r'(<script data-cfasync="false">).*?(?=</script>)', re.S), rf"\1{MODE}"),
    # Icons come as a font; the script would draw them a second time.
    (re.compile(r"<script[^>]*fontawesome[^>]*></script>\n?"), ""),
    (re.compile(r'<link[^>]*as="font"[^>]*>\n?'), ""),
]
DEFER = [
    (re.compile(r"<script(?![^>]*\sdefer)(?=[^>]*\ssrc=)"), '<script defer="defer"'),
    # It needs a script that is now deferred. A module is, too, and keeps the order.
    (re.compile(r"<script(?=>DOCUMENTATION_OPTIONS\.)"), '<script type="module"'),
]
SOURCE_MAP = re.compile(r"/[/*]# sourceMappingURL=\S+( \*/)?\s*")
ICON = re.compile(r'([^{}]*):before\{content:"\\([0-9a-f]+)"\}')
PRIVATE_USE = re.compile(r"\\(f[0-9a-f]{3})|([\ue000-\uf8ff])")
FONT_SOURCE = re.compile(
    r'url\(([^)]*)\.woff2\) format\("woff2"\),url\([^)]*\) format\("truetype"\)'
)


def ordered_head(page: str, defer: bool) -> str:
    """Change the tags of one page that load something."""
    for pattern, text in HEAD + (DEFER if defer else []):
        page = pattern.sub(text, page)
    return page


def cut_icons(sheet: Path, names: set[str], characters: set[int]) -> None:
    """Leave only the icons with these names and characters in a style sheet and its fonts."""

    def used(match: re.Match[str]) -> str:
        if names.isdisjoint(re.findall(r"\.(fa-[\w-]+):", match[1] + ":")):
            return ""
        characters.add(int(match[2], 16))
        return match[0]

    text = ICON.sub(used, sheet.read_text("utf-8"))
    sheet.write_text(FONT_SOURCE.sub(r'url(\1.woff) format("woff")', text), "utf-8")
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    options = subset.Options(flavor="woff")
    for path in (sheet.parents[1] / "webfonts").glob("*.ttf"):
        font = subset.load_font(path, options)
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=characters)
        subsetter.subset(font)
        subset.save_font(font, path.with_suffix(".woff"), options)


def make_lean(app: Sphinx, exception: Exception | None) -> None:
    """Go over the finished pages and static files."""
    if exception is not None or app.builder.format != "html":
        return
    html = Path(app.outdir)
    static = html / "_static"
    text = ""  # all that can name a file
    for page in html.rglob("*.html"):
        if static not in page.parents:
            # The search page calls functions of its scripts in between.
            lean = ordered_head(page.read_text("utf-8"), defer=page.name != "search.html")
            page.write_text(lean, "utf-8")
            text += lean

    scripts_and_styles = {}
    for path in [*static.rglob("*.js"), *static.rglob("*.css")]:
        code = SOURCE_MAP.sub("", path.read_text("utf-8"))
        path.write_text(code, "utf-8")
        scripts_and_styles[path] = code

    (icons,) = static.glob("vendor/fontawesome/*/css/all.min.css")
    own = [code for path, code in scripts_and_styles.items() if "fontawesome" not in path.parts]
    names = set(re.findall(r"fa-[\w-]+", " ".join([text, *own])))
    found = PRIVATE_USE.findall(" ".join(own))
    cut_icons(icons, names, {int(code, 16) if code else ord(char) for code, char in found})
    scripts_and_styles[icons] = icons.read_text("utf-8")

    left = {path for path in static.rglob("*") if path.is_file()}
    while named := {path for path in left if path.name in text or "LICENSE" in path.name}:
        text = " ".join(scripts_and_styles.get(path, "") for path in named)
        left -= named
    for path in left:
        path.unlink()
    for folder in sorted((p for p in static.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.connect("build-finished", make_lean, priority=900)  # when the others have done their work
    return {"parallel_read_safe": True, "parallel_write_safe": True}
