"""Whole stacks of decoder layers under each placement, against the authors' code.

The layers are Llama's: rotary attention and SwiGLU, without embedding and final norm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel

HEADS = 2
MIXER, FFN = "mixer_placement", "ffn_placement"
AFTER_MIXER, AFTER_FFN = "post_attention_layernorm", "post_feedforward_layernorm"

# Where the norms of the authors' layers belong in ours, by kind of layer. What they
# call a layer's second norm depends on the kind.
NORMS = {
    "pre": {
        "input_layernorm": (MIXER, "input_norm"),
        AFTER_MIXER: (FFN, "input_norm"),
    },
    "post": {
        AFTER_MIXER: (MIXER, "stream_norm"),
        AFTER_FFN: (FFN, "stream_norm"),
    },
    "sandwich": {
        "input_layernorm": (MIXER, "input_norm"),
        AFTER_MIXER: (MIXER, "output_norm"),
        "pre_feedforward_layernorm": (FFN, "input_norm"),
        AFTER_FFN: (FFN, "output_norm"),
    },
    "hybrid": {"ff_norm": (FFN, "stream_norm")},
    "hybrid first": {
        "attn_norm": (MIXER, "input_norm"),
        "ff_norm": (FFN, "input_norm"),
    },
}

# Golden file, prefix of its keys, placement, and the kind of each layer.
GOLDENS = {
    "pre": ("block_pre", "", "pre", ["pre"] * 4),
    "post": ("block_post", "", "post", ["post"] * 4),
    "sandwich": ("block_sandwich", "", "sandwich", ["sandwich"] * 4),
    # Peri-LN's layers are sandwiches; its other norms are outside of the stack.
    "peri": ("block_sandwich", "", "peri", ["sandwich"] * 4),
    "mix_ln": ("block_post_pre", "", "mix_ln(alpha=0.25)", ["post", *["pre"] * 3]),
    "ln_scaling": ("block_lns", "", "ln_scaling", ["pre"] * 4),
    # The authors fix alpha, whatever the depth.
    "deepnorm": ("block_deeppost", "", f"deepnorm(alpha={8**0.5})", ["post"] * 4),
    "hybrid": ("block_hybridnorm", "hybrid_", "hybrid", ["hybrid"] * 3),
    "hybrid_star": (
        "block_hybridnorm",
        "star_",
        "hybrid_star",
        ["hybrid first", *["hybrid"] * 2],
    ),
}


def llama_parts(weight):
    """The projections of a layer, (inputs, outputs)."""
    projections = {
        name: weight(f"self_attn_{name}_proj").T for name in ("q", "k", "v", "o")
    }
    mlp = {name: weight(f"mlp_{name}_proj").T for name in ("gate", "up", "down")}
    return projections, mlp


def hybrid_parts(weight):
    """The same of layers whose projections are fused."""
    query, key, value = np.split(weight("att_proj"), 3)
    up, gate = np.split(weight("ff_proj"), 2)
    projections = {"q": query, "k": key, "v": value, "o": weight("attn_out")}
    mlp = {"gate": gate, "up": up, "down": weight("ff_out")}
    return tuple({k: v.T for k, v in part.items()} for part in (projections, mlp))


def as_layer(weight, kind, offset):
    """One layer of the authors' as a tree of ours."""
    is_hybrid = kind.startswith("hybrid")
    projections, mlp = (hybrid_parts if is_hybrid else llama_parts)(weight)
    width = projections["q"].shape[0]
    heads = (width, HEADS, width // HEADS)
    names = {"q": "query", "k": "key", "v": "value"}
    mixer = {
        ours: {"kernel": projections[theirs].reshape(heads)}
        for theirs, ours in names.items()
    }
    mixer["output"] = {"kernel": projections["o"].reshape(*heads[1:], width)}
    if is_hybrid:
        for theirs, ours in names.items():
            mixer[f"{ours}_norm"] = {"gain": weight(f"{theirs}_norm") - offset}
    layer = {"mixer": mixer, "ffn": {k: {"kernel": v} for k, v in mlp.items()}}
    for theirs, (placement, ours) in NORMS[kind].items():
        gain = {"gain": weight(theirs) - offset}
        layer.setdefault(placement, {})[ours] = gain
    return layer


def as_stack(data, kind, kinds, offset, segments):
    """All layers, stacked as the stack scans them."""
    layers = iter(
        as_layer(
            lambda name, index=index: data[f"{kind}_layers_{index}_{name}_weight"],
            which,
            offset,
        )
        for index, which in enumerate(kinds)
    )
    body = {}
    for number, (blocks, count) in enumerate(segments):
        assert len(blocks) == 1
        stacked = [next(layers) for _ in range(count)]
        tree = jax.tree.map(lambda *leaves: np.stack(leaves), *stacked)
        body[f"segment_{number}"] = {"block_0": tree}
    assert next(layers, None) is None
    return {"body": body}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_stack(golden, x64, name):
    file, prefix, placement, kinds = GOLDENS[name]
    data = {k.removeprefix(prefix): v for k, v in golden(file).items()}
    model = LanguageModel(
        vocabulary_size=4,
        features=8,
        depth=len(kinds),
        mixer=f"attention(heads={HEADS})",
        ffn="swiglu(hidden=12)",
        norm=f"rms(epsilon={1e-5 if prefix else 1e-6})",
        placement=placement,
        dtype=jnp.float64,
        param_dtype=jnp.float64,
    )
    stack = model.make_stack(parent=None)
    segments = stack.make_layers(parent=None).plan()
    assert len(segments) == len(set(kinds)), "layers of a kind are scanned together"
    x = data["x"]
    positions = np.broadcast_to(np.arange(x.shape[1]), x.shape[:2])

    def run(params, x):
        return stack.apply({"params": params}, x, positions=positions)[0]

    params = as_stack(data, "param", kinds, 1.0, segments)
    shapes = unbox(
        jax.eval_shape(stack.init, jax.random.key(0), x, positions=positions)
    )
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes["params"])

    @jax.jit
    def forward_and_backward(params, x, cotangent):
        y, pull = jax.vjp(run, params, x)
        return y, *pull(cotangent)

    y, gradient, x_gradient = forward_and_backward(params, x, data["cot"])
    close = {"rtol": 1e-7, "atol": 1e-7}
    np.testing.assert_allclose(y, data["out"], **close)
    np.testing.assert_allclose(x_gradient, data["grad_x"], **close)
    wanted = named_leaves(as_stack(data, "grad", kinds, 0.0, segments))
    for leaf, actual in named_leaves(gradient).items():
        np.testing.assert_allclose(actual, wanted[leaf], err_msg=leaf, **close)
