"""Norms where a norm alone is meant."""

from typing import Any

import flax.linen as nn

from reslab.core import registry
from reslab.core.errors import ReslabError


def make_norm(spec: registry.Spec, **context: Any) -> nn.Module:
    """Builds a norm around or inside a sublayer.

    Args:
      spec: Its spec.
      **context: What the surroundings know.

    Returns:
      The norm.

    Raises:
      ReslabError: If it contains an activation, which must not stand there.
    """
    norm = registry.make("norms", spec, **context)
    if getattr(norm, "is_activation", False):
        raise ReslabError(
            f"norm {spec!r} contains the activation",
            expected="a norm alone around a sublayer of a transformer",
            hint="rms, or another that `reslab list norms` shows",
        )
    return norm
