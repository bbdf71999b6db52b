"""Low-rank factors beside kernels: made, merged and taken out again."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, nested_leaves

# Names of factors: one pair, or one for each pass of a loop; those of a task begin with
# its name.
PAIRS = (("lora_down", "lora_up"), ("pass_down", "pass_up"))
_FACTOR = re.compile(r"/(lora|pass|\w+_task)_(down|up)/kernel$")


def is_factor(name: str) -> bool:
    """Returns whether a parameter is a factor."""
    return _FACTOR.search(name) is not None


def inputs_of(name: str, kernel: np.ndarray) -> int:
    """Number of axes that a kernel of one layer contracts.

    Projections from heads have two, all others one.
    """
    return kernel.ndim - 1 if name.endswith("output/kernel") else 1


def factors(
    name: str, change: np.ndarray, rank: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The best factors of this rank, by the singular value decomposition.

    Args:
      name: Name of the kernel.
      change: What their product is to be, like the kernel of one layer.
      rank: Features between the factors; above the rank of `change` they end in zeros.
      rng: Draws the first factor where nothing is to be changed.

    Returns:
      Factors (inputs..., rank) and (rank, outputs...).
    """
    count = inputs_of(name, change)
    inputs, outputs = change.shape[:count], change.shape[count:]
    matrix = change.reshape(int(np.prod(inputs)), -1)
    down = np.zeros((len(matrix), rank), change.dtype)
    up = np.zeros((rank, matrix.shape[1]), change.dtype)
    if np.any(matrix):
        left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
        kept = min(rank, len(sizes))
        down[:, :kept] = left[:, :kept]
        up[:kept] = sizes[:kept, None] * right[:kept]
    else:
        down[:] = rng.standard_normal(down.shape) / np.sqrt(len(matrix))
    return down.reshape(*inputs, rank), up.reshape(rank, *outputs)


def product(down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The product of factors of one layer, like its kernel."""
    return np.tensordot(down, up, 1)


def merge(
    params: Any, scale: float, task: str = ""
) -> tuple[Any, Mapping[str, np.ndarray]]:
    """Adds the product of a pair of factors to the kernel beside it.

    Args:
      params: Parameters with one pair for each kernel, or for each task, their layers
        stacked.
      scale: Factor on the products.
      task: Name of the task whose factors are taken; "" of factors without tasks.

    Returns:
      The parameters without these factors, and the factors by name.

    Raises:
      ReslabError: If a kernel has a pair for each pass.
    """
    leaves = named_leaves(params)
    mark = f"/{task}_task_" if task else ""
    taken = {
        name: np.asarray(leaf)
        for name, leaf in leaves.items()
        if is_factor(name) and mark in name
    }
    kept = {name: leaf for name, leaf in leaves.items() if name not in taken}
    return _changed(kept, taken, scale), taken


def unmerge(params: Any, taken: Mapping[str, np.ndarray], scale: float) -> Any:
    """The inverse of `merge`: subtracts the products, and puts the factors back."""
    kept = _changed(named_leaves(params), taken, -scale)
    return nested_leaves({**named_leaves(kept), **taken})


def _changed(
    leaves: Mapping[str, Any], taken: Mapping[str, np.ndarray], scale: float
) -> Any:
    changed = dict(leaves)
    for name, down in taken.items():
        if not name.endswith("_down/kernel"):
            continue
        if name.endswith("pass_down/kernel"):
            raise ReslabError(
                "factors of LoRA",
                expected="one pair for each kernel",
                got="one for each pass",
                hint="transform merge_lora of a run with stack recursive",
            )
        up = taken[name.removesuffix("down/kernel") + "up/kernel"]
        kernel = _FACTOR.sub("/kernel", name)
        # Axes: layers, the one pass, then those of the factor.
        products = [product(d[0], u[0]) for d, u in zip(down, up, strict=True)]
        changed[kernel] = np.asarray(changed[kernel]) + scale * np.stack(products)
    return nested_leaves(changed)
