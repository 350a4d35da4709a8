"""A local server and a headless Chromium, for the browser tests and the screenshots."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from os import PathLike
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
    """Serve files quietly, and for a missing one the page that GitHub Pages would serve."""

    base = "/"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def translate_path(self, path: str) -> str:
        """Find the file; there is none outside of the book's base."""
        inside = path.removeprefix(self.base) if path.startswith(self.base) else "missing"
        return super().translate_path(f"/{inside}")

    def list_directory(self, path: str | PathLike[str]) -> None:
        """Show no folder as a list of files."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Show the book's own page instead of the server's words."""
        page = Path(self.directory) / "404.html"
        if code != HTTPStatus.NOT_FOUND or not page.exists():
            super().send_error(code, message, explain)
            return
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page.read_bytes())


@contextmanager
def serve(folder: Path, base: str = "/") -> Iterator[str]:
    """Serve a folder on a free port of this machine, and hand out its address."""
    kind = type("Handler", (QuietHandler,), {"base": base})
    handler = partial(kind, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{base}"
        server.shutdown()


def pages(folder: Path) -> list[str]:
    """List the pages of a built book.

    Left out are the template fragments among the theme's static files, the page at the root, which
    only leads on to the book's first, and the one for a missing page, whose links start at the
    address of the published book.
    """
    found = [path for path in folder.rglob("*.html") if "_static" not in path.parts]
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if name not in ("index.html", "404.html")]


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
