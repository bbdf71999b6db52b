"""Paths into parameter trees, and groups of parameters by first match."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax

from reslab.core.errors import ReslabError

T = TypeVar("T")


def path_name(path: Sequence[Any]) -> str:
    """Writes a JAX key path as `layers/body/segment_0/block_0/mixer/query/kernel`."""
    return "/".join(
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
    )


def named_leaves(tree: Any) -> dict[str, Any]:
    """Maps the path of every leaf to the leaf, in tree order.

    >>> named_leaves({"head": {"kernel": 1.0}})
    {'head/kernel': 1.0}
    """
    return {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def nested_leaves(leaves: Mapping[str, T]) -> dict[str, Any]:
    """The inverse of `named_leaves`, of dictionaries within dictionaries.

    >>> nested_leaves({"head/kernel": 1.0})
    {'head': {'kernel': 1.0}}
    """
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def map_named(function: Any, tree: Any) -> Any:
    """Maps `function(name, leaf)` over a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda p, x: function(path_name(p), x), tree
    )


def first_match(
    names: Sequence[str], patterns: Sequence[tuple[str, T]], default: T
) -> dict[str, T]:
    """Gives every name the value of the first pattern that is found in it.

    Args:
      names: Parameter paths.
      patterns: Pairs of a regular expression (searched, not anchored) and a
        value.
      default: The value of names that no pattern matches.

    Returns:
      A value for every name.

    Raises:
      ReslabError: If a pattern is not a regular expression, is found in none of
        the names, or only in names that earlier ones decide, so that a misspelt
        or misplaced group cannot pass unnoticed.

    >>> first_match(["a/gain", "a/kernel"], [("gain$", 0.0)], 0.1)
    {'a/gain': 0.0, 'a/kernel': 0.1}
    """
    compiled = []
    for pattern, value in patterns:
        try:
            compiled.append((re.compile(pattern), value))
        except re.error as error:
            raise ReslabError(
                f"parameter group {pattern!r}",
                expected="a regular expression",
                got=str(error),
            ) from None
        if not any(compiled[-1][0].search(name) for name in names):
            raise ReslabError(
                f"parameter group {pattern!r} matches no parameter",
                hint="`reslab show CONFIG` lists the paths, such as " + names[0],
            )
    deciding = {
        name: next((i for i, (p, _) in enumerate(compiled) if p.search(name)), None)
        for name in names
    }
    for index, (pattern, _) in enumerate(compiled):
        # A final catch-all pattern may match nothing.
        is_catch_all = all(pattern.search(name) for name in names)
        if index not in deciding.values() and not is_catch_all:
            raise ReslabError(
                f"parameter group {pattern.pattern!r} decides for no parameter",
                hint="put it before the patterns that match the same parameters",
            )
    return {
        name: default if index is None else compiled[index][1]
        for name, index in deciding.items()
    }


def is_box(node: Any) -> bool:
    """Returns whether a node carries the logical axis names of the array inside."""
    return isinstance(node, nn.LogicallyPartitioned)


def unbox(tree: Any) -> Any:
    """Takes arrays or shapes out of their boxes, without touching a device."""
    return jax.tree.map(
        lambda node: node.value if is_box(node) else node, tree, is_leaf=is_box
    )


def count_parameters(tree: Any) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def count_bytes(tree: Any) -> int:
    """The size in bytes of a tree of arrays or shapes."""
    return sum(
        int(leaf.size) * jax.numpy.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
