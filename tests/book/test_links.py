"""The link check finds what is gone. It asks a server on this machine, and no other."""

from __future__ import annotations

from pathlib import Path

import check_links
import pytest
from browser import serve


def test_a_dead_link_is_named_with_its_place(
    small_book, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site: Path = tmp_path_factory.mktemp("site")
    (site / "here.html").write_text("<p>here</p>")
    intro = small_book.root / "book" / "intro.md"
    small_book.build()
    with serve(site) as url:
        intro.write_text(f"# A small book\n\n[a page]({url}here.html)\n")
        assert check_links.summary(check_links.ask(small_book.root)) == (
            "All 1 addresses answer. Nothing to do."
        )
        intro.write_text(f"# A small book\n\n[a page]({url}here.html) [gone]({url}gone.html)\n")
        found = check_links.summary(check_links.ask(small_book.root))
    assert "1 of 2 addresses did not answer" in found
    assert f"book/intro.md, line 3: {url}gone.html (broken: 404" in found
    # The book itself is as it was.
    assert not (small_book.root / "_build" / "html" / "output.json").exists()
