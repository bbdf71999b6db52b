"""Gains at initialization, and networks whose norms alone learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS
from reslab.core.trees import unbox
from reslab.nn.norms.batch import BatchNorm


@pytest.mark.parametrize("name", ["layer", "rms", "batch", "rep_batch", "evonorm_s0"])
@pytest.mark.parametrize("is_offset", [True, False])
def test_gains_begin_where_asked(name, is_offset):
    x = jnp.ones((2, 512))

    def gain(start):
        spec = f"{name}(gain_start={start!r}, is_gain_offset={is_offset})"
        variables = registry.make("norms", spec).init(jax.random.key(0), x)
        return np.asarray(unbox(variables)["params"]["gain"]) + is_offset

    np.testing.assert_array_equal(gain("one"), 1.0)
    np.testing.assert_array_equal(gain("zero"), 0.0)
    drawn = gain("uniform")
    assert np.all((drawn >= 0) & (drawn <= 1))
    np.testing.assert_allclose(
        np.quantile(drawn, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.1
    )


def test_refuses_another_start():
    with pytest.raises(ReslabError, match="gain_start: expected 'one', 'zero' or 'uni"):
        registry.make("norms", "layer(gain_start='half')")


def test_random_features_learn_by_their_norms_alone():
    """Two frozen layers and a frozen head; only gains and biases of norms move."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32)
    labels = (x[:, 0] * x[:, 1] > 0).astype(jnp.float32)
    kernels = [rng.normal(size=(6, 64)) / 3, rng.normal(size=(64, 64)) / 6]
    kernels = [jnp.asarray(kernel, jnp.float32) for kernel in kernels]
    head = jnp.asarray(rng.normal(size=64) / 8, jnp.float32)
    norm = BatchNorm(gain_start="uniform")
    starts = [norm.init(jax.random.key(i), jnp.ones((2, 64))) for i in range(2)]
    params = [start["params"] for start in starts]

    def loss(params):
        h = x
        for kernel, own in zip(kernels, params, strict=True):
            variables = {"params": own, BATCH_STATS: starts[0][BATCH_STATS]}
            h, _ = norm.apply(variables, h @ kernel, mutable=[BATCH_STATS])
            h = jax.nn.relu(h)
        return jnp.mean(jax.nn.softplus((1 - 2 * labels) * (h @ head)))

    step = jax.jit(jax.value_and_grad(loss))
    first, slopes = step(params)
    for _ in range(60):
        params = jax.tree.map(lambda p, g: p - 1.0 * g, params, slopes)
        last, slopes = step(params)
    assert last < 0.75 * first
