"""The norm and the gate that recurrent mixers put before their last projection."""

from collections.abc import Callable

import flax.linen as nn
import jax

from reslab.core import registry, surroundings
from reslab.nn.base.norm import make_norm
from reslab.nn.base.projection import ProjectingModule


def gated_norm(
    parent: ProjectingModule,
    y: jax.Array,
    gate: jax.Array | None,
    *,
    spec: registry.Spec = "rms",
    activation: Callable[[jax.Array], jax.Array] = nn.silu,
    is_gated_first: bool = False,
    logical_axis: str = "head_dim",
    name: str = "output_norm",
) -> jax.Array:
    """Normalizes the last axis of `y` and multiplies by an activated gate.

    Args:
      parent: The mixer, whose submodule the norm becomes.
      y: What was read; the norm takes it in its own dtype.
      gate: The gate before its activation, of the shape of `y`; None does not gate.
      spec: The norm.
      activation: Activation of the gate.
      is_gated_first: Whether to gate before the norm, as in Mamba-2, and not after
        it.
      logical_axis: Logical name of the last axis.
      name: Name of the norm.

    Returns:
      The result, in the mixer's compute dtype.
    """
    norm = make_norm(
        spec,
        **surroundings.Norms(logical_axis=logical_axis),
        param_dtype=parent.param_dtype,
        parent=parent,
        name=name,
    )
    if gate is None:
        return norm(y).astype(parent.dtype)
    factor = activation(gate)
    if is_gated_first:
        return norm(y * factor.astype(y.dtype)).astype(parent.dtype)
    return norm(y).astype(parent.dtype) * factor
