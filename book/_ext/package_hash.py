"""The hash of everything of ours that can change a notebook's output.

It is the key of the execution cache and is printed on each page, so a reader can tell which
package made the numbers in front of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest(files: Iterable[Path], root: Path) -> str:
    """Hash the names and contents of files, in a fixed order."""
    sha = hashlib.sha256()
    for path in sorted(files):
        sha.update(f"{path.relative_to(root).as_posix()}\0".encode())
        sha.update(hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()


def package_hash(root: Path) -> str:
    """Hash the package's modules and the versions it is installed with."""
    return digest([*root.glob("coursepkg/**/*.py"), root / "constraints.txt"], root)


def package_version(root: Path) -> str:
    """Read the version from the source: an installed copy may be an older one."""
    source = (root / "coursepkg" / "__init__.py").read_text(encoding="utf-8")
    line = next(line for line in source.splitlines() if line.startswith("__version__"))
    return line.split('"')[1]


def wheel_version(root: Path) -> str:
    """The version that the book's wheel bears: the release, and a hash of the very code."""
    return f"{package_version(root)}+g{package_hash(root)[:12]}"


def cache_path(root: Path) -> Path:
    """Where executed notebooks are kept for this state of the package."""
    return root / "_build" / "jupyter_cache" / package_hash(root)[:16]
