"""Creation of parameters and constants with logical axis names."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax

from reslab.core.model_state import CONSTANTS


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


def constant(
    module: nn.Module,
    name: str,
    init: Callable[..., Any],
    shape: Sequence[int],
    axes: Sequence[str | None],
    dtype: Any,
) -> jax.Array:
    """Makes, or fetches, a constant of a module: saved like a parameter, never trained.

    Takes and returns what `parameter` does; the dtype may be of any kind, such as int8.
    """

    def make() -> Any:
        boxed = nn.with_logical_partitioning(init, tuple(axes))
        return boxed(module.make_rng("params"), tuple(shape), dtype)

    return module.variable(CONSTANTS, name, make).value
