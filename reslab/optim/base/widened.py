"""Steps in float32 of parameters that are stored in fewer bits."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from reslab.core.precision import statistics_dtype


def widened(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Computes the updates of a transformation in float32 at least.

    JAX rounds Python numbers to the dtype of the arrays that they meet. Of bfloat16
    parameters, optax so takes a b2 of 0.999 for 0.998 and multiplies by
    1 - b2 = 0.000999, and by learning rates that are up to 0.2% off. Here gradients,
    parameters and state are widened first; updates and the new state are rounded to
    the dtypes that they had. Arrays of float32 and float64 stay as they are.

    Args:
      inner: The transformation.

    Returns:
      The same transformation, with the state of `inner`.
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates, state, params=None, **extra):
        moves, after = inner.update(
            _wide(updates), _wide(state), _wide(params), **extra
        )
        return _like(moves, updates), _like(after, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _is_narrow(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32


def _wide(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: x.astype(statistics_dtype(x.dtype)) if _is_narrow(x) else x, tree
    )


def _like(tree: Any, given: Any) -> Any:
    """Rounds the leaves of a tree as those that were widened."""
    return jax.tree.map(
        lambda x, old: x.astype(old.dtype) if _is_narrow(old) else x, tree, given
    )
