"""OLMo 3: OLMo 2 with windows in three of four layers."""

from collections.abc import Mapping
from typing import Any

from reslab.interop.base import decoder, fields
from reslab.interop.base.family import PLAIN, Family


def _layer_types(found: Mapping[str, Any]) -> list[str]:
    return [
        decoder.FULL if layer % 4 == 3 else decoder.SLIDING
        for layer in range(found["num_hidden_layers"])
    ]


FAMILY = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    fields={
        **decoder.FIELDS,
        "hidden_act": fields.text("silu"),
        "sliding_window": fields.whole(4096),
        "layer_types": fields.listing(_layer_types),
    },
    design={
        **PLAIN,
        "mixer": decoder.windowed(
            is_rotated_apart=True, qk_norm=decoder.rms(), qk_norm_axis="width"
        ),
        "ffn": decoder.ffn("swiglu"),
        "norm": decoder.rms(),
        "placement": "res_post",
    },
    rows=(
        *decoder.ENDS,
        *decoder.attention_rows(),
        *decoder.GATED,
        *decoder.POST,
    ),
    rope_kinds=(decoder.FULL, decoder.SLIDING),
    rope_theta=500_000.0,
    read=decoder.check_windows,
)
