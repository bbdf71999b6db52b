import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import unbox
from reslab.nn.positions.learned import LearnedPosition


def test_adds_the_row_of_each_position():
    rng = np.random.default_rng(0)
    x, table = rng.normal(size=(2, 3, 8)), rng.normal(size=(16, 8))
    positions = np.array([[0, 1, 2], [7, 0, 15]])
    y = LearnedPosition(max_length=16).apply(
        {"params": {"embedding": table.astype(np.float32)}},
        x.astype(np.float32),
        positions,
        method="embed",
    )
    np.testing.assert_allclose(y, x + table[positions], rtol=1e-5, atol=1e-6)


def test_leaves_queries_and_keys_as_they_are():
    heads = jnp.ones((2, 3, 2, 4))
    assert LearnedPosition().rotate(heads, jnp.zeros((2, 3))) is heads


def test_table_starts_as_asked_for():
    x, positions = jnp.zeros((1, 1, 64)), jnp.zeros((1, 1), jnp.int32)
    module = LearnedPosition(max_length=512, embedding_std=0.05)
    table = unbox(module.init(jax.random.key(0), x, positions, method="embed"))
    table = np.asarray(table["params"]["embedding"])
    assert table.shape == (512, 64)
    assert float(np.std(table)) == pytest.approx(0.05, rel=0.02)
