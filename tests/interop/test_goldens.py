"""Imported models compute what their own classes do."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import map_named, named_leaves
from reslab.interop.base.family import families, family_of
from reslab.interop.base.files import Source
from reslab.train.importing import (
    configured,
    divided_setup,
    import_run,
    understood,
)
from reslab.train.loading import load
from reslab.train.placing import expected_tensors
from tests.interop.conftest import (
    EXACT,
    FIRST,
    GOLDENS,
    ONE,
    SECOND,
    copied,
    golden,
    loaded,
    logits,
    observed,
)

TOLERANCE = 1e-4


def difference(found, name):
    wanted = golden(name)
    return np.max(np.abs(logits(found, wanted["input_ids"]) - wanted["logits"]))


def test_logits_and_every_hidden_state(family):
    given = loaded(family)
    wanted = golden(family)
    found, stream = observed(given, wanted["input_ids"])
    np.testing.assert_allclose(found, wanted["logits"], atol=TOLERANCE, rtol=0)
    # Those of Mamba are behind each layer of one sublayer, others before one of two.
    layers = stream[1:] if family.startswith("mamba") else stream[:-1:2]
    np.testing.assert_allclose(
        layers, wanted["hidden_states"][:-1], atol=TOLERANCE, rtol=0
    )
    # Their last one is behind the final norm.
    final = given.model.apply(
        given.variables, stream[-1], method=lambda m, x: m.final_norm(x)
    )
    np.testing.assert_allclose(
        final, wanted["hidden_states"][-1], atol=TOLERANCE, rtol=0
    )
    if "resid_pre_final_norm" in wanted:
        np.testing.assert_allclose(
            stream[-1], wanted["resid_pre_final_norm"], atol=TOLERANCE, rtol=0
        )


def gradients_of(name):
    """The loss, and the norm of its gradient by every tensor of theirs."""
    given = loaded(name)
    tokens = golden(name)["input_ids"]

    def loss(params):
        variables = given.variables | {"params": params}
        nll, _ = given.model.apply(
            variables, tokens[:, :-1], tokens[:, 1:], method="losses"
        )
        return jnp.mean(nll)

    with jax.default_matmul_precision("highest"):
        value, gradient = jax.jit(jax.value_and_grad(loss))(given.params)
    found = understood(GOLDENS / name)
    setup = divided_setup(configured(found), ONE)
    leaves = named_leaves(gradient)
    squares = collections.Counter()
    for one in expected_tensors(found.source, found.family, setup):
        if one.places[0].path in leaves:
            parts = [np.float64(leaves[p.path][p.index]) for p in one.places]
            squares[in_memory(one.name)] += sum(np.sum(part**2) for part in parts)
    return float(value), {key: np.sqrt(one) for key, one in squares.items()}


# Tensors that are joined where their class holds them.
JOINED = (
    ("feedforward_layer_norm", "post_attention_layernorm"),
    ("attention_layer_norm", "input_layernorm"),
    (r"block_sparse_moe", "mlp"),
    (r"\bw1\b", "gate_proj"),
    (r"\bw2\b", "down_proj"),
    (r"\bw3\b", "up_proj"),
    (r"self_attn\.(f_[ab]_proj|dt_bias|A_log)", r"self_attn.forget_gate.\1"),
    (r"[qkv]_conv1d", "conv1d"),
    (r"experts\.\d+\.(gate|up)_proj\.weight", "experts.gate_up_proj"),
    (r"experts\.\d+\.down_proj\.weight", "experts.down_proj"),
)


def in_memory(name):
    # Only one of these families calls its projections w1, w2 and w3 elsewhere.
    for pattern, joined in () if "feed_forward" in name else JOINED:
        name = re.sub(pattern, joined, name)
    return name


@pytest.mark.conformance
@pytest.mark.parametrize("name", FIRST[3:] + SECOND)
def test_loss_and_gradient_norms(name):
    wanted = golden(name)
    value, norms = gradients_of(name)
    assert value == pytest.approx(float(wanted["loss"]), rel=1e-5)
    names = wanted["gradient_norm_names"].tolist()
    assert set(names) == set(norms)
    np.testing.assert_allclose(
        [norms[one] for one in names], wanted["gradient_norms"], rtol=1e-3
    )


@pytest.mark.parametrize("kind", ["gain", "bias"])
def test_a_dropped_vector_shows(kind):
    """One changed gain or bias is more than the tolerance, so goldens see all."""
    model, params, _ = loaded("gpt2")

    def changed(which):
        return map_named(
            lambda name, leaf: leaf.at[..., 0].add(0.05 * (name == which)), params
        )

    names = [name for name in named_leaves(params) if name.endswith(kind)]
    run = jax.jit(model.apply)
    tokens, wanted = golden("gpt2")["input_ids"], golden("gpt2")["logits"]
    assert len(names) >= 3
    for name in names:
        with jax.default_matmul_precision("highest"):
            found = run({"params": changed(name)}, tokens)
        # A bias of keys moves all scores of a query alike.
        is_seen = "mixer/key/bias" not in name
        assert (np.max(np.abs(found - wanted)) > TOLERANCE) == is_seen, name


PERTURBED = [
    ("qwen3_next", {"rms_norm_eps": 1e-4}),
    ("qwen3_next", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    ("qwen3_next", {"norm_topk_prob": False}),
    ("deepseek_v3", {"rms_norm_eps": 1e-4}),
    ("deepseek_v3", {"rope_interleave": False}),
    ("deepseek_v3", {"rope_parameters": {"rope_theta": 9000.0}}),
    ("deepseek_v3", {"routed_scaling_factor": 2.4}),
    ("kimi_linear", {"rms_norm_eps": 1e-4}),
    ("lfm2", {"norm_eps": 1e-3}),
    ("recurrent_gemma", {"rms_norm_eps": 1e-4}),
    ("recurrent_gemma", {"logits_soft_cap": 29.0}),
    ("recurrent_gemma", {"attention_window_size": 7}),
    ("recurrent_gemma", {"rope_parameters": {"partial_rotary_factor": 1.0}}),
    ("recurrent_gemma", {"hidden_activation": "gelu"}),
    ("olmo_hybrid", {"rms_norm_eps": 1e-4}),
    ("olmo_hybrid", {"linear_allow_neg_eigval": False}),
    ("olmo_hybrid", {"rope_parameters": None}),
    ("mamba", {"layer_norm_epsilon": 1e-3}),
    ("mamba2", {"layer_norm_epsilon": 1e-3}),
    ("lfm2", {"rope_parameters": {"rope_theta": 9e5}}),
    ("llama", {"rms_norm_eps": 1e-6}),
    ("llama", {"rope_parameters": {"rope_theta": 9000.0, "rope_type": "default"}}),
    ("gpt2", {"layer_norm_epsilon": 1e-3}),
    ("gpt2", {"activation_function": "gelu"}),
    ("qwen3", {"rms_norm_eps": 1e-4}),
    ("olmo2", {"rms_norm_eps": 1e-4}),
    ("olmo3", {"sliding_window": 9}),
    ("gemma2", {"attn_logit_softcapping": 40.0}),
    ("gemma2", {"final_logit_softcapping": 29.0}),
    ("gemma2", {"query_pre_attn_scalar": 9}),
    ("gemma2", {"hidden_activation": "gelu"}),
    ("gemma3", {"sliding_window": 7}),
    ("nanochat", {"final_logit_softcapping": None}),
]


@pytest.mark.conformance
@pytest.mark.parametrize("name, changes", PERTURBED, ids=str)
def test_a_perturbed_config_shows(name, changes, tmp_path):
    folder = copied(name, tmp_path / "x", **changes)
    assert difference(load(folder, changes=EXACT, mesh=ONE), name) > TOLERANCE


@pytest.mark.conformance
def test_eight_devices_compute_the_same(family):
    found = load(GOLDENS / family, changes=EXACT, mesh={"fsdp": 4, "tensor": 2})
    leaves = named_leaves(found.params)
    kernels = [v for k, v in leaves.items() if k.endswith("output/kernel")]
    assert {len(leaf.sharding.device_set) for leaf in kernels} == {8}
    assert not any(leaf.sharding.is_fully_replicated for leaf in kernels)
    assert difference(found, family) < TOLERANCE


def test_every_family_has_a_golden():
    found = {
        family_of(Source(GOLDENS / one.name).config).model_type
        for one in GOLDENS.iterdir()
        if one.is_dir()
    }
    assert found == families().keys()


def test_positions_end_where_a_table_ends():
    """Rotations have no end: beyond the length of training there is a warning."""
    model, params, _ = loaded("gpt2")
    with pytest.raises(ReslabError, match="sequence length: expected at most 48"):
        model.apply({"params": params}, np.zeros((1, 49), np.int32))
    model, params, _ = loaded("llama")
    tokens = np.zeros((1, 65), np.int32)
    assert jax.eval_shape(model.apply, {"params": params}, tokens).shape == (1, 65, 128)


def test_a_longer_sequence_is_warned_of(tmp_path, capsys):
    import_run(GOLDENS / "llama", tmp_path / "run", [("data.length", 65)])
    assert "data.length 65 is beyond the 64 positions" in capsys.readouterr().err
    with pytest.raises(ReslabError, match=r"data\.length: expected at most"):
        import_run(GOLDENS / "gpt2", tmp_path / "other", [("data.length", 49)])
