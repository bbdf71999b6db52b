import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.mixers.retention import Retention

DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}
HEADS, KEY, VALUE, WIDTH = 2, 8, 16, 16
# The authors' tables are float32.
TOLERANCE = 3e-7


def converted(get, offset):
    """The authors' parameters, whose rotated pairs are neighbours."""
    del offset

    def heads(name, size, order=slice(None)):
        kernel = get(f"{name}_proj.weight").T.reshape(WIDTH, HEADS, size)
        return {"kernel": kernel[..., order]}

    pairs = np.concatenate([np.arange(0, KEY, 2), np.arange(1, KEY, 2)])
    output = get("out_proj.weight").T.reshape(HEADS, VALUE, WIDTH)
    return {
        "query": heads("q", KEY, pairs),
        "key": heads("k", KEY, pairs),
        "value": heads("v", VALUE),
        "gate": heads("g", VALUE),
        "output": {"kernel": output},
    }


def test_golden_parallel(golden, assert_golden):
    module = Retention(heads=HEADS, normalization="scores", form="parallel", **DOUBLE)
    arrays = golden("retnet", "dev_")
    assert_golden(module, arrays, converted, output="parallel", tolerance=TOLERANCE)


def test_golden_recurrent(golden, x64):
    arrays = golden("retnet", "dev_")
    params = {"params": converted(lambda name: arrays[f"in_{name}"], 1)}
    module = Retention(heads=HEADS, normalization="scores", **DOUBLE)
    x, state, parts = jnp.asarray(arrays["in_x"]), module.init_state(2, 1, WIDTH), []
    for t in range(x.shape[1]):
        positions = jnp.full((2, 1), t)
        y, _, state = module.apply(
            params, x[:, t : t + 1], positions=positions, state=state
        )
        parts.append(y)
    scale = np.max(np.abs(arrays["recurrent_o"]))
    y = np.concatenate(parts, 1)
    np.testing.assert_allclose(y, arrays["recurrent_o"], atol=TOLERANCE * scale)
    # The authors' chunks agree with neither of their other forms better.
    whole = module.apply(params, x)[0]
    np.testing.assert_allclose(whole, arrays["recurrent_o"], atol=TOLERANCE * scale)
    np.testing.assert_allclose(whole, arrays["chunk_o"], atol=2e-4 * scale)


@pytest.mark.parametrize("is_packed", [False, True])
def test_forms_are_the_same_numbers(is_packed, x64):
    x = np.random.default_rng(0).normal(size=(2, 20, 8))
    positions = np.tile(np.arange(20), (2, 1))
    segments = None
    if is_packed:
        positions, segments = positions % 9, 1 + positions // 9
    one, other = (
        Retention(heads=2, form=form, **DOUBLE) for form in ("chunked", "parallel")
    )
    variables = jax.jit(one.init)(jax.random.key(0), x)
    y, z = (
        jax.jit(m.apply)(variables, x, positions=positions, segments=segments)[0]
        for m in (one, other)
    )
    np.testing.assert_allclose(y, z, atol=1e-12)


def test_scores_change_what_epsilon_weighs_alone(x64):
    x = np.random.default_rng(0).normal(size=(1, 20, 8))
    made = [
        Retention(heads=2, form=form, normalization=kind, epsilon=1e-30, **DOUBLE)
        for form, kind in itertools.product(("chunked", "parallel"), ("none", "scores"))
    ]
    variables = jax.jit(made[0].init)(jax.random.key(0), x)
    first, *others = (jax.jit(m.apply)(variables, x)[0] for m in made)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-12)


@pytest.mark.parametrize("heads", [3, 8])
def test_refuses_heads_that_do_not_fit(heads):
    with pytest.raises(ReslabError, match=r"a divisor of half the width \(4\)"):
        Retention(heads=heads).init_state(1, 1, 8)


def test_a_state_needs_positions():
    module = Retention(heads=2)
    state = module.init_state(1, 1, 8)
    with pytest.raises(ReslabError, match="positions: expected given with a state"):
        module.init(jax.random.key(0), jnp.zeros((1, 1, 8)), state=state)
