"""What every test shares: checked shapes, one way to expect a kind error, truth from outside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

# Every annotated shape in the package is checked at each call of each test.
jaxtyping.install_import_hook("coursepkg", "shape_checker.check")

TRUTH = Path(__file__).parent / "truth"


@pytest.fixture
def kind_error() -> Callable[..., Any]:
    """Expect an error as a user sees it: from our own checks, with the shape checks switched off.

    ``with kind_error(ValueError, "noise_scale", "positive"): ...`` passes when the message holds
    every one of the words.
    """

    @contextmanager
    def expect(error: type[Exception], *words: str) -> Iterator[None]:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            with pytest.raises(error) as caught:
                yield
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)
        missing = [word for word in words if word not in str(caught.value)]
        assert not missing, f"{missing} not in the message: {caught.value}"

    return expect


@pytest.fixture(scope="session")
def truth() -> Callable[[str], Any]:
    """Load a file of reference values from ``tests/truth`` (its README names the sources)."""

    def load(name: str) -> Any:
        return json.loads((TRUTH / f"{name}.json").read_text())

    return load


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of randomness, so that a failure happens again."""
    return torch.Generator().manual_seed(20260101)
