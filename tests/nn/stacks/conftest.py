"""A small language model of any stack, for tests of stacks."""

import jax
import numpy as np

from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel

TOKENS = np.random.default_rng(3).integers(0, 24, (2, 6), dtype=np.int32)


def make(stack, **fields):
    """The model, with some fields changed."""
    defaults = {"features": 8, "depth": 4, "ffn": "gelu(hidden=8)", "max_length": 16}
    defaults |= {"mixer": "attention(heads=2)", "vocabulary_size": 24}
    return LanguageModel(stack=stack, **defaults | fields)


def start(model, scale=0.3):
    """Its variables, all of them drawn."""
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda s: (scale * rng.standard_normal(s.shape)).astype(s.dtype), shapes
    )
