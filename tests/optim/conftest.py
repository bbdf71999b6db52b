"""Replays of the authors' runs, and a small stack of kernels to take apart."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core.layout import Layout, read


@pytest.fixture
def replay(golden):
    """Steps a transformation through a golden's gradients; compares each step."""

    def run(name, tag, transformation, *, leaves, steps, atol, seed="dev"):
        arrays = golden(name)

        def tree(key):
            return {
                leaf: jnp.asarray(arrays[f"{seed}_{key}/{leaf}"], jnp.float32)
                for leaf in leaves
            }

        params = tree("p0")
        state = transformation.init(params)

        @jax.jit
        def step(gradients, state, params):
            updates, state = transformation.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        for number in range(1, steps + 1):
            params, state = step(tree(f"g{number}"), state, params)
            wanted = tree(f"{tag}_p{number}")
            for leaf in leaves:
                np.testing.assert_allclose(
                    params[leaf], wanted[leaf], atol=atol, rtol=0, err_msg=leaf
                )
        return state

    return run


@pytest.fixture
def hyperparameters(golden):
    """The hyperparameters with which a golden was made."""
    return lambda name: json.loads(str(golden(name)["hp_json"]))


# In the layout of the authors' codes, (outputs, inputs).
TURNED = Layout("matrix", (), (1,), (0,))


@pytest.fixture
def turned():
    """Layouts of leaves: kernels as the authors' codes store them, and vectors."""

    def make(kernels, others=()):
        return {name: TURNED for name in kernels} | {
            name: Layout(read(("embed",)).kind) for name in others
        }

    return make


@pytest.fixture(autouse=True)
def as_optax_counts():
    """Optax counts on implicit promotion (b1 ** step), as `make_step` allows it."""
    with jax.numpy_dtype_promotion("standard"):
        yield
