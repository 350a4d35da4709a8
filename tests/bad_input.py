"""One test for all the ways in which a function can be called wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

# The call, the error that it must raise, and words that the message must hold.
Case = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]


def bad_input(cases: Iterable[Case]) -> Callable[..., None]:
    """A test, to be named ``test_…``, that each call raises its error and says what is wrong."""

    @pytest.mark.parametrize(("call", "error", "words"), cases)
    def test(
        call: Callable[[], Any],
        error: type[Exception],
        words: tuple[str, ...],
        kind_error: Callable[..., Any],
    ) -> None:
        with kind_error(error, *words):
            call()

    return test
