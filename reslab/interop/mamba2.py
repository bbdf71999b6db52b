"""Mamba-2: one decay for each head, and a gated norm."""

import math
from typing import Any

from reslab.core.errors import ReslabError
from reslab.interop import mamba
from reslab.interop.base import fields, recurrent
from reslab.interop.base.design import Of, Spec
from reslab.interop.base.family import Family
from reslab.interop.base.forms import Kernel, Taps, Vector
from reslab.interop.base.tensors import Row

# JSON has no infinity, so writers differ.
_INFINITE = (math.inf, {"__float__": "Infinity"}, "Infinity")


def _read(found: dict[str, Any]) -> dict[str, Any]:
    limit = found["time_step_limit"]
    if limit is not None and (
        not isinstance(limit, list | tuple)
        or len(limit) != 2
        or limit[0] != 0
        or limit[1] not in _INFINITE
    ):
        raise ReslabError(
            "config.json: time_step_limit is not supported",
            expected="from 0 to infinity",
            got=repr(limit),
        )
    wide = found["num_heads"] * found["head_dim"]
    return found | {"expansion": recurrent.expansion(wide, found["hidden_size"])}


def _write(config: dict[str, Any]) -> dict[str, Any]:
    written = dict(config)
    channels = int(written.pop("expansion") * written["hidden_size"])
    written["head_dim"] = channels // written["num_heads"]
    return written | {"expand": channels // written["hidden_size"]}


_NAME = "layers.{i}.mixer"
_CONVOLVED = ("value", "key", "query")
_JOINT = ("gate", *_CONVOLVED, "step")

FAMILY = Family(
    model_type="mamba2",
    architecture="Mamba2ForCausalLM",
    fields={
        **mamba.FIELDS,
        "tie_word_embeddings": fields.flag(),
        "num_heads": fields.whole(128),
        "head_dim": fields.whole(64),
        "n_groups": fields.whole(8),
        "chunk_size": fields.Known("any", None),
        "time_step_limit": fields.Known("any", None),
        "time_step_rank": fields.Known("any", None),
        # The heads' sizes are taken.
        "intermediate_size": fields.Known("any", None),
        "norm_before_gate": fields.Known("any", None),
    },
    design={
        **mamba.DESIGN,
        "mixer": Spec(
            "mixers",
            "mamba2",
            {
                **mamba.ARGUMENTS,
                "heads": Of("num_heads"),
                "groups": Of("n_groups"),
                "epsilon": Of("layer_norm_epsilon"),
                "is_gain_offset": False,
            },
        ),
    },
    rows=(
        *mamba.ENDS,
        Row(
            f"{_NAME}.in_proj.weight",
            tuple(f"mixer/{one}/kernel" for one in _JOINT),
            Kernel(),
        ),
        Row(
            f"{_NAME}.in_proj.bias",
            tuple(f"mixer/{one}/bias" for one in _JOINT),
            Vector(),
        ),
        Row(
            f"{_NAME}.conv1d.weight",
            tuple(f"mixer/{one}_convolution/taps" for one in _CONVOLVED),
            Taps(),
        ),
        Row(
            f"{_NAME}.conv1d.bias",
            tuple(f"mixer/{one}_convolution/bias" for one in _CONVOLVED),
            Vector(),
        ),
        Row(f"{_NAME}.dt_bias", ("mixer/step_bias",)),
        Row(f"{_NAME}.A_log", ("mixer/log_rate",)),
        Row(f"{_NAME}.D", ("mixer/skip",)),
        Row(f"{_NAME}.norm.weight", ("mixer/gain",), Vector()),
        Row(f"{_NAME}.out_proj.weight", ("mixer/output/kernel",), Kernel(inputs=2)),
        Row(f"{_NAME}.out_proj.bias", ("mixer/output/bias",)),
    ),
    prefix="backbone.",
    has_rope=False,
    length="",
    read=_read,
    write=_write,
)
