"""How a projection is compared with its authors' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import named_leaves

WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


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
    """Compares an output and every gradient with the authors', in float64.

    `parameters` makes the tree from arrays whose names begin with a prefix.
    """

    def check(module, data, parameters):
        module = module.clone(**WIDE)

        def loss(params, x):
            y = module.apply({"params": params}, x)
            return jnp.sum(y * data["cot"]), y

        slopes, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
            parameters("p_"), data["x"]
        )
        np.testing.assert_allclose(y, data["out"], rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(slopes[1], data["grad_x"], rtol=1e-7, atol=1e-7)
        found, wanted = named_leaves(slopes[0]), named_leaves(parameters("grad_p_"))
        assert found.keys() == wanted.keys()
        for name, slope in wanted.items():
            np.testing.assert_allclose(
                found[name], slope, rtol=1e-7, atol=1e-7, err_msg=name
            )

    return check
