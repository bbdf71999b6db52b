import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.trees import named_leaves, unbox
from reslab.core.types import Context
from reslab.nn.blocks.standard import StandardBlock

HEADS = 2
# Where the norms' weights of the authors' layers belong, and what they are
# called: under the placement of the mixer, and under that of the ffn.
NORMS = {
    "pre": ("input_norm", "input_layernorm", "post_attention_layernorm"),
    "post": (
        "stream_norm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
}


def as_layer(data, prefix, offset, placement):
    """One layer of the authors' Llama as a tree of ours."""

    def weight(name):
        return data[f"{prefix}_{name}_weight"].T

    def kernel(name, *shape):
        matrix = weight(name)
        return {"kernel": matrix.reshape(shape) if shape else matrix}

    width = weight("self_attn_q_proj").shape[0]
    heads = (width, HEADS, width // HEADS)
    norm, first, second = NORMS[placement]
    return {
        "mixer": {
            "query": kernel("self_attn_q_proj", *heads),
            "key": kernel("self_attn_k_proj", *heads),
            "value": kernel("self_attn_v_proj", *heads),
            "output": kernel("self_attn_o_proj", *heads[1:], width),
        },
        "ffn": {
            "gate": kernel("mlp_gate_proj"),
            "up": kernel("mlp_up_proj"),
            "down": kernel("mlp_down_proj"),
        },
        "mixer_placement": {norm: {"gain": weight(first) - offset}},
        "ffn_placement": {norm: {"gain": weight(second) - offset}},
    }


def as_stack(data, kind, offset, placement):
    layers = [
        as_layer(data, f"{kind}_layers_{layer}", offset, placement)
        for layer in range(int(data["num_layers"]))
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    return {"body": {"segment_0": {"block_0": stacked}}}


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_golden_stack_of_llama_layers(golden, x64, placement):
    data = golden(f"block_{placement}")
    double = Context(dtype=jnp.float64, param_dtype=jnp.float64, position="rope")
    block = functools.partial(
        registry.factory("blocks", "standard"),
        context=double,
        mixer=f"attention(heads={HEADS})",
        ffn="swiglu(hidden=12)",
        norm="rms(epsilon=1e-6)",
        placement=placement,
    )
    stack = registry.make(
        "stacks",
        "uniform",
        blocks=(block,),
        depth=int(data["num_layers"]),
    )
    x = data["x"]
    positions = np.broadcast_to(np.arange(x.shape[1]), x.shape[:2])

    def run(params, x):
        return stack.apply({"params": params}, x, positions=positions)[0]

    params = as_stack(data, "param", 1.0, placement)
    shapes = unbox(
        jax.eval_shape(stack.init, jax.random.key(0), x, positions=positions)
    )
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes["params"])

    @jax.jit
    def forward_and_backward(params, x, cotangent):
        y, pull = jax.vjp(run, params, x)
        return y, *pull(cotangent)

    y, gradient, x_gradient = forward_and_backward(params, x, data["cot"])
    np.testing.assert_allclose(y, data["out"], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(x_gradient, data["grad_x"], rtol=1e-7, atol=1e-7)
    wanted = named_leaves(as_stack(data, "grad", 0.0, placement))
    for name, actual in named_leaves(gradient).items():
        np.testing.assert_allclose(
            actual, wanted[name], rtol=1e-7, atol=1e-7, err_msg=name
        )


class Sites(nn.Module):
    """A placement that leaves the stream's sublayers out and writes down its site."""

    @nn.compact
    def __call__(self, stream, residual, branch, *, site):
        branch(stream)
        return jnp.where(stream < 0, site, 10 * stream + site).astype(stream.dtype)


def test_sublayers_are_numbered_mixer_first_over_all_layers():
    block = StandardBlock(
        mixer="attention(heads=2)", ffn="gelu", placement=lambda **_: Sites()
    )
    x, positions = -jnp.ones((1, 2, 8)), jnp.arange(2)[None]
    (stream, _, _), _ = jax.jit(block.init_with_output)(
        jax.random.key(0), x, {}, layer=3, positions=positions
    )
    np.testing.assert_array_equal(stream, 67.0)


def test_state_and_cost_are_the_mixer_s():
    block = StandardBlock(mixer="attention(heads=2, kv_heads=1)")
    mixer = registry.make("mixers", "attention(heads=2, kv_heads=1)")
    assert block.mixing_flops(32, 16) == mixer.mixing_flops(32, 16)
    assert not block.writes_shared
    shapes = jax.tree.map(jnp.shape, block.init_state(2, 32, 16))
    assert shapes == jax.tree.map(jnp.shape, mixer.init_state(2, 32, 16))
