"""The Recurrent Transformer's layer: keys and values from its own output."""

import dataclasses
from collections.abc import Collection
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.bounds import Count, bounded
from reslab.core.errors import ReslabError
from reslab.core.taps import TAPS
from reslab.core.types import Shared, State, Stream
from reslab.nn.base import ragged
from reslab.nn.base.heads import slopes_of
from reslab.nn.base.norm import needs_batch
from reslab.nn.base.place import Place
from reslab.nn.blocks._heads import Heads
from reslab.nn.blocks.standard import StandardBlock
from reslab.ops.recurrent_attention.api import recurrent_attention
from reslab.ops.recurrent_attention.layer import Layer, Scores
from reslab.ops.recurrent_attention.tiled import tiled

# Options of attention that keys from the output leave a meaning.
_KNOWN = {field.name for field in dataclasses.fields(Heads)}
_KNOWN |= {"depth", "is_causal", "implementation", "kv_heads"}


@bounded
class RecurrentTransformerBlock(StandardBlock):
    """The standard layer, whose tokens attend to what the layer put out before.

        y[t] = x[t] + W_o softmax([q[t] . k[j] for j < t, q[t] . k'[t]]) [v, v'[t]]
        z[t] = y[t] + ffn(norm(y[t]))
        q[t], k'[t], v'[t] = W norm(x[t]),      k[t], v[t] = W norm(z[t])

    with one set of projections. A token meets itself by the pair of its input, later
    tokens meet it by the pair of its output; with the pair of the input for both, it is
    the standard layer, and parameters have the same names. The mixer must be
    `attention`, of as many key heads as query heads; position `rope`, `alibi` or none.
    Norms, placements and residuals are those of the standard layer, but for norms over
    a batch and residuals that read earlier layers.

    Tokens go one after the other, in training as well. Tiles of powers of two tokens
    read keys for many queries at once; the backward pass keeps input and output of the
    layer alone. The cache is as large as attention's.

    Reference: Oncescu et al., 2026, https://arxiv.org/abs/2604.21215, Sections 1 and 2.

    Attributes:
      tile: Tokens that go one by one before a tile reads their keys.
      form: "tiles", or "naive": a scan over tokens, by JAX's own gradient.
      (and those of `SublayerBlock`)

    Raises:
      ReslabError: If a part does not fit, or more tokens are given than the cache
        holds.
    """

    tile: Count = 64
    form: Literal["tiles", "naive"] = "tiles"

    def __post_init__(self):
        super().__post_init__()
        mixer = self.unbound_mixer
        is_plain = isinstance(
            mixer, registry.module("mixers", "attention").build
        ) and all(
            field.name in _KNOWN or getattr(mixer, field.name) == field.default
            for field in dataclasses.fields(mixer)
            if field.name not in ("parent", "name")
        )
        if not is_plain or mixer.kv_heads not in (0, mixer.heads):
            self._refuse(
                "mixer",
                "attention of as many key heads, with no window, softcap, gate, "
                "dropout or value path",
                self.mixer,
            )
        residual = registry.unbound("residuals", self.residual, **vars(self.context))
        kinds = ("is_history", "reads_apart", "is_reversible", "follows_tokens")
        if any(getattr(residual, kind, False) for kind in kinds):
            self._refuse("residual", "one of this layer's stream alone", self.residual)
        if needs_batch(self.norm):
            self._refuse("norm", "a norm of one token", self.norm)
        if self.context.dropout:
            self._refuse("dropout", "0", self.context.dropout)

    def _refuse(self, name, expected, got):
        raise ReslabError(
            f"blocks 'recurrent_transformer': {name}", expected=expected, got=repr(got)
        )

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """An empty cache of `length` keys and values."""
        del shared
        heads, _, size = self.unbound_mixer.sizes(features)
        empty = jnp.zeros((batch, length, heads, size), self.context.dtype)
        return {"key": empty, "value": empty, "length": jnp.zeros((batch,), jnp.int32)}

    def mixing_flops(self, length: int, features: int) -> int:
        """The FLOPs of attention, and those of the pair from the output."""
        heads, _, size = self.unbound_mixer.sizes(features)
        return super().mixing_flops(length, features) + 4 * features * heads * size

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        shared: Shared,
        *,
        layer: int | jax.Array,
        positions: jax.Array,
        segments: jax.Array | None = None,
        state: State = None,
    ) -> tuple[Stream, Shared, State]:
        """Applies the layer; see `SublayerBlock`."""
        if self.is_initializing():
            # Every part once, so that it has its parameters.
            heads = self._heads()

            def mixer(h):
                return heads(h, attended=heads(h, positions)[2])

            return self.run(stream, mixer, self._place(layer)), shared, state
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("parent", "name")
        }
        parts = _Parts(**fields, parent=None)
        others = {k: v for k, v in self.variables.items() if k not in ("params", TAPS)}

        def apply(params, aux, *arguments):
            others, layer = aux
            return parts.apply({"params": params, **others}, *arguments, layer)

        split = Layer(
            read=lambda params, aux, x, place: apply(params, aux, x, None, place),
            write=lambda params, aux, x, attended, place: apply(
                params, aux, x, attended, place
            ),
            pair=lambda params, aux, y, place: apply(params, aux, y, None, place)[1:],
        )
        mixer = self.unbound_mixer
        heads, _, size = mixer.sizes(self._features(stream))
        scale = mixer.score_scale or size**-0.5
        slopes = slopes_of(registry.unbound("positions", mixer.position), heads)
        given = self.variables.get("params", {}), (others, layer), stream
        if state is None:
            stream = recurrent_attention(
                split,
                *given,
                places=positions,
                scale=scale,
                slopes=slopes,
                segments=segments,
                size=self.tile,
                implementation=self.form,
            )
            return stream, shared, None
        scores = Scores(scale, slopes)
        stream, state = self._continued(
            split, scores, given, positions, segments, state
        )
        return stream, shared, state

    def _continued(self, split, scores, given, positions, segments, state):
        """The layer from a cache, and the new cache.

        Raises:
          ReslabError: If there are more tokens than the cache holds.
        """
        (batch, length), slots = positions.shape, state["key"].shape[1]
        if length > slots:
            self._refuse("tokens", f"at most {slots}, which the cache holds", length)
        is_real = ragged.real_tokens(segments)
        rank = ragged.ranks(is_real, batch, length)
        index = place = state["length"][:, None] + rank
        documents = jnp.ones_like(index)
        if is_real is not None:
            documents = is_real.astype(index.dtype)
            # Past the end, so that nothing is written.
            place = jnp.where(is_real, place, slots)
        slot = jnp.broadcast_to(jnp.arange(slots, dtype=index.dtype), (batch, slots))
        is_full = slot < state["length"][:, None]
        # No token is in the document of an empty slot.
        marks = slot, jnp.where(is_full, 1, -1)
        tokens = {
            "index": index,
            "documents": documents,
            "places": positions[..., None],
        }
        params, aux, stream = given
        past = (state["key"], state["value"]), marks
        stream, pair = tiled(
            split, scores, params, aux, stream, tokens, self.tile, past
        )
        row = jnp.arange(batch)[:, None]
        new = {
            name: state[name].at[row, place].set(one, mode="drop")
            for name, one in zip(("key", "value"), pair, strict=True)
        }
        return stream, {**new, "length": state["length"] + rank[:, -1] + 1}

    def _features(self, stream):
        return jax.tree.leaves(stream)[0].shape[-1]

    def _heads(self):
        mixer = self.unbound_mixer
        kept = {
            field.name: getattr(mixer, field.name)
            for field in dataclasses.fields(Heads)
            if field.name not in ("parent", "name")
        }
        return Heads(**kept, parent=self, name="mixer")

    def read(
        self, stream: Stream, positions: jax.Array, layer: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query, key and value of what the mixer reads of a stream."""
        heads, caught = self._heads(), []

        def mixer(h):
            caught.append(h)
            return jnp.zeros_like(h)

        self.run(stream, mixer, self._place(layer), count=1)
        return heads(caught[0], positions)

    def write(self, stream: Stream, attended: jax.Array, layer: Any) -> Stream:
        """The stream after the layer, from what the mixer has attended to."""
        heads = self._heads()
        place = self._place(layer)
        return self.run(stream, lambda h: heads(h, attended=attended), place)

    def _place(self, layer):
        return Place.of(layer, self.context, self.sublayers, None, {})


class _Parts(RecurrentTransformerBlock):
    """The layer's parts as functions of some tokens."""

    @nn.compact
    def __call__(self, stream, attended, places, layer):
        if attended is None:
            return self.read(stream, places[..., 0], layer)
        return self.write(stream, attended, layer)


build = RecurrentTransformerBlock
