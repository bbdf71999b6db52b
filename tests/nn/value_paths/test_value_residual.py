import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.value_paths.value_residual import ValueResidual


@pytest.mark.parametrize("form", ["learned", "constant"])
def test_golden(golden, x64, call, form):
    prefix = {"learned": "resformer_learned_", "constant": "resformer_const_"}[form]
    data = {
        key.removeprefix(prefix): value
        for key, value in golden("value_residual").items()
        if key.startswith(prefix)
    }
    params = {}
    if form == "learned":
        params = {
            "first_scale": data["p_lambda1"].reshape(()),
            "own_scale": data["p_lambda2"],
        }

    def mix(params, own, first):
        path = ValueResidual(form=form, param_dtype=jnp.float64)
        return call(path, params, own, own, {"values": first})[0]

    y, pull = jax.vjp(mix, params, data["v"], data["v1"])
    gradient, own_gradient, first_gradient = pull(jnp.asarray(data["cot"]))
    pairs = [(y, "out"), (own_gradient, "grad_v"), (first_gradient, "grad_v1")]
    if form == "learned":
        pairs.append((gradient["first_scale"], "grad_p_lambda1"))
        pairs.append((gradient["own_scale"], "grad_p_lambda2"))
    for actual, key in pairs:
        wanted = data[key].reshape(actual.shape)
        np.testing.assert_allclose(actual, wanted, rtol=1e-7, atol=1e-7, err_msg=key)


def test_first_layer_leaves_its_values_and_later_ones_keep_them(call):
    own = np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float32)
    path = ValueResidual(form="constant")
    value, shared = call(path, {}, own, own, {})
    np.testing.assert_array_equal(value, own)
    np.testing.assert_array_equal(shared["values"], own)
    value, shared = call(path, {}, own, 3 * own, shared)
    np.testing.assert_allclose(value, 2 * own, rtol=1e-6)
    np.testing.assert_array_equal(shared["values"], own)


def test_refuses_an_unknown_form():
    with pytest.raises(ReslabError, match="'learned' or 'constant'; got 'constnat'"):
        ValueResidual(form="constnat")
