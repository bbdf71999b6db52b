"""Linear attention with a decay, against the authors' numbers and its definition."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.ops.ssd.api import ssd
from reslab.ops.ssd.chunked import chunked
from reslab.ops.ssd.reference import recurrent

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "mamba2_ssd.npz"


def inputs(dtype="float32", batch=2, length=37, heads=4, groups=2, key_dim=3):
    draw = np.random.default_rng(0)
    query, key = draw.normal(size=(2, batch, length, groups, key_dim))
    value = draw.normal(size=(batch, length, heads, 5))
    log_decay = -draw.uniform(0, 1, (batch, length, heads))
    state = draw.normal(size=(batch, heads, key_dim, 5))
    return [jnp.asarray(a, dtype) for a in (query, key, value, log_decay, state)]


def close(found, wanted, tolerance):
    scale = np.max(np.abs(wanted))
    np.testing.assert_allclose(np.float64(found), wanted, atol=tolerance * scale)


@pytest.mark.parametrize("implementation", ["auto", "chunked", "recurrent"])
def test_golden(implementation, x64):
    with np.load(GOLDEN) as file:
        golden = {key.removeprefix("dev_"): file[key] for key in file}

    @jax.jit
    def run(x, step, rate, key, query, state):
        state = jnp.swapaxes(state[:, 0], -1, -2)
        y, state = ssd(
            query,
            key,
            x * step[..., None],
            step * rate[None, None],
            state=state,
            implementation=implementation,
        )
        return y, jnp.swapaxes(state, -1, -2)

    names = ("X", "dt", "A", "B", "C", "initial_states")
    arrays = [jnp.asarray(golden[f"in_{name}"]) for name in names]
    (y, state), pull = jax.vjp(run, *arrays)
    close(y, golden["out_Y"], 1e-12)
    close(state, golden["out_final_state"], 1e-12)
    cotangents = [jnp.asarray(golden[f"cot_{n}"]) for n in ("Y", "final_state")]
    for name, slope in zip(names, pull(tuple(cotangents)), strict=True):
        close(slope, golden[f"grad_{name}"], 1e-11)


@pytest.mark.parametrize("size", [1, 8, 16, 37])
def test_chunks_are_one_token_after_the_other(size, x64):
    """Forward and backward, with groups and resets; some tokens forget everything."""
    *arrays, log_decay, state = inputs("float64")
    draw = np.random.default_rng(1)
    log_decay = jnp.where(draw.random(log_decay.shape) < 0.1, -jnp.inf, log_decay)
    resets = jnp.asarray(draw.random((2, 37)) < 0.1)
    weights = draw.normal(size=arrays[2].shape)

    def results(form, *options):
        def total(*arrays):
            y, final = form(*arrays, resets, *options)
            return jnp.sum(weights * y) + jnp.sum(jnp.sin(final)), y

        run = jax.jit(jax.grad(total, argnums=range(5), has_aux=True))
        return run(*arrays, log_decay, state)

    found, wanted = results(chunked, size), results(recurrent)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        close(a, b, 1e-12)


def test_definition(x64):
    query, key, value, log_decay, state = (np.asarray(a) for a in inputs("float64"))
    y, final = ssd(query, key, value, log_decay, state=state)
    wanted, memory = np.zeros(value.shape), state.copy()
    for b, t, h in np.ndindex(*log_decay.shape):
        memory[b, h] *= np.exp(log_decay[b, t, h])
        memory[b, h] += np.outer(key[b, t, h // 2], value[b, t, h])
        wanted[b, t, h] = query[b, t, h // 2] @ memory[b, h]
    close(y, wanted, 1e-12)
    close(final, memory, 1e-12)


def test_what_follows_a_strong_decay_is_exact():
    for forget in (-1e2, -1e4, -1e7, -np.inf):
        for token in (0, 10, 36):
            *arrays, log_decay, state = inputs()
            log_decay = log_decay.at[:, token].set(forget)
            y, _ = ssd(*arrays, log_decay, state=state)
            wide = [np.float64(a) for a in (*arrays, log_decay, state)]
            with jax.enable_x64(True):
                wanted, _ = recurrent(*map(jnp.asarray, wide), None)
            close(y[:, token:], wanted[:, token:], 2e-6)


def test_bfloat16_keeps_a_float32_memory():
    arrays = inputs("bfloat16")
    y, state = ssd(*arrays[:4], state=arrays[4])
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    slope = jax.grad(lambda x: jnp.sum(ssd(x, *arrays[1:4])[0]))(arrays[0])
    assert slope.dtype == jnp.bfloat16 and np.all(np.isfinite(slope))


def test_bad_input_is_one_line():
    query, key, value, log_decay, state = inputs()
    for call, text in (
        (lambda: ssd(query, key[:1], value, log_decay), "key: expected shape"),
        (lambda: ssd(query, key, value[:, :, :3], log_decay), "a multiple of groups"),
        (lambda: ssd(query, key, value, log_decay[:1]), "log_decay: expected shape"),
        (lambda: ssd(query, key, value, log_decay, state=state[0]), "state: expected"),
        (lambda: ssd(query, key, value, log_decay, implementation="chunk"), "chunked"),
    ):
        with pytest.raises(ReslabError, match=text):
            call()
