"""Probes of a Llama of Hugging Face's, against values by the methods' own code.

The authors' figures are of a pre-norm model: layer inputs, what attention and
feed-forward layer added, and the residual before the final norm.
"""

import contextlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.train.loading import load

LAYERS = 3
CHECKPOINTS = pathlib.Path(__file__).parent.parent.parent / "goldens" / "interop"
DOUBLE = {"precision.compute": "float64", "precision.parameters": "float64"}


@contextlib.contextmanager
def probing(name, tokens, view_of):
    """A view of an imported model in float64, and a function that asks probes."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model, params, _ = load(CHECKPOINTS / name, changes=DOUBLE, mesh={"fsdp": 1})
        view = view_of(model, params, jnp.asarray(tokens))

        def probe(*names):
            return jax.jit(
                lambda: {
                    f"{name}/{key}": value
                    for name in names
                    for key, value in registry.make("probes", name)(view).items()
                }
            )()

        yield view, probe


@pytest.fixture
def probed(golden, view_of):
    data = golden("depth_probes")
    with probing("llama", data["input_ids"], view_of) as (view, probe):
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


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_statistics_of_what_the_layers_of_the_class_return(name, view_of):
    """By the definitions, from hidden states and branches of the class itself."""
    with np.load(CHECKPOINTS / name / "golden.npz") as archive:
        data = {key: np.float64(value) for key, value in archive.items()}
    tokens = np.int32(data["input_ids"])
    with probing(name, tokens, view_of) as (_, probe):
        found = probe("stream", "contribution")
    stream = [*data["hidden_states"][:-1], data["resid_pre_final_norm"]]
    for layer in range(LAYERS):
        before, mixed = stream[layer], data["attn_out"][layer]
        reads = {"attn": before, "mlp": before + mixed}
        adds = {"attn": mixed, "mlp": data["mlp_out"][layer]}
        for index, kind in enumerate(reads):
            x, y = reads[kind], adds[kind]
            sizes = [np.linalg.norm(one, axis=-1) for one in (x, y)]
            cosine = np.sum(x * y, axis=-1) / (sizes[0] * sizes[1])
            at = 2 * layer + index
            close(found["contribution/relative"][at], np.mean(sizes[1] / sizes[0]))
            close(found["contribution/cosine"][at], np.mean(cosine), 1e-4, 1e-5)
    lengths = [np.mean(np.linalg.norm(one, axis=-1)) for one in stream]
    close(found["stream/norm"][::2], lengths)
