"""GPT-2: pre-norm with biases, a table of positions, tied embeddings."""

from typing import Any

from reslab.core.errors import ReslabError
from reslab.interop.base import decoder, fields
from reslab.interop.base.design import Case, Of, Spec
from reslab.interop.base.family import PLAIN, Family
from reslab.interop.base.forms import Kernel, Vector
from reslab.interop.base.tensors import Row


def _read(found: dict[str, Any]) -> dict[str, Any]:
    width, heads = found["n_embd"], found["n_head"]
    if width % heads:
        raise ReslabError(
            "config.json: n_head",
            expected=f"a divisor of n_embd ({width})",
            got=str(heads),
        )
    return {**found, "head_dim": width // heads, "kv_heads": heads}


def _write(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("head_dim", "kv_heads")}


def _ffn(name: str, **arguments: Any) -> Spec:
    given = {"hidden": Of("n_inner"), "use_bias": True, **arguments}
    return Spec("ffns", name, given)


# Their kernels are (inputs, outputs), not the transposed ones of a Linear.
_KERNEL = Kernel(is_transposed=False)
_QUERIES = ("mixer/query", "mixer/key", "mixer/value")

_SUMMARY = ("summary_activation", "summary_first_dropout", "summary_type")
_SUMMARY += ("summary_proj_to_labels", "summary_use_proj")

FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    fields={
        "vocab_size": fields.whole(),
        "n_embd": fields.whole(),
        "n_layer": fields.whole(),
        "n_head": fields.whole(),
        "n_positions": fields.whole(),
        # An earlier name of `n_positions`.
        "n_ctx": fields.Known("whole", None),
        "n_inner": fields.whole(lambda found: 4 * found["n_embd"]),
        "layer_norm_epsilon": fields.number(),
        "activation_function": fields.text(),
        "tie_word_embeddings": fields.flag(True),
        "scale_attn_weights": fields.only(True),
        "scale_attn_by_inverse_layer_idx": fields.only(False),
        "add_cross_attention": fields.only(False),
        "is_decoder": fields.Known("flag", False),
        # Changes the precision of scores alone, which are in float32 here.
        "reorder_and_upcast_attn": fields.Known("flag", False),
        # Fields of a head for classification.
        **dict.fromkeys(_SUMMARY, fields.Known("any", None)),
    },
    design={
        **PLAIN,
        "features": Of("n_embd"),
        "depth": Of("n_layer"),
        "position": Spec("positions", "learned", {"length": Of("n_positions")}),
        "mixer": Spec(
            "mixers",
            "attention",
            {
                "heads": Of("n_head"),
                "kv_heads": Of("kv_heads"),
                "head_dim": Of("head_dim"),
                "use_bias": True,
            },
        ),
        "ffn": Case(
            "activation_function",
            {
                "gelu_new": _ffn("gelu"),
                "gelu_pytorch_tanh": _ffn("gelu"),
                "gelu": _ffn("gelu", is_exact=True),
                "relu": _ffn("relu"),
                "silu": _ffn("silu"),
            },
        ),
        "norm": Spec(
            "norms",
            "layer",
            {"epsilon": Of("layer_norm_epsilon"), "is_gain_offset": False},
        ),
    },
    rows=(
        Row("wte.weight", ("embedding",)),
        Row("wpe.weight", ("position_encoding/embedding",)),
        Row("ln_f.weight", ("final_norm/gain",)),
        Row("ln_f.bias", ("final_norm/bias",)),
        decoder.HEAD,
        Row(
            "h.{i}.attn.c_attn.weight",
            tuple(f"{name}/kernel" for name in _QUERIES),
            _KERNEL,
        ),
        Row(
            "h.{i}.attn.c_attn.bias",
            tuple(f"{name}/bias" for name in _QUERIES),
            Vector(),
        ),
        Row(
            "h.{i}.attn.c_proj.weight",
            ("mixer/output/kernel",),
            Kernel(inputs=2, is_transposed=False),
        ),
        Row("h.{i}.attn.c_proj.bias", ("mixer/output/bias",), Vector()),
        Row("h.{i}.mlp.c_fc.weight", ("ffn/up/kernel",), _KERNEL),
        Row("h.{i}.mlp.c_fc.bias", ("ffn/up/bias",), Vector()),
        Row("h.{i}.mlp.c_proj.weight", ("ffn/down/kernel",), _KERNEL),
        Row("h.{i}.mlp.c_proj.bias", ("ffn/down/bias",), Vector()),
        Row("h.{i}.ln_1.weight", ("mixer_placement/input_norm/gain",)),
        Row("h.{i}.ln_1.bias", ("mixer_placement/input_norm/bias",)),
        Row("h.{i}.ln_2.weight", ("ffn_placement/input_norm/gain",)),
        Row("h.{i}.ln_2.bias", ("ffn_placement/input_norm/bias",)),
    ),
    prefix="transformer.",
    buffers=r"attn\.(bias|masked_bias)$",
    has_rope=False,
    read=_read,
    write=_write,
    length="n_positions",
)
