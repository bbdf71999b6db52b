"""Builds norms for places that accept no activation."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from reslab.core import registry
from reslab.core.errors import ReslabError


def make_norm(
    spec: registry.Spec, *, has_mask: bool = False, **context: Any
) -> nn.Module:
    """Builds a norm around or inside a sublayer.

    Args:
      spec: Its spec.
      has_mask: Whether the caller knows which positions count.
      **context: What the surroundings know.

    Returns:
      The norm.

    Raises:
      ReslabError: If it contains an activation, or needs a mask that the caller
        does not have.
    """
    norm = registry.make("norms", spec, **context)
    if getattr(norm, "is_activation", False):
        raise ReslabError(
            f"norm {spec!r} contains the activation",
            expected="a norm alone around a sublayer of a transformer",
            hint="rms, another that `reslab list norms` shows, or is_affine_only=True",
        )
    if getattr(norm, "needs_batch", False) and not has_mask:
        raise ReslabError(
            f"norm {spec!r} takes statistics of a batch",
            expected="a norm of one token inside a sublayer",
            hint="rms, or a placement with norms around sublayers only",
        )
    return norm


def needs_batch(spec: registry.Spec) -> bool:
    """Returns whether a norm takes statistics of a batch, hence a mask."""
    return getattr(registry.unbound("norms", spec), "needs_batch", False)


def mask_for(spec: registry.Spec, segments: jax.Array | None) -> dict[str, Any]:
    """The keyword arguments that such a norm, or a placement of it, is called with.

    Args:
      spec: The norm's spec.
      segments: Document of each token (batch, length), 0 for padding, or None.

    Returns:
      `mask`, true where there is a document, or nothing for any other norm.
    """
    if segments is None or not needs_batch(spec):
        return {}
    return {"mask": segments > 0}


def norm_and_activation(
    spec: registry.Spec, *, name: str | None = None, **context: Any
) -> Callable[[jax.Array], jax.Array]:
    """A norm and a ReLU, or a norm that contains its activation.

    Args:
      spec: Its spec.
      name: Linen's name of the norm.
      **context: What the surroundings know.

    Returns:
      A function of features (batch, positions..., channels).
    """
    norm = registry.make("norms", spec, name=name, **context)
    if getattr(norm, "is_activation", False):
        return norm
    return lambda x: jax.nn.relu(norm(x))


def branch_end(spec: registry.Spec, param_dtype: Any) -> Callable[..., jax.Array]:
    """A norm of images at the end of a residual branch, `branch_norm`.

    Args:
      spec: Its spec; "none" is nothing.
      param_dtype: Dtype in which its parameters are stored.

    Returns:
      A function of features (batch, positions..., channels).

    Raises:
      ReslabError: If it contains an activation.
    """
    if spec == "none":
        return lambda x: x
    context = {"is_spatial": True, "param_dtype": param_dtype, "name": "branch_norm"}
    return make_norm(spec, has_mask=True, **context)
