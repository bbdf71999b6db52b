"""The converted model is the same function, in double precision."""

import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import config as configs
from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.taps import TAPS
from reslab.core.trees import map_named, named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.nn.residuals.plain import Plain
from reslab.transforms import pre_ln_to_pre_rms, pre_rms_to_pre_crms

VOCABULARY = 11
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 6), dtype=np.int32)
TARGETS = np.roll(TOKENS, -1, axis=1)
BASE = {
    "model.features": 12,
    "model.depth": 2,
    "model.mixer": "attention(heads=2)",
    "model.norm": "layer",
}
CASES = {
    "default": {},
    "gelu, learned positions, tied": {
        "model.ffn": "gelu",
        "model.position": "learned",
        "model.post_embedding_norm": "none",
        "model.tie_embeddings": True,
        "model.norm": "layer(epsilon=0.01, is_gain_offset=False)",
    },
    "tied, layer norm after the embedding": {
        "model.post_embedding_norm": "layer",
        "model.tie_embeddings": True,
    },
    "attention with options and biases": {
        "model.mixer": "attention(heads=2, kv_heads=1, head_dim=8, "
        "qk_norm='rms', value_path='value_residual', use_bias=True)",
        "model.ffn": "swiglu(hidden=20, use_bias=True)",
    },
    "a gate on the first values": {
        "model.mixer": "attention(heads=2, value_path='satformer')",
    },
    "recurrent, no biases": {
        "model.mixer": "gated_delta(heads=3)",
        "model.norm": "layer(use_bias=False)",
    },
    "tiled, looped, no gains": {
        "model.depth": 3,
        "model.mixer": ("attention(heads=2)", "gated_delta(heads=3)"),
        "model.ffn": ("gelu(hidden=8)", "swiglu"),
        "model.norm": (
            "layer(use_bias=False, use_gain=False)",
            "layer(use_bias=False)",
        ),
        "model.stack": "looped(loops=2)",
    },
    "tiled norms, one with a bias": {
        "model.norm": ("layer(use_bias=False)", "layer(epsilon=0.1)"),
    },
}

# What a usual run tries: every kind of layer is in one of them.
USUAL = (
    "default",
    "gelu, learned positions, tied",
    "tied, layer norm after the embedding",
    "attention with options and biases",
    "tiled, looped, no gains",
)


def flat(**changes):
    config = configs.update(configs.load("base"), BASE.items())
    return dict(configs.flatten(configs.update(config, changes.items())))


def model_of(fields, **keywords):
    parts = {
        key.removeprefix("model."): value
        for key, value in fields.items()
        if key.startswith("model.") and key not in ("model.loop", "model.name")
    }
    return LanguageModel(
        vocabulary_size=VOCABULARY,
        max_length=8,
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        **parts | keywords,
    )


def trained(fields):
    """Parameters as training might leave them: nothing zero, nothing centred."""
    shapes = jax.eval_shape(model_of(fields).init, jax.random.key(0), TOKENS)
    random = np.random.default_rng(1)

    def draw(name, leaf):
        scale = 0.3 if leaf.ndim > 1 else 0.5
        return jnp.asarray(0.2 + scale * random.normal(size=leaf.shape))

    return map_named(draw, unbox(shapes)["params"])


def logits(fields, params):
    model = model_of(fields)
    return jax.jit(model.apply)({"params": params}, TOKENS)


def convert(transform, params, fields):
    new, changes = transform.build({"params": params}, fields)
    new = new["params"]
    config = configs.update(configs.load("base"), (fields | changes).items())
    configs.check(config)
    fields = dict(configs.flatten(config))
    shapes = jax.eval_shape(model_of(fields).init, jax.random.key(0), TOKENS)
    wanted = {
        k: (v.shape, v.dtype) for k, v in named_leaves(unbox(shapes)["params"]).items()
    }
    assert {k: (v.shape, v.dtype) for k, v in named_leaves(new).items()} == wanted
    return new, fields


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if name in USUAL else pytest.mark.exhaustive)
        for name, case in CASES.items()
    ],
    ids=CASES.keys(),
)
def test_logits_are_the_same_all_the_way(x64, case):
    fields = flat(**case)
    params = trained(fields)
    kept = jax.tree.map(np.array, params)
    before = logits(fields, params)
    assert np.std(before) > 0.1
    rms, rms_fields = convert(pre_ln_to_pre_rms, params, fields)
    np.testing.assert_allclose(logits(rms_fields, rms), before, rtol=0, atol=1e-10)
    crms, crms_fields = convert(pre_rms_to_pre_crms, rms, rms_fields)
    assert crms_fields["model.features"] == fields["model.features"] - 1
    np.testing.assert_allclose(logits(crms_fields, crms), before, rtol=0, atol=1e-10)
    # The given parameters are as they were.
    chex.assert_trees_all_equal(params, kept)


def streams(fields, params):
    """The stream before every sublayer and after the last, by place."""

    def watch(call, arguments, keywords, context):
        is_plain = isinstance(context.module, Plain)
        if is_plain and context.method_name in ("__call__", "narrow"):
            context.module.sow(TAPS, context.method_name, arguments[0])
        return call(*arguments, **keywords)

    model = model_of(fields)
    with nn.intercept_methods(watch):
        _, seen = model.apply({"params": params}, TOKENS, mutable=[TAPS])
    found = named_leaves(seen[TAPS])
    assert len(found) == 3  # Mixers and ffns, stacked over depth, and the end.
    return found


@pytest.mark.parametrize("case", ["default", "gelu, learned positions, tied"])
def test_the_stream_has_no_mean_and_loses_its_last_feature(x64, case):
    fields = flat(**CASES[case])
    params = trained(fields)
    rms, rms_fields = convert(pre_ln_to_pre_rms, params, fields)
    crms, crms_fields = convert(pre_rms_to_pre_crms, rms, rms_fields)
    seen = streams(fields, params)
    rms_seen, crms_seen = streams(rms_fields, rms), streams(crms_fields, crms)
    for name, before in seen.items():
        centred, narrow = rms_seen[name], crms_seen[name]
        mean = np.mean(before, axis=-1, keepdims=True)
        assert np.max(np.abs(mean)) > 0.01
        np.testing.assert_allclose(np.mean(centred, axis=-1), 0.0, atol=1e-12)
        np.testing.assert_allclose(centred, before - mean, rtol=0, atol=1e-10)
        np.testing.assert_allclose(narrow, centred[..., :-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("vocabulary_chunks", [1, 3])
def test_losses_of_a_head_with_a_bias_are_those_of_its_logits(x64, vocabulary_chunks):
    fields = flat(
        **{"model.use_head_bias": True, "model.vocabulary_chunks": vocabulary_chunks}
    )
    params = trained(fields)
    given = np.asarray(logits(fields, params))
    bare = {key: leaf for key, leaf in params.items() if key != "head_bias"}
    without = logits(fields | {"model.use_head_bias": False}, bare)
    bias = params["head_bias"][None, None, :VOCABULARY]
    np.testing.assert_allclose(given, without + bias, rtol=0, atol=1e-12)

    model = model_of(fields)
    nll, normalizer = jax.jit(
        lambda params: model.apply({"params": params}, TOKENS, TARGETS, method="losses")
    )(params)
    wanted = np.log(np.sum(np.exp(given), axis=-1))
    target = np.take_along_axis(given, TARGETS[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(normalizer, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(nll, wanted - target, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("transform", "change", "message"),
    [
        ("pre_ln_to_pre_rms", {"model.norm": "rms"}, "model.norm: expected layer"),
        ("pre_rms_to_pre_crms", {}, "model.norm: expected rms; got 'layer'"),
        ("pre_ln_to_pre_rms", {"model.placement": "post"}, "model.placement"),
        ("pre_ln_to_pre_rms", {"model.placement": ("pre", "peri")}, "got 'peri'"),
        ("pre_ln_to_pre_rms", {"model.residual": "hyper"}, "model.residual"),
        ("pre_ln_to_pre_rms", {"model.mixer": "lab.mine"}, "model.mixer"),
        ("pre_ln_to_pre_rms", {"model.ffn": "gelu(linear='lab.mine')"}, "model.ffn"),
        (
            "pre_rms_to_pre_crms",
            {"model.norm": ("rms", "rms(is_gain_offset=False)")},
            "one is_gain_offset for all layers",
        ),
    ],
)
def test_refuses_what_it_cannot_convert(x64, transform, change, message):
    fields = flat(**change)
    build = registry.module("transforms", transform).build
    params = {"embedding": np.zeros((8, 4)), "head": np.zeros((4, 8))}
    with pytest.raises(ReslabError, match=re.escape(message)) as error:
        build({"params": params}, fields)
    assert "\n" not in str(error.value)


def test_refuses_a_stream_with_a_mean(x64):
    fields = flat(**{"model.norm": "rms"})
    params = trained(fields)
    with pytest.raises(ReslabError, match="the stream has a mean") as error:
        pre_rms_to_pre_crms.build({"params": params}, fields)
    assert "\n" not in str(error.value)


def test_refuses_a_bias_before_a_mixer_that_takes_none(x64):
    fields = flat(**{"model.mixer": "gated_delta(heads=3)"})
    params = trained(fields)
    with pytest.raises(ReslabError, match="the norm before the mixer adds something"):
        pre_ln_to_pre_rms.build({"params": params}, fields)
    empty = map_named(
        lambda name, leaf: (
            0 * leaf if "mixer_placement/input_norm/bias" in name else leaf
        ),
        params,
    )
    rms, rms_fields = convert(pre_ln_to_pre_rms, empty, fields)
    assert rms_fields["model.mixer"] == fields["model.mixer"]
    np.testing.assert_allclose(
        logits(rms_fields, rms), logits(fields, empty), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    "spec",
    ["rms", "attention(heads=2, qk_norm='rms', window=0)", "a(b=(1, 2.5), c=None)"],
)
def test_specs_are_written_as_they_were_read(spec):
    parsed = registry.parse(spec)
    assert registry.spec_text(parsed.name, parsed.arguments) == spec


def test_keeps_the_dtype_of_the_parameters():
    fields = flat()
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), trained(fields))
    rms, changes = pre_ln_to_pre_rms.build({"params": params}, fields)
    crms, _ = pre_rms_to_pre_crms.build(rms, fields | changes)
    assert {leaf.dtype for leaf in jax.tree.leaves(crms)} == {jnp.dtype(jnp.bfloat16)}


def test_a_norm_of_embedding_and_position_is_not_folded(x64):
    fields = flat(**{"model.norm": "layer", "model.position": "learned"})
    with pytest.raises(ReslabError, match="post_embedding_norm: expected 'none', or"):
        convert(pre_ln_to_pre_rms, trained(fields), fields)
