"""Layouts of parameters: stacked axes, input axes and output axes.

An optimizer that treats a kernel as a matrix, or each layer separately, must know
which axes are which. Their logical names say it: `layers` and `experts` hold
separate parameters side by side, `heads` and `head_dim` are one axis in two pieces, and
so are the window of a convolution and the `channels` that it reads.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from reslab.core.depth import layer_numbers
from reslab.core.trees import is_box, path_name, unbox

# Stacking axes, and axes that a kernel maps between.
STACKED = frozenset({"layers", "experts"})
WINDOW = ("window_rows", "window_columns", "channels")
FEATURES = frozenset({"embed", "mlp", "heads", "head_dim", "vocab", *WINDOW})
# Names whose axis is merged with the next axis, if the next axis has the second name.
JOINED = {("heads", "head_dim"), *itertools.pairwise(WINDOW)}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The meaning of the axes of one parameter.

    Attributes:
      kind: "matrix" for a kernel inside the model, "embedding" and "head" for the
        tables at its ends, "vector" for the others: gains, biases, mixtures.
      stack: Axes along which separate parameters lie.
      inputs: Axes that are contracted with the input, of all but vectors.
      outputs: Axes that the output has, of all but vectors.
      layers: Layer of each slice along axis 0; empty outside of a stack of layers.
      names: Logical name of each axis, where it is known.
    """

    kind: str = "vector"
    stack: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    names: tuple[str | None, ...] = ()

    def own_axes(self, x: Any) -> tuple[int, ...]:
        """The axes of one of the stacked parameters of `x`."""
        return tuple(axis for axis in range(x.ndim) if axis not in self.stack)

    def as_matrices(self, x: jax.Array) -> jax.Array:
        """A kernel as matrices (stacked, inputs, outputs).

        >>> query = Layout("matrix", (0,), (1,), (2, 3))
        >>> query.as_matrices(np.ones((2, 3, 4, 5))).shape
        (2, 3, 20)
        """
        order = (*self.stack, *self.inputs, *self.outputs)
        sizes = [
            math.prod(x.shape[axis] for axis in axes)
            for axes in (self.stack, self.inputs, self.outputs)
        ]
        return x.transpose(order).reshape(sizes)

    def from_matrices(self, matrices: jax.Array, shape: Sequence[int]) -> jax.Array:
        """The kernel of a `shape` that `as_matrices` has made into matrices.

        Sizes of 1, of what was reduced, stay 1.
        """
        order = (*self.stack, *self.inputs, *self.outputs)
        sizes = [shape[axis] for axis in order]
        stacked, inputs = len(self.stack), len(self.stack) + len(self.inputs)
        if matrices.shape[1] == 1:
            sizes[stacked:inputs] = [1] * len(self.inputs)
        if matrices.shape[2] == 1:
            sizes[inputs:] = [1] * len(self.outputs)
        back = [order.index(axis) for axis in range(len(order))]
        return matrices.reshape(sizes).transpose(back)

    def by_layer(self, values: Any, x: Any) -> Any:
        """Values (layers of the model,) as factors on the slices of `x`."""
        return values[np.asarray(self.layers)].reshape(-1, *(1,) * (x.ndim - 1))


def read(names: Sequence[str | None], layers: Sequence[int] = ()) -> Layout:
    """The layout of a parameter whose axes are named.

    Args:
      names: Logical name of each axis.
      layers: Layer of each slice along axis 0, in a stack of layers.

    >>> read(("layers", "heads", "head_dim", "embed")).inputs
    (1, 2)
    >>> read(("window_rows", "window_columns", "channels", "embed")).inputs
    (0, 1, 2)
    >>> read(("embed", "vocab")).kind, read(("layers", "embed")).kind
    ('head', 'vector')
    """
    names, layers = tuple(names), tuple(int(layer) for layer in layers)
    stack = tuple(axis for axis, name in enumerate(names) if name in STACKED)
    groups: list[list[int]] = []
    for axis, name in enumerate(names):
        if axis in stack:
            continue
        if groups and (names[groups[-1][-1]], name) in JOINED:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    own = [name for axis, name in enumerate(names) if axis not in stack]
    kind = "vector"
    if len(groups) == 2:
        if own[0] == "vocab" or (own[0] is None and own[1:] == ["embed"]):
            kind = "embedding"
        elif own[-1] == "vocab":
            kind = "head"
        elif set(own) <= FEATURES:
            kind = "matrix"
    if kind == "vector":
        return Layout(kind, stack, layers=layers, names=names)
    return Layout(kind, stack, tuple(groups[0]), tuple(groups[1]), layers, names)


def layouts(boxed: Any) -> Any:
    """The layout of every parameter of a model.

    Args:
      boxed: Parameters, or their shapes, in boxes with logical axis names. What has
        no box is read by its shape: two axes are a matrix.

    Returns:
      A tree of layouts like the unboxed parameters.
    """
    numbers = layer_numbers(unbox(boxed))

    def one(path: Any, node: Any) -> Layout:
        if is_box(node):
            return read(node.names, list(numbers.get(path_name(path), ())))
        if node.ndim == 2:
            return Layout("matrix", (), (0,), (1,))
        return Layout()

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=is_box)
