"""nanochat: norms without gains, after the embedding and after the rotation too."""

from reslab.interop.base import decoder, fields
from reslab.interop.base.design import Of, Spec
from reslab.interop.base.family import PLAIN, Family

_NORM = Spec("norms", "rms", {"epsilon": Of("rms_norm_eps"), "use_gain": False})


def _read(found):
    return found | {"final_logit_softcap": found["final_logit_softcapping"] or 0.0}


def _write(config):
    written = dict(config)
    written["final_logit_softcapping"] = written.pop("final_logit_softcap") or None
    return written


FAMILY = Family(
    model_type="nanochat",
    architecture="NanoChatForCausalLM",
    fields={
        **decoder.FIELDS,
        "hidden_act": fields.text("relu2"),
        "final_logit_softcapping": fields.number(None),
    },
    design={
        **PLAIN,
        "mixer": decoder.attention(qk_norm=_NORM, is_qk_norm_last=True),
        "ffn": decoder.ffn("relu2"),
        "norm": _NORM,
        "post_embedding_norm": _NORM,
        "logit_softcap": Of("final_logit_softcap"),
    },
    # Its heads turn the other way around.
    rows=(
        *decoder.ENDS,
        *decoder.attention_rows(swaps_halves=True),
        *decoder.ffn_rows(up="fc1", down="fc2"),
    ),
    read=_read,
    write=_write,
)
