"""Common parts of the tables of decoders with experts in some layers."""

from collections.abc import Mapping
from typing import Any

from reslab.core.errors import ReslabError
from reslab.interop.base import fields
from reslab.interop.base.decoder import GATED, ffn
from reslab.interop.base.design import Case, Of, Spec
from reslab.interop.base.forms import Kernel
from reslab.interop.base.tensors import Row, only, renamed

# Kinds of feed-forward layers in `mlp_layer_types`.
SPARSE, DENSE = "sparse", "dense"

FIELDS = {
    "moe_intermediate_size": fields.whole(),
    "routed_scaling_factor": fields.number(),
    "output_router_logits": fields.Known("flag", False),
    # How a balance is trained, and where experts are.
    "aux_loss_alpha": fields.Known("any", None),
    "seq_aux": fields.Known("any", None),
    "ep_size": fields.Known("any", None),
}


def experts(**arguments: Any) -> Case:
    """Experts or one feed-forward layer for all tokens, by layer.

    Args:
      **arguments: Arguments of the experts.
    """
    given = {"hidden": Of("moe_intermediate_size"), **arguments}
    return Case(
        "mlp_layer_types",
        {SPARSE: Spec("ffns", "experts", given), DENSE: ffn("swiglu")},
    )


def sigmoid(**arguments: Any) -> Case:
    """Experts chosen by sigmoids and a bias, beside those for all tokens."""
    return experts(
        scores="sigmoid",
        balance="bias",
        rate=0.001,  # As they were trained; no config says it.
        scale=Of("routed_scaling_factor"),
        shared_hidden=Of("shared_hidden"),
        **arguments,
    )


def with_shared(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Adds the hidden width of all experts for all tokens together."""
    return found | {"shared_hidden": found[name] * found["moe_intermediate_size"]}


def without_shared(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Writes the number of these experts instead."""
    written = dict(config)
    hidden = written.pop("shared_hidden", None)
    if hidden is not None:
        written[name] = hidden // written["moe_intermediate_size"]
    return written


def first_dense(found: Mapping[str, Any]) -> list[str]:
    """Kinds of layers, the first few dense."""
    dense = min(found["first_k_dense_replace"], found["num_hidden_layers"])
    return [DENSE] * dense + [SPARSE] * (found["num_hidden_layers"] - dense)


def check_layers(name: str, layers: Any) -> list[int]:
    """Numbers of layers in a field.

    Raises:
      ReslabError: If it is no list of numbers.
    """
    is_list = isinstance(layers, list | tuple)
    if not is_list or not all(type(one) is int for one in layers):
        raise ReslabError(
            f"config.json: {name}", expected="a list of layers", got=repr(layers)
        )
    return list(layers)


def rows(
    where: str = "mlp",
    *,
    dense: str = "",
    shared: str = "shared_experts",
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
) -> tuple[Row, ...]:
    """Rows of experts, of the one for all tokens, and of layers without any.

    Args:
      where: What the module is called.
      dense: What it is called in layers without experts; "" is the same.
      shared: What the expert for all tokens is called.
      gate: What an expert's projection is called.
      up: Likewise.
      down: Likewise.
    """
    name, router = f"layers.{{i}}.{where}", "ffn/router/kernel"
    names = {"gate": gate, "up": up, "down": down}
    alone = renamed(GATED, mlp=dense or where)
    return (
        Row(f"{name}.gate.weight", (router,), Kernel()),
        Row(f"{name}.gate.e_score_correction_bias", ("ffn/bias",)),
        *(
            Row(
                f"{name}.experts.{{e}}.{theirs}.weight",
                (f"ffn/{ours}/kernels",),
                Kernel(),
                beside=router,
            )
            for ours, theirs in names.items()
        ),
        *(
            Row(
                f"{name}.{shared}.{ours}_proj.weight",
                (f"ffn/shared/{ours}/kernel",),
                Kernel(),
            )
            for ours in names
        ),
        Row(f"{name}.shared_expert_gate.weight", ("ffn/shared_gate/kernel",), Kernel()),
        *only(alone, without=router),
    )
