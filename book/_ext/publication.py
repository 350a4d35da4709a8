"""Where this book is published: its repository, its address, and the links that follow.

The environment of the build says it (CI knows its repository), else a git remote on GitHub, so that
the buttons of a fork lead to the fork. Where nothing says it, there are no such links.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

BRANCH = "gh-pages"  # holds the built book with its notebooks, put there by tools/publish.py
OFFLINE = "offline-book.zip"
# The editions of a chapter's notebook, made by tools/editions.py: the words of the menu, and what
# the notebook says of itself.
EDITIONS = {
    "run": ("Notebook to run", "The solutions are folded below the exercises."),
    "student": ("Notebook without solutions", "The solutions are left out."),
    "solutions": ("Notebook with solutions", "The solutions stand below the exercises."),
    "executed": (
        "Notebook with outputs",
        "It shows the outputs of the page; the solutions are folded below the exercises.",
    ),
}


@dataclass(frozen=True)
class Publication:
    """The published book.

    Attributes:
        repository: ``owner/name`` on GitHub, or nothing.
        address: Address of the book, ending in a slash, or nothing.
        hub: Address of a JupyterHub that the readers use, or nothing.
    """

    repository: str = ""
    address: str = ""
    hub: str = ""

    @property
    def base_path(self) -> str:
        """The path of the book on its host: ``/`` or, on a host with other books, ``/course/``."""
        return urlsplit(self.address).path or "/"

    def launches(self, name: str) -> dict[str, str]:
        """Links that open a chapter's notebook in places where it runs, by the place's name."""
        path = f"notebooks/run/{name}.ipynb"
        links = {}
        if self.repository:
            colab = "https://colab.research.google.com/github"
            links["Colab"] = f"{colab}/{self.repository}/blob/{BRANCH}/{path}"
            binder = f"https://mybinder.org/v2/gh/{self.repository}/{BRANCH}"
            links["Binder"] = f"{binder}?{urlencode({'urlpath': f'lab/tree/{path}'})}"
        if self.repository and self.hub:
            query = {
                "repo": f"https://github.com/{self.repository}",
                "branch": BRANCH,
                "urlpath": f"lab/tree/{self.repository.split('/')[1]}/{path}",
            }
            hub = f"{self.hub.rstrip('/')}/hub/user-redirect/git-pull"
            links["JupyterHub"] = f"{hub}?{urlencode(query)}"
        return links

    def edit(self, source: str) -> str:
        """Link to the editor of a page's source, or nothing."""
        return f"https://github.com/{self.repository}/edit/main/{source}" if self.repository else ""

    def report(self, title: str, page: str, versions: str) -> str:
        """Link to a new issue that names the page and the versions, or nothing."""
        if not self.repository:
            return ""
        body = f"Page: {self.address}{page}\nVersions: {versions}\n\nWhat is wrong, or unclear?\n"
        query = urlencode({"title": f"{title}: ", "body": body}, quote_via=quote)
        return f"https://github.com/{self.repository}/issues/new?{query}"


def publication(root: Path) -> Publication:
    """Find out where the book of this checkout is published.

    Environment: ``GITHUB_REPOSITORY`` (owner/name; set by GitHub's CI), ``BOOK_ADDRESS`` (where it
    is not the address that GitHub Pages gives by itself), ``BOOK_JUPYTERHUB``.
    """
    repository = os.environ.get("GITHUB_REPOSITORY") or _remote(root)
    address = os.environ.get("BOOK_ADDRESS", "")
    if repository and not address:
        owner, name = repository.split("/")
        host = f"{owner.lower()}.github.io"
        address = f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"
    if address and not address.endswith("/"):
        address += "/"
    return Publication(repository, address, os.environ.get("BOOK_JUPYTERHUB", ""))


def _remote(root: Path) -> str:
    """The repository on GitHub that this checkout came from, or nothing."""
    command = ["git", "-C", str(root), "config", "--get", "remote.origin.url"]
    url = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(\.git)?/?\s*$", url)
    return found[1] if found else ""
