"""How modules make their parameters: never without logical axes."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax


def parameter(
    module: nn.Module,
    name: str,
    init: Callable[..., Any],
    shape: Sequence[int],
    axes: Sequence[str | None],
    dtype: Any,
) -> jax.Array:
    """Makes, or fetches, a parameter of a module inside its compact method.

    Args:
      module: The module that owns it.
      name: Its name.
      init: Initializer `(key, shape, dtype) -> array`.
      shape: Its shape.
      axes: Logical name of each axis, from `LOGICAL_AXES`, or None.
      dtype: Its dtype.

    Returns:
      The array, out of its box.
    """
    boxed = nn.with_logical_partitioning(init, tuple(axes))
    return cast(jax.Array, module.param(name, boxed, tuple(shape), dtype))
