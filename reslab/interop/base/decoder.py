"""Common parts of the tables of decoders with rotary attention."""

from collections.abc import Mapping
from typing import Any

from reslab.interop.base import fields
from reslab.interop.base.design import Case, Of, Spec
from reslab.interop.base.fields import Known
from reslab.interop.base.forms import AsIs, Kernel, Vector
from reslab.interop.base.rope import rope
from reslab.interop.base.tensors import Row

# Kinds of layers in `layer_types`.
SLIDING, FULL = "sliding_attention", "full_attention"

FIELDS: Mapping[str, Known] = {
    "vocab_size": fields.whole(),
    "hidden_size": fields.whole(),
    "intermediate_size": fields.whole(),
    "num_hidden_layers": fields.whole(),
    "num_attention_heads": fields.whole(),
    "num_key_value_heads": fields.whole(lambda found: found["num_attention_heads"]),
    "head_dim": fields.whole(
        lambda found: found["hidden_size"] // found["num_attention_heads"]
    ),
    "max_position_embeddings": fields.whole(),
    "rms_norm_eps": fields.number(),
    "attention_bias": fields.flag(),
    "tie_word_embeddings": fields.flag(),
}


def rms(**arguments: Any) -> Spec:
    """RMS norm, whose gain multiplies what was rounded to the input's dtype."""
    given = {"is_gain_offset": False, "is_rounded_before_gain": True, **arguments}
    return Spec("norms", "rms", {"epsilon": Of("rms_norm_eps"), **given})


def offset_rms() -> Spec:
    """RMS norm whose gain is stored as an offset from one, rounded at the end."""
    return Spec("norms", "rms", {"epsilon": Of("rms_norm_eps")})


def attention(kind: str = "", **arguments: Any) -> Spec:
    """Attention, rotated as all layers are or as one kind of them."""
    given = {
        "heads": Of("num_attention_heads"),
        "kv_heads": Of("num_key_value_heads"),
        "head_dim": Of("head_dim"),
        "use_bias": Of("attention_bias"),
        "position": rope(kind),
        **arguments,
    }
    return Spec("mixers", "attention", given)


def windowed(is_rotated_apart: bool = False, **arguments: Any) -> Case:
    """Attention to all tokens or to those of a window, by layer.

    Args:
      is_rotated_apart: Whether the two kinds of layers have rotations of their own.
      **arguments: What both are given.
    """
    full, sliding = (FULL, SLIDING) if is_rotated_apart else ("", "")
    window = {"window": Of("sliding_window")}
    return Case(
        "layer_types",
        {
            FULL: attention(full, **arguments),
            SLIDING: attention(sliding, **arguments, **window),
        },
    )


def ffn(name: str, **arguments: Any) -> Spec:
    """A feed-forward layer."""
    return Spec("ffns", name, {"hidden": Of("intermediate_size"), **arguments})


def check_windows(found: dict[str, Any]) -> dict[str, Any]:
    """Checks that layers with a window know its size.

    Raises:
      ReslabError: If they do not.
    """
    if SLIDING in found["layer_types"]:
        fields.whole().check("sliding_window", found["sliding_window"])
    return found


HEAD = Row("lm_head.weight", ("head",), Kernel(), has_prefix=False)
ENDS = (
    Row("embed_tokens.weight", ("embedding",)),
    Row("norm.weight", ("final_norm/gain",)),
    HEAD,
)


def _projection(theirs: str, ours: str, form: Kernel) -> tuple[Row, ...]:
    name = f"layers.{{i}}.{theirs}"
    return (
        Row(f"{name}.weight", (f"{ours}/kernel",), form),
        Row(f"{name}.bias", (f"{ours}/bias",), Vector()),
    )


def attention_rows(*, swaps_halves: bool = False) -> tuple[Row, ...]:
    """Rows of the projections of attention, and of the norms of queries and keys.

    Args:
      swaps_halves: Whether queries and keys are rotated the other way around.
    """
    turned = Kernel(swaps_halves=swaps_halves)
    return (
        *_projection("self_attn.q_proj", "mixer/query", turned),
        *_projection("self_attn.k_proj", "mixer/key", turned),
        *_projection("self_attn.v_proj", "mixer/value", Kernel()),
        *_projection("self_attn.o_proj", "mixer/output", Kernel(inputs=2)),
        Row("layers.{i}.self_attn.q_norm.weight", ("mixer/query_norm/gain",)),
        Row("layers.{i}.self_attn.k_norm.weight", ("mixer/key_norm/gain",)),
    )


def ffn_rows(**names: str) -> tuple[Row, ...]:
    """Rows of the projections of the feed-forward layer, by our name of each."""
    found: list[Row] = []
    for ours, theirs in names.items():
        found += _projection(f"mlp.{theirs}", f"ffn/{ours}", Kernel())
    return tuple(found)


GATED = ffn_rows(gate="gate_proj", up="up_proj", down="down_proj")


def norm_rows(**names: str) -> tuple[Row, ...]:
    """Rows of the norms around sublayers: ours by `<sublayer>_<norm>`."""
    return tuple(
        Row(
            f"layers.{{i}}.{theirs}.weight",
            ("{}_placement/{}_norm/gain".format(*ours.split("_")),),
            AsIs(),
        )
        for ours, theirs in names.items()
    )


PRE = norm_rows(mixer_input="input_layernorm", ffn_input="post_attention_layernorm")
POST = norm_rows(
    mixer_output="post_attention_layernorm", ffn_output="post_feedforward_layernorm"
)
SANDWICH = norm_rows(
    mixer_input="input_layernorm",
    mixer_output="post_attention_layernorm",
    ffn_input="pre_feedforward_layernorm",
    ffn_output="post_feedforward_layernorm",
)
