"""Cases of the depth benchmark: every variant in place of the baseline's."""

from collections.abc import Mapping
from typing import Any

from reslab.core import registry
from reslab.study.algebra import Case, Sweep

# Fields that a variant of each family is a value of.
FIELDS = {
    "norms": "model.norm",
    "placements": "model.placement",
    "residuals": "model.residual",
    "value_paths": "model.mixer",
    "mixers": "model.mixer",
    "ffns": "model.ffn",
    "blocks": "model.block",
    "stacks": "model.stack",
    "optimizers": "optim.name",
}
# Variants whose defaults are of another size or use.
_SPECS = {
    "mixers": {
        **dict.fromkeys(
            ("delta", "gated_delta", "kda", "retention", "latent_attention"),
            "{name}(heads=2)",
        ),
        "mamba2": "mamba2(heads=4, state_size=32)",
    },
    "stacks": {"interleaved": "interleaved(local=1)"},
    "optimizers": {
        "spectral": "spectral(every=25)",
        "heavy_tail": "heavy_tail(every=25, blend=10)",
    },
}
# No language model of a few layers can have these, or the baseline has them.
LEFT_OUT = {
    # The EvoNorms contain the activation of a convolution.
    "norms": ("rms", "evonorm_b0", "evonorm_b1", "evonorm_s0", "evonorm_s1"),
    "placements": ("pre",),
    "residuals": ("plain",),
    "value_paths": ("none",),
    "mixers": ("attention",),
    "ffns": ("swiglu",),
    "blocks": ("standard",),
    # Apart from the first, those that evaluate a model that was trained otherwise.
    "stacks": ("uniform", "dr_llm", "first", "path", "unified_skipping"),
    "optimizers": ("adamw",),
}
# Fields that a variant needs besides.
_NEEDS = {
    "blocks=reversible": {"model.residual": "reversible"},
    # A layer before the loop, in it and after it.
    "stacks=cart": {"model.depth": 3},
    "stacks=huginn": {"model.depth": 3},
}
# Rates of the search lie around this multiple of the task's.
_RATES = {
    name: 4.0
    for name in ("muon", "normuon", "noise_adaptive_muon", "drop_muon", "spectral")
}


def cases(fields: Mapping[str, Any]) -> Sweep:
    """Makes the baseline, then a case of every variant, named `family=variant`.

    Args:
      fields: The config of the task.
    """
    found = [Case("baseline", {})]
    for family, field in FIELDS.items():
        for name in registry.names(family):
            if name not in LEFT_OUT[family] and _generates(family, name):
                spec = _SPECS.get(family, {}).get(name, "{name}").format(name=name)
                one = {field: spec}
                if family == "value_paths":
                    attention = f"{fields['model.mixer']}"[:-1]
                    one = {field: f"{attention}, value_path={spec!r})"}
                one |= _NEEDS.get(f"{family}={name}", {})
                if one.get("model.depth", 0) < fields["model.depth"]:
                    one.pop("model.depth", None)
                if name in _RATES:
                    rate = fields["optim.learning_rate"] * _RATES[name]
                    one["optim.learning_rate"] = rate
                found.append(Case(f"{family.removesuffix('s')}={name}", one))
    return tuple(found)


def _generates(family: str, name: str) -> bool:
    """Returns whether a language model can have a variant: mixers may look ahead."""
    if family != "mixers":
        return True
    return not getattr(registry.unbound(family, name), "is_bidirectional", False)
