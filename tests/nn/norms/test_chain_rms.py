import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.norms.chain_rms import ChainRMSNorm
from reslab.nn.norms.rms import RMSNorm


@pytest.mark.parametrize("case", ["dev"])
def test_golden(golden_set, case, x64):
    data = golden_set("colm_from_equations", f"{case}_chainrms_")
    config = json.loads(str(golden_set("colm_from_equations", f"{case}_")["cfg"]))
    norm = ChainRMSNorm(
        chains=tuple(config["chains"]), is_gain_offset=False, param_dtype=jnp.float64
    )

    def loss(gain, x):
        y = norm.apply({"params": {"gain": gain}}, x)
        return jnp.sum(y * data["cot"]), y

    slopes, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(data["p_g"], data["x"])
    for found, wanted in zip(
        (y, *slopes), (data["out"], data["grad_p_g"], data["grad_x"]), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-7)


def test_one_chain_is_the_rms_norm():
    x = jax.random.normal(jax.random.key(0), (3, 8))
    params = {"params": {"gain": jnp.arange(8.0)}}
    one = ChainRMSNorm(chains=(2,)).apply(params, x)
    np.testing.assert_allclose(one, RMSNorm().apply(params, x), rtol=1e-6)


def test_refuses_chains_that_do_not_divide_the_features():
    with pytest.raises(
        ReslabError, match=r"norms 'chain_rms'.*divides the width \(8\)"
    ):
        ChainRMSNorm(chains=(1, 2)).init(jax.random.key(0), jnp.zeros((2, 8)))
