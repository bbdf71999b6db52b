"""Common parts of the tables of decoders with latent attention."""

from typing import Any

from reslab.interop.base import decoder, fields
from reslab.interop.base.design import Of, Spec
from reslab.interop.base.forms import Kernel
from reslab.interop.base.tensors import Row, only

FIELDS = {
    **decoder.FIELDS,
    "hidden_act": fields.text("silu"),
    "kv_lora_rank": fields.whole(512),
    "q_lora_rank": fields.Known("whole", None),
    "qk_nope_head_dim": fields.whole(128),
    "qk_rope_head_dim": fields.whole(64),
    "v_head_dim": fields.whole(128),
    "attention_bias": fields.only(False),
    # Both follow from other fields.
    "head_dim": fields.Known("any", None),
    "qk_head_dim": fields.Known("any", None),
}
# The norms of latent vectors have an epsilon of their own.
_NORM = Spec("norms", "rms", {"is_gain_offset": False, "is_rounded_before_gain": True})


def read(found: dict[str, Any]) -> dict[str, Any]:
    """Adds the rank of queries, 0 where they have none."""
    heads, kv = found["num_attention_heads"], found["num_key_value_heads"]
    fields.Known("whole", heads, (heads,)).check("num_key_value_heads", kv)
    return found | {"query_rank": found["q_lora_rank"] or 0}


def write(config: dict[str, Any]) -> dict[str, Any]:
    """Writes the same in its field, and fields that follow from others."""
    written = dict(config)
    written["q_lora_rank"] = written.pop("query_rank", 0) or None
    rotated = written["qk_rope_head_dim"]
    written["head_dim"] = rotated
    written["qk_head_dim"] = rotated + written["qk_nope_head_dim"]
    return written | {"num_key_value_heads": written["num_attention_heads"]}


def attention(**arguments: Any) -> Spec:
    """Latent attention."""
    given = {
        "heads": Of("num_attention_heads"),
        "head_dim": Of("qk_nope_head_dim"),
        "value_dim": Of("v_head_dim"),
        "rope_dim": Of("qk_rope_head_dim"),
        "rank": Of("kv_lora_rank"),
        "query_rank": Of("query_rank"),
        "latent_norm": _NORM,
        **arguments,
    }
    return Spec("mixers", "latent_attention", given)


_NAME, _DOWN = "layers.{i}.self_attn", "mixer/query_down/kernel"
_ROWS = (
    Row(f"{_NAME}.q_proj.weight", ("mixer/query/kernel",), Kernel(), without=_DOWN),
    Row(f"{_NAME}.q_a_proj.weight", (_DOWN,), Kernel()),
    Row(f"{_NAME}.q_a_layernorm.weight", ("mixer/query_norm/gain",)),
    Row(f"{_NAME}.q_b_proj.weight", ("mixer/query/kernel",), Kernel(), beside=_DOWN),
    Row(f"{_NAME}.kv_a_proj_with_mqa.weight", ("mixer/latent/kernel",), Kernel()),
    Row(f"{_NAME}.kv_a_layernorm.weight", ("mixer/latent_norm/gain",)),
    Row(
        f"{_NAME}.kv_b_proj.weight",
        ("mixer/key_up_kernel", "mixer/value_up_kernel"),
        Kernel(),
        grouped_by="mixer/key_up_kernel",
    ),
    Row(f"{_NAME}.o_proj.weight", ("mixer/output/kernel",), Kernel(inputs=2)),
)
# Other mixers have queries and outputs, too.
ROWS = tuple(
    only((row,), beside=row.beside or "mixer/latent/kernel")[0] for row in _ROWS
)
