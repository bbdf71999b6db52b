"""Sliced recursion against the authors' blocks, and its groups and permutations."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.randomness import DROPOUT
from reslab.core.surroundings import Context
from reslab.core.trees import count_parameters, named_leaves, nested_leaves, unbox
from reslab.models.vit import VisionTransformer
from reslab.nn.blocks.standard import StandardBlock
from reslab.nn.stacks import _slicing
from tests.nn.stacks.conftest import TOKENS, make, start

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"
ATTENTION = "attention(heads=2, use_bias=True)"
FFN = "gelu(hidden=24, is_exact=True, use_bias=True)"


def recorded_stack():
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    context = Context(**wide, norm="layer(is_gain_offset=False)", is_causal=False)
    block = functools.partial(
        StandardBlock,
        mixer=ATTENTION,
        ffn=FFN,
        norm=context.norm,
        residual="weighted",
        context=context,
    )
    return registry.make(
        *("stacks", "sliced(groups=(4, 2))"),
        **{"blocks": (block,), "depth": 1, "residual": "weighted"},
        context=context,
    )


def parameters(file, kind):
    """The recorded parameters, or their gradients, under our names."""

    def of(name):
        return file[f"{kind}_{name}"]

    leaves, layer = {}, "layer/"
    qkv = of("blk.attn.qkv.weight").reshape(3, 2, 4, 8), of("blk.attn.qkv.bias")
    for index, name in enumerate(("query", "key", "value")):
        kernel = np.moveaxis(qkv[0][index], -1, 0)
        leaves[f"{layer}mixer/{name}/kernel"] = kernel
        leaves[f"{layer}mixer/{name}/bias"] = qkv[1].reshape(3, 2, 4)[index]
    output = of("blk.attn.proj.weight").T.reshape(2, 4, 8)
    leaves[f"{layer}mixer/output/kernel"] = output
    leaves[f"{layer}mixer/output/bias"] = of("blk.attn.proj.bias")
    places = {
        "blk": (f"{layer}ffn", f"{layer}ffn_placement/input_norm", "norm2"),
        "nonproj0": ("projection_0", "projection_norm_0", "norm1"),
        "nonproj1": ("projection_1", "projection_norm_1", "norm1"),
    }
    for theirs, (ffn, norm, name) in places.items():
        for ours, part in (("up", "fc1"), ("down", "fc2")):
            leaves[f"{ffn}/{ours}/kernel"] = of(f"{theirs}.mlp.{part}.weight").T
            leaves[f"{ffn}/{ours}/bias"] = of(f"{theirs}.mlp.{part}.bias")
        leaves[f"{norm}/gain"] = of(f"{theirs}.{name}.weight")
        leaves[f"{norm}/bias"] = of(f"{theirs}.{name}.bias")
    norm = f"{layer}mixer_placement/input_norm"
    leaves[f"{norm}/gain"] = of("blk.norm1.weight")
    leaves[f"{norm}/bias"] = of("blk.norm1.bias")
    scales = {
        f"{layer}mixer_residual": ("blk", 1),
        f"{layer}ffn_residual": ("blk", 3),
        "projection_scales_0": ("nonproj0", 1),
        "projection_scales_1": ("nonproj1", 1),
    }
    for ours, (theirs, first) in scales.items():
        for offset, name in enumerate(("stream_scale", "branch_scale")):
            leaves[f"{ours}/{name}"] = of(
                f"{theirs}.coefficient{first + offset}.bias"
            ).reshape(())
    leaves = {f"body/segment_0/block_0/{k}": v[None] for k, v in leaves.items()}
    return nested_leaves(leaves)


def test_is_the_recorded_one_forward_and_backward(x64, monkeypatch):
    with np.load(GOLDENS / "sret.npz") as stored:
        file = {k.removeprefix("dev_"): stored[k] for k in stored}
    monkeypatch.setattr(_slicing, "permutation", lambda *_: jnp.asarray(file["perm"]))
    stack = recorded_stack()
    positions = np.broadcast_to(np.arange(12), (2, 12))

    def loss(params, x):
        y, _ = stack.apply({"params": params}, x, positions=positions)
        return jnp.sum(y * file["cot_y"]), y

    given = parameters(file, "in")
    (value, y), slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        given, file["in_x"]
    )
    np.testing.assert_allclose(y, file["out_y"], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(value, file["loss"], rtol=1e-7)
    np.testing.assert_allclose(slopes[1], file["grad_x"], rtol=1e-7, atol=1e-8)
    wanted = named_leaves(parameters(file, "grad"))
    found = named_leaves(slopes[0])
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_allclose(
            found[name], leaf, rtol=1e-7, atol=1e-8, err_msg=name
        )


def images(seed=0):
    return np.random.default_rng(seed).random((2, 8, 8, 1)).astype(np.float32)


def vit(stack, **fields):
    defaults = {"features": 8, "depth": 2, "mixer": "attention(heads=2)"}
    defaults |= {"ffn": "gelu(hidden=8)", "position": "learned", "norm": "layer"}
    return VisionTransformer(stack=stack, **defaults | fields)


def test_one_group_once_is_the_plain_layer():
    plain, model = vit("uniform"), vit("sliced(groups=(1,))")
    variables = unbox(jax.jit(plain.init)(jax.random.key(0), images()))
    given = named_leaves(variables)
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), images()))
    leaves = {}
    for name, leaf in named_leaves(shapes).items():
        old = name.replace("/layer/", "/")
        is_one = name.endswith("_scale")
        leaves[name] = given.get(old, np.full(leaf.shape, float(is_one)))
    found = model.apply(nested_leaves(leaves), images())
    np.testing.assert_allclose(found, plain.apply(variables, images()), atol=1e-5)


@pytest.mark.conformance
def test_tokens_are_permuted_in_training_and_alike_when_evaluated():
    model = vit("sliced(groups=(4, 2))")
    variables = jax.jit(model.init)(jax.random.key(0), images())
    run = jax.jit(lambda keys: model.apply(variables, images(), rngs=keys))
    np.testing.assert_array_equal(run({}), run({}))
    drawn = [run({DROPOUT: jax.random.key(n)}) for n in range(2)]
    assert np.any(drawn[0] != drawn[1])
    single = vit("sliced(groups=(4, 1))")
    run = jax.jit(lambda keys: single.apply(variables, images(), rngs=keys))
    np.testing.assert_array_equal(run({}), run({DROPOUT: jax.random.key(1)}))


def test_parameters_grow_by_what_follows_each_application():
    def size(groups):
        shapes = jax.eval_shape(
            vit(f"sliced(groups={groups})").init, jax.random.key(0), images()
        )
        return count_parameters(shapes)

    one = 2 * (8 * 8 + 8) + 2 * 8 + 2
    assert size((1, 1, 1)) - size((1, 1)) == 2 * one


@pytest.mark.parametrize(
    ("stack", "fields", "message"),
    [
        ("sliced(groups=(3, 1))", {}, "groups: expected divisors of the 16 tokens"),
        ("sliced(groups=(0,))", {}, "groups: expected at least 1"),
        ("sliced(groups=())", {}, "expected a number for each application"),
        ("sliced", {"residual": "attnres"}, "residual 'attnres': expected one that"),
        ("sliced", {"norm": "batch"}, "norm 'batch' takes statistics of a batch"),
        (
            "sliced(groups=(2, 1))",
            {"mixer": "attention(heads=2, value_path='value_residual')"},
            "got a depth memory of all tokens",
        ),
        (
            "sliced(groups=(2, 1))",
            {"mixer": "manhattan(heads=2)"},
            "which sees rows and columns",
        ),
    ],
)
def test_refuses_in_one_line(stack, fields, message):
    with pytest.raises(ReslabError, match=message) as caught:
        jax.eval_shape(vit(stack, **fields).init, jax.random.key(0), images())
    assert "\n" not in str(caught.value)


def test_refuses_groups_of_tokens_that_are_predicted():
    with pytest.raises(ReslabError, match="a model that predicts the next token"):
        make("sliced(groups=(2, 1))").init(jax.random.key(0), TOKENS)
    start(make("sliced"))
