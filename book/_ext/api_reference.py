"""Resolve the names that our annotations use in signatures.

Annotations are strings, so Sphinx sees the short names of a module's imports and the shapes of
jaxtyping (``Float[Tensor, "chains draws"]``), and in nitpicky mode reports each as unknown.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext import intersphinx
from sphinx.util.typing import ExtensionMetadata

SHORT_NAMES = {
    "Axes": "matplotlib.axes.Axes",
    "Bool": "jaxtyping.Bool",
    "Callable": "collections.abc.Callable",
    "Distribution": "torch.distributions.distribution.Distribution",
    "Figure": "matplotlib.figure.Figure",
    "Float": "jaxtyping.Float",
    "Gamma": "torch.distributions.gamma.Gamma",
    "Generator": "torch.Generator",
    "Int": "jaxtyping.Int",
    "Iterable": "collections.abc.Iterable",
    "Iterator": "collections.abc.Iterator",
    "Literal": "typing.Literal",
    "Mapping": "collections.abc.Mapping",
    "Sequence": "collections.abc.Sequence",
    "Tensor": "torch.Tensor",
    "matplotlib.axes._axes.Axes": "matplotlib.axes.Axes",
    "torch._C.Generator": "torch.Generator",
    "torch.nn.modules.conv.Conv1d": "torch.nn.Conv1d",
    "torch.nn.modules.conv.Conv2d": "torch.nn.Conv2d",
    "torch.nn.modules.linear.Linear": "torch.nn.Linear",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
}
# Type variables stand for any type: there is nothing to link to.
TYPE_VARIABLES = {"StateT"}


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """Link a short name to the inventory's full one, and show a shape as plain text."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    if (target[:1] in "'\"" and target[-1:] in "'\"") or target.rpartition(".")[
        2
    ] in TYPE_VARIABLES:
        return content
    if target in SHORT_NAMES:
        node["reftarget"] = SHORT_NAMES[target]
        return intersphinx.missing_reference(app, env, node, content)
    return None


def skip_tuple_field(
    app: Sphinx, what: str, name: str, member: object, skip: bool, options: dict[str, Any]
) -> bool | None:
    """Leave out a named tuple's fields: the docstring of the tuple describes them."""
    return True if type(member).__name__ == "_tuplegetter" else None


def name_function(
    app: Sphinx,
    what: str,
    name: str,
    thing: object,
    options: dict[str, Any],
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Show a default such as ``torch.relu`` by its name: its repr would not even parse."""
    if signature:
        signature = re.sub(r"<built-in method (\w+) of type object[^>]*>", r"torch.\1", signature)
    return signature, returns


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension."""
    app.connect("autodoc-process-signature", name_function)
    app.connect("autodoc-skip-member", skip_tuple_field)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
