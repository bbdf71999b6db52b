"""The activation of a feed-forward layer alone, against the authors' arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


@pytest.fixture
def activation_of(x64):
    """Applies a layer whose projections change nothing, so its activation alone."""

    def make(kind, coefficients, x):
        width = x.shape[-1]
        identity = {"kernel": np.eye(width)}
        layer = kind(hidden=width, **WIDE)
        params = {"up": identity, "down": identity, "coefficients": coefficients}
        return layer.apply({"params": params}, x)

    return make


@pytest.fixture
def assert_is_golden(golden, activation_of):
    """Compares an activation with the authors', forward and backward."""

    def check(kind, name, case):
        prefix = f"{case}_{name}_"
        data = {
            key.removeprefix(prefix): value
            for key, value in golden("polycom").items()
            if key.startswith(prefix)
        }

        def ordered(constant, factors):
            """They list the coefficients from the cubic one down."""
            return np.concatenate([constant, factors[::-1]])

        def loss(coefficients, x):
            y = activation_of(kind, coefficients, x)
            return jnp.sum(y * data["cot"]), y

        coefficients = ordered(data["p_b"], data["p_w"])
        slopes, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
            coefficients, data["x"]
        )
        slope = ordered(data["grad_p_b"], data["grad_p_w"])
        for found, wanted in (
            (y, data["out"]),
            (slopes[0], slope),
            (slopes[1], data["grad_x"]),
        ):
            np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-7)

    return check
