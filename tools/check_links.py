"""Ask every address that the book links to whether it is still there.

    python tools/check_links.py [ROOT]

Needs the network, and the executed notebooks of `make book`. It belongs to no build: that a site
elsewhere is down is no fault of a change here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FINE = ("working", "redirected", "unchecked", "ignored", "local")


def ask(root: Path) -> list[dict[str, Any]]:
    """Run Sphinx's link check in a folder of its own, and give what it found for each link."""
    output = root / "_build" / "links"
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(root), "--all"]
    done = subprocess.run(
        [*command, "--builder", "linkcheck", "--path-output", str(output)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = output / "_build" / "html" / "output.json"
    if not found.exists():
        raise RuntimeError(f"the link check did not run:\n{done.stdout}\n{done.stderr}")
    lines = found.read_text(encoding="utf-8").splitlines()
    found.unlink()  # or it would stand for the next run
    return [json.loads(line) for line in lines]


def summary(links: list[dict[str, Any]]) -> str:
    """Say in Markdown which links want a look."""
    bad = [link for link in links if link["status"] not in FINE]
    addresses = len({link["uri"] for link in links if link["status"] not in ("unchecked", "local")})
    if not bad:
        return f"All {addresses} addresses answer. Nothing to do."
    rows = "".join(
        f"- {link['filename']}, line {link['lineno']}: {link['uri']} ({link['status']}: "
        f"{' '.join(str(link['info']).split())})\n"
        for link in bad
    )
    return (
        f"{len({link['uri'] for link in bad})} of {addresses} addresses did not answer. Try them "
        f"in a browser: a site may be down for a day, or keep robots out.\n\n{rows}"
    )


def main() -> int:
    """Print the summary, also on the page of a workflow's run."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    links = ask(root.resolve())
    text = summary(links)
    print(text)
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(page).open("a", encoding="utf-8") as stream:
            stream.write(f"{text}\n")
    return int(any(link["status"] not in FINE for link in links))


if __name__ == "__main__":
    sys.exit(main())
