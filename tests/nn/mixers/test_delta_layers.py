"""Mixers of the delta rule against layers of published models, forward and backward."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.trees import named_leaves, unbox

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"


def close(actual, expected, tolerance=1e-5):
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(np.float64(actual), expected, atol=tolerance * scale)


def tensors(file, prefix=""):
    with np.load(GOLDENS / f"{file}.npz") as stored:
        return {
            name.removeprefix(prefix): stored[name]
            for name in stored
            if name.startswith(prefix)
        }


def kernel(weight, *shape):
    """A torch weight [out, in] as a kernel of these axes."""
    return weight.T.reshape(*shape) if shape else weight.T


def taps(weight, *shape):
    """A torch convolution [channels, 1, width] as taps, the latest input first."""
    return weight[:, 0, ::-1].T.reshape(weight.shape[-1], *shape)


def nested(flat):
    """Parameters from names with slashes."""
    tree = {}
    for name, leaf in flat.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    return {"params": tree}


def mixed(spec, flat, x):
    """Applies a mixer with these parameters, whose names and shapes must be its own."""
    module = registry.make("mixers", spec)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    named = {k: v.shape for k, v in named_leaves(unbox(shapes)["params"]).items()}
    assert named == {name: leaf.shape for name, leaf in flat.items()}
    return module.apply(nested(flat), x)[0]


def kimi(file, heads, head_dim, prefix="self_attn."):
    """Parameters of Kimi Delta Attention that all its layers store alike."""
    shape, width = (heads, head_dim), file[f"{prefix}q_proj.weight"].shape[1]
    flat = {
        f"{name}/kernel": kernel(file[f"{prefix}{name[0]}_proj.weight"], width, *shape)
        for name in ("query", "key", "value")
    }
    for ours, theirs in (("decay", "f"), ("gate", "g")):
        down, up = (file[f"{prefix}{theirs}_{n}_proj.weight"] for n in "ab")
        flat[f"{ours}_down/kernel"] = kernel(down)
        flat[f"{ours}/kernel"] = kernel(up, up.shape[1], *shape)
    return flat | {
        "beta/kernel": kernel(file[f"{prefix}b_proj.weight"]),
        "log_rate": file[f"{prefix}A_log"].reshape(heads),
        "decay_bias": file[f"{prefix}dt_bias"].reshape(shape),
        "output_norm/gain": file[f"{prefix}o_norm.weight"] - 1,
        "output/kernel": kernel(file[f"{prefix}o_proj.weight"], *shape, width),
    }


def test_kda_is_the_layer_of_glm5():
    golden = tensors("kda_layer")
    file = {k.replace("forget_gate.", ""): v for k, v in golden.items()}

    def converted(prefix):
        flat = kimi(file, 2, 8, prefix)
        flat["convolution/taps"] = taps(file[f"{prefix}conv1d.weight"], 48)
        return flat

    spec = (
        "kda(heads=2, head_dim=8, lower_bound=-5.0, is_convolution_combined=True, "
        "output_norm='rms(epsilon=1e-05)')"
    )
    params = converted("p_")
    y, pull = jax.vjp(
        jax.jit(lambda p, x: mixed(spec, p, x)), params, jnp.asarray(golden["x0"])
    )
    close(y, golden["out0"])
    gradients, before = pull(jnp.asarray(golden["cot0"]))
    close(before, golden["grad_x0"])
    wanted = converted("grad_")
    wanted["output_norm/gain"] = golden["grad_o_norm.weight"]
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        close(gradient, wanted[name])


def rms(x, gain, epsilon):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * gain


def silu(x):
    return x / (1 + np.exp(-x))


def swiglu(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def experts(file, x):
    """Two of four experts, and a gated one that all tokens share."""
    scores = np.exp(x @ file["mlp.gate.weight"].T)
    scores /= np.sum(scores, axis=-1, keepdims=True)
    scores[scores < np.sort(scores, axis=-1)[..., -2:-1]] = 0
    scores /= np.sum(scores, axis=-1, keepdims=True)
    names = ("gate_proj", "up_proj", "down_proj")

    def one(prefix):
        return swiglu(x, *(file[f"mlp.{prefix}.{name}.weight"] for name in names))

    y = sum(scores[..., n, None] * one(f"experts.{n}") for n in range(4))
    shared = 1 / (1 + np.exp(-x @ file["mlp.shared_expert_gate.weight"].T))
    return y + shared * one("shared_expert")


def qwen(file):
    """Gated DeltaNet with 2 key heads and 4 heads, projected and convolved as one."""
    prefix = "linear_attn."
    joint = file[f"{prefix}in_proj_qkvz.weight"].reshape(2, 48, 32)
    scalars = file[f"{prefix}in_proj_ba.weight"].reshape(2, 4, 32)
    parts = dict(
        zip(
            ("query", "key", "value", "gate"),
            np.split(joint, (8, 16, 32), axis=1),
            strict=True,
        )
    )
    flat = {
        f"{name}/kernel": kernel(part.reshape(-1, 32), 32, -1, 8)
        for name, part in parts.items()
    }
    for name, part in zip(("beta", "decay"), np.split(scalars, 2, axis=1), strict=True):
        flat[f"{name}/kernel"] = kernel(part.reshape(4, 32))
    return flat | {
        "convolution/taps": taps(file[f"{prefix}conv1d.weight"], 64),
        "log_rate": file[f"{prefix}A_log"],
        "decay_bias": file[f"{prefix}dt_bias"],
        "output_norm/gain": file[f"{prefix}norm.weight"] - 1,
        "output/kernel": kernel(file[f"{prefix}out_proj.weight"], 4, 8, 32),
    }


def olmo(file):
    """Gated DeltaNet whose transitions have negative eigenvalues, convolved as one."""
    prefix = "linear_attn."
    sizes = {"query": 6, "key": 6, "value": 12, "gate": 12}
    flat = {
        f"{name}/kernel": kernel(file[f"{prefix}{name[0]}_proj.weight"], 32, 4, size)
        for name, size in sizes.items()
    }
    # The joint array, of 24, 24 and 48 channels, is stored in three equal parts.
    thirds = [file[f"{prefix}{name}_conv1d.weight"] for name in "qkv"]
    return flat | {
        "convolution/taps": taps(np.concatenate(thirds), 96),
        "beta/kernel": kernel(file[f"{prefix}b_proj.weight"]),
        "decay/kernel": kernel(file[f"{prefix}a_proj.weight"]),
        "log_rate": file[f"{prefix}A_log"],
        "decay_bias": file[f"{prefix}dt_bias"],
        "output_norm/gain": file[f"{prefix}o_norm.weight"] - 1,
        "output/kernel": kernel(file[f"{prefix}o_proj.weight"], 4, 12, 32),
    }


def kimi_linear(file):
    """Kimi Delta Attention with a convolution each for queries, keys and values."""
    return kimi(file, 4, 8) | {
        f"{name}_convolution/taps": taps(
            file[f"self_attn.{name[0]}_conv1d.weight"], 4, 8
        )
        for name in ("query", "key", "value")
    }


def dense(file, x):
    """The feed-forward layer of a layer that has no experts."""
    names = [name for name in file if "gate_proj" in name]
    assert len(names) == 1
    parts = ("gate_proj", "up_proj", "down_proj")
    return swiglu(x, *(file[names[0].replace("gate_proj", part)] for part in parts))


COMBINED = "is_convolution_combined=True"
LAYERS = {
    "qwen3_next": (
        "gated_delta(heads=4, head_dim=8, key_heads=2, value_expansion=1.0, "
        f"{COMBINED})",
        *(qwen, experts, ("input_layernorm", "post_attention_layernorm"), 1.0, 1e-6),
    ),
    "olmo_hybrid": (
        "gated_delta(heads=4, head_dim=6, allow_negative_eigenvalues=True, "
        f"{COMBINED}, output_norm='rms(epsilon=1e-05)')",
        *(olmo, dense, ("attention_layer_norm", "feedforward_layer_norm"), 0.0, 1e-6),
    ),
    "kimi_linear": (
        "kda(heads=4, head_dim=8, output_norm='rms(epsilon=1e-05)')",
        kimi_linear,
        *(dense, ("input_layernorm", "post_attention_layernorm"), 0.0, 1e-5),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_a_published_checkpoint(name):
    """The whole first layer: what is around the mixer is in NumPy."""
    spec, convert, ffn, norms, offset, epsilon = LAYERS[name]
    file = tensors("delta_layers", f"{name}/")
    first, second = (offset + file[f"{norm}.weight"] for norm in norms)
    x = np.float64(file["before"])
    h = jnp.asarray(rms(x, first, epsilon), jnp.float32)
    x = x + np.float64(mixed(spec, convert(file), h))
    close(x + ffn(file, rms(x, second, epsilon)), file["after"])
