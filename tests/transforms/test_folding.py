"""Norms that are affine, taken into the projections after them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS, model_state_of
from reslab.core.trees import map_named, named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.transforms import (
    fold_embedding_projection,
    fuse_norm,
    remove_layer_norm,
)

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 8))
BASE = {
    "model.features": 8,
    "model.depth": 2,
    "model.mixer": "attention(heads=2)",
    "model.ffn": "swiglu(hidden=12)",
    "model.vocabulary_multiple": 1,
}
REMOVAL = {
    "model.norm": "removable_layer(removed_at=9)",
    "model.placement": "layer_norm_removal(start=2, ffn_gap=1, mixer_gap=2)",
}


def flat(**changes):
    config = configs.update(configs.load("base"), (BASE | changes).items())
    return dict(configs.flatten(config))


def model_of(fields):
    parts = {
        key.removeprefix("model."): value
        for key, value in fields.items()
        if key.startswith("model.") and key not in ("model.loop", "model.name")
    }
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return LanguageModel(vocabulary_size=11, max_length=8, **wide, **parts)


def trained(fields, updates=20):
    """Parameters and statistics as training might leave them."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(model_of(fields).init, jax.random.key(0), TOKENS)

    def draw(name, leaf):
        last = name.split("/")[-1]
        if last in ("updates", "steps", "skipped"):
            return jnp.full(leaf.shape, updates, leaf.dtype)
        if last in ("variance", "mean_square", "deviation"):
            return jnp.asarray(0.5 + random.random(leaf.shape))
        return jnp.asarray(0.2 + 0.4 * random.normal(size=leaf.shape))

    return map_named(draw, unbox(shapes))


def logits(fields, variables):
    kept = {"params": variables["params"], **model_state_of(variables)}
    return jax.jit(model_of(fields).apply)(kept, TOKENS)


@pytest.mark.parametrize(
    ("transform", "changes"),
    [
        (fuse_norm, {"model.norm": "batch"}),
        (fuse_norm, {"model.norm": "rep_batch", "model.tie_embeddings": True}),
        (fuse_norm, {"model.norm": "progressive_rep_batch"}),
        (fuse_norm, {"model.norm": "unified"}),
        (fuse_norm, {"model.norm": "power(groups=0)"}),
        (fuse_norm, {"model.norm": "power"}),
        (remove_layer_norm, REMOVAL),
    ],
    ids=["batch", "rep_batch", "progressive", "unified", "power0", "power1", "removal"],
)
def test_logits_are_the_same_without_a_norm(x64, transform, changes):
    fields = flat(**changes)
    variables = trained(fields)
    new, changed = transform.build(variables, fields)
    assert new.keys() == {"params"}
    left = [name for name in named_leaves(new["params"]) if "norm" in name]
    assert not left
    wanted = {"rms(epsilon=1e-05, use_gain=False)", "none"}
    assert changed["model.norm"] in wanted
    config = configs.update(configs.load("base"), (fields | changed).items())
    configs.check(config)
    after = logits(dict(configs.flatten(config)), new)
    before = logits(fields, variables)
    assert np.std(before) > 0.1
    size = float(np.max(np.abs(before)))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * size)


def test_a_norm_of_embedding_and_position_stays(x64):
    fields = flat(**{"model.norm": "batch", "model.position": "learned"})
    variables = trained(fields)
    new, changed = fuse_norm.build(variables, fields)
    assert "embedding_norm/gain" in named_leaves(new["params"])
    before, after = logits(fields, variables), logits(fields | changed, new)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * np.abs(before).max())


def test_a_norm_of_a_batch_after_the_embedding_is_refused(x64):
    fields = flat(**{"model.norm": "batch", "model.post_embedding_norm": "batch"})
    with pytest.raises(ReslabError, match=r"fuse_norm: model\.post_embedding_norm"):
        fuse_norm.build(trained(fields), fields)


@pytest.mark.parametrize("is_tied", [False, True])
def test_logits_are_the_same_without_the_projections(x64, is_tied):
    fields = flat(
        **{"model.use_embedding_projection": True, "model.tie_embeddings": is_tied}
    )
    variables = trained(fields)
    new, changed = fold_embedding_projection.build(variables, fields)
    assert not [name for name in named_leaves(new["params"]) if "projection" in name]
    before, after = logits(fields, variables), logits(fields | changed, new)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * np.max(abs(before)))


def test_golden_of_the_fused_kernel(x64, golden):
    """SLAB's own fusing, for one norm and one linear."""
    data = golden("prepbn")
    params = {
        "gain": data["repbn_train_param_bn_weight"] - 1.0,
        "bias": data["repbn_train_param_bn_bias"],
        "skip": data["repbn_train_param_alpha"],
    }
    statistics = {
        "mean": data["repbn_running_mean_out"],
        "variance": data["repbn_running_var_out"],
    }
    factor, offset = fuse_norm.affine_map("rep_batch", params, statistics)
    kernel = data["fuse_W"].T
    np.testing.assert_allclose(
        factor[:, None] * kernel, data["fuse_W_out"].T, rtol=1e-9
    )
    np.testing.assert_allclose(
        data["fuse_bias"] + offset @ kernel, data["fuse_bias_out"], rtol=1e-9
    )


@pytest.mark.parametrize(
    ("transform", "changes", "updates", "told"),
    [
        (fuse_norm, {"model.norm": "layer"}, 1, "fuse_norm: model.norm"),
        (fuse_norm, {"model.norm": "rms"}, 1, "fuse_norm: model.norm"),
        (fuse_norm, {"model.norm": "power(groups=2)"}, 1, "groups 0 or 1"),
        (fuse_norm, {"model.norm": "batch", "model.placement": "post"}, 1, "placement"),
        (fuse_norm, {"model.norm": ("batch", "unified")}, 1, "one norm in all layers"),
        (remove_layer_norm, {"model.norm": "layer"}, 1, "remove_layer_norm: model"),
        (fold_embedding_projection, {}, 1, "use_embedding_projection.*got False"),
        (remove_layer_norm, REMOVAL, 8, "not constants yet.*at least 9 steps"),
    ],
)
def test_refuses(transform, changes, updates, told):
    fields = flat(**changes)
    statistics = {"final_norm": {"updates": np.int32(updates)}}
    variables = {"params": {}, BATCH_STATS: statistics, GRADIENT_STATS: {}}
    with pytest.raises(ReslabError, match=told):
        transform.build(variables, fields)
