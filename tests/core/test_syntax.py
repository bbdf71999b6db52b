"""Syntax trees made in several threads."""

import gc
import threading
import time

import pytest

from reslab.core import syntax

SOURCE = "\n".join(f"a{i} = [{i}, {i} + 1, (x{i}, b.c)]" for i in range(60)).encode()


@pytest.fixture
def switching():
    """Changes the thread within the making of a tree, as callbacks of JAX may do."""
    before = gc.get_threshold()

    def switch(*_):
        time.sleep(1e-5)

    gc.callbacks.append(switch)
    gc.set_threshold(10)
    yield
    gc.set_threshold(*before)
    gc.callbacks.remove(switch)


def test_threads_parse_at_once(switching):
    found = {}

    def parse(depth, number):
        if depth:
            return parse(depth - 1, number)
        try:
            found[number] = len(syntax.module(SOURCE).body)
        except SystemError as error:
            found[number] = error

    threads = [threading.Thread(target=parse, args=(3 * i, i)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [60] * 6


@pytest.mark.parametrize("source", ["", "1 +", "a\0b", "1; 2"])
def test_another_expression_is_refused(source):
    with pytest.raises((SyntaxError, ValueError)):
        syntax.expression(source)
