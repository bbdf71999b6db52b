import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.value_paths.satformer import GatedFirstValues

GATES = ("relu", "sigmoid", "softmax", "softmax_sigmoid", "tanh", "identity")


@pytest.mark.parametrize("gate", GATES)
def test_golden(golden, x64, call, gate):
    data = {
        key.removeprefix(f"{gate}_"): value
        for key, value in golden("value_residual").items()
        if key.startswith(f"{gate}_")
        and not (gate == "softmax" and key.startswith("softmax_sigmoid"))
    }
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    path = GatedFirstValues(gate=gate, kv_heads=4, **wide)

    @jax.jit
    def run(weight, x, own, first, cotangent):
        def mix(weight, x, own, first):
            params = {"gate": {"kernel": weight.T}}
            return call(path, params, x, own, {"values": first})[0]

        y, pull = jax.vjp(mix, weight, x, own, first)
        return y, *pull(cotangent)

    names = ("p_alpha_w", "h", "v", "v1")
    y, *gradients = run(*(data[name] for name in names), data["cot"])
    pairs = [(y, "out"), *zip(gradients, (f"grad_{n}" for n in names), strict=True)]
    for actual, key in pairs:
        np.testing.assert_allclose(actual, data[key], rtol=1e-7, atol=1e-7, err_msg=key)


def test_without_a_gate_values_are_the_own(call):
    rng = np.random.default_rng(0)
    x, own, first = (
        rng.normal(size=s).astype(np.float32) for s in ((1, 2, 8), *2 * ((1, 2, 4, 3),))
    )
    params = {"gate": {"kernel": np.zeros((8, 4), np.float32)}}
    y, _ = call(GatedFirstValues(), params, x, own, {"values": first})
    np.testing.assert_array_equal(y, own)


def test_refuses_an_unknown_gate():
    with pytest.raises(ReslabError, match=r"gate 'rellu'.*'relu'"):
        GatedFirstValues(gate="rellu")
