"""Every variant alone, called on a small input."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.types import Context


def _init(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module.init_with_output(jax.random.key(0), *args, **kwargs)


def _example_input(width: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 8, width))


def _example_norm(spec, width):
    return _init(registry.make("norms", spec), _example_input(width))


def _example_ffn(spec, width):
    return _init(registry.make("ffns", spec), _example_input(width))


def _example_linear(spec, width):
    module = registry.make("linears", spec, features=width)
    return _init(module, _example_input(width))


def _example_mixer(spec, width):
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    module = registry.make("mixers", spec)
    return _init(module, _example_input(width), positions=positions)


def _example_position(spec, width):
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    module = registry.make("positions", spec)
    return _init(module, _example_input(width), positions, method="embed")


def _example_value_path(spec, width):
    module, x = registry.make("value_paths", spec, depth=2), _example_input(width)
    heads = x.reshape(*x.shape[:-1], 4, -1)

    def layer(shared):
        (key, value, shared), variables = _init(
            module,
            x,
            key=lambda: heads,
            value=lambda: heads,
            keep=lambda name, new: new,
            shared=shared,
        )
        return (key, value), shared, variables

    # The parameters are those of a layer after the first.
    output, _, variables = layer(layer({})[1])
    return output, variables


def _example_residual(spec, width):
    module = registry.make("residuals", spec)
    stream = module.widen(_example_input(width))
    return _init(module, stream, jnp.tanh, site=0)


def _example_placement(spec, width):
    module = registry.make("placements", spec)
    plain = registry.make("residuals", "plain", parent=None)
    return _init(module, _example_input(width), plain, jnp.tanh, site=0)


def _example_block(spec, width):
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    module = registry.make("blocks", spec)
    ends = registry.make("residuals", module.residual)
    stream = ends.apply({}, _example_input(width), method="widen")
    return _init(module, stream, {}, layer=0, positions=positions)


def _example_stack(spec, width):
    block = registry.factory("blocks", "standard")
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    module = registry.make("stacks", spec, blocks=(block,), depth=2, context=Context())
    return _init(module, _example_input(width), positions=positions)


# How a variant of each family is called, alone, on an input (2, 8, width): used
# to show its parameters. Returns the output and the variables.
EXAMPLES: Mapping[str, Callable[[registry.Spec, int], tuple[Any, Any]]] = {
    "norms": _example_norm,
    "ffns": _example_ffn,
    "linears": _example_linear,
    "mixers": _example_mixer,
    "positions": _example_position,
    "value_paths": _example_value_path,
    "residuals": _example_residual,
    "placements": _example_placement,
    "blocks": _example_block,
    "stacks": _example_stack,
}
