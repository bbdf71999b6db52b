"""A stream that squares itself is refused by name; one that does not, is not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core.errors import ReslabError
from reslab.models.lm import LanguageModel

TOKENS = np.zeros((2, 4), np.int32)


def make(**fields):
    defaults = {"vocabulary_size": 8, "features": 8, "mixer": "attention(heads=2)"}
    return LanguageModel(**defaults | fields)


def build(**fields):
    model, segments = make(**fields), jnp.ones_like(TOKENS)
    return jax.eval_shape(
        lambda key: model.init(key, TOKENS, segments=segments), jax.random.key(0)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"block": "hourglass", "depth": 4},
        {"block": "hourglass(lift=16)", "ffn": "relu2", "depth": 4},
        {"block": "standard", "depth": 7},
        {"block": "hourglass", "depth": 2},
        {"block": "standard", "depth": 3, "stack": "looped(loops=3)"},
        {"block": "macaron", "ffn": ("polyrelu", "swiglu"), "depth": 4},
    ],
)
def test_squares_of_squares_are_refused(fields):
    with pytest.raises(ReslabError, match="'rep_batch' passes its input on") as caught:
        build(norm="rep_batch", **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": "rep_batch", "block": "hourglass", "ffn": "gelu", "depth": 4},
        {"norm": "rep_batch(initial_skip=0.0)", "block": "hourglass", "depth": 4},
        {"norm": ("rms", "rep_batch"), "block": "standard", "depth": 10},
        {"norm": "rep_batch", "placement": "none", "depth": 9},
        {"norm": "rep_batch", "depth": 6},
        {"norm": "rms", "block": "hourglass", "depth": 4},
    ],
)
def test_others_are_built(fields):
    build(**fields)


@pytest.mark.conformance
def test_the_largest_that_is_built_stays_finite():
    model = make(norm="rep_batch", depth=6, features=32, is_unrolled=True)
    variables = model.init(jax.random.key(0), TOKENS, segments=jnp.ones_like(TOKENS))
    tokens = np.random.default_rng(0).integers(0, 8, (4, 8), dtype=np.int32)
    state = {"batch_stats": variables["batch_stats"]}

    def loss(params):
        (losses, _), _ = model.apply(
            {"params": params, **state},
            tokens,
            tokens,
            segments=jnp.ones_like(tokens),
            method="losses",
            mutable=["batch_stats"],
        )
        return jnp.mean(losses)

    value, gradient = jax.jit(jax.value_and_grad(loss))(variables["params"])
    assert np.isfinite(value) and np.isfinite(optax.tree.norm(gradient))
