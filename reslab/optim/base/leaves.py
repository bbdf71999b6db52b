"""Maps over parameters: leaf by leaf, each with its layout.

A statistic of each stacked parameter keeps the axes of its leaf, those that it was
taken over of size 1, so that it broadcasts against the leaf and shares its axis names.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reslab.core.layout import Layout, layouts
from reslab.core.precision import statistics_dtype
from reslab.core.trees import is_box

# A tree of layouts like the parameters; None reads them from boxes or shapes.
Layouts = Any


class Named(NamedTuple):
    """A statistic whose axes are not those of its parameter, and their names."""

    value: jax.Array
    names: tuple[str | None, ...]


def is_absent(node: Any) -> bool:
    """Returns whether a leaf belongs to another group."""
    return isinstance(node, optax.MaskedNode)


def resolve(given: Layouts, tree: Any) -> Layouts:
    """The layouts of a tree: those given, or what its shapes say."""
    return layouts(tree) if given is None else given


def map_leaves(function: Callable[..., Any], given: Layouts, *trees: Any) -> Any:
    """Maps `function(layout, leaf of each tree)` over trees.

    Leaves of other groups are passed over. Boxes around the leaves of the first tree
    are put around the result, `Named` or not; an axis that is reduced to 1 loses its
    name.

    Args:
      function: The function.
      given: Layouts, or None.
      *trees: Trees of the same structure.

    Returns:
      A tree of results like the first.
    """

    def one(layout, leaf, *others):
        if is_absent(leaf):
            return leaf
        value, *values = (n.value if is_box(n) else n for n in (leaf, *others))
        result = function(layout, value, *values)
        return _boxed_like(leaf, result)

    return jax.tree.map(one, resolve(given, trees[0]), *trees)


def label_leaves(function: Callable[[Layout], Any], given: Layouts, tree: Any) -> Any:
    """A tree of labels by layout, for `optax.partition`; absent leaves stay absent."""
    return jax.tree.map(
        lambda layout, leaf: leaf if is_absent(leaf) else function(layout),
        resolve(given, tree),
        tree,
    )


def _boxed_like(leaf: Any, result: Any) -> Any:
    if is_absent(result):
        return result
    value, names = result if isinstance(result, Named) else (result, None)
    if not is_box(leaf):
        return value
    if names is None:
        shapes = zip(leaf.names, leaf.value.shape, value.shape, strict=True)
        names = tuple(name if old == new else None for name, old, new in shapes)
    return leaf.replace(value=value, names=names)


def split(tree: Any, count: int) -> tuple[Any, ...]:
    """Turns a tree of tuples of `count` results into `count` trees."""

    def is_results(node):
        return isinstance(node, tuple) and not is_absent(node)

    return tuple(
        jax.tree.map(
            lambda node, i=index: node if is_absent(node) else node[i],
            tree,
            is_leaf=is_results,
        )
        for index in range(count)
    )


def wide(x: jax.Array) -> jax.Array:
    """An array in the dtype of statistics: float32, or float64 if it is."""
    return x.astype(statistics_dtype(x.dtype))


def norm(layout: Layout, x: jax.Array) -> jax.Array:
    """The Euclidean norm of each stacked parameter; other axes are kept at 1."""
    squares = jnp.square(wide(x))
    return jnp.sqrt(jnp.sum(squares, layout.own_axes(x), keepdims=True))


def zeros(tree: Any, dtype: Any = None) -> Any:
    """Zeros like a tree; in the dtype of statistics where none is given."""
    return jax.tree.map(
        lambda x: jnp.zeros(x.shape, dtype or statistics_dtype(x.dtype)), tree
    )


def decay_and_scale(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float
) -> optax.GradientTransformation:
    """Builds the end of a chain: decoupled decay, then the learning rate."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )
