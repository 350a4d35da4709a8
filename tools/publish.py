"""Commit the built book, with its notebooks and its wheel, to the branch that is published.

    python tools/publish.py [--remote NAME]

The commit goes on top of what is published: those who follow the branch (a class on a JupyterHub,
say) can pull it. A book that has not changed makes no commit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "book" / "_ext"))
from build_book import is_current
from publication import BRANCH

ROOT = Path(__file__).resolve().parents[1]


def publish(root: Path, remote: str) -> str:
    """Push the built book, and say what was done.

    Raises:
        ValueError: The book is not built from the present sources.
        subprocess.CalledProcessError: git failed; its message is on stderr.
    """
    if not is_current(root):
        raise ValueError("the built book is not up to date: run `make book` first")
    html = root / "_build" / "html"

    with tempfile.TemporaryDirectory() as folder:
        # An index of its own: nothing of the checkout is touched.
        environment = os.environ | {"GIT_INDEX_FILE": f"{folder}/index"}

        def git(*arguments: str) -> str:
            command = ["git", "-C", str(root), f"--work-tree={html}", *arguments]
            return subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            ).stdout.strip()

        parents = []
        if git("ls-remote", "--heads", remote, BRANCH):
            is_shallow = git("rev-parse", "--is-shallow-repository") == "true"
            git("fetch", "--quiet", *(["--depth=1"] if is_shallow else []), remote, BRANCH)
            parents = ["-p", git("rev-parse", "FETCH_HEAD")]
            # A notebook that a reader saved goes on asking for the wheel of its day.
            if git("ls-tree", "FETCH_HEAD", "wheels"):
                git("read-tree", "--prefix=wheels/", "FETCH_HEAD:wheels")
        git("add", "--force", "--ignore-removal", str(html))
        tree = git("write-tree")
        if parents and git("rev-parse", "FETCH_HEAD^{tree}") == tree:
            return f"{BRANCH} has this very book already."
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        source = subprocess.run(describe, stdout=subprocess.PIPE, text=True, check=True).stdout
        source = source.strip()
        commit = git("commit-tree", tree, *parents, "-m", f"The book of {source}")
        git("push", "--quiet", remote, f"{commit}:refs/heads/{BRANCH}")
        return f"The book of {source} is on {BRANCH}."


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Publish the built book.")
    parser.add_argument("--remote", default="origin")
    try:
        print(publish(ROOT, parser.parse_args().remote))
    except (ValueError, subprocess.CalledProcessError) as problem:
        print(f"Not published: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
