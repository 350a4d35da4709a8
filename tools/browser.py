"""A local server and a headless Chromium, for the browser tests and the screenshots."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Browser, Page, Playwright

WIDTHS = {1280: 900, 390: 844}  # viewport width and height: a laptop, a phone
MODES = ("light", "dark")


def executable() -> str | None:
    """Find the system's Chromium, or what it is called elsewhere."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def launch(playwright: Playwright) -> Browser:
    """Start Chromium without its own traffic, which would look like the page's."""
    return playwright.chromium.launch(
        executable_path=executable(),
        args=[
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
        ],
    )


class QuietHandler(SimpleHTTPRequestHandler):
    """Serve files without a line on the terminal for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine, and hand out its address."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def pages(folder: Path) -> list[str]:
    """List the pages of a built book.

    Left out are the template fragments among the theme's static files, and the page at the root,
    which only leads on to the book's first.
    """
    found = [path for path in folder.rglob("*.html") if "_static" not in path.parts]
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if name != "index.html"]


def watch(page: Page, address: str) -> list[str]:
    """Collect what goes wrong while a page loads."""
    problems: list[str] = []

    def note(wrong: bool, words: str) -> None:
        if wrong:
            problems.append(words)

    page.on("console", lambda m: note(m.type in ("error", "warning"), m.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    # Aborted is what the icon's request ends in when we leave a page before it has come. A file
    # that is missing is not aborted: it has a status, see below.
    page.on("requestfailed", lambda r: note(r.failure != "net::ERR_ABORTED", f"failed: {r.url}"))
    page.on("response", lambda r: note(r.status >= 400, f"{r.status}: {r.url}"))
    here = (address, "data:", "blob:")
    page.on("request", lambda r: note(not r.url.startswith(here), f"asks another host: {r.url}"))
    return problems


def show(page: Page, url: str) -> None:
    """Load a page and wait until its mathematics is typeset."""
    page.goto(url, wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise")
