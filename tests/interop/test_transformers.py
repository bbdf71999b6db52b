"""Other configs of the same families, made and computed by `transformers` itself."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from reslab.train.exporting import export_run
from reslab.train.importing import import_run
from reslab.train.loading import load
from tests.interop.conftest import EXACT, ONE, logits

# Another Python that has transformers, where this one does not.
PYTHON = os.environ.get("RESLAB_TEST_TRANSFORMERS", sys.executable)
pytestmark = pytest.mark.conformance

MAKE = """
import json, sys, numpy, torch, transformers
torch.manual_seed(0)
folder = sys.argv[1]
for name, (kind, fields) in json.load(open(f"{folder}/configs.json")).items():
    config = getattr(transformers, f"{kind}Config")(**fields)
    config._attn_implementation = "eager"
    usual = f"{kind.removesuffix('Text')}ForCausalLM"
    head = {"GPT2": "GPT2LMHeadModel"}.get(kind, usual)
    model = getattr(transformers, head)(config).eval()
    for key, value in model.named_parameters():
        around = 1.0 if "norm" in key or "ln_" in key else 0.0
        if kind.startswith("Gemma"):
            around = 0.0
        scale = 0.3 if value.ndim == 1 else 0.5 * value.shape[-1] ** -0.5
        torch.nn.init.normal_(value, around, scale)
    for key, value in model.named_buffers():
        if "correction" in key:
            torch.nn.init.normal_(value, 0.0, 0.1)
    model.save_pretrained(f"{folder}/{name}")
    tokens = torch.randint(0, config.vocab_size, (2, 40))
    with torch.no_grad():
        found = model(tokens).logits.numpy()
    numpy.savez(f"{folder}/{name}/golden.npz", tokens=tokens.numpy(), logits=found)
"""
LOGITS = """
import json, sys, numpy, torch, transformers
transformers.logging.set_verbosity_error()
for folder, tokens in json.loads(sys.argv[1]):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager").eval()
    with torch.no_grad():
        found = model(torch.from_numpy(numpy.load(tokens)["tokens"])).logits
    numpy.save(f"{folder}/logits.npy", found.numpy())
"""

SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}
LOCAL = {"rope_type": "default", "rope_theta": 1e3}
FULL, SLIDING = "full_attention", "sliding_attention"
GPT2 = {"vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}
ENDLESS = {k: v for k, v in SMALL.items() if k != "max_position_embeddings"}
NARROW = SMALL | {"pad_token_id": 0, "eos_token_id": 1}
SCAN = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 5}
SCAN |= {"use_conv_bias": False, "pad_token_id": 0}
CONFIGS = {
    "llama3": ("Llama", SMALL | {"rope_parameters": LLAMA3, "head_dim": 12}),
    "llama_biases": (
        "Llama",
        SMALL | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama_linear": (
        "Llama",
        SMALL | {"rope_parameters": LINEAR, "num_key_value_heads": 4},
    ),
    "qwen3_windows": (
        "Qwen3",
        SMALL
        | {"head_dim": 8, "use_sliding_window": True, "sliding_window": 5}
        | {"max_window_layers": 2, "attention_bias": True},
    ),
    "olmo3": ("Olmo3", SMALL | {"sliding_window": 6, "rms_norm_eps": 1e-4}),
    "gemma2": (
        "Gemma2",
        SMALL | {"head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 5},
    ),
    "gemma3": (
        "Gemma3Text",
        SMALL
        | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5}
        | {"layer_types": [SLIDING, SLIDING, FULL, SLIDING]}
        | {"rope_parameters": {FULL: LINEAR, SLIDING: LOCAL}},
    ),
    "qwen3_next": (
        "Qwen3Next",
        SMALL
        | {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}
        | {"linear_key_head_dim": 6, "linear_value_head_dim": 10}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 6}
        | {"num_experts": 5, "num_experts_per_tok": 3, "norm_topk_prob": False}
        | {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 20}
        | {"mlp_only_layers": [1]},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        SMALL
        | {"num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 10}
        | {"qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
        | {"n_routed_experts": 8, "n_group": 4, "topk_group": 2}
        | {"num_experts_per_tok": 3, "moe_intermediate_size": 12}
        | {"n_shared_experts": 2, "first_k_dense_replace": 2, "norm_topk_prob": False}
        | {"rope_interleave": False, "routed_scaling_factor": 1.5},
    ),
    "kimi_linear": (
        "KimiLinear",
        SMALL
        | {"num_key_value_heads": 4, "q_lora_rank": 9, "kv_lora_rank": 10}
        | {"qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
        | {"linear_head_dim": 7, "linear_num_heads": 3}
        | {
            "layer_types": [
                "full_attention",
                *["linear_attention"] * 2,
                "full_attention",
            ]
        }
        | {"mlp_layer_types": ["sparse", "dense", "sparse", "dense"]}
        | {"num_local_experts": 6, "num_experts_per_tok": 3, "n_shared_experts": 2}
        | {"moe_intermediate_size": 12, "n_group": 3, "topk_group": 2}
        | {"norm_topk_prob": False, "pad_token_id": 0},
    ),
    "mamba": (
        "Mamba",
        SCAN | {"use_bias": True, "time_step_rank": 3, "expand": 3, "conv_kernel": 3},
    ),
    "mamba2": (
        "Mamba2",
        SCAN
        | {"use_bias": True, "num_heads": 6, "head_dim": 16, "expand": 3}
        | {"n_groups": 3, "chunk_size": 16, "tie_word_embeddings": True},
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        ENDLESS
        | {"num_hidden_layers": 5, "attention_window_size": 6, "lru_width": 40}
        | {"conv1d_width": 3, "attention_bias": True, "tie_word_embeddings": False}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "olmo_hybrid": ("OlmoHybrid", NARROW | {"tie_word_embeddings": True}),
    "olmo_hybrid_rotated": (
        "OlmoHybrid",
        NARROW
        | {"rope_parameters": LINEAR, "linear_allow_neg_eigval": False}
        | {"linear_num_key_heads": 2, "linear_value_head_dim": 10},
    ),
    "lfm2": (
        "Lfm2",
        SMALL
        | {"conv_bias": True, "conv_L_cache": 5, "full_attn_idxs": [1]}
        | {"block_multiple_of": 8, "block_ffn_dim_multiplier": 1.3},
    ),
    "nanochat": ("NanoChat", SMALL | {"num_key_value_heads": 2}),
    "gpt2_silu": ("GPT2", GPT2 | {"activation_function": "silu"}),
    "gpt2_relu": ("GPT2", GPT2 | {"activation_function": "relu"}),
    "gpt2_exact": (
        "GPT2",
        GPT2
        | {"activation_function": "gelu", "n_inner": 40, "tie_word_embeddings": False},
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every config's checkpoint and logits; and those of its export."""
    if sys.executable == PYTHON:
        pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("made")
    (folder / "configs.json").write_text(json.dumps(CONFIGS))
    subprocess.run([PYTHON, "-c", MAKE, str(folder)], check=True)
    for name in CONFIGS:
        import_run(folder / name, folder / f"{name}-run")
        export_run(folder / f"{name}-run", folder / f"{name}-out")
    asked = [
        (str(folder / f"{name}-out"), str(folder / name / "golden.npz"))
        for name in CONFIGS
    ]
    subprocess.run([PYTHON, "-c", LOGITS, json.dumps(asked)], check=True)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_and_exports_load(name, made):
    with np.load(made / name / "golden.npz") as archive:
        tokens, wanted = np.int32(archive["tokens"]), archive["logits"]
    found = logits(load(made / name, changes=EXACT, mesh=ONE), tokens)
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)
    back = np.load(made / f"{name}-out" / "logits.npy")
    np.testing.assert_allclose(back, wanted, atol=1e-5, rtol=0)
    one, other = (made / one / "config.json" for one in (name, f"{name}-out"))
    assert json.loads(one.read_text()) == json.loads(other.read_text())
