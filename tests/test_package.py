"""The wheel and the sdist, built and used as a student would."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import sys
import coursepkg
from coursepkg import basis, bayes_linear, data, linear
from coursepkg import annealing, diagnostics, hmc, langevin, mcmc, networks, summaries
print(coursepkg.__file__)
heavy = {"matplotlib", "seaborn", "pyro", "sklearn", "statsmodels", "mlxtend", "pandas",
         "arviz", "scipy"}
print(sorted(heavy & set(sys.modules)))
import torch
print(linear.fit_ols(basis.polynomial(torch.arange(3.0), degree=1), torch.arange(3.0)).coefficients)
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command outside the checkout and hand out what it prints."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and the wheel that is built from it (not from the checkout)."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


def test_wheel_and_sdist_hold_the_package_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    modules = {f"coursepkg/{p.name}" for p in (ROOT / "coursepkg").glob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        assert any(n.endswith("LICENSE") for n in archive.namelist())
    assert names == modules | {"coursepkg/py.typed"}

    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert modules | {"pyproject.toml", "README.md", "LICENSE", "constraints.txt"} <= names
    assert not any({"_build", ".venv", "dist"} & set(Path(n).parts) for n in names)


def test_wheel_works_in_a_clean_environment_outside_the_checkout(
    dist: Path, tmp_path: Path
) -> None:
    (wheel,) = dist.glob("*.whl")
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    python = venv / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "--quiet", "-c", constraints, wheel, cwd=tmp_path)
    where, heavy, coefficients = run(python, "-I", "-c", PROBE, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(venv)
    assert heavy == "[]", "importing coursepkg loads what only some modules need"
    assert coefficients.startswith("tensor([")
