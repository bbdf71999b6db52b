import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.surroundings import Context
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.parallel.mesh import batch_sharding, make_mesh, tree_sharding, use_mesh

GOLDEN = pathlib.Path(__file__).parents[2] / "goldens" / "recurrent_transformer.npz"
WIDTH, HIDDEN = 16, 32
NORM = "layer(epsilon=1e-05, use_bias=False)"


def converted(get, heads, offset):
    """The authors' parameters: one kernel of keys and values, no biases."""

    def split(kernel):
        return {"kernel": kernel.T.reshape(WIDTH, heads, -1)}

    def gain(name):
        return {"gain": get(f"{name}.weight") - offset}

    key, value = np.split(get("kv_proj.weight"), 2)
    output = get("attn_out.weight").T.reshape(heads, -1, WIDTH)
    return {
        "mixer": {
            "query": split(get("q_proj.weight")),
            "key": split(key),
            "value": split(value),
            "query_norm": gain("q_norm"),
            "key_norm": gain("k_norm"),
            "output": {"kernel": output},
        },
        "ffn": {
            "up": {"kernel": get("ff_proj.weight").T},
            "down": {"kernel": get("ff_out.weight").T},
        },
        "mixer_placement": {"input_norm": gain("attn_norm")},
        "ffn_placement": {"input_norm": gain("ff_norm")},
    }


def make(name="recurrent_transformer(tile=4)", heads=2, position="alibi", **context):
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    mixer = f"attention(heads={heads}, qk_norm='{NORM}', qk_norm_axis='width')"
    return registry.make(
        "blocks",
        name,
        mixer=mixer.replace("'layer(epsilon=1e-05, use_bias=False)'", f'"{NORM}"'),
        ffn=f"gelu(hidden={HIDDEN}, is_exact=True)",
        norm=NORM,
        context=Context(depth=2, position=position, **wide | context),
    )


def places(x):
    return jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])


def applied(block, params, x, **keywords):
    keywords.setdefault("positions", places(x))
    return block.apply({"params": params}, x, {}, layer=0, **keywords)


def golden(prefix):
    with np.load(GOLDEN) as file:
        return {k.removeprefix(prefix): file[k] for k in file if k.startswith(prefix)}


@pytest.mark.parametrize("form", ["tile=4", "form='naive'"])
@pytest.mark.parametrize(
    ("prefix", "heads", "position"), [("dev_", 2, "alibi"), ("devnoalibi_", 4, "none")]
)
def test_golden(prefix, heads, position, form, x64):
    arrays = golden(prefix)
    block = make(f"recurrent_transformer({form})", heads, position)
    params = converted(lambda name: arrays[f"in_{name}"], heads, 1)
    x = jnp.asarray(arrays["in_x"])
    y, pull = jax.vjp(jax.jit(lambda p, x: applied(block, p, x)[0]), params, x)
    np.testing.assert_allclose(y, arrays["out_o"], atol=1e-10)
    by_params, by_x = pull(jnp.asarray(arrays["cot_o"]))
    np.testing.assert_allclose(by_x, arrays["grad_x"], rtol=0, atol=1e-10)
    wanted = named_leaves(converted(lambda name: arrays[f"grad_{name}"], heads, 0))
    for name, slope in named_leaves(by_params).items():
        np.testing.assert_allclose(
            slope, wanted[name], rtol=0, atol=1e-10, err_msg=name
        )
    if form == "tile=4":
        second = converted(lambda name: arrays[f"l2_{name}"], heads, 1)
        y = applied(block, second, y)[0]
        np.testing.assert_allclose(y, arrays["out_two_layers"], atol=1e-10)


def test_the_standard_layer_has_its_parameters_and_its_first_token(x64):
    arrays = golden("dev_")
    block, standard = make(), make("standard")
    params = converted(lambda name: arrays[f"in_{name}"], 2, 1)
    x = jnp.asarray(arrays["in_x"])
    for one in (block, standard):
        shapes = jax.eval_shape(
            lambda key, one=one: one.init(key, x, {}, layer=0, positions=places(x)),
            jax.random.key(0),
        )
        found = jax.tree.map(jnp.shape, unbox(shapes)["params"])
        assert found == jax.tree.map(jnp.shape, params)
    y, z = (applied(one, params, x)[0] for one in (block, standard))
    np.testing.assert_allclose(z, arrays["sequential_block_o"], atol=1e-10)
    np.testing.assert_allclose(y[:, 0], z[:, 0], atol=1e-12)
    assert np.max(np.abs(y[:, 1:] - z[:, 1:])) > 1e-2


@pytest.mark.parametrize("position", ["alibi", "rope"])
def test_rows_of_different_lengths_continue_as_alone(position, x64):
    arrays = golden("dev_")
    block = make(position=position)
    params = converted(lambda name: arrays[f"in_{name}"], 2, 1)
    x = jnp.asarray(arrays["in_x"])[:, :7]
    wanted = applied(block, params, x)[0]
    # The first row has three tokens of its prompt, the second five.
    is_real = np.array([[0, 1, 0, 1, 1], [1, 1, 1, 1, 1]], bool)
    order = [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    rows = np.arange(2)[:, None]
    y, _, state = applied(
        block,
        params,
        x[rows, order],
        positions=jnp.asarray(order),
        segments=jnp.asarray(is_real, jnp.int32),
        state=block.init_state(2, 9, WIDTH),
    )
    np.testing.assert_allclose(y[is_real], wanted[rows, order][is_real], atol=1e-12)
    np.testing.assert_array_equal(state["length"], [3, 5])
    step = jax.jit(
        lambda x, at, state: applied(block, params, x, positions=at, state=state)
    )
    for more in range(2):
        at = np.array([[3 + more], [5 + more]])
        y, _, state = step(x[rows, at], at, state)
        np.testing.assert_allclose(y, wanted[rows, at], atol=1e-12)


@pytest.mark.conformance
def test_on_eight_devices_is_on_one():
    fields = {"block": "recurrent_transformer(tile=4)", "mixer": "attention(heads=2)"}
    model = LanguageModel(
        vocabulary_size=24, features=16, depth=2, position="alibi", **fields
    )
    tokens = np.random.default_rng(0).integers(0, 24, (8, 9)).astype(np.int32)
    params = unbox(jax.jit(model.init)(jax.random.key(0), tokens))["params"]

    @jax.jit
    def slope(params, tokens):
        return jax.grad(
            lambda params: jnp.sum(jnp.sin(model.apply({"params": params}, tokens)))
        )(params)

    wanted = slope(params, tokens)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with use_mesh(mesh):
        boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)
        placed = jax.device_put(params, tree_sharding(boxed["params"], mesh))
        found = slope(placed, jax.device_put(tokens, batch_sharding(mesh)))
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        scale = float(jnp.max(jnp.abs(other)))
        np.testing.assert_allclose(one, other, atol=2e-4 * scale)


def test_refuses_more_tokens_than_the_cache_holds():
    arrays = golden("dev_")
    block = make(dtype=jnp.float32, param_dtype=jnp.float32)
    params = converted(lambda name: np.float32(arrays[f"in_{name}"]), 2, 1)
    x = jnp.asarray(arrays["in_x"], jnp.float32)
    with pytest.raises(
        ReslabError, match="tokens: expected at most 9, which the cache"
    ):
        applied(block, params, x, state=block.init_state(2, 9, WIDTH))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixer": "mamba2"}, "mixer: expected attention of as many key heads"),
        ({"mixer": "attention(heads=4, kv_heads=2)"}, "mixer: expected attention"),
        ({"mixer": "attention(window=3)"}, "mixer: expected attention"),
        ({"mixer": "attention(value_path='shared_kv')"}, "mixer: expected attention"),
        ({"residual": "attnres"}, "residual: expected one of this layer's stream"),
        ({"norm": "batch"}, "norm: expected a norm of one token"),
        ({"context": Context(dropout=0.1)}, "dropout: expected 0"),
    ],
)
def test_refuses_parts_that_do_not_fit(fields, message):
    with pytest.raises(ReslabError, match=message):
        registry.make("blocks", "recurrent_transformer", **fields)
