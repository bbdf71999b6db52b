"""LFM2: gated short convolutions, and attention in some layers."""

import math
from collections.abc import Mapping
from typing import Any

from reslab.interop.base import decoder, experts, fields
from reslab.interop.base.design import Case, Of, Spec
from reslab.interop.base.family import PLAIN, Family
from reslab.interop.base.forms import Kernel, Taps, Vector
from reslab.interop.base.tensors import Row, only, renamed

_CONVOLUTION = "conv"
_NORM = decoder.rms(epsilon=Of("norm_eps"))


def _layer_types(found: Mapping[str, Any]) -> list[str]:
    count, full = found["num_hidden_layers"], found["full_attn_idxs"]
    full = range(count) if full is None else full
    full = experts.check_layers("full_attn_idxs", list(full))
    return [decoder.FULL if i in full else _CONVOLUTION for i in range(count)]


def _read(found: dict[str, Any]) -> dict[str, Any]:
    hidden = found["block_ff_dim"] or found["intermediate_size"]
    if found["block_auto_adjust_ff_dim"]:
        hidden = int(found["block_ffn_dim_multiplier"] * int(2 * hidden / 3))
        multiple = found["block_multiple_of"]
        hidden = multiple * math.ceil(hidden / multiple)
    tied = found["tie_embedding"]
    tied = found["tie_word_embeddings"] if tied is None else tied
    return found | {"hidden": hidden, "tie_word_embeddings": tied}


def _write(config: dict[str, Any]) -> dict[str, Any]:
    dropped = ("block_ff_dim", "tie_embedding", "full_attn_idxs")
    written = {k: v for k, v in config.items() if k not in dropped}
    written["intermediate_size"] = written.pop("hidden")
    return written | {"block_auto_adjust_ff_dim": False}


_FIELDS = {k: v for k, v in decoder.FIELDS.items() if k != "rms_norm_eps"}
# Sizes that others repeat, and how parameters begin.
_REPEATED = """
    block_dim block_mlp_init_scale block_norm_eps block_out_init_scale
    block_use_xavier_init conv_dim conv_dim_out conv_use_xavier_init num_heads theta
"""
_CONV, _KERNEL = "layers.{i}.conv", "mixer/value_convolution/taps"
_GATES = ("mixer/input_gate", "mixer/gate", "mixer/value")
_ATTENTION = renamed(
    decoder.attention_rows(),
    o_proj="out_proj",
    q_norm="q_layernorm",
    k_norm="k_layernorm",
)
_CONVOLUTIONS = (
    Row(f"{_CONV}.in_proj.weight", tuple(f"{one}/kernel" for one in _GATES), Kernel()),
    Row(f"{_CONV}.in_proj.bias", tuple(f"{one}/bias" for one in _GATES), Vector()),
    Row(f"{_CONV}.conv.weight", (_KERNEL,), Taps()),
    Row(f"{_CONV}.conv.bias", ("mixer/value_convolution/bias",)),
    Row(f"{_CONV}.out_proj.weight", ("mixer/output/kernel",), Kernel()),
    Row(f"{_CONV}.out_proj.bias", ("mixer/output/bias",)),
)

FAMILY = Family(
    model_type="lfm2",
    architecture="Lfm2ForCausalLM",
    fields={
        **_FIELDS,
        "intermediate_size": fields.whole(12288),
        "tie_word_embeddings": fields.flag(True),
        "attention_bias": fields.only(False),
        "norm_eps": fields.number(),
        "conv_L_cache": fields.whole(3),
        "conv_bias": fields.flag(),
        "full_attn_idxs": fields.Known("any", None),
        "layer_types": fields.listing(_layer_types),
        "block_auto_adjust_ff_dim": fields.flag(True),
        "block_ffn_dim_multiplier": fields.number(1.0),
        "block_multiple_of": fields.whole(256),
        "block_use_swiglu": fields.only(True),
        "use_pos_enc": fields.only(True),
        # Earlier names.
        "block_ff_dim": fields.whole(None),
        "tie_embedding": fields.Known("flag", None),
        **dict.fromkeys(_REPEATED.split(), fields.Known("any", None)),
    },
    design={
        **PLAIN,
        "mixer": Case(
            "layer_types",
            {
                _CONVOLUTION: Spec(
                    "mixers",
                    "short_convolution",
                    {"taps": Of("conv_L_cache"), "use_bias": Of("conv_bias")},
                ),
                decoder.FULL: decoder.attention(qk_norm=_NORM, use_bias=False),
            },
        ),
        "ffn": Spec("ffns", "swiglu", {"hidden": Of("hidden")}),
        "norm": _NORM,
    },
    rows=(
        *renamed(decoder.ENDS, norm="embedding_norm"),
        *only(_ATTENTION, without=_KERNEL),
        *only(_CONVOLUTIONS, beside=_KERNEL),
        *renamed(decoder.ffn_rows(gate="w1", up="w3", down="w2"), mlp="feed_forward"),
        *decoder.norm_rows(mixer_input="operator_norm", ffn_input="ffn_norm"),
    ),
    rope_theta=1_000_000.0,
    read=_read,
    write=_write,
)
