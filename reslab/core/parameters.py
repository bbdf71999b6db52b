"""Creation of parameters and constants, with logical axis names if they are wanted."""

import contextlib
import contextvars
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax

from reslab.core.model_state import CONSTANTS

# JAX retraces a function when this value differs; None leaves the choice to the module.
_are_named = jax.make_user_context(None)
# A model always decides alike, so that nothing is traced again within it.
_in_model: contextvars.ContextVar[bool] = contextvars.ContextVar("model", default=False)


def logical_axes(are_named: bool = True) -> contextlib.AbstractContextManager[None]:
    """Attaches logical axis names to the parameters that modules create inside.

    The names, in boxes as Flax has them, say how parameters lie on a mesh and which of
    their axes are a matrix to an optimizer. The models of reslab attach them wherever
    they are initialized; parts that are used alone create plain arrays, unless inside
    this context.

    Args:
      are_named: False leaves the names out, of models too.

    >>> from reslab.nn.norms.rms import RMSNorm
    >>> norm, key, x = RMSNorm(), jax.random.key(0), jax.numpy.ones((1, 4))
    >>> norm.init(key, x)["params"]["gain"].shape
    (4,)
    >>> with logical_axes():
    ...     norm.init(key, x)["params"]["gain"].names
    ('embed',)
    """
    return _are_named(are_named)


class NamedModule(nn.Module):
    """Base of models, whose parameters have logical axis names."""

    @nn.nowrap
    def init_with_output(self, *args: Any, **kwargs: Any) -> Any:
        """Initializes the model; see `flax.linen.Module.init_with_output`."""
        token = _in_model.set(True)
        try:
            return super().init_with_output(*args, **kwargs)
        finally:
            _in_model.reset(token)


def _named(init: Callable[..., Any], axes: Sequence[str | None]) -> Callable[..., Any]:
    decided = _are_named.value
    if not (_in_model.get() if decided is None else decided):
        return init
    return nn.with_logical_partitioning(init, tuple(axes))


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
    made = module.param(name, _named(init, axes), tuple(shape), dtype)
    return cast(jax.Array, made)


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
        key = module.make_rng("params")
        return _named(init, axes)(key, tuple(shape), dtype)

    return module.variable(CONSTANTS, name, make).value
