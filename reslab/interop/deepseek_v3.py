"""DeepSeek-V3: latent attention, and experts in groups behind the first layers."""

from typing import Any

from reslab.interop.base import decoder, experts, fields, latent
from reslab.interop.base.design import Of
from reslab.interop.base.family import PLAIN, Family
from reslab.interop.base.rope import rope


def _read(found: dict[str, Any]) -> dict[str, Any]:
    return experts.with_shared(latent.read(found), "n_shared_experts")


def _write(config: dict[str, Any]) -> dict[str, Any]:
    written = experts.without_shared(latent.write(config), "n_shared_experts")
    kinds = written.pop("mlp_layer_types")
    return written | {"first_k_dense_replace": kinds.count(experts.DENSE)}


FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    fields={
        **latent.FIELDS,
        **experts.FIELDS,
        "first_k_dense_replace": fields.Known("count", 3),
        "moe_layer_freq": fields.Known("whole", 1, (1,)),
        "mlp_layer_types": fields.listing(experts.first_dense),
        "q_lora_rank": fields.Known("whole", None),
        "rope_interleave": fields.flag(True),
        "n_routed_experts": fields.whole(256),
        "num_experts_per_tok": fields.whole(8),
        "n_shared_experts": fields.Known("count", 1),
        "n_group": fields.whole(8),
        "topk_group": fields.whole(4),
        "norm_topk_prob": fields.flag(True),
        "routed_scaling_factor": fields.number(2.5),
        "scoring_func": fields.text("sigmoid", default="sigmoid"),
        "topk_method": fields.text("noaux_tc", default="noaux_tc"),
        # A further head, whose tensors are not read.
        "num_nextn_predict_layers": fields.Known("any", None),
    },
    design={
        **PLAIN,
        "mixer": latent.attention(
            position=rope(is_interleaved=Of("rope_interleave")),
        ),
        "ffn": experts.sigmoid(
            experts=Of("n_routed_experts"),
            chosen=Of("num_experts_per_tok"),
            groups=Of("n_group"),
            chosen_groups=Of("topk_group"),
            is_renormalized=Of("norm_topk_prob"),
        ),
        "norm": decoder.rms(),
    },
    rows=(*decoder.ENDS, *latent.ROWS, *experts.rows(), *decoder.PRE),
    buffers=r"rotary_emb\.inv_freq$|layers\.61\.",
    read=_read,
    write=_write,
)
