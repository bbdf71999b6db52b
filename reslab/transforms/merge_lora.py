"""The factors of LoRA added to the kernels beside them."""

from typing import Any

import numpy as np

from reslab.core import registry
from reslab.core.depth import block_layers, separate_layers
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.core.trees import named_leaves, nested_leaves
from reslab.transforms import _lora, _stream

KEEPS_LOGITS = True


def build(
    variables: ModelState, fields: _stream.Fields
) -> tuple[ModelState, dict[str, Any]]:
    """Adds to every kernel the product of its factors: dense projections again.

    Of several tasks it is the chosen one's; the others' factors are left behind. Of a
    `recursive` stack every depth becomes a layer of its own, in a uniform one.
    `reslab.transforms._lora.unmerge` takes a product out again.

    Args:
      variables: Parameters of a `LanguageModel`, without other state.
      fields: Its config, by dotted name.

    Returns:
      The parameters, on the host, and the fields of the config that change.

    Raises:
      ReslabError: If there are no factors, or those of another stack's passes.
    """
    stack = registry.parse(fields["model.stack"])
    if stack.name == "recursive":
        return _unrolled(variables, fields, stack)
    linear = registry.parse(fields["model.linear"])
    if linear.name != "lora":
        raise ReslabError(
            "merge_lora: model.linear", expected="lora", got=repr(linear.name)
        )
    made: Any = registry.unbound("linears", fields["model.linear"], features=1)
    if made.tasks and not made.chosen:
        raise ReslabError(
            "merge_lora: model.linear", expected="a chosen task", got="task=''"
        )
    params, _ = _lora.merge(variables["params"], made.factor, made.chosen)
    # Factors of other tasks were trained beside the old kernels.
    leaves = named_leaves(params)
    kept = {name: leaf for name, leaf in leaves.items() if not _lora.is_factor(name)}
    return {**variables, "params": nested_leaves(kept)}, {"model.linear": "dense"}


def _unrolled(
    variables: ModelState, fields: _stream.Fields, stack: registry.Parsed
) -> tuple[ModelState, dict[str, Any]]:
    unique = stack.arguments.get("unique", 1)
    blocks = block_layers(variables["params"])
    leaves = {}
    separate = named_leaves(separate_layers(variables["params"], blocks))
    for path, leaf in separate.items():
        prefix, cut, name = path.partition("segment_")
        if not cut:
            leaves[path] = leaf
            continue
        index, _, name = name.split("/", 2)
        if _lora.is_factor(name):
            continue
        row = np.asarray(leaf)
        for turn in range(fields["model.depth"] // unique):
            own = row
            for down, up in _lora.PAIRS:
                at = path.removesuffix("kernel")
                if path.endswith("/kernel") and f"{at}{down}/kernel" in separate:
                    first, second = (
                        np.asarray(separate[f"{at}{one}/kernel"])[0, turn]
                        for one in (down, up)
                    )
                    own = row + _lora.product(first, second)[None]
            layer = int(index) + turn * unique
            leaves[f"{prefix}segment_{layer}/block_0/{name}"] = own
    return {"params": nested_leaves(leaves)}, {"model.stack": "uniform"}
