"""A model whose norms are constants becomes one without norms (Baroni et al., 2025)."""

from typing import Any

import numpy as np

from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, ModelState
from reslab.core.trees import named_leaves
from reslab.transforms import _stream


def build(
    variables: ModelState, fields: _stream.Fields
) -> tuple[ModelState, dict[str, Any]]:
    """Takes centring, constant, gain and bias of each norm into the next kernel.

        norm(x) . W = x . (I - 1/d) diag(a) W + bias . W,   a = (1 + gain) / deviation

    d is the width of the stream. The projections get biases. The model must have
    ended training with placement `layer_norm_removal`, whose norms are constants by
    then; it computes the same before and after, up to rounding.

    Reference: Baroni et al., 2025, https://arxiv.org/abs/2507.02559. The authors'
    release keeps layer normalization with an epsilon so large that the variance does
    not matter; the same function.

    Args:
      variables: Parameters and state of a `LanguageModel`.
      fields: Its config, by dotted name.

    Returns:
      The new parameters, on the host, and the fields of the config that change.

    Raises:
      ReslabError: If a norm is another, or is not a constant yet.
    """
    _stream.check(
        "remove_layer_norm", fields, ("removable_layer",), ("layer_norm_removal",)
    )
    (spec,) = set(_stream.specs(fields, "norm"))
    (placement,) = set(_stream.specs(fields, "placement"))
    statistics = named_leaves(variables[BATCH_STATS])
    _check_removed(spec, placement, fields, statistics)
    leaves = _stream.take(variables["params"])
    changes = _stream.untie(leaves, fields)
    changes |= _stream.fold_embedding_norm(
        "remove_layer_norm", leaves, fields, may_stay=True
    )
    is_offset = _stream.argument("norms", spec, "is_gain_offset")
    readers = list(_stream.readers(leaves))
    offsets = {
        reader.norm: leaves[f"{reader.norm}/bias"]
        for reader in readers
        if f"{reader.norm}/bias" in leaves
    }
    changes |= _stream.add_offsets("remove_layer_norm", leaves, fields, offsets)
    for reader in readers:
        deviation = np.asarray(statistics[f"{reader.norm}/deviation"], np.float64)
        gain = leaves.get(f"{reader.norm}/gain")
        factor = 1.0 if gain is None else gain + (1.0 if is_offset else 0.0)
        width = 0 if reader.part == "head" else 1
        features = leaves[reader.kernel].shape[width]
        factor = np.broadcast_to(factor / deviation, (*deviation.shape[:-1], features))
        kernel = _stream.fold_gain(leaves[reader.kernel], factor)
        leaves[reader.kernel] = kernel - np.mean(kernel, axis=width, keepdims=True)
    for name in list(leaves):
        if any(name.startswith(f"{reader.norm}/") for reader in readers):
            del leaves[name]
    changes |= {"model.norm": "none", "model.placement": "pre"}
    return {"params": _stream.give(leaves, variables["params"])}, changes


def _check_removed(spec, placement, fields, statistics) -> None:
    """Checks that every norm was a constant when the last step was taken."""
    depth = fields["model.depth"]
    start, ffn_gap, mixer_gap = (
        _stream.argument("placements", placement, name)
        for name in ("start", "ffn_gap", "mixer_gap")
    )
    final = _stream.argument("norms", spec, "removed_at")
    last = start + max(ffn_gap * depth, ffn_gap * depth + mixer_gap * (depth - 1))
    steps = int(np.min(np.asarray(statistics["final_norm/updates"])))
    if final < 0 or steps < max(final, last):
        raise ReslabError(
            "remove_layer_norm: norms that are not constants yet",
            expected=f"at least {max(final, last)} steps, and a final norm with "
            "removed_at",
            got=f"{steps} steps, final norm {spec}",
            hint="train longer, or begin the removal earlier",
        )
