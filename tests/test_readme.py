"""The README keeps what it promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)


def test_the_first_example_runs_and_predicts_the_sensor(capsys):
    exec(compile(EXAMPLES[0], "README.md", "exec"), {})
    mean, scale = (float(number) for number in capsys.readouterr().out.split(" ± "))
    assert abs(mean - 0.48) < 2 * scale < 0.4  # sin(0.5) = 0.48, and the noise alone is 0.1


def test_the_second_example_runs_and_its_draws_can_be_trusted(capsys, generator):
    torch.manual_seed(0)
    exec(compile(EXAMPLES[1], "README.md", "exec"), {})
    table = capsys.readouterr().out
    assert "Nothing speaks against these draws." in table
    assert abs(float(table.split("mean ")[-1].split()[0]) - 1.4) < 0.2  # the data's mean


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "LICENSE-text.md"])
def test_links_to_files_resolve(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_command_that_it_names_is_a_target():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^    |`)make ([a-z-]+)", README, re.M)) <= targets
