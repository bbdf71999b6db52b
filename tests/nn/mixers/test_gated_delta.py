import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import count_bytes, unbox
from reslab.nn.mixers.gated_delta import GatedDelta

BATCH, LENGTH, WIDTH, HEADS = 2, 7, 8, 2
DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def convolved(x, taps):
    """A causal convolution and a silu, for one document (length, heads, size)."""
    y = np.zeros_like(x)
    for t in range(len(x)):
        for back in range(min(len(taps), t + 1)):
            y[t] += taps[back] * x[t - back]
    return silu(y)


def unit(x):
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def oracle(params, x):
    """One document (length, embed), token by token, from an empty memory."""

    def project(name):
        return np.einsum("le,e...->l...", x, params[name]["kernel"])

    query, key, value = (
        convolved(project(name), params[f"{name}_convolution"]["taps"])
        for name in ("query", "key", "value")
    )
    query, key = unit(query), unit(key)
    beta = sigmoid(project("beta"))
    step = np.log1p(np.exp(project("decay") + params["decay_bias"]))
    decay = np.exp(-np.exp(params["log_rate"]) * step)
    key_dim, value_dim = key.shape[-1], value.shape[-1]
    memory = np.zeros((HEADS, key_dim, value_dim))
    read = np.zeros_like(value)
    for t, h in np.ndindex(value.shape[:2]):
        k = key[t, h]
        # The paper's form: S_t = S_(t-1) alpha (I - beta k k^T) + beta v k^T.
        forget = np.eye(key_dim) - beta[t, h] * np.outer(k, k)
        memory[h] = decay[t, h] * forget @ memory[h]
        memory[h] += beta[t, h] * np.outer(k, value[t, h])
        read[t, h] = query[t, h] @ memory[h] / np.sqrt(key_dim)
    size = np.sqrt(np.mean(read**2, axis=-1, keepdims=True) + 1e-6)
    y = read / size * (1 + params["output_norm"]["gain"]) * silu(project("gate"))
    return np.einsum("lhd,hde->le", y, params["output"]["kernel"])


def random_parameters(module, x):
    rng = np.random.default_rng(0)
    shapes = unbox(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
    return jax.tree.map(lambda leaf: 0.7 * rng.normal(size=leaf.shape), shapes)


@pytest.mark.parametrize("fields", [{}, {"head_dim": 4, "value_expansion": 1.0}])
def test_equation(x64, fields):
    x = np.random.default_rng(1).normal(size=(BATCH, LENGTH, WIDTH))
    module = GatedDelta(heads=HEADS, **fields, **DOUBLE)
    params = random_parameters(module, x)
    y, _, _ = jax.jit(module.apply)({"params": params}, x)
    wanted = np.stack([oracle(params, one) for one in x])
    np.testing.assert_allclose(y, wanted, rtol=1e-9, atol=1e-9)


def test_packed_documents_start_from_an_empty_memory(x64):
    x = np.random.default_rng(1).normal(size=(1, LENGTH, WIDTH))
    module = GatedDelta(heads=HEADS, **DOUBLE)
    params = random_parameters(module, x)
    segments = np.array([[4, 4, 9, 9, 9, 9, 2]])
    y, _, _ = jax.jit(module.apply)({"params": params}, x, segments=segments)
    alone = [oracle(params, x[0, a:b]) for a, b in ((0, 2), (2, 6), (6, 7))]
    np.testing.assert_allclose(y[0], np.concatenate(alone), rtol=1e-9, atol=1e-9)


def test_state_is_small_and_does_not_grow():
    module = GatedDelta(heads=2, head_dim=4, value_expansion=2.0)
    state = module.init_state(3, 8, 16)
    assert state["memory"].shape == (3, 2, 4, 8)
    assert state["memory"].dtype == jnp.float32
    assert count_bytes(state) == count_bytes(module.init_state(3, 10_000, 16))


def test_memory_stays_float32_in_bfloat16():
    state = GatedDelta(heads=2, dtype=jnp.bfloat16).init_state(1, 8, 16)
    assert state["memory"].dtype == jnp.float32
    assert state["key"].dtype == jnp.bfloat16


def test_decays_start_in_the_documented_range():
    x = jnp.zeros((1, 1, 256))
    module = GatedDelta(heads=64, head_dim=4)
    params = unbox(jax.jit(module.init)(jax.random.key(0), x))["params"]
    rate = np.exp(np.asarray(params["log_rate"]))
    step = np.log1p(np.exp(np.asarray(params["decay_bias"])))
    assert 0 < rate.min() < 4 < 12 < rate.max() < 16
    assert 1e-3 <= step.min() < 3e-3 < 3e-2 < step.max() <= 1.001e-1


def test_default_sizes_have_as_many_parameters_as_four_square_matrices():
    assert GatedDelta(heads=4).sizes(512) == (96, 192)
    x = jax.ShapeDtypeStruct((1, 1, 512), jnp.float32)
    shapes = jax.eval_shape(GatedDelta(heads=4).init, jax.random.key(0), x)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == pytest.approx(6 * 512**2 * 0.75 * 4 / 3, rel=0.02)


def test_refuses_heads_that_do_not_fit():
    message = r"heads: expected a divisor of 3/4 of the width \(16\); got 5"
    with pytest.raises(ReslabError, match=message):
        GatedDelta(heads=5).sizes(16)
