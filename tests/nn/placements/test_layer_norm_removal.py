import jax
import numpy as np

from reslab.core.model_state import BATCH_STATS
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.nn.placements.layer_norm_removal import end


def test_norms_go_in_the_order_of_the_paper():
    """Feed-forward layers from below, then mixers, then the final norm."""
    model = LanguageModel(
        vocabulary_size=5,
        features=8,
        depth=2,
        mixer="attention(heads=2)",
        norm=f"removable_layer(removed_at={end(2, 1, 1, 2)})",
        placement="layer_norm_removal(start=1, ffn_gap=1, mixer_gap=2)",
    )
    tokens = np.zeros((2, 3), np.int32)
    variables = unbox(jax.jit(model.init)(jax.random.key(0), tokens))

    @jax.jit
    def step(state):
        _, written = model.apply(
            {**variables, BATCH_STATS: state},
            tokens,
            segments=np.ones_like(tokens),
            mutable=[BATCH_STATS],
        )
        return written[BATCH_STATS]

    state, history = variables[BATCH_STATS], []
    for _ in range(9):
        # What still follows moves off a value that no average has.
        marked = jax.tree.map(
            lambda leaf: leaf * 0 - 1 if leaf.dtype == np.float32 else leaf, state
        )
        state = step(marked)
        moved = {
            (name, layer): bool(value > -1 + 1e-6)
            for name, leaf in named_leaves(state).items()
            if name.endswith("deviation")
            for layer, value in enumerate(np.ravel(leaf))
        }
        history.append(moved)
    gone = {
        key: next(i for i, moved in enumerate(history) if not moved[key])
        for key in history[0]
    }
    by_place = {
        (key[0].split("_placement")[0].split("/")[-1], key[1]): when
        for key, when in gone.items()
    }
    assert by_place == {
        ("ffn", 0): 1,
        ("ffn", 1): 2,
        ("mixer", 0): 3,
        ("mixer", 1): 5,
        ("deviation", 0): 7,
    }
