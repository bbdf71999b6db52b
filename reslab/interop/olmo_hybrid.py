"""OLMo-Hybrid: gated DeltaNet behind norms, attention before them."""

from collections.abc import Mapping
from typing import Any

from reslab.interop.base import decoder, fields, recurrent
from reslab.interop.base.design import Case, Of, Spec
from reslab.interop.base.family import PLAIN, Family
from reslab.interop.base.forms import Kernel, Taps
from reslab.interop.base.recurrent import LINEAR
from reslab.interop.base.rope import rope
from reslab.interop.base.tensors import Row, only


def _layer_types(found: Mapping[str, Any]) -> list[str]:
    count = found["num_hidden_layers"]
    kinds = [decoder.FULL if i % 4 == 3 else LINEAR for i in range(count)]
    # At least one layer attends.
    return kinds if decoder.FULL in kinds else [*kinds[:-1], decoder.FULL]


def _heads(found: Mapping[str, Any]) -> int:
    return found["num_attention_heads"]


def _key_size(found: Mapping[str, Any]) -> int:
    return int(0.75 * found["hidden_size"] / found["linear_num_key_heads"])


def _value_size(found: Mapping[str, Any]) -> int:
    return 2 * found["linear_key_head_dim"]


def _read(found: dict[str, Any]) -> dict[str, Any]:
    given = found["rope_parameters"] or {}
    theta = given.get("rope_theta") if isinstance(given, Mapping) else given
    sizes = found["linear_value_head_dim"], found["linear_key_head_dim"]
    return found | {
        "is_rotated": (theta or found["rope_theta"]) is not None,
        "value_expansion": recurrent.expansion(*sizes),
    }


def _write(config: dict[str, Any]) -> dict[str, Any]:
    written = dict(config)
    if not written.pop("is_rotated", True):
        written["rope_parameters"] = None
    expansion = written.pop("value_expansion", None)
    if expansion is not None:
        size = int(expansion * written["linear_key_head_dim"])
        written["linear_value_head_dim"] = size
    return written


_DELTA = Spec(
    "mixers",
    "gated_delta",
    {
        "heads": Of("linear_num_value_heads"),
        "head_dim": Of("linear_key_head_dim"),
        "key_heads": Of("linear_num_key_heads"),
        "value_expansion": Of("value_expansion"),
        "allow_negative_eigenvalues": Of("linear_allow_neg_eigval"),
        "is_convolution_combined": True,
        "output_norm": decoder.rms(epsilon=1e-5),
    },
)
_NAME, _BETA = "layers.{i}.linear_attn", "mixer/beta/kernel"
_PROJECTIONS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "b_proj": "beta",
    "a_proj": "decay",
    "g_proj": "gate",
}
_ROWS = (
    *decoder.ENDS,
    *only(decoder.attention_rows(), without=_BETA),
    *(
        Row(
            f"{_NAME}.{theirs}.weight",
            (f"mixer/{ours}/kernel",),
            Kernel(),
            beside=_BETA,
        )
        for theirs, ours in _PROJECTIONS.items()
    ),
    Row(f"{_NAME}.A_log", ("mixer/log_rate",)),
    *recurrent.delta_rows("linear_attn", "o_norm", "o_proj"),
    *decoder.GATED,
    *decoder.norm_rows(
        mixer_input="attention_layer_norm", ffn_input="feedforward_layer_norm"
    ),
)


def _layout(parts: int | tuple[str, ...], norm: str) -> tuple[Row, ...]:
    """Rows of the parts of the one convolution, and of norms behind sublayers."""
    convolutions = tuple(
        Row(
            f"{_NAME}.{name}_conv1d.weight",
            ("mixer/convolution/taps",),
            Taps(),
            part=number,
            parts=parts,
        )
        for number, name in enumerate("qkv")
    )
    norms = decoder.norm_rows(
        mixer_output=norm, ffn_output="post_feedforward_layernorm"
    )
    return (*convolutions, *norms)


# `save_pretrained` cuts the convolution in three whatever its channels are, and calls
# a norm as it is called in other layers; published files have neither.
_SAVED = _layout(3, "feedforward_layer_norm")
_KERNELS = tuple(f"mixer/{one}/kernel" for one in ("query", "key", "value"))
_PUBLISHED = _layout(_KERNELS, "post_attention_layernorm")
# How parameters begin.
_INITIAL = "a_log_max a_log_min dt_init_floor dt_max dt_min"

FAMILY = Family(
    model_type="olmo_hybrid",
    architecture="OlmoHybridForCausalLM",
    fields={
        **decoder.FIELDS,
        "hidden_act": fields.text("silu"),
        "layer_types": fields.listing(_layer_types),
        "linear_num_key_heads": fields.whole(_heads),
        "linear_num_value_heads": fields.whole(_heads),
        "linear_key_head_dim": fields.whole(_key_size),
        "linear_value_head_dim": fields.whole(_value_size),
        "linear_conv_kernel_dim": fields.Known("whole", 4, (4,)),
        "linear_allow_neg_eigval": fields.flag(True),
        # Without a base, nothing is rotated.
        "rope_parameters": fields.Known("any", None),
        "rope_theta": fields.number(None),
        **{f"linear_{one}": fields.Known("any", None) for one in _INITIAL.split()},
    },
    design={
        **PLAIN,
        "mixer": Case(
            "layer_types",
            {
                LINEAR: _DELTA,
                decoder.FULL: decoder.attention(
                    position=Case("is_rotated", {True: rope(), False: "none"}),
                    qk_norm=decoder.rms(),
                    qk_norm_axis="width",
                ),
            },
        ),
        "ffn": decoder.ffn("swiglu"),
        "norm": decoder.rms(),
        "placement": Case("layer_types", {LINEAR: "pre", decoder.FULL: "res_post"}),
    },
    rows=(*_ROWS, *_SAVED),
    layouts=((*_ROWS, *_PUBLISHED),),
    read=_read,
    write=_write,
)
