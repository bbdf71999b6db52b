"""From layer normalization to RMS normalization, exactly (Jiang et al., 2023)."""

from typing import Any

import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.transforms import _stream


def build(params: Any, fields: _stream.Fields) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turns a pre-norm model with layer normalization into one with RMS.

        layer(x) = rms(x - mean(x)),    f(x - mean(x)) = f(x) - mean over outputs

    Every reader of a pre-norm stream takes its mean away; so it need not be written.
    The mean over outputs is taken from all that writes to the stream: embeddings,
    position table, and the projections out of mixers and feed-forward layers. The
    norms keep their gains; their biases, which `rms` has not, become biases of the
    projections that follow, and of the head. A head that was the transposed
    embedding becomes one of its own, since the head is not to be centred.

    The new model computes what the old one did, up to rounding. Training may go on
    from it, but not as the old model's would have: nothing keeps the mean of the
    stream zero from then on, and the gradients are those of other parameters.

    Reference: Jiang et al., 2023, https://arxiv.org/abs/2305.14858, Section 3.

    The arithmetic on each parameter is tested against the authors' PyTorch example.

    Args:
      params: Parameters of a `LanguageModel`.
      fields: Its config, by dotted name.

    Returns:
      The new parameters, on the host, and the fields of the config that change.

    Raises:
      ReslabError: If the model is not pre-norm with a plain residual and `layer`, or
        a norm has a bias before a part that cannot have one.
    """
    _stream.check("pre_ln_to_pre_rms", fields, "layer")
    leaves = _stream.take(params)
    changes = _stream.untie(leaves, fields)
    if any(
        _stream.argument("norms", spec, "use_bias")
        for spec in _stream.specs(fields, "norm")
    ):
        changes |= _move_biases(leaves, fields)
    for name in _stream.writers(leaves):
        leaves[name] = _stream.recentre(leaves[name])
    changes |= _stream.rewrite(fields, "norm", _as_rms)
    return _stream.give(leaves, params), changes


def _as_rms(parsed: registry.Parsed) -> str:
    kept = {k: v for k, v in parsed.arguments.items() if k != "use_bias"}
    return _stream.spec_text("rms", kept)


def _move_biases(leaves: _stream.Leaves, fields: _stream.Fields) -> dict[str, Any]:
    """Moves the biases of the norms into their readers; returns changed fields."""
    changes: dict[str, Any] = {"model.use_head_bias": True}
    takes_bias = {"head": True}
    for part, family in (("mixer", "mixers"), ("ffn", "ffns")):
        takes_bias[part] = all(
            registry.accepts(family, spec, "use_bias")
            for spec in _stream.specs(fields, part)
        )
        if takes_bias[part]:
            changes |= _stream.rewrite(fields, part, _with_bias)
            _add_output_biases(leaves, part)
    for reader in list(_stream.readers(leaves)):
        kernel = leaves[reader.kernel]
        bias = leaves.get(f"{reader.norm}/bias")
        if not takes_bias[reader.part]:
            if bias is not None and np.any(bias):
                raise ReslabError(
                    f"pre_ln_to_pre_rms: the norm before the {reader.part} has a bias",
                    expected=f"a {reader.part} that takes use_bias",
                    got=repr(fields[f"model.{reader.part}"]),
                    hint="a model trained with norm layer(use_bias=False)",
                )
            continue
        lead = 1 if reader.part == "head" else 2
        if bias is None:
            bias = np.zeros(kernel.shape[:lead])
        own = leaves.get(reader.bias, np.float64(0.0))
        leaves[reader.bias] = own + _stream.fold_bias(kernel, bias)
    for name in {f"{reader.norm}/bias" for reader in _stream.readers(leaves)}:
        leaves.pop(name, None)
    return changes


def _with_bias(parsed: registry.Parsed) -> str:
    return _stream.spec_text(parsed.name, {**parsed.arguments, "use_bias": True})


def _add_output_biases(leaves: _stream.Leaves, part: str) -> None:
    """Gives the projections into the stream the biases that `use_bias` brings."""
    for name in _stream.writers(leaves):
        kernel = leaves[name]
        if f"/{part}/" in name and name.endswith("/kernel"):
            bias = name.removesuffix("kernel") + "bias"
            empty = np.zeros((kernel.shape[0], kernel.shape[-1]))
            leaves.setdefault(bias, empty)
