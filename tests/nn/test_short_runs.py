"""A few steps of small models with variants that have no run of their own elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.models.vit import VisionTransformer

TEXT = {
    "recentred": {"linear": "zero_mean", "post_embedding_norm": "centre"},
    "activation norms": {"placement": "pre_activation", "ffn": "swiglu(hidden=16)"},
    "depth window": {"residual": "depth_window(window=2, heads=2)"},
    "short window": {"block": "short_window(short='attention(heads=2, window=2)')"},
    "values apart": {"residual": "delta_attnres(use_value_read=True)"},
    "along tokens": {"residual": "ddl(values=2, expansion=2, taps=2)"},
    "all layers": {"residual": "all_layers"},
    "affine only": {"norm": "evonorm_s0(is_affine_only=True)", "placement": "peri"},
}


def trained(model, inputs, loss_of, steps=12):
    """Losses before and after steps of Adam on one batch."""
    params = unbox(jax.jit(model.init)(jax.random.key(0), inputs)["params"])
    adam = optax.adam(1e-2)
    state = adam.init(params)

    @jax.jit
    def step(params, state):
        def loss(params):
            return loss_of(model.apply({"params": params}, inputs))

        value, slopes = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = adam.update(slopes, state, params)
        return value, optax.apply_updates(params, updates), state

    losses = []
    for _ in range(steps):
        value, params, state = step(params, state)
        losses.append(float(value))
    return losses[0], losses[-1]


@pytest.mark.conformance
@pytest.mark.parametrize("name", TEXT)
def test_language(name):
    fields = {"mixer": "attention(heads=2)", "ffn": "gelu(hidden=16)"} | TEXT[name]
    model = LanguageModel(
        vocabulary_size=11, features=8, depth=2, is_unrolled=True, **fields
    )
    tokens = jnp.asarray(np.random.default_rng(0).integers(11, size=(4, 8)))

    def loss_of(logits):
        losses = optax.softmax_cross_entropy_with_integer_labels
        return losses(logits[:, :-1], tokens[:, 1:]).mean()

    first, last = trained(model, tokens, loss_of)
    assert np.isfinite(last)
    assert last < 0.9 * first


@pytest.mark.conformance
def test_images():
    model = VisionTransformer(
        classes=3,
        image_shape=(8, 8, 1),
        features=8,
        depth=2,
        mixer="max_pool",
        ffn="gelu(hidden=16)",
        is_unrolled=True,
    )
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(9, 8, 8, 1)), jnp.float32)
    labels = jnp.arange(9) % 3

    def loss_of(logits):
        losses = optax.softmax_cross_entropy_with_integer_labels
        return losses(logits, labels).mean()

    first, last = trained(model, images, loss_of)
    assert last < 0.9 * first
