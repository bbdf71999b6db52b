"""How a mixer is held against arrays that the authors' code made."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import named_leaves, unbox

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"


@pytest.fixture
def golden():
    """Reads a golden file without the prefix of its names."""

    def read(name, prefix=""):
        with np.load(GOLDENS / f"{name}.npz") as file:
            return {
                key.removeprefix(prefix): file[key]
                for key in file
                if key.startswith(prefix)
            }

    return read


@pytest.fixture
def assert_golden(x64):
    """Compares output and gradients with those of a golden layer, in float64.

    `params` maps arrays of the golden to parameters: `params(get, offset)`, where
    `get(name)` is an array or its gradient and `offset` 1, or 0 for gradients, to be
    taken from gains.
    """

    def check(module, arrays, params, *, output="y", tolerance=1e-7, **keywords):
        given = params(lambda name: arrays[f"in_{name}"], 1)
        x = jnp.asarray(arrays["in_x"])
        wanted = jax.eval_shape(module.init, jax.random.key(0), x, **keywords)
        wanted = unbox(wanted)["params"]
        shapes = jax.tree.map(jnp.shape, given), jax.tree.map(jnp.shape, wanted)
        assert shapes[0] == shapes[1]

        def run(params, x):
            return module.apply({"params": params}, x, **keywords)[0]

        y, pull = jax.vjp(jax.jit(run), given, x)
        close(y, arrays[f"out_{output}"], tolerance)
        by_params, by_x = pull(jnp.asarray(arrays[f"cot_{output}"]))
        close(by_x, arrays["grad_x"], tolerance)
        slopes = named_leaves(params(lambda name: arrays[f"grad_{name}"], 0))
        for name, found in named_leaves(by_params).items():
            close(found, slopes[name], tolerance, name)

    return check


def close(found, wanted, tolerance, name=""):
    scale = np.max(np.abs(wanted))
    np.testing.assert_allclose(
        found, wanted, rtol=0, atol=tolerance * scale, err_msg=name
    )
