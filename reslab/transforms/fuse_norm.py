"""Norms that are affine once trained become part of the projections after them."""

from typing import Any

import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, ModelState
from reslab.core.trees import named_leaves
from reslab.transforms import _stream

FUSIBLE = ("batch", "rep_batch", "progressive_rep_batch", "unified", "power")


def build(
    variables: ModelState, fields: _stream.Fields
) -> tuple[ModelState, dict[str, Any]]:
    """Takes running statistics, gain and bias of each norm into the next kernel.

        norm(x) = a x + c,    norm(x) . W = x . diag(a) W + c W

        a = (1 + gain) / sqrt(variance + epsilon)     batch; mean square: unified, power
        a = the same + skip                           rep_batch, progressive_rep_batch
        c = bias - mean (1 + gain) / sqrt(variance + epsilon)

    The projections get biases for c. No norm is left in the model, and no statistics.
    PowerNorm's group scaling, done per token, is not affine: with one
    group it stays, as an RMS norm without a gain.

    The new model computes what the old one did when evaluated, up to rounding; it
    trains as a model without norms.

    Reference: Guo et al., 2024, https://arxiv.org/abs/2405.11582, Section 3.1; Yang
    et al., 2022, https://arxiv.org/abs/2208.01313. The fused kernel is tested against
    the former's code.

    Args:
      variables: Parameters and state of a `LanguageModel`.
      fields: Its config, by dotted name.

    Returns:
      The new parameters, on the host, and the fields of the config that change.

    Raises:
      ReslabError: If a norm cannot be fused, differs between layers, or the model is
        not pre-norm with a plain residual.
    """
    _stream.check("fuse_norm", fields, FUSIBLE)
    specs = _stream.specs(fields, "norm")
    if len(set(specs)) > 1:
        raise ReslabError(
            "fuse_norm: model.norm", expected="one norm in all layers", got=repr(specs)
        )
    spec = specs[0]
    leaves = _stream.take(variables["params"])
    statistics = {
        name: np.asarray(leaf, np.float64)
        for name, leaf in named_leaves(variables[BATCH_STATS]).items()
    }
    changes = _stream.rewrite(fields, "norm", _what_is_left)
    changes |= _stream.untie(leaves, fields)
    changes |= _stream.fold_embedding_norm("fuse_norm", leaves, fields, may_stay=True)
    readers = list(_stream.readers(leaves))
    maps = {
        norm: affine_map(spec, _below(leaves, norm), _below(statistics, norm))
        for norm in {reader.norm for reader in readers}
    }
    offsets = {norm: offset for norm, (_, offset) in maps.items()}
    changes |= _stream.add_offsets("fuse_norm", leaves, fields, offsets)
    for reader in readers:
        factor, _ = maps[reader.norm]
        leaves[reader.kernel] = _stream.fold_gain(leaves[reader.kernel], factor)
    for name in list(leaves):
        if any(name.startswith(f"{norm}/") for norm in maps):
            del leaves[name]
    return {"params": _stream.give(leaves, variables["params"])}, changes


def affine_map(
    spec: str, params: dict[str, np.ndarray], statistics: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Factor and addend of each channel of a trained norm.

    Args:
      spec: The norm's spec.
      params: Its parameters, (features,) or stacked over layers.
      statistics: Its running statistics, alike.
    """
    known = dict.fromkeys(("mean", "variance", "mean_square"))
    known |= {key: value for key, value in statistics.items() if key in known}
    spread = known["variance"] if known["mean_square"] is None else known["mean_square"]
    assert spread is not None
    offset = 1.0 if _stream.argument("norms", spec, "is_gain_offset") else 0.0
    gain = params["gain"] + offset if "gain" in params else np.ones_like(spread)
    bias = params.get("bias", np.zeros_like(spread))
    factor = gain / np.sqrt(spread + _stream.argument("norms", spec, "epsilon"))
    mean = np.zeros_like(spread) if known["mean"] is None else known["mean"]
    return factor + params.get("skip", 0.0), bias - mean * factor


def _below(leaves: dict[str, np.ndarray], path: str) -> dict[str, np.ndarray]:
    """The leaves of one module, by their last name."""
    return {
        name.removeprefix(f"{path}/"): leaf
        for name, leaf in leaves.items()
        if name.startswith(f"{path}/")
    }


def _what_is_left(parsed: registry.Parsed) -> str:
    spec = registry.spec_text(parsed.name, parsed.arguments)
    if parsed.name != "power" or not (
        groups := _stream.argument("norms", spec, "groups")
    ):
        return "none"
    if groups > 1:
        raise ReslabError(
            "fuse_norm: model.norm",
            expected="power with groups 0 or 1",
            got=repr(spec),
            hint="group scaling over several groups is no norm of its own",
        )
    epsilon = _stream.argument("norms", spec, "epsilon")
    return registry.spec_text("rms", {"epsilon": epsilon, "use_gain": False})
