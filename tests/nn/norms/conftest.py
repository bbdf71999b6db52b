"""What the tests of norms share: how one is compared with its authors' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS


@pytest.fixture
def golden_set(golden):
    """Loads the arrays of one set in a golden file, their prefix removed."""

    def load(file, prefix):
        return {
            key.removeprefix(prefix): value
            for key, value in golden(file).items()
            if key.startswith(prefix)
        }

    return load


@pytest.fixture
def assert_golden(x64):
    """Compares a norm's output and every gradient with the authors', in float64.

    `keys` gives the authors' name of each parameter; `offsets` what theirs is
    larger by. Numbers that they keep in vectors of one are numbers here.
    """

    def check(norm, data, keys, offsets=None):
        norm = norm.clone(param_dtype=jnp.float64) if keys else norm
        params = {
            name: data[f"param_{key}"].squeeze() - (offsets or {}).get(name, 0.0)
            for name, key in keys.items()
        }

        def apply(params, x):
            return norm.apply({"params": params}, x)

        y, pull = jax.vjp(apply, params, data["x"])
        gradient, x_gradient = pull(jnp.asarray(data["cot"]))
        assert gradient.keys() == keys.keys()
        compared = {"out": y, "grad_x": x_gradient}
        compared |= {f"grad_{key}": gradient[name] for name, key in keys.items()}
        for key, actual in compared.items():
            np.testing.assert_allclose(
                actual, data[key].squeeze(), rtol=1e-7, atol=1e-7, err_msg=key
            )

    return check


@pytest.fixture
def trained(x64):
    """Runs a norm as training does: output, gradients, and the state after."""

    def run(norm, params, state, x, cotangent, mask=None):
        params, state = jax.tree.map(jnp.asarray, (params, state))
        still = state.get(GRADIENT_STATS, {})

        def apply(params, x, still):
            variables = {"params": params, **state, GRADIENT_STATS: still}
            y, written = norm.apply(variables, x, mask, mutable=[BATCH_STATS])
            return y, written[BATCH_STATS]

        y, pull, written = jax.vjp(apply, params, x, still, has_aux=True)
        gradient, x_gradient, still = pull(jnp.asarray(cotangent))
        after = {BATCH_STATS: written} | ({GRADIENT_STATS: still} if still else {})
        return y, gradient, x_gradient, after

    return run
