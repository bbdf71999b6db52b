"""Llama: pre-norm, rotary grouped-query attention, SwiGLU."""

from reslab.interop.base import decoder, fields
from reslab.interop.base.design import Of
from reslab.interop.base.family import PLAIN, Family

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields={
        **decoder.FIELDS,
        "hidden_act": fields.text("silu"),
        "mlp_bias": fields.flag(),
    },
    design={
        **PLAIN,
        "mixer": decoder.attention(),
        "ffn": decoder.ffn("swiglu", use_bias=Of("mlp_bias")),
        "norm": decoder.rms(),
    },
    rows=(
        *decoder.ENDS,
        *decoder.attention_rows(),
        *decoder.GATED,
        *decoder.PRE,
    ),
)
