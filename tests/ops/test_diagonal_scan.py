"""Recurrences with a decay per channel: forms, documents, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.ops.diagonal_scan import scans
from reslab.ops.diagonal_scan.api import linear_recurrence, selective_scan

LENGTH, CHANNELS, STATES = 37, 3, 2


def inputs(dtype="float32", length=LENGTH):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, length, CHANNELS))
    step = draw.uniform(0, 1, (2, length, CHANNELS))
    rate = draw.uniform(0, 3, (CHANNELS, STATES))
    key, query = draw.normal(size=(2, 2, length, STATES))
    return [jnp.asarray(a, dtype) for a in (x, step, rate, key, query)]


@pytest.mark.parametrize("size", [1, 8, 16, LENGTH])
def test_chunks_are_one_token_after_the_other(size, x64, monkeypatch):
    monkeypatch.setattr(scans, "CHUNK", size)
    draw = np.random.default_rng(1)
    arrays = [*inputs("float64"), jnp.asarray(draw.normal(size=(2, CHANNELS, STATES)))]
    resets = jnp.asarray(draw.random((2, LENGTH)) < 0.1)
    weights = draw.normal(size=arrays[0].shape)

    def results(implementation):
        def total(*arrays):
            *tokens, state = arrays
            y, final = selective_scan(
                *tokens, state=state, resets=resets, implementation=implementation
            )
            return jnp.sum(weights * y) + jnp.sum(jnp.sin(final)), y

        return jax.jit(jax.grad(total, argnums=range(6), has_aux=True))(*arrays)

    found, wanted = results("chunked"), results("recurrent")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11 * np.max(np.abs(b)))


def test_definition(x64):
    x, step, rate, key, query = (np.asarray(a) for a in inputs("float64"))
    y, final = selective_scan(x, step, rate, key, query)
    h, wanted = np.zeros((2, CHANNELS, STATES)), np.zeros(x.shape)
    for b, t in np.ndindex(2, LENGTH):
        h[b] *= np.exp(-step[b, t][:, None] * rate)
        h[b] += np.outer(step[b, t] * x[b, t], key[b, t])
        wanted[b, t] = h[b] @ query[b, t]
    np.testing.assert_allclose(y, wanted, atol=1e-12)
    np.testing.assert_allclose(final, h, atol=1e-12)


def test_a_linear_recurrence_gives_every_state(x64):
    x, step, *_ = inputs("float64")
    states, last = linear_recurrence(-step, x)
    h = np.zeros((2, CHANNELS))
    for t in range(LENGTH):
        h = np.exp(-step[:, t]) * h + x[:, t]
        np.testing.assert_allclose(states[:, t], h, atol=1e-12)
    np.testing.assert_allclose(last, h, atol=1e-12)


@pytest.mark.conformance
@pytest.mark.optimized
def test_states_are_held_for_one_chunk():
    def temporaries(length):
        shapes = [(1, length, 32), (1, length, 32), (32, 16), *[(1, length, 16)] * 2]
        arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]

        def loss(*arrays):
            return jnp.sum(jnp.square(selective_scan(*arrays)[0]))

        compiled = jax.jit(jax.grad(loss, argnums=range(5))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Every state of the longer one would take 4 MiB.
    assert temporaries(2048) - temporaries(1024) < 2**21


def test_bad_input_is_one_line():
    x, step, rate, key, query = inputs()
    for call, text in (
        (lambda: selective_scan(x, step[:1], rate, key, query), "step: expected shape"),
        (lambda: selective_scan(x, step, rate[:1], key, query), "rate: expected shape"),
        (lambda: selective_scan(x, step, rate, key[:1], query), "key: expected shape"),
        (lambda: linear_recurrence(step[:1], x), "log_decay: expected shape"),
        (lambda: linear_recurrence(step, x, implementation="x"), "implementation 'x'"),
    ):
        with pytest.raises(ReslabError, match=text):
            call()
