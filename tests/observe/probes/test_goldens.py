"""Probes of a Llama of Hugging Face's, against values by the methods' own code.

The authors' figures are of a pre-norm model: layer inputs, what attention and
feed-forward layer added, and the residual before the final norm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.models.lm import LanguageModel

LAYERS, HEADS, KV_HEADS = 3, 4, 2


def as_params(data):
    """The tree of our model with the same weights."""

    def stacked(name, *shape):
        kernels = [
            data[f"model.layers.{layer}.{name}.weight"].T for layer in range(LAYERS)
        ]
        return {"kernel": jnp.stack([k.reshape(shape or k.shape) for k in kernels])}

    def gains(name):
        names = (f"model.layers.{layer}.{name}.weight" for layer in range(LAYERS))
        # Our gain is stored as an offset from one.
        return {"input_norm": {"gain": jnp.stack([data[n] - 1 for n in names])}}

    block = {
        "mixer": {
            "query": stacked("self_attn.q_proj", 32, HEADS, 8),
            "key": stacked("self_attn.k_proj", 32, KV_HEADS, 8),
            "value": stacked("self_attn.v_proj", 32, KV_HEADS, 8),
            "output": stacked("self_attn.o_proj", HEADS, 8, 32),
        },
        "ffn": {
            "gate": stacked("mlp.gate_proj"),
            "up": stacked("mlp.up_proj"),
            "down": stacked("mlp.down_proj"),
        },
        "mixer_placement": gains("input_layernorm"),
        "ffn_placement": gains("post_attention_layernorm"),
    }
    return {
        "embedding": data["model.embed_tokens.weight"],
        "final_norm": {"gain": data["model.norm.weight"] - 1},
        "head": data["lm_head.weight"].T,
        "layers": {"body": {"segment_0": {"block_0": block}}},
    }


@pytest.fixture
def probed(golden, view_of):
    data = golden("depth_probes")
    model = LanguageModel(
        vocabulary_size=128,
        features=32,
        depth=LAYERS,
        mixer=f"attention(heads={HEADS}, kv_heads={KV_HEADS})",
        ffn="swiglu(hidden=88)",
        norm="rms(epsilon=1e-5)",
        dtype=jnp.float64,
        param_dtype=jnp.float64,
    )
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params = jax.tree.map(jnp.asarray, as_params(data))
        view = view_of(model, params, jnp.asarray(data["input_ids"]))

        def probe(*names):
            return jax.jit(
                lambda: {
                    f"{name}/{key}": value
                    for name in names
                    for key, value in registry.make("probes", name)(view).items()
                }
            )()

        yield data, view, probe


def close(found, expected, relative=1e-4, absolute=1e-6):
    np.testing.assert_allclose(found, expected, rtol=relative, atol=absolute)


@pytest.mark.conformance
def test_what_the_model_is(probed):
    data, view, _ = probed
    close(view.trace.end, data["resid_pre_final_norm"], 1e-5, 1e-5)
    close(view.logits, data["logits"], 1e-5, 1e-5)
    close(view.loss(), data["loss"])


def test_stream_and_contributions(probed):
    data, _, probe = probed
    found = probe("stream", "contribution", "kurtosis")
    # Every second site is a layer's input; the last is the end.
    close(found["stream/norm"][::2], data["norm_resid"])
    close(found["stream/variance"][::2], data["var_resid"])
    for index, name in enumerate(("attn", "mlp")):
        close(found["contribution/relative"][index::2], data[f"rel_{name}"])
        close(found["contribution/cosine"][index::2], data[f"cos_{name}"])
    close(found["contribution/layer_relative"], data["rel_layer"])
    close(found["contribution/layer_cosine"], data["cos_layer"])
    # The authors' last entry is after the final norm, ours before it.
    close(found["kurtosis/excess"][:-1:2], data["kurtosis_osp"][:-1])


def test_lens_and_angles(probed):
    data, _, probe = probed
    found = probe("logit_lens", "angular_distance")
    close(found["logit_lens/kl_from_final"][:-1:2], data["lens_kl_lens_to_final"])
    close(found["logit_lens/kl_to_final"][:-1:2], data["lens_kl_final_to_lens"])
    close(found["logit_lens/top_five"][:-1:2], data["lens_top5"])
    above = np.triu_indices(LAYERS + 1, 1)
    close(found["angular_distance/last"][above], data["angular_last"][above])
    close(found["angular_distance/all"][above], data["angular_all"][above])
    close(found["angular_distance/influence"], data["bi"])


def test_gradients_and_removal(probed):
    data, _, probe = probed
    found = probe("gradient", "layer_removal")
    close(found["gradient/norm"], data["grad_norm_layer"])
    removed = np.exp(found["layer_removal/increase"] + data["loss"])
    close(removed, data["ppl_removed"])
