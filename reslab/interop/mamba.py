"""Mamba: selective scans alone, without feed-forward layers and positions."""

import math
from collections.abc import Mapping
from typing import Any

from reslab.interop.base import decoder, fields, recurrent
from reslab.interop.base.design import Of, Spec
from reslab.interop.base.family import PLAIN, Family
from reslab.interop.base.forms import Kernel, Taps, Vector
from reslab.interop.base.tensors import Row, renamed

_NORM = decoder.rms(epsilon=Of("layer_norm_epsilon"))
# How parameters begin, and how a state is computed.
_OTHERS = """
    fused_add_norm pad_vocab_size_multiple rescale_prenorm_residual residual_in_fp32
    rms_norm ssm_cfg time_step_floor time_step_init_scheme time_step_max time_step_min
    time_step_scale use_associative_scan use_mambapy
"""
FIELDS = {
    "vocab_size": fields.whole(),
    "hidden_size": fields.whole(),
    "num_hidden_layers": fields.whole(),
    "layer_norm_epsilon": fields.number(1e-5),
    "state_size": fields.whole(),
    "expand": fields.whole(2),
    "conv_kernel": fields.whole(4),
    "hidden_act": fields.text("silu", default="silu"),
    "use_bias": fields.flag(),
    "use_conv_bias": fields.flag(True),
    **dict.fromkeys(_OTHERS.split(), fields.Known("any", None)),
}
DESIGN = {**PLAIN, "block": "mixer_only", "ffn": "swiglu", "norm": _NORM}
ARGUMENTS = {
    "state_size": Of("state_size"),
    "expansion": Of("expansion"),
    "taps": Of("conv_kernel"),
    "use_bias": Of("use_bias"),
    "use_convolution_bias": Of("use_conv_bias"),
}
ENDS = (
    *renamed(decoder.ENDS, embed_tokens="embeddings", norm="norm_f"),
    *decoder.norm_rows(mixer_input="norm"),
)


def _wide(found: Mapping[str, Any]) -> int:
    return found["expand"] * found["hidden_size"]


def _read(found: dict[str, Any]) -> dict[str, Any]:
    rank, width = found["time_step_rank"], found["hidden_size"]
    rank = math.ceil(width / 16) if rank == "auto" else rank
    rank = fields.whole().check("time_step_rank", rank)
    expansion = recurrent.expansion(found["intermediate_size"], width)
    return found | {"expansion": expansion, "time_step_rank": rank}


def _write(config: dict[str, Any]) -> dict[str, Any]:
    written = dict(config)
    channels = int(written.pop("expansion") * written["hidden_size"])
    return written | {"intermediate_size": channels}


_NAME = "layers.{i}.mixer"

FAMILY = Family(
    model_type="mamba",
    architecture="MambaForCausalLM",
    fields={
        **FIELDS,
        "tie_word_embeddings": fields.flag(True),
        "intermediate_size": fields.whole(_wide),
        "time_step_rank": fields.Known("any", "auto"),
        # The same as others, by their first names.
        **dict.fromkeys(("d_inner", "d_model", "n_layer"), fields.Known("any", None)),
    },
    design={
        **DESIGN,
        "mixer": Spec(
            "mixers", "mamba", {**ARGUMENTS, "step_rank": Of("time_step_rank")}
        ),
    },
    rows=(
        *ENDS,
        Row(
            f"{_NAME}.in_proj.weight",
            ("mixer/value/kernel", "mixer/gate/kernel"),
            Kernel(),
        ),
        Row(f"{_NAME}.in_proj.bias", ("mixer/value/bias", "mixer/gate/bias"), Vector()),
        Row(f"{_NAME}.conv1d.weight", ("mixer/value_convolution/taps",), Taps()),
        Row(f"{_NAME}.conv1d.bias", ("mixer/value_convolution/bias",)),
        Row(
            f"{_NAME}.x_proj.weight",
            ("mixer/step_down/kernel", "mixer/key/kernel", "mixer/query/kernel"),
            Kernel(),
        ),
        Row(f"{_NAME}.dt_proj.weight", ("mixer/step_up/kernel",), Kernel()),
        Row(f"{_NAME}.dt_proj.bias", ("mixer/step_bias",)),
        Row(f"{_NAME}.A_log", ("mixer/log_rate",)),
        Row(f"{_NAME}.D", ("mixer/skip",)),
        Row(f"{_NAME}.out_proj.weight", ("mixer/output/kernel",), Kernel()),
        Row(f"{_NAME}.out_proj.bias", ("mixer/output/bias",)),
    ),
    prefix="backbone.",
    has_rope=False,
    length="",
    read=_read,
    write=_write,
)
