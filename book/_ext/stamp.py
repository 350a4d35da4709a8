"""Print on each page which versions made it, and point myst-nb at the matching cache."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from platform import python_version

from package_hash import cache_path, package_hash, package_version
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.typing import ExtensionMetadata


def configure(app: Sphinx, config: Config) -> None:
    """Fill the footer and the substitutions that the status page uses."""
    root = Path(app.srcdir)
    facts = {
        "course_version": str(config.release),
        "package_version": package_version(root),
        "package_hash": package_hash(root)[:12],
        "torch_version": version("torch"),
        "numpy_version": version("numpy"),
        "python_version": python_version(),
    }
    config.nb_execution_cache_path = str(cache_path(root))
    config.myst_substitutions = {**config.myst_substitutions, **facts}
    config.html_theme_options["extra_footer"] = (
        '<p class="page-stamp">'
        "Course {course_version} · coursepkg {package_version} "
        "(<code>{package_hash}</code>) · torch {torch_version}</p>"
    ).format(**facts)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.connect("config-inited", configure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
