import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import unbox
from reslab.nn.linears.dense import Dense


@pytest.mark.parametrize(
    ("inputs", "features", "axes", "equation"),
    [
        ((8,), 6, ("embed", "mlp"), "bli,io->blo"),
        ((8,), (2, 3), ("embed", "heads", "head_dim"), "bli,ihd->blhd"),
        ((2, 4), 6, ("heads", "head_dim", "embed"), "blhd,hdo->blo"),
    ],
)
def test_equation(x64, inputs, features, axes, equation):
    rng = np.random.default_rng(0)
    shape = (features,) if isinstance(features, int) else features
    x, kernel = rng.normal(size=(2, 3, *inputs)), rng.normal(size=(*inputs, *shape))
    bias = rng.normal(size=shape)
    dense = Dense(
        features,
        axes,
        use_bias=True,
        dtype=jnp.float64,
        param_dtype=jnp.float64,
    )
    y = dense.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    wanted = np.einsum(equation, x, kernel) + bias
    np.testing.assert_allclose(y, wanted, rtol=1e-10, atol=1e-12)


def test_starts_with_the_deviation_asked_for_and_no_bias():
    x = jnp.ones((1, 256))

    def start(**fields):
        dense = Dense(512, use_bias=True, **fields)
        return unbox(dense.init(jax.random.key(0), x))["params"]

    assert np.std(start()["kernel"]) == pytest.approx(1 / 16, rel=0.02)
    assert np.std(start(scale=0.5)["kernel"]) == pytest.approx(1 / 32, rel=0.02)
    assert np.std(start(init_std=0.3)["kernel"]) == pytest.approx(0.3, rel=0.02)
    np.testing.assert_array_equal(start()["bias"], 0.0)


def test_fan_in_is_that_of_all_contracted_axes():
    dense = Dense(512, ("heads", "head_dim", "embed"))
    params = unbox(dense.init(jax.random.key(0), jnp.ones((1, 8, 32))))["params"]
    assert np.std(params["kernel"]) == pytest.approx(1 / 16, rel=0.02)


def test_multiplies_in_its_dtype_and_stores_in_the_other():
    x = jnp.full((1, 4), 1.001)
    dense = Dense(4, dtype=jnp.bfloat16)
    y, variables = dense.init_with_output(jax.random.key(0), x)
    kernel = unbox(variables)["params"]["kernel"]
    assert (y.dtype, kernel.dtype) == (jnp.bfloat16, jnp.float32)
    rounded = x.astype(jnp.bfloat16) @ kernel.astype(jnp.bfloat16)
    np.testing.assert_array_equal(y, rounded)
