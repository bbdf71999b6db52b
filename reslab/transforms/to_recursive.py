"""A trained model with fewer layers in a cycle, and LoRA at each depth."""

from typing import Any, Literal

import numpy as np

from reslab.core import registry
from reslab.core.bounds import Count, Whole, bounded
from reslab.core.depth import block_layers, separate_layers
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.core.trees import named_leaves, nested_leaves
from reslab.transforms import _lora, _stream


@bounded
def build(
    variables: ModelState,
    fields: _stream.Fields,
    *,
    unique: Count = 1,
    rank: Whole = 0,
    start: Literal["average", "stepwise", "lower"] = "average",
) -> tuple[ModelState, dict[str, Any]]:
    """Ties the layers of a uniform stack, so that `unique` of them are left.

        W'_k      the mean of layers k, k + unique, ...       ("average")
                  layer round(k * (depth - 1) / (unique - 1))  ("stepwise")
                  layer k                                      ("lower")
        A_l . B_l = the first `rank` terms of the SVD of W_l - W'_(l mod unique)

    All other parameters of a layer, such as gains of norms, are taken alike. Where a
    layer differs in nothing from the shared one, A is drawn and B is zero. A rank as
    large as the kernels keeps all of them, and the logits where layers do not differ in
    their norms; a smaller one needs training.

    Reference: Bae et al., 2024, https://arxiv.org/abs/2410.20672, Sections 2.2, 2.3.
    Best there: "stepwise" without LoRA, "average" with it. The rounding of "stepwise"
    is not stated there.

    Args:
      variables: Parameters of a `LanguageModel`, without other state.
      fields: Its config, by dotted name.
      unique: Number of layers that are kept.
      rank: Rank of the change of each projection at each depth; 0 disables it.
      start: What the shared layers are made from.

    Returns:
      The parameters, on the host, each layer separately; and the field of the config
      that changes.

    Raises:
      ReslabError: If the depth is no multiple of `unique`, or the stack is not uniform
        or its projections not dense.
    """
    depth = fields["model.depth"]
    if depth % unique:
        raise ReslabError(
            "to_recursive: unique",
            expected=f"a divisor of model.depth ({depth})",
            got=str(unique),
        )
    for name, wanted in (("stack", "uniform"), ("linear", "dense")):
        if fields[f"model.{name}"] != wanted:
            raise ReslabError(
                f"to_recursive: model.{name}",
                expected=repr(wanted),
                got=repr(fields[f"model.{name}"]),
            )
    separate = separate_layers(variables["params"], block_layers(variables["params"]))
    layers, rest = _by_layer(separate, depth)
    shared = _shared(layers, unique, start)
    leaves, rng = dict(rest), np.random.default_rng(0)
    for index, (prefix, layer) in enumerate(shared):
        for name, leaf in layer.items():
            leaves[f"{prefix}segment_{index}/block_0/{name}"] = leaf[None]
            if not rank or not name.endswith("/kernel"):
                continue
            pairs = [
                _lora.factors(name, own[name] - leaf, rank, rng)
                for _, own in layers[index::unique]
            ]
            part = name.removesuffix("kernel")
            names = _lora.PAIRS[len(pairs) > 1]
            for factor, stacked in zip(names, zip(*pairs, strict=True), strict=True):
                path = f"{prefix}segment_{index}/block_0/{part}{factor}/kernel"
                leaves[path] = np.stack(stacked)[None]
    arguments = {"unique": unique} | ({"lora_rank": rank} if rank else {})
    stack = registry.spec_text("recursive", arguments)
    return {"params": nested_leaves(leaves)}, {"model.stack": stack}


_Layer = tuple[str, dict[str, np.ndarray]]


def _by_layer(separate: Any, depth: int) -> tuple[list[_Layer], dict[str, Any]]:
    """The leaves of each layer by name in it, and those outside of layers."""
    layers: list[dict[str, np.ndarray]] = [{} for _ in range(depth)]
    rest, found = {}, ""
    for path, leaf in named_leaves(separate).items():
        prefix, cut, name = path.partition("segment_")
        if not cut:
            rest[path] = leaf
            continue
        number, _, name = name.split("/", 2)
        found = prefix
        layers[int(number)][name] = np.asarray(leaf)[0]
    return [(found, layer) for layer in layers], rest


def _shared(layers: list[_Layer], unique: int, start: str) -> list[_Layer]:
    depth = len(layers)
    made = []
    for index in range(unique):
        prefix, layer = layers[index]
        if start == "stepwise":
            _, layer = layers[round(index * (depth - 1) / max(unique - 1, 1))]
        if start == "average":
            group = [own for _, own in layers[index::unique]]
            layer = {name: np.mean([own[name] for own in group], 0) for name in layer}
        made.append((prefix, layer))
    return made
