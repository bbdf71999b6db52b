"""OLMo 2: norms after the sublayers, and of all queries and all keys at once."""

from reslab.interop.base import decoder, fields
from reslab.interop.base.family import PLAIN, Family

FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    fields={**decoder.FIELDS, "hidden_act": fields.text("silu")},
    design={
        **PLAIN,
        "mixer": decoder.attention(qk_norm=decoder.rms(), qk_norm_axis="width"),
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
)
