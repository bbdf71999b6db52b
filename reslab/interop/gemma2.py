"""Gemma 2: norms around every sublayer, scaled embedding, capped scores and logits."""

from collections.abc import Mapping
from typing import Any

from reslab.interop.base import decoder, fields
from reslab.interop.base.design import Case, Of, Spec
from reslab.interop.base.family import PLAIN, Family


def _layer_types(found: Mapping[str, Any]) -> list[str]:
    return [
        decoder.SLIDING if layer % 2 == 0 else decoder.FULL
        for layer in range(found["num_hidden_layers"])
    ]


def _score_scale(found: dict[str, Any]) -> float:
    scalar = found["query_pre_attn_scalar"]
    return 0.0 if scalar == found["head_dim"] else scalar**-0.5


def scaled(found: dict[str, Any]) -> dict[str, Any]:
    """Adds the factors of the embedding and of scores, and caps that are absent."""
    caps = {
        name.replace("softcapping", "softcap"): found[name] or 0.0
        for name in ("attn_logit_softcapping", "final_logit_softcapping")
    }
    return decoder.check_windows(
        found
        | caps
        | {
            "embedding_scale": found["hidden_size"] ** 0.5,
            "score_scale": _score_scale(found),
        }
    )


def unscaled(config: dict[str, Any]) -> dict[str, Any]:
    """Writes the same factors and caps in their fields."""
    written = dict(config)
    written.pop("embedding_scale")
    scale = written.pop("score_scale")
    scalar = scale**-2 if scale else written["head_dim"]
    is_whole = round(scalar) > 0 and round(scalar) ** -0.5 == scale
    written["query_pre_attn_scalar"] = round(scalar) if is_whole else scalar
    for name in ("attn_logit", "final_logit"):
        written[f"{name}_softcapping"] = written.pop(f"{name}_softcap") or None
    return written


FIELDS = {
    **decoder.FIELDS,
    "head_dim": fields.whole(256),
    "tie_word_embeddings": fields.flag(True),
    "hidden_activation": fields.text(
        "gelu_pytorch_tanh", "gelu", default="gelu_pytorch_tanh"
    ),
    # An earlier name, which the class no longer reads.
    "hidden_act": fields.Known("text", None),
    "query_pre_attn_scalar": fields.number(256),
    "sliding_window": fields.whole(4096),
    "attn_logit_softcapping": fields.number(None),
    "final_logit_softcapping": fields.number(None),
    "use_bidirectional_attention": fields.only(False),
}
ATTENTION = {"score_scale": Of("score_scale"), "softcap": Of("attn_logit_softcap")}
DESIGN = {
    **PLAIN,
    "ffn": Case(
        "hidden_activation",
        {
            "gelu_pytorch_tanh": decoder.ffn("geglu"),
            "gelu": Spec(
                "ffns", "geglu", {"hidden": Of("intermediate_size"), "is_exact": True}
            ),
        },
    ),
    "norm": decoder.offset_rms(),
    "placement": "sandwich",
    "embedding_scale": Of("embedding_scale"),
    "logit_softcap": Of("final_logit_softcap"),
}
ROWS = (
    *decoder.ENDS,
    *decoder.attention_rows(),
    *decoder.GATED,
    *decoder.SANDWICH,
)

FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    fields={**FIELDS, "layer_types": fields.listing(_layer_types)},
    design={**DESIGN, "mixer": decoder.windowed(**ATTENTION)},
    rows=ROWS,
    stores_gain_offset=True,
    read=scaled,
    write=unscaled,
)
