import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import count_parameters, named_leaves
from reslab.nn.ffns.gelu import GELUFeedForward
from reslab.nn.ffns.swiglu import SwiGLU


def test_equation(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 8))
    gate, up = rng.normal(size=(2, 8, 12))
    down = rng.normal(size=(12, 8))
    gate_bias, up_bias = rng.normal(size=(2, 12))
    down_bias = rng.normal(size=8)
    ffn = SwiGLU(hidden=12, use_bias=True, dtype=jnp.float64, param_dtype=jnp.float64)
    params = {
        "gate": {"kernel": gate, "bias": gate_bias},
        "up": {"kernel": up, "bias": up_bias},
        "down": {"kernel": down, "bias": down_bias},
    }
    opening = x @ gate + gate_bias
    opening = opening / (1 + np.exp(-opening))
    wanted = (opening * (x @ up + up_bias)) @ down + down_bias
    y = ffn.apply({"params": params}, x)
    np.testing.assert_allclose(y, wanted, rtol=1e-10, atol=1e-12)


def parameters(module, width):
    x = jax.ShapeDtypeStruct((1, 1, width), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), x)


@pytest.mark.parametrize(("width", "hidden"), [(12, 32), (96, 256), (768, 2048)])
def test_default_hidden_width_is_eight_thirds_in_steps_of_32(width, hidden):
    kernels = named_leaves(parameters(SwiGLU(), width))
    shapes = {name.split("/")[1]: leaf.shape for name, leaf in kernels.items()}
    outer, inner = (width, hidden), (hidden, width)
    assert shapes == {"gate": outer, "up": outer, "down": inner}


def test_costs_as_much_as_the_two_matrix_layer():
    three = count_parameters(parameters(SwiGLU(), 768))
    assert three == count_parameters(parameters(GELUFeedForward(), 768))
