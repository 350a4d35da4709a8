"""Build the book: run its notebooks in parallel, then make the pages.

    python tools/build_book.py [ROOT] [--workers N] [--notebooks]

What is published is a function of the inputs and of nothing else: executed notebooks are cached
under a hash of the package and its constraints, and the pages are made from scratch whenever any
input has changed. So no page, figure or link of an earlier or an aborted build can survive.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "book" / "_ext"))
import editions
import nbformat
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from jupyter_cache.executors.utils import ExecutionResult, single_nb_execution
from myst_nb.core.read import is_myst_markdown_notebook, myst_nb_reader_plugin
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from package_hash import cache_path, digest, wheel_version
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from publication import publication

CELL_TIMEOUT = 120  # seconds; a chapter has 15, a machine may be slow
MAKERS_EXTRAS = {"book", "test", "bench"}  # of these no chapter needs one


class BuildError(Exception):
    """Something that the author of a chapter has to mend; the message says what."""


def chapters(root: Path) -> list[Path]:
    """List the notebooks of the table of contents."""

    def names(entry: Any) -> Iterator[str]:
        if isinstance(entry, list):
            for item in entry:
                yield from names(item)
        elif isinstance(entry, dict):
            for key, value in entry.items():
                if key in ("root", "file"):
                    yield value
                elif key in ("parts", "chapters", "sections"):
                    yield from names(value)

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    pages = [root / f"{name}.md" for name in names(toc)]
    return [p for p in pages if p.exists() and is_myst_markdown_notebook(p.read_text("utf-8"))]


def published_notebooks(root: Path) -> list[Path]:
    """List the executed notebooks whose outputs the pages show."""
    executed = root / "_build" / "jupyter_execute"
    return [executed / p.relative_to(root).with_suffix(".ipynb") for p in chapters(root)]


def inputs_hash(root: Path) -> str:
    """Hash all that the pages are made from."""
    folders = [p for name in ("book", "coursepkg", "tools") for p in root.glob(f"{name}/**/*")]
    files = [p for p in folders if p.is_file() and "__pycache__" not in p.parts]
    names = ("_config.yml", "_toc.yml", "constraints.txt", "pyproject.toml", "README.md")
    inputs = digest(files + [root / name for name in names], root)
    return f"{inputs} Python {platform.python_version()} {publication(root)}"


def is_current(root: Path) -> bool:
    """Tell whether the built book is complete and made from the present inputs."""
    record = root / "_build" / "inputs.txt"
    return record.exists() and record.read_text(encoding="utf-8") == inputs_hash(root)


def prepare_worker(environment: dict[str, str]) -> None:
    """Give the kernels of a worker process their environment."""
    os.environ.update(environment)
    os.environ["PYTHONSTARTUP"] = str(Path(__file__).with_name("watch_imports.py"))


def execute(path: Path) -> tuple[NotebookNode, ExecutionResult, list[str]]:
    """Run one notebook in its folder, in a process of its own; say which distributions it used."""
    notebook = myst_nb_reader_plugin(str(path))
    notebook.cells.append(nbformat.v4.new_code_cell("print(*imported_here)"))
    result = single_nb_execution(
        notebook,
        cwd=str(path.parent),
        timeout=CELL_TIMEOUT,
        allow_errors=False,
        extra_arguments=["--log-level=ERROR"],
    )
    answer = notebook.cells.pop().outputs
    modules = answer[0].text.split() if answer else []
    owners = packages_distributions()
    used = {canonicalize_name(owner) for name in modules for owner in owners.get(name, [])}
    return notebook, result, sorted(used)


def needed_extras(root: Path, used: list[str]) -> list[str]:
    """List the extras of the package that bring distributions which a chapter has used."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [
        extra
        for extra, requirements in project["optional-dependencies"].items()
        if extra not in MAKERS_EXTRAS
        and any(canonicalize_name(Requirement(line).name) in used for line in requirements)
    ]


def failure(root: Path, path: Path, result: ExecutionResult) -> str:
    """Say which cell of which chapter failed, and how."""
    cells = [cell for cell in result.nb.cells if cell.cell_type == "code"]
    # The last cell that began is the one that failed; a later one was never reached.
    number = max(n for n, cell in enumerate(cells) if cell.execution_count or n == 0)
    source = "\n".join(f"    {line}" for line in cells[number].source.splitlines())
    outputs = [o for o in cells[number].outputs if o.output_type == "error"]
    error = f"{outputs[0].ename}: {outputs[0].evalue}" if outputs else str(result.err)
    where = f"{path.relative_to(root)}: code cell {number + 1} of {len(cells)} failed"
    return f"{where}\n{source}\n{error}"


def refresh(cache: JupyterCacheAbstract, path: Path) -> None:
    """Give a cached notebook the source's present cell metadata.

    The cache knows a notebook by its code alone and hands out the metadata it stored, so that a
    mended alt text would never reach the page.
    """
    source = myst_nb_reader_plugin(str(path))
    record = cache.match_cache_notebook(source)
    _, stored = cache.merge_match_into_notebook(source)
    _, wanted = cache.merge_match_into_notebook(source, cell_meta=())
    if [c.metadata for c in stored.cells] != [c.metadata for c in wanted.cells]:
        bundle = CacheBundleIn(wanted, str(path), data=record.data)
        cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def run_notebooks(root: Path, workers: int, environment: dict[str, str]) -> None:
    """Execute what the cache does not have, and say how long each chapter took."""
    current = cache_path(root)
    for old in current.parent.glob("*"):
        if old != current:
            shutil.rmtree(old)
    cache = get_cache(str(current))
    paths = chapters(root)

    hashes: dict[str, Path] = {}
    for path in paths:
        _, key = cache.create_hashed_notebook(myst_nb_reader_plugin(str(path)))
        if key in hashes:
            raise BuildError(
                f"{hashes[key].relative_to(root)} and {path.relative_to(root)} have the same code "
                "cells: the cache could not tell them apart, change one"
            )
        hashes[key] = path
    known = {record.hashkey for record in cache.list_cache_records()}
    todo = [path for key, path in hashes.items() if key not in known]

    failures = []
    with ProcessPoolExecutor(workers, initializer=partial(prepare_worker, environment)) as pool:
        futures = {pool.submit(execute, path): path for path in todo}
        for done, future in enumerate(as_completed(futures), start=1):
            path = futures[future]
            name = path.relative_to(root)
            try:
                notebook, result, used = future.result()
            except DeadKernelError as died:
                failures.append(f"{name}: {died} (out of memory?)")
                continue
            verdict = "FAILED" if result.err else "ran"
            print(f"[{done}/{len(todo)}] {name} {verdict} in {result.time:.1f} s", flush=True)
            if result.err:
                failures.append(failure(root, path, result))
                continue
            facts = {"execution_seconds": result.time, "distributions": used}
            bundle = CacheBundleIn(notebook, str(path), data=facts)
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    if failures:
        raise BuildError("\n\n".join(failures))
    for path in paths:
        refresh(cache, path)
    if len(todo) < len(paths):
        print(f"{len(paths) - len(todo)} of {len(paths)} notebooks unchanged, taken from the cache")


def write_notebooks(root: Path) -> None:
    """Store the notebooks with the outputs that the pages show, and make the editions of them.

    myst-nb writes them too, but without outputs where these came from the cache, and nbval would
    then compare nothing.
    """
    cache = get_cache(str(cache_path(root)))
    found = []
    for path, target in zip(chapters(root), published_notebooks(root), strict=True):
        source = myst_nb_reader_plugin(str(path))
        used = cache.match_cache_notebook(source).data["distributions"]
        _, executed = cache.merge_match_into_notebook(source, cell_meta=())
        target.write_text(nbformat.writes(executed), encoding="utf-8")
        page = path.relative_to(root).with_suffix(".html").as_posix()
        found.append(editions.Chapter(path.stem, page, executed, needed_extras(root, used)))
    html = root / "_build" / "html"
    try:
        editions.write(root, html, found, publication(root), wheel_version(root))
    except ValueError as problem:
        raise BuildError(str(problem)) from problem


def make_pages(root: Path, environment: dict[str, str]) -> None:
    """Run Sphinx through Jupyter Book, with each warning an error."""
    for name in ("html", ".doctrees", "jupyter_execute"):
        shutil.rmtree(root / "_build" / name, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(root)]
    options = ["--warningiserror", "--keep-going", "--nitpick", "--quiet"]
    log = root / "_build" / "sphinx.log"
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            [*command, *options],
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        problems = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8"))
        raise BuildError(f"{problems}\nSphinx found the problems above.")


def build(root: Path, workers: int) -> None:
    """Bring the built book up to date."""
    index = root / "_build" / "html" / "index.html"
    if is_current(root):
        print(f"Nothing has changed. The book is at {index.as_uri()}")
        return
    start = time.monotonic()
    record = root / "_build" / "inputs.txt"
    record.unlink(missing_ok=True)
    record.parent.mkdir(exist_ok=True)
    inputs = inputs_hash(root)
    # The checkout's own package, one thread a notebook (they already share the cores), and no
    # progress bars in the published outputs.
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
    }
    run_notebooks(root, workers, environment)
    print("making the pages …", flush=True)
    make_pages(root, environment)
    write_notebooks(root)
    record.write_text(inputs, encoding="utf-8")
    print(f"The book is at {index.as_uri()} (built in {time.monotonic() - start:.0f} s)")


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build the book.")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--notebooks", action="store_true", help="list the executed notebooks")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    try:
        if arguments.notebooks:
            print(*published_notebooks(root))
        else:
            build(root, arguments.workers)
    except BuildError as problem:
        print(f"\n{problem}\n\nThe book was NOT built.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
