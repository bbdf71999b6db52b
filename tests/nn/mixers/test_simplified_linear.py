import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.mixers.simplified_linear import SimplifiedLinear

DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}
HEADS, SIZE, WIDTH = 3, 4, 12


def converted(get, offset):
    """The authors' parameters, on a window of four by four."""
    del offset

    def heads(index):
        kernel, bias = (np.split(get(f"qkv_{n}"), 3)[index] for n in ("weight", "bias"))
        kernel = kernel.T.reshape(WIDTH, HEADS, SIZE)
        return {"kernel": kernel, "bias": bias.reshape(HEADS, SIZE)}

    tree = {name: heads(i) for i, name in enumerate(("query", "key", "value"))}
    return tree | {
        "place": get("positional_encoding").reshape(16, HEADS, SIZE),
        "near_taps": get("dwc_weight")[:, 0].transpose(1, 2, 0),
        "near_bias": get("dwc_bias"),
        "output": {
            "kernel": get("proj_weight").T.reshape(HEADS, SIZE, WIDTH),
            "bias": get("proj_bias"),
        },
    }


def test_golden(golden, assert_golden):
    arrays = golden("sla", "dev_")
    renamed = {k.replace("param_", "in_", 1): a for k, a in arrays.items()}
    renamed |= {
        f"{new}": arrays[old]
        for new, old in (("in_x", "x"), ("out_y", "out"), ("cot_y", "cot"))
    }
    assert_golden(SimplifiedLinear(heads=HEADS, **DOUBLE), renamed, converted)


def test_it_is_attention_with_products_for_weights(x64):
    x = np.random.default_rng(0).normal(size=(1, 6, 8))
    module = SimplifiedLinear(heads=1, taps=1, epsilon=0.0, use_bias=False, **DOUBLE)
    params = dict(module.init(jax.random.key(0), x)["params"])
    params["near_taps"] = jnp.zeros_like(params["near_taps"])
    y = module.apply({"params": params}, x)[0]
    query, key, value = (
        x[0] @ np.asarray(params[name]["kernel"])[:, 0]
        for name in ("query", "key", "value")
    )
    weights = np.maximum(query, 0) @ np.maximum(key, 0).T
    weights = weights / weights.sum(axis=1, keepdims=True)
    wanted = weights @ value @ np.asarray(params["output"]["kernel"])[0]
    np.testing.assert_allclose(y[0], wanted, atol=1e-12)


def test_refuses_heads_that_do_not_fit():
    with pytest.raises(ReslabError, match=r"heads: expected a divisor of the width"):
        SimplifiedLinear(heads=5).mixing_flops(4, 16)
