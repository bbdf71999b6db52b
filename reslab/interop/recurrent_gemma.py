"""RecurrentGemma: RG-LRU, windowed attention in some layers, scaled embedding."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from reslab.core.errors import ReslabError
from reslab.interop.base import decoder, fields
from reslab.interop.base.design import Case, Of, Spec
from reslab.interop.base.family import PLAIN, Family
from reslab.interop.base.forms import Kernel, Taps, Vector
from reslab.interop.base.tensors import Row, only, renamed

_RECURRENT, _ATTENTION = "recurrent", "attention"


def _layer_types(found: Mapping[str, Any]) -> list[str]:
    pattern = found["block_types"]
    if not isinstance(pattern, list | tuple) or not pattern:
        raise ReslabError(
            "config.json: block_types", expected="a list", got=repr(pattern)
        )
    return [pattern[i % len(pattern)] for i in range(found["num_hidden_layers"])]


def _read(found: dict[str, Any]) -> dict[str, Any]:
    # Their factor is stored in bfloat16, whatever the model computes in.
    scale = float(np.float32(found["hidden_size"] ** 0.5).astype(ml_dtypes.bfloat16))
    return found | {
        "hidden": found["intermediate_size"] // 2,
        "embedding_scale": scale,
    }


def _write(config: dict[str, Any]) -> dict[str, Any]:
    written = dict(config)
    written.pop("embedding_scale")
    written["intermediate_size"] = 2 * written.pop("hidden")
    return written | {"block_types": written.pop("layer_types")}


def _ffn(**arguments: Any) -> Spec:
    given = {"hidden": Of("hidden"), "use_bias": True, **arguments}
    return Spec("ffns", "geglu", given)


_NAME, _RATE = "layers.{i}.temporal_block", "mixer/rate"
_LINEAR = {"linear_x": "value", "linear_y": "gate", "linear_out": "output"}
_UNIT = (
    *(
        Row(f"{_NAME}.{theirs}.weight", (f"mixer/{ours}/kernel",), Kernel())
        for theirs, ours in _LINEAR.items()
    ),
    *(
        Row(f"{_NAME}.{theirs}.bias", (f"mixer/{ours}/bias",), Vector())
        for theirs, ours in _LINEAR.items()
    ),
    Row(f"{_NAME}.conv_1d.weight", ("mixer/value_convolution/taps",), Taps()),
    Row(f"{_NAME}.conv_1d.bias", ("mixer/value_convolution/bias",)),
    Row(f"{_NAME}.rg_lru.recurrent_param", (_RATE,)),
    *(
        Row(f"{_NAME}.rg_lru.{gate}_{theirs}", (f"mixer/{gate}_{ours}",))
        for gate in ("input_gate", "recurrent_gate")
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    ),
)

_FIELDS = {
    name: one
    for name, one in decoder.FIELDS.items()
    if name != "max_position_embeddings"
}
FAMILY = Family(
    model_type="recurrent_gemma",
    architecture="RecurrentGemmaForCausalLM",
    fields={
        **_FIELDS,
        "tie_word_embeddings": fields.flag(True),
        "hidden_activation": fields.text(
            "gelu_pytorch_tanh", "gelu", default="gelu_pytorch_tanh"
        ),
        "lru_width": fields.whole(lambda found: found["hidden_size"]),
        "attention_window_size": fields.whole(2048),
        "conv1d_width": fields.whole(4),
        "logits_soft_cap": fields.number(30.0),
        "block_types": fields.Known("any", [_RECURRENT, _RECURRENT, _ATTENTION]),
        "layer_types": fields.listing(_layer_types),
        "embeddings_scale_by_sqrt_dim": fields.only(True),
        # The same pattern, and how parameters begin.
        "_block_types": fields.Known("any", None),
        "w_init_variance_scale": fields.Known("any", None),
        "final_w_init_variance_scale": fields.Known("any", None),
    },
    design={
        **PLAIN,
        "mixer": Case(
            "layer_types",
            {
                _RECURRENT: Spec(
                    "mixers",
                    "rg_lru",
                    {
                        "heads": Of("num_attention_heads"),
                        "width": Of("lru_width"),
                        "taps": Of("conv1d_width"),
                        "use_bias": True,
                    },
                ),
                _ATTENTION: decoder.attention(
                    window=Of("attention_window_size"), use_output_bias=True
                ),
            },
        ),
        "ffn": Case(
            "hidden_activation",
            {"gelu_pytorch_tanh": _ffn(), "gelu": _ffn(is_exact=True)},
        ),
        "norm": decoder.offset_rms(),
        "embedding_scale": Of("embedding_scale"),
        "logit_softcap": Of("logits_soft_cap"),
    },
    rows=(
        *renamed(decoder.ENDS, norm="final_norm"),
        *only(
            renamed(decoder.attention_rows(), self_attn="temporal_block"),
            without=_RATE,
        ),
        *only(_UNIT, beside=_RATE),
        *renamed(decoder.GATED, mlp="mlp_block"),
        *decoder.norm_rows(
            mixer_input="temporal_pre_norm", ffn_input="channel_pre_norm"
        ),
    ),
    stores_gain_offset=True,
    rope_fraction=0.5,
    length="",
    read=_read,
    write=_write,
)
