"""Gemma 3 (text): Gemma 2 with norms of queries and keys, and two rotations."""

from collections.abc import Mapping
from typing import Any

from reslab.interop import gemma2
from reslab.interop.base import decoder, fields
from reslab.interop.base.family import Family


def _layer_types(found: Mapping[str, Any]) -> list[str]:
    pattern = found["sliding_window_pattern"]
    return [
        decoder.SLIDING if (layer + 1) % pattern else decoder.FULL
        for layer in range(found["num_hidden_layers"])
    ]


FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    fields={
        **gemma2.FIELDS,
        "sliding_window_pattern": fields.whole(6),
        # The same, as later versions of the class write it beside `layer_types`.
        "_sliding_window_pattern": fields.whole(6),
        "layer_types": fields.listing(_layer_types),
    },
    design={
        **gemma2.DESIGN,
        "mixer": decoder.windowed(
            is_rotated_apart=True, qk_norm=decoder.offset_rms(), **gemma2.ATTENTION
        ),
    },
    rows=gemma2.ROWS,
    stores_gain_offset=True,
    rope_kinds=(decoder.FULL, decoder.SLIDING),
    rope_theta={decoder.FULL: 1_000_000.0, decoder.SLIDING: 10_000.0},
    read=gemma2.scaled,
    write=gemma2.unscaled,
)
