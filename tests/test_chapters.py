"""The rules that every chapter keeps, read off its source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CHAPTERS = [
    chapter["file"]
    for part in TOC["parts"]
    if part["caption"] == "Chapters"
    for chapter in part["chapters"]
]
CELL = re.compile(
    r"^```\{code-cell\}[^\n]*\n(?P<options>---\n.*?\n---\n|(?::[^\n]*\n)*)(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def source(chapter: str) -> str:
    return (ROOT / f"{chapter}.md").read_text()


def cells(chapter: str) -> list[re.Match[str]]:
    return list(CELL.finditer(source(chapter)))


@pytest.fixture(params=CHAPTERS)
def chapter(request):
    assert cells(request.param), "no code cells found: is the pattern still right?"
    return request.param


def test_chapter_holds_no_implementation(chapter):
    """The package holds it, where it is tested; a chapter may use a lambda."""
    defined = [c["code"] for c in cells(chapter) if re.search(r"^\s*(def|class) ", c["code"], re.M)]
    assert not defined


def test_visible_code_fits_beside_the_contents(chapter):
    """80 columns fit into a page at 1280 pixels; a cell stays short enough to be read."""
    for cell in cells(chapter):
        if "remove-cell" not in cell["options"]:
            lines = cell["code"].splitlines()
            assert not [line for line in lines if len(line) > 80]
            assert len(lines) <= 22


def test_chapter_has_its_parts(chapter):
    text = source(chapter)
    parts = ["What you will be able to do", "You need first", "## Pitfalls", "## Exercises"]
    places = [text.index(part) for part in [*parts, "## Summary", "**Sources.**"]]
    assert places == sorted(places)


def test_every_exercise_has_a_check_and_a_folded_solution(chapter):
    text = source(chapter)
    exercises = re.findall(
        r"^```\{exercise-start\}.*?^:label: (\S+)$(.*?)^```\{exercise-end\}", text, re.S | re.M
    )
    solutions = dict(
        re.findall(r"^```\{solution-start\} (\S+)\n(.*?)^```\{solution-end\}", text, re.S | re.M)
    )
    assert len(exercises) >= 3
    assert [label for label, _ in exercises] == list(solutions)
    for label, body in exercises:
        assert "page.check(" in body, f"{label} has no check"
        assert ":class: dropdown" in solutions[label], f"the solution of {label} is not folded"
        assert "assert " in solutions[label], f"the solution of {label} is not checked"


def test_glued_names_are_used_and_used_names_are_glued(chapter):
    """A number that nobody shows, or a name that nobody computes, is a leftover."""
    calls = [
        node
        for cell in cells(chapter)
        for node in ast.walk(ast.parse(cell["code"]))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "page.glue"
    ]
    glued = {keyword.arg for call in calls for keyword in call.keywords}
    used = set(re.findall(r"\{glue:text\}`(\w+)`", source(chapter)))
    assert glued == used


def test_no_result_is_typed_into_the_prose(chapter):
    """Decimals in the prose are glued; settings of an example may stand there, sections too."""
    settings = {"0.1", "0.2", "0.5"}
    prose = CELL.sub("", source(chapter))
    prose = re.sub(r"^```.*?^```$|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$", "", prose, flags=re.S | re.M)
    prose = re.sub(r"sections? [\d.]+( to [\d.]+)?", "", prose)
    assert set(re.findall(r"\d+\.\d+", prose)) <= settings
