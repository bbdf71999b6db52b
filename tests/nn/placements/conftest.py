"""The parameters of small models under a placement."""

import jax
import numpy as np
import pytest

from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel


@pytest.fixture(scope="session")
def small_variables():
    """Initial parameters of a small model, by path."""

    def build(**fields):
        defaults = {"depth": 4, "features": 64, "mixer": "attention(heads=2)"}
        model = LanguageModel(vocabulary_size=11, **{**defaults, **fields})
        tokens = np.zeros((1, 2), np.int32)
        return named_leaves(unbox(jax.jit(model.init)(jax.random.key(0), tokens)))

    return build
