import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.nn.ffns.polynorm import PolyNormFeedForward


@pytest.mark.parametrize("case", ["dev"])
def test_golden(assert_is_golden, case):
    assert_is_golden(PolyNormFeedForward, "polynorm", case)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_power_has_a_mean_square_of_one(activation_of, order):
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    y = activation_of(PolyNormFeedForward, np.eye(4)[order], x)
    np.testing.assert_allclose(np.mean(np.square(y), -1), 1.0, rtol=1e-4)


def test_does_not_see_the_size_of_its_input(activation_of):
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    weights = np.asarray([0.3, 1.0, -2.0, 0.5])
    small, large = (
        activation_of(PolyNormFeedForward, weights, factor * x) for factor in (10, 1000)
    )
    np.testing.assert_allclose(small, large, rtol=1e-5)


def test_keeps_its_input_alone_for_the_backward_pass():
    """The powers are computed again: three arrays of the hidden width less."""
    layer, x = PolyNormFeedForward(hidden=8), jnp.zeros((2, 3, 4))
    params = layer.init(jax.random.key(0), x)
    _, transpose = jax.vjp(lambda x: jnp.sum(layer.apply(params, x)), x)
    wide = [leaf for leaf in jax.tree.leaves(transpose) if leaf.shape == (2, 3, 8)]
    assert len(wide) <= 2
