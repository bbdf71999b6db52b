"""Qwen3-Next: gated DeltaNet, gated attention in some layers, and experts."""

from collections.abc import Mapping
from typing import Any

from reslab.interop.base import decoder, experts, fields, recurrent
from reslab.interop.base.design import Case, Of, Spec
from reslab.interop.base.family import PLAIN, Family
from reslab.interop.base.forms import Kernel, Taps, Vector
from reslab.interop.base.recurrent import LINEAR
from reslab.interop.base.tensors import Row, only


def _layer_types(found: Mapping[str, Any]) -> list[str]:
    every = found["full_attention_interval"]
    return [
        LINEAR if (layer + 1) % every else decoder.FULL
        for layer in range(found["num_hidden_layers"])
    ]


def _mlp_layer_types(found: Mapping[str, Any]) -> list[str]:
    step = found["decoder_sparse_step"]
    dense = experts.check_layers("mlp_only_layers", found["mlp_only_layers"])
    return [
        experts.DENSE if layer in dense or (layer + 1) % step else experts.SPARSE
        for layer in range(found["num_hidden_layers"])
    ]


def _read(found: dict[str, Any]) -> dict[str, Any]:
    sizes = found["linear_value_head_dim"], found["linear_key_head_dim"]
    return found | {"value_expansion": recurrent.expansion(*sizes)}


def _write(config: dict[str, Any]) -> dict[str, Any]:
    written = dict(config)
    expansion = written.pop("value_expansion", None)
    if expansion is not None:
        size = int(expansion * written["linear_key_head_dim"])
        written["linear_value_head_dim"] = size
    kinds = written.pop("mlp_layer_types")
    dense = [layer for layer, kind in enumerate(kinds) if kind == experts.DENSE]
    return written | {"mlp_only_layers": dense, "decoder_sparse_step": 1}


_DELTA = Spec(
    "mixers",
    "gated_delta",
    {
        "heads": Of("linear_num_value_heads"),
        "head_dim": Of("linear_key_head_dim"),
        "key_heads": Of("linear_num_key_heads"),
        "value_expansion": Of("value_expansion"),
        "is_convolution_combined": True,
        "output_norm": decoder.rms(),
    },
)
_JOINT = tuple(f"mixer/{one}/kernel" for one in ("query", "key", "value", "gate"))
# Each query head of attention is followed by its gate.
_ATTENTION = tuple(
    Row(
        f"layers.{{i}}.self_attn.q_proj.{theirs}",
        (f"mixer/query/{ours}", f"mixer/gate/{ours}"),
        form,
        grouped_by="mixer/query/kernel",
    )
    for theirs, ours, form in (
        ("weight", "kernel", Kernel()),
        ("bias", "bias", Vector()),
    )
)
_OTHERS = tuple(one for one in decoder.attention_rows() if "q_proj" not in one.theirs)

FAMILY = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    fields={
        **decoder.FIELDS,
        "intermediate_size": fields.whole(5632),
        "head_dim": fields.whole(256),
        "hidden_act": fields.text("silu"),
        "full_attention_interval": fields.whole(4),
        "layer_types": fields.listing(_layer_types),
        "linear_conv_kernel_dim": fields.Known("whole", 4, (4,)),
        "linear_key_head_dim": fields.whole(128),
        "linear_value_head_dim": fields.whole(128),
        "linear_num_key_heads": fields.whole(16),
        "linear_num_value_heads": fields.whole(32),
        "decoder_sparse_step": fields.whole(1),
        "mlp_only_layers": fields.Known("any", []),
        "mlp_layer_types": fields.listing(_mlp_layer_types),
        "moe_intermediate_size": fields.whole(512),
        "shared_expert_intermediate_size": fields.whole(512),
        "num_experts": fields.whole(512),
        "num_experts_per_tok": fields.whole(10),
        "norm_topk_prob": fields.flag(True),
        "router_aux_loss_coef": fields.number(0.001),
        "output_router_logits": fields.Known("flag", False),
    },
    design={
        **PLAIN,
        "mixer": Case(
            "layer_types",
            {
                LINEAR: _DELTA,
                decoder.FULL: decoder.attention(
                    qk_norm=decoder.offset_rms(), use_output_gate=True
                ),
            },
        ),
        "ffn": experts.experts(
            experts=Of("num_experts"),
            chosen=Of("num_experts_per_tok"),
            is_renormalized=Of("norm_topk_prob"),
            shared_hidden=Of("shared_expert_intermediate_size"),
            is_shared_gated=True,
            rate=Of("router_aux_loss_coef"),
        ),
        "norm": decoder.offset_rms(),
    },
    rows=(
        *decoder.ENDS,
        *only((*_ATTENTION, *_OTHERS), without="mixer/beta/kernel"),
        Row(
            "layers.{i}.linear_attn.in_proj_qkvz.weight",
            _JOINT,
            Kernel(),
            beside="mixer/beta/kernel",
            grouped_by="mixer/query/kernel",
        ),
        Row(
            "layers.{i}.linear_attn.in_proj_ba.weight",
            ("mixer/beta/kernel", "mixer/decay/kernel"),
            Kernel(),
            grouped_by="mixer/query/kernel",
        ),
        Row(
            "layers.{i}.linear_attn.conv1d.weight",
            ("mixer/convolution/taps",),
            Taps(),
        ),
        Row("layers.{i}.linear_attn.A_log", ("mixer/log_rate",)),
        *recurrent.delta_rows("linear_attn", "norm", "out_proj"),
        *experts.rows(shared="shared_expert"),
        *decoder.PRE,
    ),
    # The second is of a further head, for several tokens at once.
    buffers=r"rotary_emb\.inv_freq$|^mtp\.",
    stores_gain_offset=True,
    rope_fraction=0.25,
    read=_read,
    write=_write,
)
