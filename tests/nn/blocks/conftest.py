"""Blocks with random parameters, in double precision, and their parts alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.surroundings import Context
from reslab.core.trees import unbox

WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}
PLACES = {"positions": np.broadcast_to(np.arange(4), (2, 4))}


class Silent(nn.Module):
    """A mixer that adds nothing."""

    writes_shared = False

    def init_state(self, batch, length, features):
        return None

    def mixing_flops(self, length, features):
        return 0

    @nn.compact
    def __call__(self, x, *, positions, segments, shared, state=None):
        return jnp.zeros_like(x), shared, state


@pytest.fixture
def make_block(x64):
    """A block by its spec, and random parameters of it for features of 8."""

    def make(spec, **fields):
        block = registry.make("blocks", spec, context=Context(**WIDE), **fields)
        x = np.zeros((2, 4, 8))
        shapes = jax.eval_shape(
            lambda: block.init(jax.random.key(0), x, {}, layer=0, **PLACES)
        )
        rng = np.random.default_rng(0)
        draw = lambda leaf: 0.5 * rng.normal(size=leaf.shape)  # noqa: E731
        return block, jax.tree.map(draw, unbox(shapes)["params"])

    return make


@pytest.fixture
def apply_block():
    """What a block makes of features (2, 4, 8)."""

    def apply(block, params, x):
        return jax.jit(
            lambda params: block.apply({"params": params}, x, {}, layer=1, **PLACES)[0]
        )(params)

    return apply


@pytest.fixture
def parts():
    """The norm, mixer and ffn of a block's parameters, as functions of features."""

    def take(params, mixer="attention(heads=2)", ffn="swiglu(hidden=12)"):
        def norm(name, x):
            module = registry.make("norms", "rms", param_dtype=jnp.float64)
            return module.apply(
                {"params": params[f"{name}_placement"]["input_norm"]}, x
            )

        def mix(x):
            module = registry.make("mixers", mixer, **WIDE)
            return module.apply({"params": params["mixer"]}, x, **PLACES)[0]

        def feed(name, x):
            module = registry.make("ffns", ffn, **WIDE)
            return module.apply({"params": params[name]}, x)

        return norm, mix, feed

    return take


@pytest.fixture
def features():
    return np.random.default_rng(1).normal(size=(2, 4, 8))


@pytest.fixture
def silent():
    return Silent
