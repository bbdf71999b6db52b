"""CART against a transcription of the author's listings, and its ablations."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, nested_leaves, unbox
from reslab.models.cost import forward_flops_per_token
from reslab.models.lm import LanguageModel
from reslab.observe.flops import count_flops
from tests.nn.stacks import conftest
from tests.nn.stacks.conftest import TOKENS, start

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"
SIZE, HEADS, DIM = 16, 2, 8


def recorded():
    with np.load(GOLDENS / "cart.npz") as stored:
        return {k.removeprefix("dev_"): stored[k] for k in stored}


def to_heads(weight):
    return weight.T.reshape(-1, HEADS, DIM)


def golden_parameters(file):
    """The parameters in the model's names; keys and values as one product each."""

    def shared(at):
        gain = {1: "mixer", 2: "ffn"}
        return {
            "mixer/query/kernel": to_heads(file[f"{at}.q"]),
            "mixer/output/kernel": file[f"{at}.o"].T.reshape(HEADS, DIM, SIZE),
            **{f"ffn/{n}/kernel": file[f"{at}.{n}"].T for n in ("gate", "up", "down")},
            **{
                f"{part}_placement/input_norm/gain": file[f"{at}.norm{number}"] - 1
                for number, part in gain.items()
            },
        }

    def layer(at):
        return shared(at) | {
            f"mixer/{name}/kernel": to_heads(
                file[f"{at}.{name[0]}_up"] @ file[f"{at}.kv_down"]
            )
            for name in ("key", "value")
        }

    stages = (
        [layer(f"in_prelude{i}") for i in range(2)],
        [shared("in_core")],
        [layer("in_coda")],
    )
    leaves = {
        "embedding": file["in_emb"],
        "final_norm/gain": file["in_final_norm"] - 1,
        "layers/memory_weights": file["in_hyper_w"],
        "layers/gate": file["in_lti_a"],
        "layers/loop_embedding": file["in_lie"].T,
        "layers/anchor_down": file["in_kv.kv_down"].T,
        "layers/anchor_key": to_heads(file["in_kv.k_up"]),
        "layers/anchor_value": to_heads(file["in_kv.v_up"]),
    }
    for number, layers in enumerate(stages):
        for name in layers[0]:
            rows = np.stack([one[name] for one in layers])
            leaves[f"layers/body_{number}/segment_0/block_0/{name}"] = rows
    return nested_leaves(leaves)


def golden_gradients(file, found):
    """What is recorded, and what was found for it."""

    def flat(kernel):
        return np.asarray(kernel).reshape(SIZE, -1).T

    pairs = {
        "emb": found["embedding"],
        "final_norm": found["final_norm/gain"],
        "hyper_w": found["layers/memory_weights"],
        "lti_a": found["layers/gate"],
        "lie": found["layers/loop_embedding"].T,
        "kv.kv_down": found["layers/anchor_down"].T,
        "kv.k_up": np.asarray(found["layers/anchor_key"]).reshape(4, -1).T,
        "kv.v_up": np.asarray(found["layers/anchor_value"]).reshape(4, -1).T,
    }
    for number, names in enumerate((("prelude0", "prelude1"), ("core",), ("coda",))):
        for row, at in enumerate(names):
            own = {
                path.partition("block_0/")[2]: leaf[row]
                for path, leaf in found.items()
                if f"body_{number}/" in path
            }
            pairs[f"{at}.q"] = flat(own["mixer/query/kernel"])
            pairs[f"{at}.o"] = np.reshape(own["mixer/output/kernel"], (SIZE, SIZE)).T
            for name in ("gate", "up", "down"):
                pairs[f"{at}.{name}"] = own[f"ffn/{name}/kernel"].T
            pairs[f"{at}.norm1"] = own["mixer_placement/input_norm/gain"]
            pairs[f"{at}.norm2"] = own["ffn_placement/input_norm/gain"]
            if at == "core":
                continue
            down, slope = file[f"in_{at}.kv_down"], 0
            for name in ("key", "value"):
                g, up = flat(own[f"mixer/{name}/kernel"]), file[f"in_{at}.{name[0]}_up"]
                pairs[f"{at}.{name[0]}_up"] = g @ down.T
                slope = slope + up.T @ g
            pairs[f"{at}.kv_down"] = slope
    return {name: (file[f"grad_{name}"], value) for name, value in pairs.items()}


def test_is_the_recorded_model_forward_and_backward(x64):
    file = recorded()
    assert {k for k in file if k.startswith("grad_")}

    def make(is_causal):
        return LanguageModel(
            vocabulary_size=13,
            features=SIZE,
            depth=4,
            mixer="attention(heads=2)",
            ffn="swiglu(hidden=24)",
            tie_embeddings=True,
            stack="cart(loops=3, prelude=2, heads=2, loop_features=8, "
            f"is_causal={is_causal})",
            dtype=jnp.float64,
            param_dtype=jnp.float64,
        )

    model, ids = make(True), file["in_ids"].astype(np.int32)
    params = golden_parameters(file)
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), ids))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)

    def loss(params):
        logits = model.apply({"params": params}, ids)
        return jnp.sum(logits * file["cot_logits"]), logits

    slopes, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, file["out_logits"], atol=1e-7)
    pairs = golden_gradients(file, named_leaves(slopes))
    assert {f"grad_{name}" for name in pairs} == {
        name for name in file if name.startswith("grad_")
    }
    for name, (wanted, found) in pairs.items():
        size = np.max(np.abs(wanted))
        np.testing.assert_allclose(found, wanted, atol=1e-7 * size, err_msg=name)
    leaking = make(False).apply({"params": params}, ids)
    np.testing.assert_allclose(leaking, file["logits_noncausal_repo_code"], atol=1e-7)


def make(stack):
    return conftest.make(stack, depth=3)


@pytest.mark.conformance
def test_without_its_parts_it_is_a_loop():
    """One pass without gate, memory and embedding: twice u, as core(u) holds u."""
    spec = "cart(loops=1, core='self', mixes_passes=False, has_gate=False, "
    model = make(f"{spec}loop_features=0)")
    variables = start(model)
    found = model.apply(variables, TOKENS, method="hidden")[0]
    plain = make("looped(loops=1, prelude=1, coda=1)")
    assert jax.tree.structure(start(plain)) == jax.tree.structure(variables)

    class Doubled(type(plain.make_stack(parent=None))):
        """The core's input once more behind it."""

        def apply_loop(self, layers, stream, *rest):
            after, state = super().apply_loop(layers, stream, *rest)
            return jax.tree.map(jnp.add, after, stream), state

    other = make(lambda **f: Doubled(**f, loops=1, prelude=1, coda=1))
    np.testing.assert_allclose(
        found, other.apply(variables, TOKENS, method="hidden")[0], atol=1e-5
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        pytest.param("is_frozen=False", marks=pytest.mark.conformance),
        pytest.param("core='self', has_gate=False", marks=pytest.mark.conformance),
    ],
)
def test_one_token_at_a_time_is_all_at_once(arguments):
    model = make(f"cart(loops=3, heads=2, {arguments})".replace(", )", ")"))
    variables = start(model)
    positions = np.broadcast_to(np.arange(6), (2, 6))

    @jax.jit
    def advance(tokens, positions, state):
        return model.apply(
            variables, tokens, positions=positions, state=state, method="hidden"
        )

    wanted, _ = advance(TOKENS, positions, None)
    state, parts = model.init_state(2, 6), []
    for part in (slice(0, 4), slice(4, 5), slice(5, 6)):
        y, state = advance(TOKENS[:, part], positions[:, part], state)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, atol=2e-5)


def test_one_cache_serves_all_passes():
    def size(loops, extra=""):
        state = make(f"cart(loops={loops}, heads=2{extra})").init_state(2, 6)
        return sum(leaf.size for leaf in jax.tree.leaves(state))

    assert size(2) == size(7)
    assert size(7, ", is_frozen=False") > size(2, ", is_frozen=False")
    few, many = (
        sum(a.size for a in jax.tree.leaves(start(make(f"cart(loops={n})"))))
        for n in (2, 7)
    )
    assert few == many


def unshared(arguments=""):
    return conftest.make(
        f"cart(loops=3, heads=2, shares_core=False{arguments})", depth=5
    )


@pytest.mark.conformance
def test_a_core_of_each_pass_that_is_the_same_is_the_shared_one():
    model, own = unshared(), make("cart(loops=3, heads=2)")
    variables = start(own)
    params = dict(variables["params"])
    layers = dict(params["layers"])
    layers["body_1"] = jax.tree.map(lambda a: np.concatenate([a] * 3), layers["body_1"])
    copied = {"params": {**params, "layers": layers}}
    assert jax.tree.map(np.shape, copied) == jax.tree.map(np.shape, start(model))
    wanted = own.apply(variables, TOKENS)
    np.testing.assert_allclose(model.apply(copied, TOKENS), wanted, atol=1e-5)

    def loss(variables):
        return jnp.sum(jnp.square(model.apply(variables, TOKENS)))

    slopes = jax.grad(loss)(start(model))["params"]["layers"]["body_1"]
    for name, slope in named_leaves(slopes).items():
        assert np.all(np.any(slope.reshape(3, -1) != 0, axis=1)), name
    variables = start(model)
    said = forward_flops_per_token(model, variables["params"], TOKENS.shape[1])
    assert count_flops(model.apply, variables, TOKENS) == TOKENS.size * said


@pytest.mark.parametrize(
    "arguments",
    ["", pytest.param(", core='self'", marks=pytest.mark.conformance)],
)
def test_a_core_of_each_pass_decodes_as_it_reads(arguments):
    model = unshared(arguments)
    variables, positions = start(model), np.broadcast_to(np.arange(6), (2, 6))
    wanted = model.apply(variables, TOKENS, method="hidden")[0]
    state, parts = model.init_state(2, 6), []
    for part in (slice(0, 4), slice(4, 5), slice(5, 6)):
        y, state = model.apply(
            *(variables, TOKENS[:, part]),
            positions=positions[:, part],
            state=state,
            method="hidden",
        )
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, atol=2e-5)


def test_a_core_of_each_pass_wants_a_layer_for_each():
    with pytest.raises(ReslabError, match=r"a multiple of loops \(3\).*model.depth=5"):
        make("cart(loops=3, shares_core=False)").init(jax.random.key(0), TOKENS)
