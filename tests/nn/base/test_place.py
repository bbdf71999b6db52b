"""Parts are told the same numbers whatever loop applies their layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.losses import LOSSES, add_loss
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.nn.ffns.gelu import build as Gelu
from reslab.nn.linears.dense import Dense
from reslab.nn.mixers.attention import build as Attention
from reslab.nn.norms.rms import build as RMSNorm

TOKENS = np.zeros((1, 4), np.int32)


def telling(base, name):
    """A part that adds where it is to the loss, as one number."""

    class Telling(base):
        @nn.compact
        def __call__(
            self, x, *, layer=-1, pass_index=-1, site=-1, sublayer=-1, **keywords
        ):
            place = (pass_index, layer, sublayer, site)
            number = jnp.zeros((), jnp.int32)
            for part in place:
                number = 100 * number + part
            add_loss(self, name, number.astype(jnp.float32))
            return super().__call__(x, **keywords)

    return Telling


def told(name, **fields):
    """Everything that parts were told: (pass, layer, sublayer, site), in order."""
    model = LanguageModel(
        **{"vocabulary_size": 8, "features": 8, "depth": 3, "max_length": 4}
        | {"mixer": "attention(heads=2)", "ffn": "gelu(hidden=8)"}
        | fields
    )
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))["params"]
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes)
    _, written = model.apply({"params": params}, TOKENS, mutable=[LOSSES])
    found = set()
    for path, leaf in named_leaves(written).items():
        if f"/{name}/" in path:
            for number in np.ravel(leaf).astype(int):
                parts = number // 1000000, number // 10000, number // 100, number
                found.add(tuple(int(part) % 100 for part in parts))
    return sorted(found)


LOOPS = {
    "rolled": {},
    "unrolled": {"is_unrolled": True},
    "computed again": {"remat": "full"},
    "a history, unrolled": {"residual": "denseformer", "is_unrolled": True},
    "a pattern": {"mixer": ("attention(heads=2)", "attention(heads=1)")},
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_feed_forward_layer_is_told_its_place(loop):
    found = told("ffn", ffn=telling(Gelu, "ffn"), **LOOPS[loop])
    assert found == [(0, 0, 1, 1), (0, 1, 1, 3), (0, 2, 1, 5)]


def test_the_passes_of_a_loop_are_told_apart():
    found = told("ffn", ffn=telling(Gelu, "ffn"), stack="looped(loops=2)", depth=2)
    assert found == [(0, 0, 1, 1), (0, 1, 1, 3), (1, 0, 1, 5), (1, 1, 1, 7)]


BLOCKS = {
    "macaron": [(0, 0, 0, 0), (0, 0, 2, 2), (0, 1, 0, 3), (0, 1, 2, 5)],
    "parallel": [(0, 0, 0, 0), (0, 1, 0, 1)],
    "hourglass(bottlenecks=2)": [
        *[(0, 0, 1, 1), (0, 0, 2, 2), (0, 1, 1, 4), (0, 1, 2, 5)],
    ],
}


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_other_sublayers(block):
    found = told("ffn", ffn=telling(Gelu, "ffn"), block=block, depth=2)
    assert found == BLOCKS[block]


def test_mixers_norms_and_linears_are_told_too():
    class Mixer(telling(Attention, "mixer")):
        heads: int = 2

    assert told("mixer", mixer=Mixer, depth=2) == [(0, 0, 0, 0), (0, 1, 0, 2)]
    norms = told("norm", norm=telling(RMSNorm, "norm"), depth=2)
    # The fifth is the final norm, outside of the layers, which is told nothing.
    assert norms[:4] == [(0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 2), (0, 1, 1, 3)]
    assert len(norms) == 5
    linears = told("linear", linear=telling(Dense, "linear"), depth=1)
    assert linears == [(0, 0, 0, 0), (0, 0, 1, 1)]
