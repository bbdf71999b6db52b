"""Stacks, blocks, linears and ffns of one's own work under every loop."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.losses import LOSSES, total_loss
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel

_SPEC = importlib.util.spec_from_file_location(
    "outside_parts", pathlib.Path(__file__).with_name("parts.py")
)
parts = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(parts)

TOKENS = np.random.default_rng(3).integers(0, 24, (2, 8), dtype=np.int32)
DOCUMENTS = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]], np.int32)


def make(**fields):
    defaults = {"features": 16, "depth": 3, "ffn": "swiglu(hidden=16)"}
    defaults |= {"mixer": "attention(heads=2)", "max_length": 8}
    return LanguageModel(
        **{"vocabulary_size": 24, "dtype": jnp.float64, "param_dtype": jnp.float64}
        | defaults
        | fields
    )


def drawn(model):
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))["params"]
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape), shapes)


def objective(model, params, documents=None):
    """The sum of what the layers add, and a function of the logits; and gradients."""

    def loss(params):
        logits, written = model.apply(
            {"params": params}, TOKENS, segments=documents, mutable=[LOSSES]
        )
        return jnp.sum(jnp.sin(logits)) + total_loss(written), total_loss(written)

    (value, added), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, added, named_leaves(gradient)


PARTS = {
    "low rank": {"linear": parts.DepthwiseLoRA, "stack": "looped(loops=2)"},
    "carried router": {"ffn": parts.CarriedRouter},
    "carried router, looped": {"ffn": parts.CarriedRouter, "stack": "looped(loops=2)"},
    "carried router, history": {"ffn": parts.CarriedRouter, "residual": "attnres"},
    "halting": {"stack": parts.Ponder},
    "halting, history": {"stack": parts.Ponder, "residual": "denseformer"},
    "mixture of depths": {"block": ("standard", parts.MixtureOfDepths)},
}


@pytest.mark.conformance
@pytest.mark.parametrize("name", PARTS)
def test_rolled_rematerialized_and_unrolled_agree(x64, name):
    model = make(**PARTS[name])
    params = drawn(model)
    value, added, wanted = objective(model, params, DOCUMENTS)
    for fields in ({"is_unrolled": True}, {"remat": "full"}):
        other = make(**PARTS[name], **fields)
        found = objective(other, params, DOCUMENTS)
        np.testing.assert_allclose(found[:2], (value, added), rtol=1e-9)
        for path, leaf in found[2].items():
            size = np.max(np.abs(wanted[path]), initial=1e-9)
            np.testing.assert_allclose(leaf, wanted[path], rtol=0, atol=1e-9 * size)


@pytest.mark.conformance
def test_each_layer_and_pass_has_its_rank(x64):
    model = make(linear=parts.DepthwiseLoRA, stack="looped(loops=2)")
    _, _, gradients = objective(model, drawn(model))
    most = np.max(parts.RANKS, axis=0)
    for path, leaf in gradients.items():
        if path.endswith("lora_up"):
            for layer, rank in enumerate(most):
                used = np.any(leaf[layer].reshape(4, -1), axis=1)
                np.testing.assert_array_equal(used, np.arange(4) < rank, err_msg=path)
    # Without a loop every layer has the ranks of the first pass.
    once = make(linear=parts.DepthwiseLoRA)
    _, _, gradients = objective(once, drawn(once))
    (path,) = [p for p in gradients if p.endswith("query/lora_up")]
    used = np.any(gradients[path].reshape(3, 4, -1), axis=2)
    np.testing.assert_array_equal(used, np.arange(4) < np.array(parts.RANKS[:1]).T)


def test_a_router_reads_the_scores_of_the_layers_below(x64):
    model = make(ffn=parts.CarriedRouter)
    params = drawn(model)

    def last_share(params):
        _, written = model.apply({"params": params}, TOKENS, mutable=[LOSSES])
        (losses,) = [v for n, v in named_leaves(written).items() if "balance" in n][-1:]
        return losses[-1]

    # Nothing is written to the stream: only the depth memory joins the layers.
    def silenced(path, leaf):
        return leaf * ("up_" not in str(path) and "output" not in str(path))

    silent = jax.tree_util.tree_map_with_path(silenced, params)
    gradients = named_leaves(jax.jit(jax.grad(last_share))(silent))
    first = [path for path in gradients if "segment_0" in path and "score" in path]
    assert first and all(np.any(gradients[path]) for path in first)


def test_a_balance_loss_counts_real_tokens_alone(x64):
    model = make(ffn=parts.CarriedRouter, depth=1)
    params = drawn(model)
    changed = TOKENS.copy()
    changed[1, 4:] = 5

    def added(tokens, documents):
        _, written = model.apply(
            {"params": params}, tokens, segments=documents, mutable=[LOSSES]
        )
        return total_loss(written)

    assert added(TOKENS, DOCUMENTS) == added(changed, DOCUMENTS)
    assert added(TOKENS, None) != added(changed, None)
