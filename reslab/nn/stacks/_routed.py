"""Base of stacks whose routers decide, once a sequence, which layers are applied."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, bounded
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.routes import watched
from reslab.core.types import State
from reslab.nn.base import ragged
from reslab.nn.stacks._halting import features_of
from reslab.nn.stacks._loops import conditional
from reslab.nn.stacks._parts import PartedStack

# The decision of a row that has seen no prompt.
_OPEN = -1


@bounded
class RoutedStack(PartedStack):
    """Base of stacks whose routers decide on the prompt.

    A layer has a router, which reads the stream of the prompt as it enters the layer
    and decides how often the layer is applied. The decision holds for the sequence:
    a cache keeps it. Parameters of the layers are those of the uniform stack.

    Attributes:
      prompt: First tokens of a row that routers read where there is no cache; with
        one, all tokens of the first call. Tokens among them know those after them
        through the decisions.
      (and those of `UniformStack`)
    """

    prompt: Count = 32

    # Most applications of a layer.
    most = 1

    def init_state(
        self, batch: int, length: int, features: int, **keywords: Any
    ) -> State:
        """The state of each application of every layer, and the decisions."""
        states = super().init_state(batch, length, features, **keywords)
        layers = jax.tree.map(lambda a: jnp.stack([a] * self.most, axis=1), states)
        return layers, jnp.full((self.depth, batch), _OPEN, jnp.int32)

    def applied_entries(self, name: str, entries: int, rows: int) -> int:
        """Entries of a kernel, in all the applications that there can be."""
        times = self.most if "/segment_" in name else 1
        return times * super().applied_entries(name, entries, rows)

    def mixing_flops(self, length: int, features: int) -> int:
        """Adds the routers'; all the applications that there can be."""
        return self.most * super().mixing_flops(length, features)

    def router_parameter(
        self, name: str, init: Any, shape: tuple[int, ...], axes: tuple
    ) -> jax.Array:
        """Makes a parameter of every layer's router, stacked, in float32 or wider."""
        dtype = self.context.param_dtype
        full = (self.depth, *shape), ("layers", *axes)
        made = parameter(self, f"router_{name}", init, *full, dtype)
        return made.astype(statistics_dtype(dtype))

    def counted(self, positions, segments, is_cached: bool) -> jax.Array:
        """The rank of each token that routers read; -1 for the others."""
        is_real = ragged.real_tokens(segments)
        rank = ragged.ranks(is_real, *positions.shape)
        is_read = rank >= 0 if is_real is None else is_real
        if not is_cached:
            is_read &= rank < self.prompt
        return jnp.where(is_read, rank, _OPEN)

    def apply_routed(
        self,
        stream,
        state,
        positions,
        segments,
        routers: Any,
        decide: Callable,
        mix: Any = None,
    ):
        """Applies the layers as their routers decide.

        Args:
          stream: The stream.
          state: State to continue from, or None.
          positions: Position of each token in its document (batch, length).
          segments: Document of each token, or None.
          routers: Parameters of the routers, stacked over layers.
          decide: `(router, features, ranks) -> (times (batch,), told)`.
          mix: As in `conditional.run`.

        Returns:
          The stream, the new state, the decisions (layers, batch), and what was told.
        """
        layers = self.make_layers(name="body")
        if self.is_initializing():
            return *layers(stream, 0, None, positions, segments), None, None
        own, known = (None, None) if state is None else state
        seen = watched()
        if seen is not None and seen.taught is not None:
            known = seen.taught.T
        if known is None:
            known = jnp.full((self.depth, positions.shape[0]), _OPEN, jnp.int32)
        ranks = self.counted(positions, segments, state is not None)
        wide = statistics_dtype(self.context.param_dtype)

        def decided(row, stream):
            router, known = row
            times, told = decide(router, features_of(stream).astype(wide), ranks)
            times = jnp.where(known == _OPEN, times, known)
            return times, (times, told)

        told: Any = None

        def run(spans, stream, shared):
            nonlocal told
            stream, changes, told = conditional.run(
                *(decided, (routers, known), self.most, spans, stream, shared),
                mix=None if mix is None else lambda tells, *a: mix(tells[1], *a),
            )
            return stream, changes

        stream, own = layers(stream, 0, own, positions, segments, runner=run)
        times, told = told
        if seen is not None:
            seen.times = times.T
        return stream, None if state is None else (own, times), times, told
