"""The README keeps what it promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_predicts_the_sensor(capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)
    exec(compile(example, "README.md", "exec"), {})
    mean, scale = (float(number) for number in capsys.readouterr().out.split(" ± "))
    assert abs(mean - 0.48) < 2 * scale < 0.4  # sin(0.5) = 0.48, and the noise alone is 0.1


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "LICENSE-text.md"])
def test_links_to_files_resolve(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_command_that_it_names_is_a_target():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^    |`)make ([a-z-]+)", README, re.M)) <= targets
