"""Layers that follow others, in models of one scan or of several."""

import functools
import re

import chex
import jax
import numpy as np
import pytest

from reslab.core.depth import arrange_layers, block_layers
from reslab.core.errors import ReslabError
from reslab.core.trees import map_named, named_leaves
from reslab.transforms import share_kv
from tests.transforms import conftest
from tests.transforms.conftest import (
    converted,
    drawn,
    logits,
    model_of,
    shapes_of,
)

BASE = {
    "model.features": 8,
    "model.depth": 4,
    "model.mixer": "attention(heads=2, qkv_norm='rms', value_path='stochastic_kv')",
    "model.ffn": "gelu(hidden=8)",
}


flat = functools.partial(conftest.flat, BASE)


def shared(fields, params, share):
    return converted(share_kv, fields, params, share=share)


@pytest.mark.parametrize(
    ("share", "mixers", "cached"),
    [
        (1, ["none"], 4),
        (2, ["shared_kv(is_leader=True)", "shared_kv"], 2),
        ((0, 0, 0, 3), ["shared_kv(is_leader=True)", *2 * ["shared_kv"], "none"], 2),
        (
            (0, 1, 0, 1),
            [
                "shared_kv(is_leader=True)",
                "shared_kv(is_leader=True, group=1)",
                "shared_kv",
                "shared_kv(group=1)",
            ],
            2,
        ),
    ],
    ids=str,
)
def test_followers_compute_with_the_parameters_of_their_leader(share, mixers, cached):
    fields = flat()
    params = drawn(fields)
    new_fields, _ = shared(fields, params, share)
    found = [re.search(r'value_path=(["\'])(.*?)\1', m)[2] for m in _mixers(new_fields)]
    assert found == mixers
    state = jax.eval_shape(lambda: model_of(new_fields).init_state(1, 6))
    caches = [leaf.shape[0] for leaf in jax.tree.leaves(state) if leaf.ndim > 3]
    assert sum(caches) == 2 * cached

    # Where all layers read the same, a follower's own keys and values are its
    # leader's if it has its leader's parameters.
    sources = [0, 0, 2, 2] if share == 2 else range(4) if share == 1 else share
    quiet = _reading_the_same(params)
    _, new_params = shared(fields, quiet, share)
    alike = jax.tree.map(np.array, quiet)
    body = alike["layers"]["body"]
    for segment, layers in (("segment_0", [0]), ("segment_1", [1, 2, 3])):
        for name, leaf in named_leaves(body[segment]["block_0"]["mixer"]).items():
            if re.match("key|value", name):
                rows = _all_layers(quiet, f"block_0/mixer/{name}")
                leaf[:] = rows[[sources[layer] for layer in layers]]
    np.testing.assert_allclose(
        logits(new_fields, new_params), logits(fields, alike), atol=1e-5
    )


def _mixers(fields):
    mixer = fields["model.mixer"]
    return [mixer] if isinstance(mixer, str) else list(mixer)


def _all_layers(params, name):
    body = params["layers"]["body"]
    segments = [named_leaves(body[f"segment_{i}"])[name] for i in (0, 1)]
    return np.concatenate(segments)


def _reading_the_same(params):
    """Copies, of layers that normalize as the first; the last one alone writes."""

    def changed(name, leaf):
        leaf = np.array(leaf)
        if re.search("(mixer/output|ffn/down)/kernel$", name):
            leaf[: 1 if "segment_0" in name else 2] = 0
        if "mixer_placement" in name:
            leaf[:] = _all_layers(params, name.split("/", 3)[3])[:1]
        return leaf

    return map_named(changed, params)


@pytest.mark.parametrize(
    ("share", "change", "message"),
    [
        (0, {}, "share: expected at least 1; got 0"),
        (
            (0, 0, 3, 3),
            {},
            "leader of layer 2: expected the layer itself or an earlier",
        ),
        (
            (0, -1, 0, 0),
            {},
            "leader of layer 1: expected the layer itself or an earlier",
        ),
        ((0, 0, 1, 0), {}, "expected a layer that leads itself; got layer 1, which"),
        ((0, 0), {}, "expected a leader for each of the 4 layers; got 2 of them"),
        (2, {"model.mixer": "gated_delta(heads=2)"}, "expected attention with keys"),
        (
            2,
            {"model.mixer": "attention(heads=2, value_path='satformer')"},
            "expected attention with keys and values of its own",
        ),
        (
            2,
            {"model.mixer": ("attention(heads=2)", "attention(heads=2, window=3)")},
            "window of layer 1: expected its leader's, None; got 3",
        ),
    ],
    ids=str,
)
def test_refuses_what_does_not_fit(share, change, message):
    with pytest.raises(ReslabError, match=re.escape(message)) as error:
        share_kv.build({"params": {}}, flat(**change), share=share)
    assert "\n" not in str(error.value)


def test_layers_in_other_scans_are_the_same_layers():
    fields = flat(**{"model.mixer": "attention(heads=2)"})
    params = drawn(fields)
    pattern = ("attention(heads=2)", "attention(heads=2, window=0)")
    pairs = fields | {"model.mixer": pattern}
    shapes = shapes_of(pairs)
    blocks, like = block_layers(params), block_layers(shapes)
    assert blocks.keys() != like.keys()
    arranged = arrange_layers(params, blocks, shapes, like)
    np.testing.assert_allclose(
        logits(pairs, arranged), logits(fields, params), atol=1e-6
    )
    back = arrange_layers(arranged, like, params, blocks)
    chex.assert_trees_all_equal(back, params)
