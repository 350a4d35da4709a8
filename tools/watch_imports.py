"""Note what a chapter and the package import themselves; a kernel runs this first (PYTHONSTARTUP).

What their imports import is no need of theirs: seaborn loads statsmodels where it happens to be.
"""

import builtins
from collections.abc import Callable
from typing import Any


def _watched(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the import function."""

    def watched(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        importer = (globals or {}).get("__name__", "").partition(".")[0]
        if importer in ("__main__", "coursepkg"):
            builtins.imported_here.add(name.partition(".")[0])  # type: ignore[attr-defined]
        return original(name, globals, locals, fromlist, level)

    return watched


builtins.imported_here = set()  # type: ignore[attr-defined]
builtins.__import__ = _watched(builtins.__import__)
