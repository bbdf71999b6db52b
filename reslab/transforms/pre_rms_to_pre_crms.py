"""From RMS normalization to a stream one feature narrower (Jiang et al., 2023)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.core.trees import named_leaves
from reslab.transforms import _stream


def build(
    variables: ModelState, fields: _stream.Fields
) -> tuple[ModelState, dict[str, Any]]:
    """Leaves out the last feature of a pre-norm stream that has no mean.

        x[last] = -sum of the others,    kernel'[i] = kernel[i] - kernel[last]

    The gains of the norms go into the kernels that follow. What writes to the stream
    loses its last output, what reads from it takes the missing feature from the
    others, and `crms` normalizes d - 1 features as `rms` did all d. Heads and hidden
    layers keep their sizes, which the specs then name. A width of d - 1 suits no
    TPU: this saves memory and time elsewhere.

    The new model computes what the old one did, up to rounding. It may be trained
    further, as a model of its own: the gains are gone, and gradients are those of
    other parameters.

    Reference: Jiang et al., 2023, https://arxiv.org/abs/2305.14858, Section 3.

    The arithmetic on each parameter is tested against the authors' PyTorch example.

    Args:
      variables: Parameters and state of a `LanguageModel`.
      fields: Its config, by dotted name.

    Returns:
      The new parameters, on the host, and the fields of the config that change.

    Raises:
      ReslabError: If the model is not pre-norm with a plain residual and `rms`, or
        if its stream has a mean, as it has in a model trained with `rms`.
    """
    _stream.check("pre_rms_to_pre_crms", fields, ("rms",))
    is_offset = _is_gain_offset(fields)
    leaves = _stream.take(variables["params"])
    changes = _stream.untie(leaves, fields)
    changes |= _stream.fold_embedding_norm("pre_rms_to_pre_crms", leaves, fields)
    _check_centred(leaves, named_leaves(variables["params"])["embedding"].dtype)
    readers = list(_stream.readers(leaves))
    for reader in readers:
        kernel = leaves[reader.kernel]
        gain = leaves.get(f"{reader.norm}/gain")
        if gain is not None:
            kernel = _stream.fold_gain(kernel, gain + float(is_offset))
        axis = 0 if reader.part == "head" else 1
        leaves[reader.kernel] = _stream.compress_reader(kernel, axis)
    for name in {f"{reader.norm}/gain" for reader in readers}:
        leaves.pop(name, None)
    for name in _stream.writers(leaves):
        leaves[name] = _stream.compress_writer(leaves[name])
    changes |= _narrower(fields)
    new = _stream.give(leaves, variables["params"])
    return {**variables, "params": new}, changes


def _narrower(fields: _stream.Fields) -> dict[str, Any]:
    """The fields of the narrower model: sizes that followed the width are named."""
    features = fields["model.features"]

    def sized(family: str, kernel: str, key: str, parsed: registry.Parsed) -> str:
        spec = registry.spec_text(parsed.name, parsed.arguments)
        size = _stream.part_width(family, spec, features, kernel)
        return registry.spec_text(parsed.name, {**parsed.arguments, key: size})

    def as_crms(parsed: registry.Parsed) -> str:
        kept = {k: v for k, v in parsed.arguments.items() if k == "epsilon"}
        return registry.spec_text("crms", kept)

    return {
        "model.features": features - 1,
        **_stream.rewrite(
            fields, "mixer", lambda p: sized("mixers", "query", "head_dim", p)
        ),
        **_stream.rewrite(fields, "ffn", lambda p: sized("ffns", "up", "hidden", p)),
        **_stream.rewrite(fields, "norm", as_crms),
    }


def _is_gain_offset(fields: _stream.Fields) -> bool:
    forms = {
        _stream.argument("norms", spec, "is_gain_offset")
        for spec in _stream.specs(fields, "norm")
    }
    if len(forms) > 1:
        raise ReslabError(
            "pre_rms_to_pre_crms: model.norm",
            expected="one is_gain_offset for all layers",
            got=repr(fields["model.norm"]),
        )
    return forms.pop()


def _check_centred(leaves: _stream.Leaves, dtype: Any) -> None:
    if len(leaves["embedding"].T) < 2:
        raise ReslabError(
            "pre_rms_to_pre_crms: model.features", expected="at least 2", got="1"
        )
    means = _stream.means(leaves, _stream.writers(leaves))
    name = max(means, key=lambda key: means[key])
    # Largest mean that rounding to the parameters' dtype may leave.
    if means[name] > 8 * float(jnp.finfo(dtype).eps):
        raise ReslabError(
            "pre_rms_to_pre_crms: the stream has a mean, so its last feature is needed",
            expected="writers without one, as pre_ln_to_pre_rms makes them",
            got=f"{name} with a mean of {np.round(100 * means[name], 4)}% of its"
            " largest entry",
        )
