import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.residuals.vertical import VerticalAttention


def test_equation(x64):
    rng = np.random.default_rng(0)
    sources = rng.normal(size=(3, 2, 4, 8))
    query, key = rng.normal(size=(2, 8, 5))
    residual = VerticalAttention(
        head_dim=5, depth=4, sublayers=1, param_dtype=jnp.float64
    )
    params = {
        "query": {"kernel": query},
        "key": {"kernel": key},
        "gate": jnp.asarray(0.7),
    }

    def unit(x):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    logits = np.einsum(
        "blk,nblk->nbl", unit(sources[2]) @ query, unit(sources) @ key
    ) / np.sqrt(5)
    weights = np.exp(logits) / np.sum(np.exp(logits), axis=0)
    wanted = sources[2] + 0.7 * np.einsum("nbl,nbld->bld", weights, sources)
    stream = residual.widen(jnp.asarray(sources[0]))
    for row in (1, 2):
        stream = stream.write(jnp.asarray(sources[row]), row)
    seen = []
    residual.apply(
        {"params": {"read": params}},
        stream,
        lambda h: seen.append(h) or jnp.tanh(h),
        site=2,
    )
    np.testing.assert_allclose(seen[0], wanted, rtol=1e-9)


def test_the_first_layer_reads_the_embedding():
    residual = VerticalAttention(depth=2)
    x = jax.random.normal(jax.random.key(0), (1, 2, 8))
    params = {
        "query": {"kernel": jnp.ones((8, 1))},
        "key": {"kernel": jnp.ones((8, 1))},
    }
    seen = []
    residual.apply(
        {"params": {"read": params | {"gate": jnp.ones(())}}},
        residual.widen(x),
        lambda h: seen.append(h) or h,
        site=0,
    )
    np.testing.assert_array_equal(seen[0], x)


def test_refuses_a_negative_size():
    with pytest.raises(ReslabError, match="head_dim: expected at least 1, or 0"):
        VerticalAttention(head_dim=-1)
