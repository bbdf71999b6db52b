import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import unbox
from reslab.nn.residuals.layer_scale import LayerScale


def test_equation():
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(2, 3, 8)), rng.normal(size=8)
    with jax.enable_x64(True):
        y = LayerScale().apply({"params": {"scale": scale}}, x, jnp.tanh, site=3)
    np.testing.assert_allclose(y, x + scale * np.tanh(x), rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"depth": 12}, 0.1),
        ({"depth": 18}, 0.1),
        ({"depth": 24}, 1e-5),
        ({"depth": 36}, 1e-6),
        ({"depth": 36, "start": 0.5}, 0.5),
    ],
    ids=str,
)
def test_starts_by_depth(fields, start):
    residual = LayerScale(**fields)
    x = jnp.zeros((1, 2, 4))
    variables = unbox(residual.init(jax.random.key(0), x, jnp.tanh, site=0))
    np.testing.assert_allclose(variables["params"]["scale"], np.full(4, start))
