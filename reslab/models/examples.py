"""Every variant alone, called on a small input."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.surroundings import Context


class Example(NamedTuple):
    """A variant used alone.

    Attributes:
      module: The module.
      call: `call(module, x)`, on an input (batch, length, width).
    """

    module: nn.Module
    call: Callable[[Any, jax.Array], Any]


def _positions(x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])


def _call_mixer(mixer, x):
    return mixer(x, positions=_positions(x))


def _call_position(position, x):
    return position.embed(x, _positions(x))


def _call_value_path(path, x):
    heads = x.reshape(*x.shape[:-1], 4, -1)
    arguments = {
        "key": lambda: heads,
        "value": lambda: heads,
        "keep": lambda name, new: new,
    }
    # A first layer fills `shared`, so that the parameters are those of a later layer.
    first = path.clone(parent=None, name=None)
    found, _ = first.init_with_output(jax.random.key(0), x, shared={}, **arguments)
    return path(x, shared=found[-1], **arguments)[:2]


def _call_residual(residual, x):
    return residual(residual.widen(x), jnp.tanh, site=0)


def _call_placement(placement, x):
    plain = registry.make("residuals", "plain", parent=None)
    return placement(x, plain, jnp.tanh, site=0)


def _call_block(block, x):
    ends = registry.make("residuals", block.residual, parent=None)
    stream = ends.apply({}, x, method="widen")
    return block(stream, {}, layer=0, positions=_positions(x))


# How to call a variant of each family alone.
CALLS: Mapping[str, Callable[[Any, jax.Array], Any]] = {
    "norms": lambda norm, x: norm(x),
    "ffns": lambda ffn, x: ffn(x),
    "linears": lambda linear, x: linear(x),
    "mixers": _call_mixer,
    "positions": _call_position,
    "value_paths": _call_value_path,
    "residuals": _call_residual,
    "placements": _call_placement,
    "blocks": _call_block,
    "stacks": _call_mixer,
}


def example(
    family: str, spec: registry.Spec, width: int, **surroundings: Any
) -> Example:
    """Makes a variant to be used alone.

    Args:
      family: Its family, a key of `CALLS`.
      spec: Its spec.
      width: Width of its input.
      **surroundings: Fields of `Context`, such as `dtype`.
    """
    context = Context(**surroundings)
    block = functools.partial(registry.factory("blocks", "standard"), context=context)
    known = {
        "linears": {"features": width},
        "value_paths": {"depth": 2},
        "blocks": {"context": context},
        "stacks": {"blocks": (block,), "depth": 3, "context": context},
    }.get(family, {})
    module = registry.make(family, spec, **known | surroundings)
    return Example(module, CALLS[family])


def run_example(family: str, spec: registry.Spec, width: int) -> tuple[Any, Any]:
    """Calls a variant on an input (2, 8, width): its output and its variables."""
    module, call = example(family, spec, width)
    x = jax.random.normal(jax.random.key(1), (2, 8, width))
    return nn.init_with_output(call, module)(jax.random.key(0), x)
