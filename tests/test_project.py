"""The project's own files agree with one another."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = {
    canonicalize_name(line.split("==")[0]): line.split("==")[1].strip()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
}
REQUIREMENTS = [
    Requirement(text) for text in PROJECT["dependencies"] + [r for e in EXTRAS.values() for r in e]
]


def test_every_requirement_admits_the_version_that_is_tested() -> None:
    for requirement in REQUIREMENTS:
        name = canonicalize_name(requirement.name)
        assert name in PINS, (
            f"{name} is in pyproject.toml, but constraints.txt has no version of it"
        )
        assert PINS[name] in requirement.specifier, f"{requirement} excludes {PINS[name]}"


def test_what_a_hosted_notebook_ships_is_left_alone() -> None:
    for text in PROJECT["dependencies"]:
        operators = {part.operator for part in Requirement(text).specifier}
        assert operators == {">="}, f"{text}: an upper bound makes pip reinstall torch or numpy"


def test_this_environment_is_the_pinned_one() -> None:
    from importlib.metadata import version

    for name in ("torch", "numpy", "Sphinx", "jupyter-book", "sphinx-book-theme", "nbval"):
        assert version(name).split("+")[0] == PINS[canonicalize_name(name)], name


def test_conda_environment_is_the_one_of_make() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    dependencies = environment["dependencies"]
    assert f"python{PROJECT['requires-python']}" in dependencies
    (pip,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert "-c constraints.txt" in pip
    (editable,) = (line for line in pip if line.startswith("-e"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = re.search(r"^EXTRAS := (\S+)$", makefile, re.M)
    assert extras is not None
    assert editable == f"-e .[{extras[1]}]"
    assert set(extras[1].split(",")) <= set(EXTRAS)


def test_each_target_of_the_makefile_explains_itself() -> None:
    text = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    described = {line.split()[0] for line in text.splitlines() if len(line.split()) > 2}
    assert described >= {"book", "test", "lint", "serve", "links", "bench", "clean", "help"}


@pytest.mark.parametrize("name", ["ci.yml", "links.yml", "pages.yml"])
def test_workflows_are_valid(name: str) -> None:
    path = ROOT / ".github" / "workflows" / name
    check = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
    ]
    done = subprocess.run([*check, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_broken_workflow_is_seen(tmp_path: Path) -> None:
    broken = tmp_path / "ci.yml"
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    broken.write_text(text.replace("runs-on:", "runs-at:"))
    check = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
    ]
    done = subprocess.run([*check, broken], capture_output=True, check=False)
    assert done.returncode == 1


def test_every_module_says_what_it_offers_and_is_in_the_reference() -> None:
    pages = (ROOT / "book").glob("api*.md")
    reference = "".join(page.read_text(encoding="utf-8") for page in pages)
    for path in (ROOT / "coursepkg").glob("*.py"):
        if path.stem.startswith("_"):
            continue
        text = path.read_text(encoding="utf-8")
        assert re.search(r"^__all__ = ", text, re.M), f"{path.name} has no __all__"
        assert f"automodule:: coursepkg.{path.stem}\n" in reference, f"{path.name} not in api*.md"
