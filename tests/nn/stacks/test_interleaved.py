"""Groups of tokens that exchange latents: against loops, and what must not be seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.train.generate import generate

TOKENS = np.random.default_rng(0).integers(0, 24, (2, 11))
SPEC = "interleaved(group=4,latents=3,local=1,heads=2,global_layers=2)"


def lm(stack=SPEC, depth=3, **fields):
    return LanguageModel(
        vocabulary_size=24,
        features=8,
        depth=depth,
        stack=stack,
        **{"mixer": "attention(heads=2)", "ffn": "gelu(hidden=16)"} | fields,
    )


@functools.cache
def started(depth=3, stack=SPEC):
    made = lm(stack, depth)
    params = unbox(jax.jit(made.init)(jax.random.key(0), TOKENS)["params"])
    rng = np.random.default_rng(1)
    return made, jax.tree.map(
        lambda a: (a + 0.3 * rng.normal(size=a.shape)).astype(np.float32), params
    )


@pytest.mark.parametrize("local", [3, 5])
def test_refuses_layers_without_an_exchange(local):
    made = lm(f"interleaved(local={local},heads=2)")
    with pytest.raises(ReslabError, match=f"fewer than the 3 layers.*got {local}"):
        jax.eval_shape(made.init, jax.random.key(0), TOKENS)


@functools.partial(jax.jit, static_argnums=0)
def run(made, params, tokens, segments=None):
    return made.apply({"params": params}, tokens, segments=segments)


@pytest.mark.conformance
def test_one_group_is_the_uniform_stack():
    made, params = started()
    layers = {
        name: {"block_0": {k: v for k, v in block.items() if "exchange" not in k}}
        for name, one in params["layers"]["groups"]["body"].items()
        for block in one.values()
    }
    joined = jax.tree.map(lambda *a: jnp.concatenate(a), *layers.values())
    inner = {"body": {"segment_0": joined}}
    uniform = {**params, "layers": inner}
    got = run(made, params, TOKENS[:, :4])
    expected = run(lm("uniform"), uniform, TOKENS[:, :4])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def rms(x, gain):
    x = np.asarray(x, np.float64)
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * (1 + np.asarray(gain))


def attend(p, name, x, source):
    q, k, v, o = (
        np.asarray(p[f"{name}{part}"]["kernel"], np.float64)
        for part in ("query", "key", "value", "output")
    )
    q, k, v = (
        np.einsum("td,dhn->htn", a, w) for a, w in ((x, q), (source, k), (source, v))
    )
    scores = np.einsum("hqn,hkn->hqk", q, k) / np.sqrt(q.shape[-1])
    return scores, v, o


def mixed(scores, v, o, is_seen=None):
    if is_seen is not None:
        scores = np.where(is_seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,hkn,hnd->qd", weights, v, o)


def feed_forward(p, x):
    kernels = (np.asarray(p[n]["kernel"], np.float64) for n in ("up", "down"))
    up, down = kernels
    h = np.asarray(jax.nn.gelu(jnp.asarray(x @ up, jnp.float32)), np.float64)
    return h @ down


def layer(p, x, is_seen):
    h = rms(x, p["mixer_placement"]["input_norm"]["gain"])
    x = x + mixed(*attend(p["mixer"], "", h, h), is_seen)
    return x + feed_forward(p["ffn"], rms(x, p["ffn_placement"]["input_norm"]["gain"]))


@pytest.mark.conformance
def test_it_is_the_definition_group_by_group():
    """FIT's equations with loops over groups, for a stack of two layers."""
    spec = SPEC.replace(")", ",ffn='gelu(hidden=16)')")
    made, params = started(2, spec)
    made = made.clone(position="none")
    period = params["layers"]["groups"]["body"]["segment_0"]
    first, second = (
        jax.tree.map(lambda a: a[0], period[name]) for name in ("block_0", "block_1")
    )
    exchange = first["exchange"]
    embedded = np.asarray(params["embedding"], np.float64)[TOKENS[0]]
    causal = np.tri(4, dtype=bool)
    groups = [embedded[i : i + 4] for i in (0, 4, 8)]
    groups = [layer(first, x, causal[: len(x), : len(x)]) for x in groups]
    # Latents read their group, then all latents of groups so far.
    gain = first["exchange_placement"]["input_norm"]["gain"]
    normed = [rms(x, gain) for x in groups]
    latents = []
    for x in normed:
        z = np.asarray(exchange["start"], np.float64)
        read = rms(z, exchange["read_norm"]["gain"])
        latents.append(z + mixed(*attend(exchange, "read_", read, x)))
    z = np.concatenate(latents)
    place = np.arange(9) // 3
    for index in range(2):
        z = layer(exchange[f"global_{index}"], z, place[:, None] >= place)
    z = rms(z, exchange["write_norm"]["gain"])
    for g in (1, 2):
        before = z[3 * (g - 1) : 3 * g]
        groups[g] = groups[g] + mixed(*attend(exchange, "write_", normed[g], before))
    groups = [layer(second, x, causal[: len(x), : len(x)]) for x in groups]
    x = rms(np.concatenate(groups), params["final_norm"]["gain"])
    expected = x @ np.asarray(params["head"], np.float64)
    got = run(made, params, TOKENS)[0]
    # The last group is not whole; nothing reads its latents.
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.conformance
def test_a_token_changes_its_group_from_itself_and_all_later_groups():
    made, params = started()
    base = run(made, params, TOKENS)
    for place in (1, 3, 6):
        other = TOKENS.copy()
        other[:, place] = (other[:, place] + 1) % 24
        change = np.abs(run(made, params, other) - base).max(-1)
        assert np.all(change[:, :place] == 0)
        assert np.all(change[:, place:] > 1e-5)


@pytest.mark.conformance
def test_nothing_passes_between_documents():
    made, params = started()
    segments = np.array([[1] * 5 + [2] * 6, [1] * 4 + [2] * 3 + [3] * 4])
    base = run(made, params, TOKENS, segments=segments)
    for row, place in ((0, 1), (0, 4), (1, 0), (1, 5)):
        other = TOKENS.copy()
        other[row, place] = (other[row, place] + 1) % 24
        changed = run(made, params, other, segments=segments)
        is_changed = np.abs(changed - base).max(-1) > 0
        assert not np.any(is_changed & (segments != segments[row, place])[...])
        assert is_changed[row, place]


@pytest.mark.conformance
@pytest.mark.parametrize("mixer", ["attention(heads=2)", "gated_delta(heads=2)"])
def test_prompts_of_several_lengths_are_continued_as_alone(mixer):
    made = lm(mixer=mixer, position="rope")
    variables = jax.jit(made.init)(jax.random.key(0), TOKENS)
    rows = [list(TOKENS[0, :7]), list(TOKENS[1, :3])]
    together = generate(made, variables, rows, 8, temperature=0)
    whole = [[*row, *new] for row, new in zip(rows, together.tolist(), strict=True)]
    padded = np.array([[*row, *[0] * (15 - len(row))] for row in whole])
    likeliest = jnp.argmax(run(made, variables["params"], padded), axis=-1)
    for row, begun, said in zip(whole, rows, likeliest.tolist(), strict=True):
        assert row[len(begun) :] == said[len(begun) - 1 : len(row) - 1]


def test_every_parameter_is_of_a_layer():
    _, params = started()
    names = [n for n in named_leaves(params) if "exchange/" in n]
    assert any("segment_0/block_0/exchange/start" in n for n in names)
    assert not any("segment_2" in n for n in names)  # Nothing follows the last layer.


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"block": "recurrent_transformer"}, "a block of sublayers"),
        ({"stack": "interleaved(heads=3)"}, "a divisor of the width"),
        ({"stack": "interleaved(group=0)"}, "group"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ReslabError, match=message):
        jax.eval_shape(lm(**fields).init, jax.random.key(0), TOKENS)
