import math

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.trees import named_leaves
from reslab.nn.ffns.gelu import GELUFeedForward


def apply(x, up, down, up_bias, down_bias):
    ffn = GELUFeedForward(
        hidden=up.shape[1], use_bias=True, dtype=jnp.float64, param_dtype=jnp.float64
    )
    params = {
        "up": {"kernel": up, "bias": up_bias},
        "down": {"kernel": down, "bias": down_bias},
    }
    return ffn.apply({"params": params}, x)


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, up = rng.normal(size=(2, 3, 8)), rng.normal(size=(8, 12))
    down, up_bias, down_bias = (rng.normal(size=s) for s in ((12, 8), 12, 8))
    h = x @ up + up_bias
    h = h / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    y = apply(x, up, down, up_bias, down_bias)
    np.testing.assert_allclose(y, h @ down + down_bias, rtol=1e-10, atol=1e-12)


def test_is_close_to_the_gaussian_itself(x64):
    x = np.linspace(-5, 5, 101).reshape(1, 101, 1)
    one, zero = np.ones((1, 1)), np.zeros(1)
    exact = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x.ravel()]
    y = apply(x, one, one, zero, zero)
    np.testing.assert_allclose(np.ravel(y), exact, atol=1e-3)


def test_default_hidden_width_is_four_times_the_features():
    x = jax.ShapeDtypeStruct((1, 1, 8), jnp.float32)
    shapes = jax.eval_shape(GELUFeedForward().init, jax.random.key(0), x)
    kernels = [leaf.shape for leaf in named_leaves(shapes).values()]
    assert sorted(kernels) == [(8, 32), (32, 8)]


def test_is_the_gaussian_itself_where_asked(x64):
    x = np.linspace(-5, 5, 101).reshape(1, 101, 1)
    kernels = {name: {"kernel": np.ones((1, 1))} for name in ("up", "down")}
    double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    ffn = GELUFeedForward(hidden=1, is_exact=True, **double)
    exact = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x.ravel()]
    y = ffn.apply({"params": kernels}, x)
    np.testing.assert_allclose(np.ravel(y), exact, atol=1e-12)
