"""The layers of a config as a table: layers that are alike are one row."""

import collections
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core.depth import layer_numbers
from reslab.core.trees import named_leaves
from reslab.runtime.text import aligned

# Besides the tiled fields, these say what a layer is.
_OF_ALL = ("model.residual", "model.position", "model.stack")


def layer_table(config: ConfigDict, params: Any) -> list[str]:
    """Describes each layer by its parts and its number of parameters.

    Args:
      config: The resolved config.
      params: Parameters of its model, or their shapes.

    Returns:
      Lines: a row for all layers that are alike, with the fields in which layers
      differ, then the fields that all have in common; none without layers.
    """
    sizes: dict[int, int] = collections.Counter()
    leaves = named_leaves(params)
    for name, numbers in layer_numbers(params).items():
        for layer in map(int, numbers):
            sizes[layer] += leaves[name].size // len(numbers)
    if not sizes:
        return []
    fields = dict(configs.flatten(config))
    specs = {}
    tiled = [name for name, field in configs.schema().items() if field.is_tiled]
    for name in (*sorted(tiled, reverse=True), *_OF_ALL):
        specs[name] = (value,) if isinstance(value := fields[name], str) else value

    def spec(name: str, layer: int) -> str:
        return str(specs[name][layer % len(specs[name])])

    differing = [n for n in specs if len({spec(n, layer) for layer in sizes}) > 1]
    alike: dict[tuple[str, ...], list[int]] = {}
    for layer in sorted(sizes):
        cells = f"{sizes[layer]:,}", *(spec(name, layer) for name in differing)
        alike.setdefault(cells, []).append(layer)
    head = "layers", "parameters", *(n.removeprefix("model.") for n in differing)
    rows = [(_listed(layers), *cells) for cells, layers in alike.items()]
    common = [name for name in specs if name not in differing]
    return [
        *aligned([head, *rows]),
        f"{len(sizes)} layers; in all of them:",
        *(f"  {name.removeprefix('model.')} {spec(name, 0)}" for name in common),
    ]


def _listed(layers: Sequence[int]) -> str:
    """Ascending numbers in short: runs, and of many runs the first two and the last.

    >>> _listed((0, 1, 2, 4)), _listed((3, 7, 11, 15))
    ('0-2, 4', '3, 7, ..., 15')
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    shown = [f"{a}-{b}" if a < b else f"{a}" for a, b in runs]
    return ", ".join(shown if len(shown) < 4 else [*shown[:2], "...", shown[-1]])
