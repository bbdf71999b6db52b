"""From layer normalization to RMS normalization, exactly (Jiang et al., 2023)."""

from typing import Any

from reslab.core import registry
from reslab.core.model_state import ModelState
from reslab.transforms import _stream


def build(
    variables: ModelState, fields: _stream.Fields
) -> tuple[ModelState, dict[str, Any]]:
    """Turns a pre-norm model with layer normalization into one with RMS.

        layer(x) = rms(x - mean(x)),    f(x - mean(x)) = f(x) - mean over outputs

    Every reader of a pre-norm stream takes its mean away; so it need not be written.
    The mean over outputs is taken from all that writes to the stream: embeddings,
    position table, and the projections out of mixers and feed-forward layers. The
    norms keep their gains; their biases, which `rms` has not, become biases of the
    projections that follow, and of the head. A head that was the transposed
    embedding becomes one of its own, since the head is not to be centred.

    The new model computes what the old one did, up to rounding. Training may continue
    from it, but not as the old model's would have: nothing keeps the mean of the
    stream zero from then on, and the gradients are those of other parameters.

    Reference: Jiang et al., 2023, https://arxiv.org/abs/2305.14858, Section 3.

    The arithmetic on each parameter is tested against the authors' PyTorch example.

    Args:
      variables: Parameters and state of a `LanguageModel`.
      fields: Its config, by dotted name.

    Returns:
      The new parameters, on the host, and the fields of the config that change.

    Raises:
      ReslabError: If the model is not pre-norm with a plain residual and `layer`, or
        a norm has a bias before a part that cannot have one.
    """
    _stream.check("pre_ln_to_pre_rms", fields, ("layer",))
    leaves = _stream.take(variables["params"])
    changes = _stream.untie(leaves, fields)
    changes |= _stream.fold_embedding_norm("pre_ln_to_pre_rms", leaves, fields)
    if any(
        _stream.argument("norms", spec, "use_bias")
        for spec in _stream.specs(fields, "norm")
    ):
        offsets = {
            reader.norm: leaves[f"{reader.norm}/bias"]
            for reader in _stream.readers(leaves)
            if f"{reader.norm}/bias" in leaves
        }
        changes |= _stream.add_offsets("pre_ln_to_pre_rms", leaves, fields, offsets)
        for norm in offsets:
            del leaves[f"{norm}/bias"]
    for name in _stream.writers(leaves):
        leaves[name] = _stream.recentre(leaves[name])
    changes |= _stream.rewrite(fields, "norm", _as_rms)
    new = _stream.give(leaves, variables["params"])
    return {**variables, "params": new}, changes


def _as_rms(parsed: registry.Parsed) -> str:
    kept = {k: v for k, v in parsed.arguments.items() if k != "use_bias"}
    return registry.spec_text("rms", kept)
