import functools

import jax
import numpy as np
import pytest

from reslab.core.depth import layer_numbers
from reslab.core.errors import ReslabError
from reslab.core.taps import TAPS
from reslab.core.trees import named_leaves
from reslab.models.lm import LanguageModel
from reslab.nn.mixers.attention import Attention
from reslab.nn.value_paths.shared_kv import SharedKeysValues
from reslab.train.generate import generate

LEADS = "value_path='shared_kv(is_leader=True)'"
FOLLOWS = "value_path='shared_kv'"


def test_followers_have_neither_keys_and_values_nor_a_cache(attention_model, drawn):
    model = attention_model(LEADS, FOLLOWS)
    names = {"/".join(name.split("/")[2:]) for name in named_leaves(drawn(model))}
    for name in ("key", "value"):
        assert f"segment_0/block_0/mixer/{name}/kernel" in names
        assert f"segment_1/block_0/mixer/{name}/kernel" in names
        assert f"segment_1/block_1/mixer/{name}/kernel" not in names
    assert "segment_1/block_1/mixer/query/kernel" in names
    states = model.init_state(2, 6)
    assert [sorted(state) for state in states[1]] == [
        ["key", "length", "value"],
        ["length"],
    ]


def test_layers_with_the_keys_and_values_of_their_leader_are_the_same(
    attention_model, drawn, tokens
):
    """Two layers of own keys and values, made of the same stream, are one's."""
    model = attention_model(LEADS, FOLLOWS, depth=2, ffn="gelu(hidden=16)")
    params = drawn(model)
    logits = jax.jit(model.apply)({"params": params}, tokens)
    own = attention_model("window=0", depth=2)
    body = params["layers"]["body"]
    # Nothing is written between the two layers' readings of the stream.
    first, second = (body["segment_0"][f"block_{i}"] for i in range(2))
    first["mixer"]["output"]["kernel"] *= 0
    first["ffn"]["down"]["kernel"] *= 0
    second["mixer"] |= {name: first["mixer"][name] for name in ("key", "value")}
    second["mixer_placement"] = first["mixer_placement"]
    stacked = jax.tree.map(lambda *rows: np.concatenate(rows), first, second)
    own_params = {**params, "layers": {"body": {"segment_0": {"block_0": stacked}}}}
    wanted = jax.jit(own.apply)({"params": own_params}, tokens)
    for name in ("key", "value"):
        del second["mixer"][name]
    found = jax.jit(model.apply)({"params": params}, tokens)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.max(np.abs(logits - wanted)) > 1e-3


PATTERNS = {
    "first leads": (FOLLOWS,),
    "two windows": (f"{LEADS}, window=3", f"{FOLLOWS}, window=3"),
    "two groups": (
        LEADS,
        "value_path='shared_kv(is_leader=True, group=1)'",
        FOLLOWS,
        "value_path='shared_kv(group=1)'",
    ),
    "values alone": ("value_path='shared_values', window=3",),
}


@pytest.mark.parametrize("options", PATTERNS.values(), ids=PATTERNS)
def test_generation_is_the_full_forward(attention_model, drawn, tokens, options):
    model = attention_model(*options)
    variables = {"params": drawn(model)}
    text = generate(model, variables, tokens[:, :3], 5, temperature=0)
    whole = np.concatenate([tokens[:, :3], text], axis=1)
    logits = jax.jit(model.apply)(variables, whole)
    np.testing.assert_array_equal(text, np.argmax(logits[:, 2:-1], axis=-1))


class Watched(SharedKeysValues):
    """Shows the keys that its queries meet."""

    def __call__(self, x, **keywords):
        result = super().__call__(x, **keywords)
        self.sow(TAPS, "keys", result[0])
        return result


@pytest.mark.parametrize(
    "form", [{}, {"is_unrolled": True}, {"remat": "full"}], ids=str
)
def test_the_nearest_leader_is_read(tokens, drawn, form):
    def attention(is_leader):
        path = functools.partial(Watched, is_leader=is_leader)
        return functools.partial(Attention, heads=2, value_path=path)

    leads, follows = attention(True), attention(False)
    # The scanned period begins with a follower of the one before it.
    leaders = (True, True, False, True, False, True, False)
    mixer = tuple(leads if leader else follows for leader in leaders)
    model = LanguageModel(vocabulary_size=13, features=16, depth=7, mixer=mixer, **form)
    assert len(model.make_stack(parent=None).make_layers(parent=None).plan()) == 4
    _, seen = jax.jit(lambda p: model.apply(p, tokens, mutable=[TAPS]))(
        {"params": drawn(model)}
    )
    numbers = layer_numbers(seen[TAPS])
    keys = {
        int(layer): row
        for name, rows in named_leaves(seen[TAPS]).items()
        for layer, row in zip(numbers[name], np.asarray(rows), strict=True)
    }
    for layer, is_leader in enumerate(leaders):
        if is_leader:
            latest = keys[layer]
            assert all(np.any(latest != keys[i]) for i in range(layer))
        np.testing.assert_array_equal(keys[layer], latest)


def test_a_follower_sees_as_much_as_its_leader(attention_model, tokens):
    model = attention_model(LEADS, f"{FOLLOWS}, window=2")
    with pytest.raises(ReslabError, match="window of a follower: expected its leader"):
        jax.eval_shape(model.init, jax.random.key(0), tokens)


def test_cache_of_shared_values_is_half_and_one(attention_model):
    def floats(option):
        state = attention_model(option).init_state(2, 6)
        return sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim > 3)

    own = floats("window=0")
    assert floats("value_path='shared_values'") == own // 2 + own // 8
    assert floats(FOLLOWS) == own // 4
