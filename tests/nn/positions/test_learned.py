import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
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


@pytest.mark.parametrize("positions", [range(6), [0, 1, 4], [-1, 0]])
def test_positions_beyond_the_table_are_refused(positions):
    positions = jnp.array([positions])
    x = jnp.zeros((*positions.shape, 8))
    module = LearnedPosition(max_length=4)
    with pytest.raises(ReslabError, match=r"position: expected 0 to 3"):
        module.init(jax.random.key(0), x, positions, method="embed")
    model = LanguageModel(
        vocabulary_size=7, features=16, depth=1, position="learned", max_length=4
    )
    tokens = jnp.zeros((1, 6), jnp.int32)
    with pytest.raises(ReslabError, match="sequence length: expected at most 4"):
        jax.eval_shape(model.init, jax.random.key(0), tokens)
    # Documents of a packed row may begin again.
    packed = jnp.array([[0, 1, 2, 0, 1, 2]])
    jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, positions=packed))


def test_a_table_longer_than_the_model_needs():
    position = LearnedPosition(max_length=4, length=9)
    x, places = jnp.zeros((1, 9, 2)), jnp.arange(9)[None]
    variables = position.init(jax.random.key(0), x, places, method="embed")
    assert variables["params"]["embedding"].shape == (9, 2)
    assert position.max_length == 9
