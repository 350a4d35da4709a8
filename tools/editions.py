"""Four editions of each chapter's notebook, the wheel that they install, and the offline book.

*run* is for Colab and Jupyter, with the solutions folded; *student* has no solutions; *solutions*
shows them; *executed* has the outputs of the page. A notebook's prose is taken from the built page,
where Sphinx has resolved every directive, reference, citation and computed number; its code cells,
hidden ones included, come from the source.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from urllib.parse import quote, urljoin, urlsplit

import nbformat
import yaml
from bs4 import BeautifulSoup, Tag
from markdownify import MarkdownConverter
from nbformat import NotebookNode
from publication import EDITIONS, OFFLINE, Publication

# The titles of boxes, tabs, cards and folds: all become words in bold.
TITLES = "p.admonition-title, .sd-tab-label, .sd-card-title, summary, .topic-title, .sidebar-title"
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # for Colab, for Jupyter
FOLDED_TAGS = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
FOLDED_TITLES = {"page.check(": "Check your answer", "page.glue(": "The numbers in the text"}
# From a disk a browser saves no file, it shows what is in it.
DOWNLOAD = re.compile(rb'<li><a class="dropdown-item"[^>]* download=.*?</li>', re.DOTALL)
ON_DISK = b'<li><span class="dropdown-item-text">Notebooks: in the folder notebooks</span></li>'
MARK = re.compile("\ue000(\\w+)\ue000")  # a character that no text has


@dataclass
class Block:
    """A piece of a chapter: prose, or a code cell."""

    in_solution: bool
    prose: str = ""
    code: NotebookNode | None = None
    is_solution_title: bool = False
    figures: list[str] = field(default_factory=list)


class Prose(MarkdownConverter):
    """HTML to Markdown, with Sphinx's mathematics and boxes."""

    def convert_span(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        """Keep inline mathematics as its source."""
        if "math" not in (el.get("class") or []):
            return text
        source = el.get_text().removeprefix("\\(").removesuffix("\\)").strip()
        if parent_tags & {"td", "th"}:
            # A bar would end the cell of a table.
            source = source.replace(r"\|", r"\Vert ").replace("|", r"\vert ")
        return f"${source}$"

    def escape(self, text: str, parent_tags: set[str]) -> str:
        """Let no dollar begin a formula, and no angle a tag."""
        escaped: str = super().escape(text, parent_tags)  # type: ignore[misc]
        return escaped.replace("<", "&lt;").replace("$", r"\$")

    def convert_td(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        """Let no bar end a cell of a table."""
        text = re.sub(r"(?<!\\)\|", r"\|", text)
        return super().convert_td(el, text, parent_tags)  # type: ignore[misc]

    convert_th = convert_td

    def convert_dt(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        """Write a term in bold: Jupyter's Markdown has no list of definitions."""
        return f"\n\n**{text.strip()}**\n\n"

    def convert_dd(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        """Write a definition below its term."""
        return f"\n\n{text.strip()}\n\n"

    def convert_div(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        """Keep displayed mathematics as its source, and quote a box under its title."""
        classes = set(el.get("class") or [])
        if "math" in classes:
            number = el.select_one(".eqno")
            tag = rf" \tag{{{number.extract().get_text().strip('()#¶ ')}}}" if number else ""
            source = el.get_text().strip().removeprefix("\\[").removesuffix("\\]").strip()
            return f"\n\n$$\n{source}{tag}\n$$\n\n"
        if "admonition" in classes:
            return self.convert_blockquote(el, text, parent_tags)  # type: ignore[attr-defined]
        return super().convert_div(el, text, parent_tags)  # type: ignore[misc]


def language(pre: Tag) -> str:
    """The language of a listing, for its fence."""
    box = pre.find_parent("div", class_=re.compile("^highlight-"))
    names = " ".join(box["class"]) if box else ""
    return "python" if "python" in names else ""


def marker(soup: BeautifulSoup, word: str) -> Tag:
    """A paragraph at which the prose will be cut."""
    paragraph = soup.new_tag("p")
    paragraph.string = f"\ue000{word}\ue000"
    return paragraph


def marked_page(html: str, page: str, base: str) -> tuple[str, list[Tag]]:
    """Turn the article of a built page into Markdown with marks where its cells stood.

    Args:
        html: The built page.
        page: Its path in the book.
        base: What leads to the book from a notebook, for links.

    Returns:
        The text with marks, and the elements of the cells.
    """
    # What is drawn in the figures is the larger part of a page, and is not looked at here.
    html = re.sub("(<svg[^>]*>).*?(?=</svg>)", r"\1", html, flags=re.DOTALL)
    soup = BeautifulSoup(html, "html.parser")
    article = soup.select_one("article.bd-article")
    assert article is not None
    for useless in article.select("a.headerlink, script, [role=tooltip], .linenos"):
        useless.decompose()
    for link in article.select("a[href]"):
        link.attrs = {"href": link["href"]}
        if not urlsplit(str(link["href"])).scheme:
            link["href"] = base + urljoin(page, str(link["href"]))
    for picture in article.select("img[src]"):
        if not urlsplit(str(picture["src"])).scheme:
            picture["src"] = base + urljoin(page, str(picture["src"]))
    cells = article.select("div.cell")
    for cell in cells:
        cell.replace_with(marker(soup, "cell"))
    for box in article.select("div.exercise, div.solution"):
        title = box.select_one(".admonition-title")
        assert title is not None
        is_solution = "solution" in box["class"]
        title.name = "h4" if is_solution else "h3"
        del box["class"]
        title.string = re.sub("^Solution to(?! )", "Solution to ", squeezed(title))
        if is_solution:
            box.insert(0, marker(soup, "solution"))
            title.insert_after(marker(soup, "titled"))
            box.append(marker(soup, "end"))
        else:
            box.insert(0, marker(soup, "exercise"))
    for title in article.select(TITLES):
        title.name = "strong"
        title.wrap(soup.new_tag("p"))
    converter = Prose(
        heading_style="ATX",
        bullets="-",
        code_language_callback=language,
        sub_symbol="<sub>",
        sup_symbol="<sup>",
    )
    return converter.convert_soup(article), cells


def squeezed(element: Tag) -> str:
    """The text of an element with single spaces."""
    return " ".join(element.get_text().split())


def source_cells(notebook: NotebookNode) -> Iterator[tuple[NotebookNode, bool]]:
    """Give the code cells, each with whether it belongs to a solution."""
    in_solution = False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield cell, in_solution
        elif gates := re.findall(r"\{solution-(start|end)\}", cell.source):
            in_solution = gates[-1] == "start"


def blocks(html: str, page: str, base: str, notebook: NotebookNode) -> list[Block]:
    """Bring together the prose of a page and the code cells of its source.

    Args:
        html: The built page.
        page: Its path in the book.
        base: What leads to the book from a notebook, for links.
        notebook: The source as a notebook, with the outputs of the page.

    Raises:
        ValueError: The page and its source do not have the same cells.
    """
    text, shown = marked_page(html, page, base)
    found: list[Block] = []
    waiting = list(source_cells(notebook))  # cells of the source that have no place yet
    in_solution = False

    def place_hidden() -> None:
        """Put the cells that the page does not show where they follow in the source."""
        while waiting and waiting[0][1] == in_solution and is_removed(waiting[0][0]):
            found.append(Block(in_solution, code=waiting.pop(0)[0]))

    place_hidden()
    pieces = MARK.split(text)
    for prose, mark in zip(pieces[::2], [*pieces[1::2], "end"], strict=True):
        if prose.strip():
            found.append(Block(in_solution, prose.strip(), is_solution_title=mark == "titled"))
        if mark == "cell":
            element = shown.pop(0)
            if not waiting or not is_same(waiting[0][0], element):
                raise ValueError(f"{page}: a cell of the page is not the one of its source")
            figures = [str(f["aria-label"]) for f in element.select(".cell-figure > svg")]
            figures += [str(f["alt"]) for f in element.select("img[alt]")]
            found.append(Block(in_solution, code=waiting.pop(0)[0], figures=figures))
        elif mark in ("solution", "end"):
            in_solution = mark == "solution"
        if mark != "solution":  # its title comes first
            place_hidden()
    if waiting:
        raise ValueError(f"{page}: a cell of its source has no place: {waiting[0][0].source}")
    return found


def tags_of(cell: NotebookNode) -> set[str]:
    """The tags of a cell, in the one of their two spellings that we use."""
    return {tag.replace("_", "-") for tag in cell.metadata.get("tags", [])}


def is_removed(cell: NotebookNode) -> bool:
    """Whether the page does not show a cell."""
    tags = tags_of(cell)
    return "remove-cell" in tags or {"remove-input", "remove-output"} <= tags


def is_same(cell: NotebookNode, element: Tag) -> bool:
    """Whether an element of the page shows this cell's code, or hides all code."""
    code = element.select_one(".cell_input pre")
    return code is None or code.get_text().strip() == cell.source.strip()


def folded(source: str) -> str:
    """Give a folded cell the title that Colab shows in its place."""
    if source.startswith("%%"):  # a magic of the whole cell has to stay its first line
        return source
    titles = [title for words, title in FOLDED_TITLES.items() if words in source]
    return f"# @title {(titles or ['Code that the book folds'])[0]}\n{source}"


def code_cell(cell: NotebookNode, name: str) -> NotebookNode:
    """Make a notebook's cell from the source's, folded where the page folds or hides it."""
    tags = tags_of(cell)
    made = nbformat.v4.new_code_cell(cell.source, id=name)
    if tags & FOLDED_TAGS:
        made.source = folded(cell.source)
        made.metadata |= FOLDED
    if "raises-exception" in tags:
        made.metadata["tags"] = ["raises-exception"]
    return made


def shown_outputs(cell: NotebookNode) -> list[NotebookNode]:
    """The outputs that the page shows, without the numbers that a cell hands to the prose."""
    if is_removed(cell) or "remove-output" in tags_of(cell):
        return []
    return [output for output in cell.outputs if "scrapbook" not in output.get("metadata", {})]


def can_fold(chapter: list[Block], number: int) -> bool:
    """Whether a block is the title of a solution with a heading after it.

    A notebook folds all down to the next heading, also what is no part of the solution.
    """
    after = next((block for block in chapter[number:] if not block.in_solution), None)
    return chapter[number].is_solution_title and (after is None or after.prose.startswith("#"))


def edition(kind: str, chapter: list[Block], install: str, about: str) -> NotebookNode:
    """Put together one edition of a chapter.

    Args:
        kind: One of ``EDITIONS``.
        chapter: All blocks of the chapter.
        install: The code of the first cell.
        about: What the notebook says of itself.
    """
    first = nbformat.v4.new_code_cell(install, id="install", metadata=FOLDED)
    about = f"{about} {EDITIONS[kind][1]}"
    cells = [first, nbformat.v4.new_markdown_cell(about, id="about")]
    collapsed = []
    for number, block in enumerate(chapter):
        name = f"block-{number}"  # the same in all editions
        if kind == "student" and block.in_solution:
            continue
        if block.code:
            cell = code_cell(block.code, name)
            if kind == "executed":
                cell.execution_count = block.code.execution_count
                cell.outputs = shown_outputs(block.code)
        else:
            cell = nbformat.v4.new_markdown_cell(block.prose, id=name)
            if kind in ("run", "executed") and can_fold(chapter, number):
                cell.metadata = {"jp-MarkdownHeadingCollapsed": True, "id": name}
                collapsed.append(name)
        cells.append(cell)
        if block.figures:
            words = "\n\n".join(block.figures)
            text = f"<details><summary>The figure in words</summary>\n\n{words}\n\n</details>"
            cells.append(nbformat.v4.new_markdown_cell(text, id=f"{name}-figure"))
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "colab": {"collapsed_sections": collapsed, "provenance": []},
    }
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def build_wheel(root: Path, folder: Path, version: str) -> Path:
    """Build the package into a folder, under a version that names the very code.

    Two books may hold different packages of the same release; pip would not tell them apart.
    """
    with tempfile.TemporaryDirectory() as staged:
        stage = Path(staged)
        shutil.copytree(root / "coursepkg", stage / "coursepkg", ignore=_caches)
        for path in (root / "pyproject.toml", root / "README.md", *root.glob("LICENSE*")):
            shutil.copy(path, stage)
        module = stage / "coursepkg" / "__init__.py"
        text = module.read_text(encoding="utf-8")
        module.write_text(re.sub("(?m)^__version__ = .*$", f'__version__ = "{version}"', text))
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
        done = subprocess.run(
            [*command, folder, stage], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(f"the wheel could not be built:\n{done.stdout}{done.stderr}")
    (wheel,) = folder.glob("*.whl")
    return wheel


_caches = shutil.ignore_patterns("__pycache__")


@dataclass(frozen=True)
class Chapter:
    """What the editions of a chapter are made from.

    Attributes:
        name: Stem of its files.
        page: Path of its page in the book.
        notebook: The source as a notebook, with the outputs of the page.
        extras: The extras of the package that it needs.
    """

    name: str
    page: str
    notebook: NotebookNode
    extras: list[str]


def write(
    root: Path, html: Path, chapters: list[Chapter], published: Publication, version: str
) -> None:
    """Add the wheel, the notebooks and the offline book to the built book.

    Args:
        root: The checkout.
        html: The built book.
        chapters: All chapters.
        published: Where the book is published.
        version: The version of the wheel.

    Raises:
        ValueError: The wheel cannot be built, or a page does not agree with its source.
    """
    (html / "wheels").mkdir()
    wheel = build_wheel(root, html / "wheels", version).relative_to(html).as_posix()
    book = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["title"]
    template = (Path(__file__).parent / "install_cell.py").read_text(encoding="utf-8")
    for kind in EDITIONS:
        (html / "notebooks" / kind).mkdir(parents=True)
    for chapter in chapters:
        page = (html / chapter.page).read_text(encoding="utf-8")
        base = published.address or "../../"
        found = blocks(page, chapter.page, base, chapter.notebook)
        install = Template(template).substitute(
            wheel=wheel,
            address=published.address and published.address + quote(wheel),
            extras=",".join(chapter.extras),
        )
        first = next(block.prose for block in found if block.prose)
        title = re.sub("^# |\n.*", "", first, flags=re.DOTALL)
        about = (
            f"This is the chapter [{title}]({base}{chapter.page}) of *{book}*. Run the folded cell "
            f"above first: it installs coursepkg {version} and leaves torch and numpy as they are."
        )
        for kind in EDITIONS:
            made = edition(kind, found, install.rstrip(), about)
            path = html / "notebooks" / kind / f"{chapter.name}.ipynb"
            path.write_text(nbformat.writes(made) + "\n", encoding="utf-8")
    (html / "binder").mkdir()
    shutil.copy(Path(__file__).parent / "binder_environment.yml", html / "binder/environment.yml")
    (html / ".nojekyll").touch()  # GitHub Pages would leave out the folders with an underscore
    write_offline(html)


def write_offline(html: Path) -> None:
    """Put the whole book into one file that opens without a network."""
    top = Path("bayesian-deep-learning")
    readme = f"""{top.name}: the whole book, to be read without a network.

Open index.html in a browser. Nothing is loaded from elsewhere.

The notebooks are in the folder notebooks: run (solutions folded), student (without solutions),
solutions, executed (with outputs). They need Jupyter with Python 3.11 or newer. Their first cell
installs the package from the folder wheels; what that needs besides, such as torch, comes from the
network, once.
"""
    left_out = (OFFLINE, "404.html")
    files = sorted(p for p in html.rglob("*") if p.is_file() and p.name not in left_out)
    with zipfile.ZipFile(html / OFFLINE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_entry(top / "README.txt"), readme)
        for path in files:
            content = path.read_bytes()
            if path.suffix == ".html":
                content = DOWNLOAD.sub(b"", DOWNLOAD.sub(ON_DISK, content, count=1))
            archive.writestr(_entry(top / path.relative_to(html)), content)


def _entry(path: Path) -> zipfile.ZipInfo:
    """An entry whose date is fixed: the same book makes the same archive."""
    entry = zipfile.ZipInfo(path.as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry
