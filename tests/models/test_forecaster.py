import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import named_leaves, unbox
from reslab.models.forecaster import Forecaster

S_MAMBA = "mamba(is_bidirectional=True, state_size=2, taps=2, expansion=1.0)"


def make(**fields):
    defaults = {"history": 12, "horizon": 3, "variates": 4, "features": 8, "depth": 1}
    defaults |= {"mixer": "attention(heads=2)", "position": "none"}
    return Forecaster(**defaults | fields)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (2, 12, 4))


def variables(model, x):
    return unbox(jax.jit(model.init)(jax.random.key(1), x))


def test_scale_and_level_of_a_history_pass_through(x):
    model = make()
    params = variables(model, x)
    y = model.apply(params, x)
    assert y.shape == (2, 3, 4) and y.dtype == jnp.float32
    scale, level = (
        jnp.array([[1.0, 2.0, 3.0, 10.0]]),
        jnp.array([[0.0, 1.0, -4.0, 7.0]]),
    )
    other = model.apply(params, x * scale[None] + level[None])
    np.testing.assert_allclose(other, y * scale[None] + level[None], atol=2e-3)


def test_variates_are_tokens(x):
    """Attention without positions takes them in any order; each sees all others."""
    model = make()
    params = variables(model, x)
    y, order = model.apply(params, x), np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        model.apply(params, x[..., order]), y[..., order], atol=1e-5
    )
    changed = model.apply(params, x.at[:, 5, 3].add(3.0))
    assert np.all(np.any(np.abs(changed - y) > 1e-6, axis=(0, 1)))


@pytest.mark.conformance
def test_reversed_variates_and_swapped_directions_give_reversed_forecasts(x):
    model = make(mixer=S_MAMBA, norm="layer", placement="post", ffn="relu")
    params = variables(model, x)["params"]
    y = model.apply({"params": params}, x)
    swapped = jax.tree.map(lambda a: a, params)
    block = swapped["layers"]["body"]["segment_0"]["block_0"]
    mixer = block["mixer"]
    block["mixer"] = {"forward": mixer["backward"], "backward": mixer["forward"]}
    z = model.apply({"params": swapped}, x[..., ::-1])
    np.testing.assert_allclose(z[..., ::-1], y, atol=1e-5)


@pytest.mark.conformance
def test_every_parameter_has_a_gradient(x):
    model = make(mixer=S_MAMBA, position="learned")
    weights = jax.random.normal(jax.random.key(2), (2, 3, 4))

    def loss(params):
        return jnp.sum(weights * model.apply({"params": params}, x))

    gradient = jax.jit(jax.grad(loss))(variables(model, x)["params"])
    for name, leaf in named_leaves(gradient).items():
        assert jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0), name
