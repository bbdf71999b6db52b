"""What every bad input of the data floor must do: say one line, naming the cause."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from reslab.core.errors import ReslabError


@pytest.fixture
def refused() -> Callable[..., contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def expect(*pieces: str) -> Iterator[None]:
        with pytest.raises(ReslabError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for piece in pieces:
            assert piece in message, message

    return expect
