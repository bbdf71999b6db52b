"""Slots at different loops: each sample gets what it gets alone."""

import functools

import jax
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.train.generate import generate
from reslab.train.slots import continue_in_slots
from tests.nn.stacks.conftest import TOKENS, make, start

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6], [5, 3], [5, 8, 9, 7], [9]]


@functools.cache
def trained(stack="recursive(unique=1, lora_rank=2)"):
    model = make(stack, depth=3)
    return model, start(model)


def padded(rows):
    width = max(map(len, rows))
    real = np.arange(width) < np.array([len(row) for row in rows])[:, None]
    return np.array([[*row, *[0] * (width - len(row))] for row in rows]), real


def in_slots(rows, slots, threshold, length=4):
    model, variables = trained()
    prompt, real = padded(rows)
    run = functools.partial(
        continue_in_slots, slots=slots, threshold=threshold, temperature=0
    )
    return jax.jit(run, static_argnums=(0, 3))(
        model, variables, prompt, length, jax.random.key(0), real
    )


def test_greedily_slots_continue_as_all_at_once():
    options = {"length": 4, "temperature": 0}
    wanted = generate(*trained(), PROMPTS, **options)
    found = generate(*trained(), PROMPTS, slots=2, **options)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.conformance
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_each_sample_gets_what_it_gets_alone(threshold):
    together, applications = in_slots(PROMPTS, 2, threshold)
    alone, each = in_slots(PROMPTS, 1, threshold)
    np.testing.assert_array_equal(together, alone)
    # Two slots take half of the applications, or a few more at the end.
    assert int(each) / 2 <= int(applications) < int(each) / 2 + 3 * 4
    if not threshold:
        # Of each sample three new tokens are read again, in three passes.
        assert int(each) == len(PROMPTS) * 3 * 3
    else:
        assert len(PROMPTS) * 3 <= int(each) < len(PROMPTS) * 3 * 3


@pytest.mark.parametrize(
    ("stack", "options", "message"),
    [
        ("recursive", {"slots": 3}, "slots: expected 1 to 2, the samples; got 3"),
        ("uniform", {"slots": 1}, "slots: expected a stack with one loop"),
        ("recursive", {"slots": 1, "exit": "kl"}, "expected 'none' or 'latent'"),
        ("recursive(injection='add')", {"slots": 1}, "without a step embedding"),
        ("recursive", {"slots": -1}, "slots: expected 1 to 2"),
    ],
)
def test_refuses_in_one_line(stack, options, message):
    model = make(stack, depth=2)
    with pytest.raises(ReslabError, match=message) as caught:
        generate(model, start(model), TOKENS, 2, **options)
    assert "\n" not in str(caught.value)
