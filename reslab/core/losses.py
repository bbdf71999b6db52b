"""Losses: what a part of a model adds to the objective while it trains."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# The collection that parts add to; loops over layers stack it along depth.
LOSSES = "losses"


def add_loss(module: nn.Module, name: str, value: jax.Array) -> None:
    """Adds a scalar to the objective, where the caller collects them.

    Args:
      module: The module that wants it.
      name: What it is called.
      value: The scalar, already weighted.
    """
    if not module.is_initializing():  # It is no variable of the module.
        module.sow(LOSSES, name, value)


def total_loss(collections: Mapping[str, Any]) -> jax.Array:
    """The sum of what was added; 0 if nothing was."""
    leaves = jax.tree.leaves(collections.get(LOSSES, {}))
    nothing = jnp.zeros(())
    sums = [jnp.sum(leaf).astype(nothing.dtype) for leaf in leaves]
    return functools.reduce(jnp.add, sums, nothing)
