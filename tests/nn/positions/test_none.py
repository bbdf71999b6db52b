import jax
import numpy as np

from reslab.nn.positions.none import NoPosition


def test_leaves_everything_as_it_is():
    rng = np.random.default_rng(0)
    x, heads = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 3, 2, 4))
    positions = np.arange(6).reshape(2, 3)
    position = NoPosition()
    assert position.embed(x, positions) is x
    assert position.rotate(heads, positions) is heads
    assert not position.init(jax.random.key(0), x, positions, method="embed")
