"""What every bad input of the data floor must do: say one line, naming the cause."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reslab.core.errors import ReslabError


@pytest.fixture
def refused() -> Callable[..., contextlib.AbstractContextManager[Any]]:
    @contextlib.contextmanager
    def expect(*pieces: str) -> Iterator[Any]:
        with pytest.raises(ReslabError) as caught:
            yield caught
        message = str(caught.value)
        assert "\n" not in message
        for piece in pieces:
            assert piece in message, message

    return expect
