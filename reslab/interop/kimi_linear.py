"""Kimi Linear: Kimi Delta Attention, latent attention without positions, experts."""

from collections.abc import Mapping
from typing import Any

from reslab.core.errors import ReslabError
from reslab.interop.base import decoder, experts, fields, latent, recurrent
from reslab.interop.base.design import Case, Of, Spec
from reslab.interop.base.family import PLAIN, Family
from reslab.interop.base.forms import Kernel, Padded, Taps
from reslab.interop.base.recurrent import LINEAR
from reslab.interop.base.tensors import Row

# Sizes and kinds of layers in `linear_attn_config`, by their later names.
_EARLIER = {
    "linear_head_dim": "head_dim",
    "linear_num_heads": "num_heads",
    "linear_conv_kernel_dim": "short_conv_kernel_size",
}


def _earlier(name: str, default: int) -> Any:
    """A default that an earlier config holds by another name."""
    return lambda found: found["linear_attn_config"].get(_EARLIER[name], default)


def _layer_types(found: Mapping[str, Any]) -> list[str]:
    count, given = found["num_hidden_layers"], found["linear_attn_config"]
    if "full_attn_layers" not in given:
        return [decoder.FULL if i and i % 4 == 0 else LINEAR for i in range(count)]
    name = "linear_attn_config: full_attn_layers"
    # They are counted from 1.
    full = experts.check_layers(name, given["full_attn_layers"])
    return [decoder.FULL if i + 1 in full else LINEAR for i in range(count)]


def _read(found: dict[str, Any]) -> dict[str, Any]:
    return experts.with_shared(latent.read(found), "num_shared_experts")


def _write(config: dict[str, Any]) -> dict[str, Any]:
    written = experts.without_shared(latent.write(config), "num_shared_experts")
    written.pop("linear_attn_config", None)
    return written


class _Object(fields.Known):
    """A field that is an object."""

    def check(self, name: str, value: Any) -> Any:
        """Returns it.

        Raises:
          ReslabError: If it is another value.
        """
        if not isinstance(value, Mapping):
            raise ReslabError(
                f"config.json: {name}", expected="an object", got=repr(value)
            )
        return value


_LATENT = {k: v for k, v in latent.FIELDS.items() if k != "max_position_embeddings"}
_KDA = Spec(
    "mixers",
    "kda",
    {
        "heads": Of("linear_num_heads"),
        "key_heads": Of("linear_num_heads"),
        "head_dim": Of("linear_head_dim"),
        "output_norm": decoder.rms(),
    },
)
_PROJECTIONS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "b_proj": "beta",
    "f_a_proj": "decay_down",
    "f_b_proj": "decay",
    "g_a_proj": "gate_down",
    "g_b_proj": "gate",
}
_NAME = "layers.{i}.self_attn"
_ROWS = (
    *decoder.ENDS,
    *latent.ROWS,
    *(
        Row(
            f"{_NAME}.{theirs}.weight",
            (f"mixer/{ours}/kernel",),
            Kernel(),
            beside="mixer/beta/kernel",
        )
        for theirs, ours in _PROJECTIONS.items()
    ),
    *(
        Row(
            f"{_NAME}.{one[0]}_conv1d.weight",
            (f"mixer/{one}_convolution/taps",),
            Taps(),
        )
        for one in ("query", "key", "value")
    ),
    Row(f"{_NAME}.A_log", ("mixer/log_rate",), Padded(before=2, after=1)),
    *recurrent.delta_rows("self_attn", "o_norm", "o_proj"),
    *decoder.PRE,
)
_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}

FAMILY = Family(
    model_type="kimi_linear",
    architecture="KimiLinearForCausalLM",
    fields={
        **_LATENT,
        **experts.FIELDS,
        "model_max_length": fields.whole(),
        "linear_attn_config": _Object("any", {}),
        "linear_head_dim": fields.whole(_earlier("linear_head_dim", 128)),
        "linear_num_heads": fields.whole(_earlier("linear_num_heads", 32)),
        "linear_conv_kernel_dim": fields.Known(
            "whole", _earlier("linear_conv_kernel_dim", 4), (4,)
        ),
        "layer_types": fields.listing(_layer_types),
        "first_k_dense_replace": fields.Known("count", 1),
        "moe_layer_freq": fields.Known("whole", 1, (1,)),
        "mlp_layer_types": fields.listing(experts.first_dense),
        "num_experts": fields.whole(256),
        "num_experts_per_token": fields.whole(8),
        "num_shared_experts": fields.Known("count", 1),
        "num_expert_group": fields.whole(1),
        "topk_group": fields.whole(1),
        "moe_renormalize": fields.flag(True),
        "moe_router_activation_func": fields.text("sigmoid", default="sigmoid"),
        "mla_use_nope": fields.only(True),
        # Says nothing that the number of groups does not.
        "use_grouped_topk": fields.Known("any", None),
        "num_nextn_predict_layers": fields.Known("any", None),
        # Without positions, nothing is rotated.
        "rope_theta": fields.Known("any", None),
        "rope_scaling": fields.Known("any", None),
    },
    design={
        **PLAIN,
        "mixer": Case("layer_types", {LINEAR: _KDA, decoder.FULL: latent.attention()}),
        "ffn": experts.sigmoid(
            experts=Of("num_experts"),
            chosen=Of("num_experts_per_token"),
            groups=Of("num_expert_group"),
            chosen_groups=Of("topk_group"),
            is_renormalized=Of("moe_renormalize"),
        ),
        "norm": decoder.rms(),
    },
    rows=(*_ROWS, *experts.rows("block_sparse_moe", **_EXPERT)),
    # Published files name a layer without experts otherwise than `save_pretrained`.
    layouts=((*_ROWS, *experts.rows("block_sparse_moe", dense="mlp", **_EXPERT)),),
    has_rope=False,
    length="model_max_length",
    read=_read,
    write=_write,
)
