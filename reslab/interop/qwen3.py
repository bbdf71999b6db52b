"""Qwen3: Llama with norms of each query and key head, and windows in some layers."""

from collections.abc import Mapping
from typing import Any

from reslab.interop.base import decoder, fields
from reslab.interop.base.family import PLAIN, Family


def _layer_types(found: Mapping[str, Any]) -> list[str]:
    first = found["max_window_layers"] if found["use_sliding_window"] else None
    return [
        decoder.SLIDING if first is not None and layer >= first else decoder.FULL
        for layer in range(found["num_hidden_layers"])
    ]


def _read(found: dict[str, Any]) -> dict[str, Any]:
    if not found["use_sliding_window"]:
        # All layers then attend to all tokens, whatever their type.
        found["layer_types"] = [decoder.FULL] * len(found["layer_types"])
    return decoder.check_windows(found)


def _write(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "use_sliding_window": decoder.SLIDING in config["layer_types"]}


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fields={
        **decoder.FIELDS,
        "head_dim": fields.whole(128),
        "hidden_act": fields.text("silu"),
        "use_sliding_window": fields.flag(),
        "sliding_window": fields.whole(4096),
        "max_window_layers": fields.Known("count", 28),
        "layer_types": fields.listing(_layer_types),
    },
    design={
        **PLAIN,
        "mixer": decoder.windowed(qk_norm=decoder.rms()),
        "ffn": decoder.ffn("swiglu"),
        "norm": decoder.rms(),
    },
    rows=(
        *decoder.ENDS,
        *decoder.attention_rows(),
        *decoder.GATED,
        *decoder.PRE,
    ),
    read=_read,
    write=_write,
)
