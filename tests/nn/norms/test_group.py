import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.norms.group import GroupNorm
from reslab.nn.norms.layer import LayerNorm


def params(channels=12):
    gain, bias = np.random.default_rng(1).normal(size=(2, channels))
    return {"gain": gain, "bias": bias}


def oracle(x, gain, bias, groups, epsilon):
    parts = []
    for part in np.split(x, groups, axis=-1):
        mean, variance = np.mean(part, -1), np.var(part, -1)
        parts.append((part - mean[..., None]) / np.sqrt(variance[..., None] + epsilon))
    return np.concatenate(parts, axis=-1) * (1 + gain) + bias


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equation(x64, groups):
    x = np.random.default_rng(0).normal(size=(3, 5, 12))
    y = GroupNorm(groups=groups, epsilon=0.1).apply({"params": params()}, x)
    wanted = oracle(x, **params(), groups=groups, epsilon=0.1)
    np.testing.assert_allclose(y, wanted, rtol=1e-10)


@pytest.mark.parametrize("shape", [(2, 12), (2, 5, 12), (2, 3, 4, 12)])
@pytest.mark.parametrize("groups", [3, 6])
def test_over_positions_is_the_layer_of_flax(x64, shape, groups):
    x, cotangent = np.random.default_rng(0).normal(size=(2, *shape))
    p = params()
    ours = GroupNorm(groups=groups, is_spatial=True)
    theirs = nn.GroupNorm(
        num_groups=groups, epsilon=1e-5, use_fast_variance=False, dtype=jnp.float64
    )
    renamed = {"scale": 1 + p["gain"], "bias": p["bias"]}
    y, pull = jax.vjp(lambda p, x: ours.apply({"params": p}, x), p, x)
    # Theirs promotes dtypes by itself, which the tests forbid.
    with jax.numpy_dtype_promotion("standard"):
        wanted, their_pull = jax.vjp(
            lambda p, x: theirs.apply({"params": p}, x), renamed, x
        )
        their_gradient, their_x_gradient = their_pull(jnp.asarray(cotangent))
    np.testing.assert_allclose(y, wanted, rtol=1e-9, atol=1e-12)
    gradient, x_gradient = pull(jnp.asarray(cotangent))
    close = {"rtol": 1e-9, "atol": 1e-11}
    np.testing.assert_allclose(x_gradient, their_x_gradient, **close)
    np.testing.assert_allclose(gradient["gain"], their_gradient["scale"], **close)
    np.testing.assert_allclose(gradient["bias"], their_gradient["bias"], **close)


def test_one_group_is_layer_norm(x64):
    x = np.random.default_rng(0).normal(size=(3, 5, 12))
    y = GroupNorm(groups=1).apply({"params": params()}, x)
    wanted = LayerNorm(epsilon=1e-5).apply({"params": params()}, x)
    np.testing.assert_allclose(y, wanted, rtol=1e-9)


@pytest.mark.parametrize("is_spatial", [False, True])
def test_what_a_position_sees(x64, is_spatial):
    x = np.random.default_rng(0).normal(size=(2, 5, 12))
    norm = GroupNorm(is_spatial=is_spatial)
    before = norm.apply({"params": params()}, x)
    x[0, 4] += np.arange(12.0)
    changed = np.any(norm.apply({"params": params()}, x) != before, axis=-1)
    wanted = np.zeros((2, 5), bool)
    wanted[0, 0 if is_spatial else 4 :] = True
    np.testing.assert_array_equal(changed, wanted)


@pytest.mark.parametrize(
    ("groups", "shape", "told"),
    [
        (5, (2, 12), "divisor of the 12 channels; got 5"),
        (0, (2, 12), "groups: expected at least 1; got 0"),
        (12, (2, 3, 12), "at least two numbers in a group.*is_spatial=True"),
    ],
)
def test_refuses_groups_that_do_not_fit(groups, shape, told):
    with pytest.raises(ReslabError, match=told):
        GroupNorm(groups=groups).init(jax.random.key(0), jnp.ones(shape))


def test_one_channel_is_a_group_where_there_are_positions():
    norm = GroupNorm(groups=12, is_spatial=True)
    y, _ = norm.init_with_output(jax.random.key(0), jnp.ones((2, 3, 12)))
    np.testing.assert_array_equal(y, 0.0)
