"""A value path called by itself, and small models of layers with one."""

import jax
import numpy as np
import pytest

from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel

TOKENS = np.random.default_rng(0).integers(0, 13, (4, 8), dtype=np.int32)


@pytest.fixture(scope="session")
def call():
    """Values of a layer from its own, `shared` and what it reads, as a function."""

    def run(path, params, x, own, shared):
        _, value, shared = path.apply(
            {"params": params},
            x,
            key=lambda: own,
            value=lambda: own,
            keep=lambda name, new: new,
            shared=shared,
        )
        return value, shared

    return run


@pytest.fixture(scope="session")
def attention_model():
    """A model whose attention has other options than the usual ones, by layer."""

    def make(*options, **fields):
        mixer = tuple(f"attention(heads=2, {option})" for option in options)
        defaults = {"features": 16, "depth": 4, "ffn": "gelu(hidden=16)"}
        return LanguageModel(
            vocabulary_size=13, mixer=mixer, max_length=16, **defaults | fields
        )

    return make


@pytest.fixture(scope="session")
def drawn():
    """Random parameters of a model, made without compiling it."""

    def draw(model):
        shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        rng = np.random.default_rng(1)
        return jax.tree.map(
            lambda leaf: 0.4 * rng.standard_normal(leaf.shape).astype(leaf.dtype),
            unbox(shapes)["params"],
        )

    return draw


@pytest.fixture(scope="session")
def tokens():
    """Four sequences of eight tokens."""
    return TOKENS
