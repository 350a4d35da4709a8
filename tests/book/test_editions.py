"""Every notebook that the book hands out is whole, and runs where a reader opens it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urldefrag

import build_book
import editions
import nbformat
import pytest
from browser import serve
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from package_hash import digest, wheel_version
from publication import EDITIONS, Publication, publication

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = [path.stem for path in build_book.chapters(ROOT)]
HOSTED = ["torch", "numpy", "matplotlib", "seaborn"]  # what Colab ships, of what we use

# Directives, roles, substitutions, targets, comments and options of MyST; HTML of Sphinx.
RAW = re.compile(
    r"""^\s*[`:~]{3,}\s*\{ | \{[\w:-]+\}` | \{\{ | ^\([\w-]+\)=\s*$ | ^%\s | ^\+\+\+ | ^:\w+:
    | </?(?:div|span|section|svg|script|p|a)\b | \\\( | \\\[ | \ue000 | \[\]\(""",
    re.MULTILINE | re.VERBOSE,
)


def read(html: Path, kind: str, chapter: str) -> NotebookNode:
    """One edition of one chapter."""
    return nbformat.read(html / "notebooks" / kind / f"{chapter}.ipynb", as_version=4)


def prose(notebook: NotebookNode) -> str:
    """The text of a notebook without its listings."""
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return re.sub(r"```.*?```|`[^`\n]+`", "", text, flags=re.DOTALL)


def code(notebook: NotebookNode) -> list[str]:
    """The code of a notebook, without the titles of folded cells."""
    cells = [c.source for c in notebook.cells if c.cell_type == "code"]
    return [re.sub("^# @title .*\n", "", source) for source in cells]


def published(chapter: str) -> NotebookNode:
    """The notebook behind a page."""
    (path,) = (p for p in build_book.published_notebooks(ROOT) if p.stem == chapter)
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("kind", EDITIONS)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_an_edition_is_plain_jupyter(html: Path, kind: str, chapter: str) -> None:
    notebook = read(html, kind, chapter)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    text = prose(notebook)
    assert not RAW.search(text), RAW.search(text)
    assert text.count("$$") % 2 == 0
    for formula in re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL):
        assert formula.count("{") == formula.count("}"), formula
    assert re.search(r"^# \w", text, re.M), "no title"
    assert "**What you will be able to do**" in text
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)


@pytest.mark.parametrize(
    "raw",
    ["```{note}\nx\n```", ":::{tip}", "see {eq}`a`", "{glue:text}`x`", "{{ version }}", "(label)=",
     "% hidden", "+++", ":label: x", "<div class='a'>", r"\(x\)", "[](page.md)"],
)  # fmt: skip
def test_what_is_raw_would_be_seen(raw: str) -> None:
    assert RAW.search(f"A sentence.\n\n{raw}\n")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_equations_and_references_are_resolved(html: Path, chapter: str) -> None:
    text = prose(read(html, "run", chapter))
    page = BeautifulSoup((html / "book" / f"{chapter}.html").read_text("utf-8"), "html.parser")
    numbers = [tag.get_text().strip("()#") for tag in page.select("article .eqno")]
    assert numbers
    assert re.findall(r"\\tag\{(\d+)\}", text) == numbers
    citations = page.select("article .bibtex-citation a, article .bibtex-cite a")
    for citation in {" ".join(tag.get_text().split()) for tag in citations}:
        assert citation in " ".join(text.replace("*", "").split()), citation


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_code_comes_whole_and_solutions_where_they_belong(html: Path, chapter: str) -> None:
    cells = [c for c in published(chapter).cells if c.cell_type == "code"]
    everything = [cell.source for cell in cells]
    for kind in ("run", "solutions", "executed"):
        assert code(read(html, kind, chapter))[1:] == everything

    source = (ROOT / "book" / f"{chapter}.md").read_text("utf-8")
    solutions = re.findall(r"\{solution-start\}.*?\{solution-end\}", source, re.DOTALL)
    solved = [
        c for s in solutions for c in re.findall(r"\{code-cell\}.*?\n(.*?)\n```", s, re.DOTALL)
    ]
    assert len(solutions) >= 3
    student = read(html, "student", chapter)
    left = code(student)[1:]
    assert len(left) == len(everything) - len(solved)
    assert not any(cell.strip().endswith(line.strip()) for cell in left for line in solved)
    assert "Solution to" not in prose(student)
    assert left.count("answer = ...") == len(solutions)

    for kind, folds in {"run": True, "solutions": False, "executed": True}.items():
        titles = [c for c in read(html, kind, chapter).cells if "Solution to" in c.source[:20]]
        assert [c.source.startswith("#### Solution to Exercise") for c in titles] == [True] * len(
            solutions
        )
        assert all(c.metadata.get("jp-MarkdownHeadingCollapsed", False) == folds for c in titles)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_executed_edition_has_the_outputs_of_the_page(html: Path, chapter: str) -> None:
    def shown(notebook: NotebookNode) -> list[list[str]]:
        return [
            [o.get("text") or str(o.get("data")) for o in editions.shown_outputs(cell)]
            for cell in notebook.cells
            if cell.cell_type == "code"
        ]

    outputs = shown(read(html, "executed", chapter))[1:]
    assert outputs == shown(published(chapter))
    assert any("svg" in text for cell in outputs for text in cell)
    for kind in ("run", "student", "solutions"):
        assert not any(shown(read(html, kind, chapter)))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_figures_keep_their_words(html: Path, chapter: str) -> None:
    page = BeautifulSoup((html / "book" / f"{chapter}.html").read_text("utf-8"), "html.parser")
    words = [str(svg["aria-label"]) for svg in page.select(".cell-figure > svg")]
    assert words
    text = prose(read(html, "run", chapter))
    assert [alt for alt in words if alt not in text] == []


def test_links_of_the_notebooks_lead_somewhere(html: Path) -> None:
    address = publication(ROOT).address
    checked = 0
    for path in (html / "notebooks").rglob("*.ipynb"):
        text = prose(nbformat.read(path, as_version=4))
        for link in re.findall(r"\]\((\S+?)\)", text):
            target, fragment = urldefrag(link)
            if address and target.startswith(address):
                file = html / unquote(target.removeprefix(address))
            elif re.match(r"https?://", target):
                continue
            else:
                file = path.parent / unquote(target)
            assert file.exists(), f"{path.name}: {link}"
            assert not fragment or f'id="{unquote(fragment)}"' in file.read_text("utf-8"), link
            checked += 1
    assert checked > 50


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_first_cell_names_the_wheel_of_this_book(html: Path, chapter: str) -> None:
    (wheel,) = (html / "wheels").glob("*.whl")
    assert wheel_version(ROOT) in wheel.name
    for kind in EDITIONS:
        first = read(html, kind, chapter).cells[0]
        assert first.cell_type == "code"
        assert f'WHEEL = "wheels/{wheel.name}"' in first.source
    with zipfile.ZipFile(wheel) as archive:
        assert f'"{wheel_version(ROOT)}"' in archive.read("coursepkg/__init__.py").decode()
        assert all(name.startswith("coursepkg") for name in archive.namelist())


def test_a_page_that_differs_from_its_source_is_refused(html: Path) -> None:
    page = (html / "book" / f"{CHAPTERS[0]}.html").read_text("utf-8")
    notebook = published(CHAPTERS[0])
    editions.blocks(page, "book/x.html", "", notebook)
    first = next(n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    other = published(CHAPTERS[0])
    other.cells[first].source = "another = 1"
    with pytest.raises(ValueError, match="is not the one of its source"):
        editions.blocks(page, "book/x.html", "", other)
    notebook.cells.append(nbformat.v4.new_code_cell("one = 'more'"))
    with pytest.raises(ValueError, match=r"has no place: one = 'more'"):
        editions.blocks(page, "book/x.html", "", notebook)


def lowered(html: str) -> str:
    """The Markdown of a piece of a page."""
    page = f'<article class="bd-article">{html}</article>'
    return editions.marked_page(page, "book/x.html", "https://example.org/")[0].strip()


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("<p>It costs $5 or $6.</p>", r"It costs \$5 or \$6."),
        ("<p>Write &lt;name&gt;.</p>", "Write &lt;name>."),
        ("<p><code>a &lt; $b</code></p>", "`a < $b`"),
        ("<p>10<sup>3</sup>, H<sub>2</sub>O</p>", "10<sup>3</sup>, H<sub>2</sub>O"),
        ('<p><span class="math">\\(a &lt; b\\)</span></p>', "$a < b$"),
        ("<dl><dt>prior</dt><dd><p>before</p><p>the data</p></dd></dl>",
         "**prior**\n\nbefore\n\nthe data"),
        ('<div class="highlight-python"><pre><span class="linenos">1</span>y = 2</pre></div>',
         "```python\ny = 2\n```"),
        ('<div class="note admonition"><p class="admonition-title">Mind</p><p>this</p></div>',
         "> **Mind**\n>\n> this"),
        ('<label class="sd-tab-label">Torch</label><div>text</div>', "**Torch**\n\ntext"),
        ('<p><a href="y.html#z" title="t">there</a></p>',
         "[there](https://example.org/book/y.html#z)"),
        ('<p><img src="../_images/a.png" alt="A"></p>', "![A](https://example.org/_images/a.png)"),
        ('<p><img src="https://other.org/a.png" alt="A"></p>', "![A](https://other.org/a.png)"),
    ],
)  # fmt: skip
def test_what_sphinx_writes_is_lowered(html: str, markdown: str) -> None:
    assert lowered(html) == markdown


def test_no_bar_ends_a_cell_of_a_table() -> None:
    formula = '<span class="math">\\(\\|x\\| + |y|\\)</span>'
    rows = f"<tr><td>{formula}</td><td><code>a|b</code></td></tr>"
    last = lowered(f"<table><tr><th>one</th><th>two</th></tr>{rows}</table>").splitlines()[-1]
    assert last == r"| $\Vert x\Vert  + \vert y\vert $ | `a\|b` |"


def small_chapter(after: str) -> list[editions.Block]:
    """A chapter with one solution, which begins with a hidden cell, and what comes after it."""
    html = (
        '<article class="bd-article"><h1>T</h1><div class="solution"><p class="admonition-title">'
        '<span>Solution to</span><a href="#e"> Exercise 1</a></p><section><p>Because.</p>'
        f'<div class="cell"></div></section></div>{after}</article>'
    )
    source = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# T\n```{solution-start} e\n```"),
            nbformat.v4.new_code_cell("hidden", metadata={"tags": ["remove_cell"]}),
            nbformat.v4.new_code_cell("shown"),
            nbformat.v4.new_markdown_cell("```{solution-end}\n```"),
            nbformat.v4.new_code_cell("end", metadata={"tags": ["remove-input", "remove-output"]}),
        ]
    )
    return editions.blocks(html, "book/x.html", "", source)


def test_a_hidden_cell_stays_in_its_solution() -> None:
    found = [block.code.source if block.code else block.prose for block in small_chapter("")]
    assert found == ["# T", "#### Solution to Exercise 1", "hidden", "Because.", "shown", "end"]
    student = editions.edition("student", small_chapter(""), "", "")
    assert [cell.source for cell in student.cells[2:]] == ["# T", editions.folded("end")]


@pytest.mark.parametrize(("after", "folds"), [("<p>More.</p>", False), ("<h2>Next</h2>", True)])
def test_a_solution_folds_only_where_it_hides_nothing_else(after: str, folds: bool) -> None:
    chapter = [block for block in small_chapter(after) if not block.code or block.in_solution]
    made = editions.edition("run", chapter, "", "")
    (title,) = (cell for cell in made.cells if cell.source.startswith("#### Solution"))
    assert title.metadata.get("jp-MarkdownHeadingCollapsed", False) == folds
    assert bool(made.metadata["colab"]["collapsed_sections"]) == folds


def test_outputs_that_the_page_removes_and_magics_of_a_cell() -> None:
    printed = nbformat.v4.new_output("stream", text="x")
    for tags, shown in (([], 1), (["remove-output"], 0), (["remove_cell"], 0)):
        cell = nbformat.v4.new_code_cell("1", outputs=[printed], metadata={"tags": tags})
        assert len(editions.shown_outputs(cell)) == shown
    assert editions.folded("%%time\nx").startswith("%%time")


# Where a reader opens it: nothing but what a hosted notebook ships.


@dataclass
class Launchable:
    """The book as it is built where its repository is known."""

    html: Path
    published: Publication


@pytest.fixture(scope="module")
def launchable(html: Path, tmp_path_factory: pytest.TempPathFactory) -> Launchable:
    """The same book, built for a repository on GitHub."""
    root = tmp_path_factory.mktemp("launchable")
    skipped = shutil.ignore_patterns(".*", "_build", "__pycache__")
    shutil.copytree(ROOT, root, ignore=skipped, dirs_exist_ok=True)
    shutil.copytree(ROOT / "_build" / "jupyter_cache", root / "_build" / "jupyter_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GITHUB_REPOSITORY", "Ada/course")
        build_book.build(root, workers=1)
        return Launchable(root / "_build" / "html", publication(root))


@pytest.fixture(scope="module")
def hosted() -> Path:
    """The site-packages of an environment with what a hosted notebook ships, made once."""
    name = digest([ROOT / "constraints.txt"], ROOT)[:12]
    environment = ROOT / ".venv-hosted" / name
    if not (environment / "done").exists():
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "-c"]
        command = [*pip, ROOT / "constraints.txt", *HOSTED, "ipykernel"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and not os.environ.get("CI"):
            pytest.skip(f"pip cannot install what a hosted notebook ships:\n{done.stderr}")
        assert done.returncode == 0, done.stderr
        (environment / "done").touch()
    (packages,) = environment.glob("lib/python*/site-packages")
    return packages


@dataclass
class Host:
    """A notebook service: one fresh environment, a folder, and no repository."""

    folder: Path
    packages: Path

    def run(self, notebook: NotebookNode) -> None:
        """Execute a notebook in place."""
        NotebookClient(
            notebook,
            kernel_name="hosted",
            timeout=300,
            resources={"metadata": {"path": str(self.folder)}},
        ).execute()


@pytest.fixture
def host(hosted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A fresh environment over the hosted packages, which stay as they are."""
    home = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "hosted.pth").write_text(f"{hosted}\n")
    kernel = tmp_path / "jupyter" / "kernels" / "hosted"
    kernel.mkdir(parents=True)
    python, connection = str(home / "bin" / "python"), "{connection_file}"
    kernel.joinpath("kernel.json").write_text(
        f'{{"argv": ["{python}", "-m", "ipykernel_launcher", "-f", "{connection}"],'
        ' "display_name": "hosted", "language": "python",'
        ' "env": {"PYTHONPATH": "", "PYTHONNOUSERSITE": "1"}}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    folder = tmp_path / "folder"
    folder.mkdir()
    return Host(folder, packages)


def behind_the_button(book: Launchable, chapter: str) -> NotebookNode:
    """The notebook that the Colab button of a page opens."""
    page = BeautifulSoup((book.html / "book" / f"{chapter}.html").read_text("utf-8"), "html.parser")
    (button,) = (a for a in page.select("a[href]") if a.text.strip() == "Open in Colab")
    opened = str(button["href"]).removeprefix("https://colab.research.google.com/github/")
    repository, path = opened.split("/blob/gh-pages/")
    assert repository == book.published.repository
    return nbformat.reads((book.html / path).read_text("utf-8"), as_version=4)


def from_here(notebook: NotebookNode, book: Launchable, address: str) -> NotebookNode:
    """The notebook with the book's address replaced by one on this machine."""
    first = notebook.cells[0]
    assert f'ADDRESS = "{book.published.address}wheels/' in first.source
    first.source = first.source.replace(book.published.address, address)
    return notebook


def said(cell: NotebookNode) -> str:
    """What a cell printed; a progress bar, which a slow host shows, goes to stderr."""
    return "".join(out.text for out in cell.outputs if out.get("name") == "stdout")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_button_opens_a_notebook_that_runs(
    launchable: Launchable, host: Host, chapter: str
) -> None:
    notebook = behind_the_button(launchable, chapter)
    question = "import coursepkg, torch, numpy\nprint(coursepkg, torch, numpy)"
    notebook.cells.append(nbformat.v4.new_code_cell(question))
    with serve(launchable.html) as address:
        host.run(from_here(notebook, launchable, address))
    installed = said(notebook.cells[0])
    assert f"Installed: coursepkg {wheel_version(ROOT)} from http://127.0.0.1" in installed
    assert "Left as it was: torch" in installed
    assert "Left as it was: numpy" in installed
    modules = said(notebook.cells[-1])
    assert str(host.packages / "coursepkg") in modules
    assert modules.count(str(host.packages)) == 1, "torch or numpy was installed again"
    assert not any((host.packages / name).exists() for name in HOSTED)

    # The outputs are those of the page, up to what another environment may round otherwise.
    texts = [said(cell) for cell in notebook.cells if cell.cell_type == "code"]
    expected = [said(cell) for cell in published(chapter).cells if cell.cell_type == "code"]
    assert texts[1:-1] == expected

    student = read(launchable.html, "student", chapter)
    with serve(launchable.html) as address:
        host.run(from_here(student, launchable, address))


def test_without_its_first_cell_it_would_not_run(launchable: Launchable, host: Host) -> None:
    notebook = behind_the_button(launchable, CHAPTERS[0])
    del notebook.cells[0]
    with pytest.raises(CellExecutionError, match="No module named 'coursepkg'"):
        host.run(notebook)


def first_cell(notebook: NotebookNode) -> NotebookNode:
    """A notebook of the first cell alone."""
    return nbformat.v4.new_notebook(cells=notebook.cells[:1])


def test_the_first_cell_takes_the_wheel_beside_it(html: Path, host: Host) -> None:
    notebook = first_cell(read(html, "run", CHAPTERS[-1]))
    notebook.cells[0].source = re.sub('ADDRESS = ".*"', 'ADDRESS = ""', notebook.cells[0].source)
    with pytest.raises(CellExecutionError, match=r"Put coursepkg.* beside this notebook"):
        host.run(notebook)
    (wheel,) = (html / "wheels").glob("*.whl")
    shutil.copy(wheel, host.folder)
    early = "import sys, types\nsys.modules['coursepkg'] = types.SimpleNamespace(__version__='0')"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(early))
    host.run(notebook)
    told = said(notebook.cells[1])
    assert f"Installed: coursepkg {wheel_version(ROOT)} from file:" in told
    assert "Now restart the kernel: it still works with coursepkg 0" in told


def test_the_first_cell_would_rather_fail_than_replace_numpy(
    html: Path, host: Host, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copytree(ROOT / "coursepkg", source / "coursepkg")
    shutil.copy(ROOT / "README.md", source)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (source / "pyproject.toml").write_text(project.replace('"numpy>=1.26"', '"numpy<1.26"'))
    wheel = editions.build_wheel(source, host.folder, wheel_version(ROOT))
    assert wheel.parent == host.folder
    notebook = first_cell(read(html, "run", CHAPTERS[0]))
    with pytest.raises(CellExecutionError, match="could not be installed"):
        host.run(notebook)
    assert not (host.packages / "numpy").exists()
    assert not (host.packages / "coursepkg").exists()


# The branch that is published.


def test_publishing_adds_to_the_branch_and_only_what_is_new(
    small_book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import publish

    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
        monkeypatch.setenv(name, "A teacher")
    for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "teacher@example.org")

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(small_book.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    bare = tmp_path / "bare"
    git("init", "--quiet", "--initial-branch=main")
    git("init", "--quiet", "--bare", str(bare))
    git("remote", "add", "origin", str(bare))
    git("add", "book")
    git("commit", "--quiet", "-m", "A small book")
    git("push", "--quiet", "origin", "HEAD:refs/heads/gh-pages")  # what was there before us

    with pytest.raises(ValueError, match="not up to date"):
        publish.publish(small_book.root, "origin")
    small_book.build()
    assert "is on gh-pages" in publish.publish(small_book.root, "origin")
    assert "already" in publish.publish(small_book.root, "origin")
    first_wheels = [p.name for p in (small_book.root / "_build/html/wheels").iterdir()]
    small_book.answer(42)
    small_book.build()
    assert "is on gh-pages" in publish.publish(small_book.root, "origin")

    def branch(*arguments: str) -> list[str]:
        command = ["git", "-C", str(bare), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert branch("rev-list", "--count", "gh-pages") == ["3"]
    html = small_book.root / "_build" / "html"
    files = {p.relative_to(html).as_posix() for p in html.rglob("*") if p.is_file()}
    # Saved notebooks ask for the wheel of their day.
    (old,) = (f"wheels/{name}" for name in first_wheels)
    assert old not in files
    assert set(branch("ls-tree", "-r", "--name-only", "gh-pages")) == files | {old}
    assert "already" in publish.publish(small_book.root, "origin")
    assert {".nojekyll", "notebooks/run/small.ipynb", "binder/environment.yml"} <= files
    assert git("status", "--porcelain", "--untracked-files=no") == ""
