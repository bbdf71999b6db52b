"""The affine-only form, which ends residual branches in the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.trees import unbox
from reslab.nn.base.norm import make_norm

NAMES = ("evonorm_b0", "evonorm_b1", "evonorm_s0", "evonorm_s1")


@pytest.mark.parametrize("name", NAMES)
def test_affine_only(x64, name):
    norm = registry.make("norms", f"{name}(is_affine_only=True)")
    x, cotangent = np.random.default_rng(0).normal(size=(2, 3, 4, 8))
    gain, bias = np.random.default_rng(1).normal(size=(2, 8))
    params = {"gain": gain, "bias": bias}
    start = unbox(norm.init(jax.random.key(0), x))
    assert jax.tree.map(jnp.shape, start) == {"params": {"gain": (8,), "bias": (8,)}}

    def apply(params, x):
        return norm.apply({"params": params}, x)

    y, pull = jax.vjp(apply, jax.tree.map(jnp.asarray, params), jnp.asarray(x))
    slopes, slope = pull(jnp.asarray(cotangent))
    np.testing.assert_allclose(y, x * (1 + gain) + bias, rtol=1e-12)
    np.testing.assert_allclose(slope, cotangent * (1 + gain), rtol=1e-12)
    np.testing.assert_allclose(slopes["gain"], np.sum(cotangent * x, (0, 1)), rtol=1e-9)
    np.testing.assert_allclose(slopes["bias"], np.sum(cotangent, (0, 1)), rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_is_no_activation(name):
    """So it may stand where a norm alone does."""
    spec = f"{name}(is_affine_only=True, gain_start='zero')"
    x = jnp.asarray([[[-1.0, 2.0], [3.0, -4.0]]])
    y, _ = make_norm(spec, has_mask=True).init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, 0.0)
    assert registry.make("norms", name).is_activation
    assert not registry.make("norms", spec).is_activation
