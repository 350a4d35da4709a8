"""Photograph the built book for a look at it.

    python tools/screenshots.py [PAGE …]

Each page, at each width, in light and in dark mode, goes to _build/screenshots.
"""

from __future__ import annotations

import sys
from pathlib import Path

from browser import MODES, WIDTHS, executable, launch, pages, serve
from playwright.sync_api import sync_playwright

BUILD = Path(__file__).resolve().parents[1] / "_build"


def main() -> int:
    """Take the pictures."""
    if executable() is None:
        print("No Chromium here. On Debian or Ubuntu: apt-get install chromium", file=sys.stderr)
        return 1
    html, target = BUILD / "html", BUILD / "screenshots"
    target.mkdir(exist_ok=True)
    names = sys.argv[1:] or [p for p in pages(html) if not p.startswith("_modules")]
    with serve(html) as address, sync_playwright() as playwright:
        chromium = launch(playwright)
        for width, height in WIDTHS.items():
            for mode in MODES:
                view = chromium.new_page(
                    viewport={"width": width, "height": height},
                    color_scheme="dark" if mode == "dark" else "light",
                )
                for name in names:
                    view.goto(address + name, wait_until="networkidle")
                    stem = name.removesuffix(".html").replace("/", "-")
                    picture = target / f"{stem}-{width}-{mode}.png"
                    view.screenshot(path=picture, full_page=True)
                view.close()
        chromium.close()
    print(f"{len(names) * len(WIDTHS) * len(MODES)} pictures in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
