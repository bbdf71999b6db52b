"""Local layers in groups of tokens, interleaved with global ones over latents."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.bounds import Count, bounded
from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES
from reslab.core.model_state import BATCH_STATS, CONSTANTS
from reslab.core.randomness import DROPOUT
from reslab.core.taps import TAPS
from reslab.core.types import State
from reslab.nn.base import ragged
from reslab.nn.stacks._exchange import Exchange
from reslab.nn.stacks._loops.span import BlockFactory, unbound
from reslab.nn.stacks.uniform import UniformStack


@bounded
class InterleavedStack(UniformStack):
    """Applies the layers within groups of tokens, which exchange a few latents.

        x[g] = layers(x[g])                                  `local` of them
        z[g] = z[g] + attend(z[g] to x[g])
        z    = global layers(z),  where z[g] sees the latents of groups up to g
        x[g] = x[g] + attend(x[g] to z[g - 1])               and so on

    The mixers of the model see their own group alone; tokens know earlier groups from
    the latents of the group before. Local layers take O(group * length) time and
    memory, global ones O((latents * length / group)^2). The exchange is one more
    sublayer of the layer before it, with its placement and residual. No exchange
    follows the last layer.

    While generating, the tokens of the group so far are kept and computed again with
    every new one; caches have the latents of earlier groups.

    Reference: Chen & Li, 2023, https://arxiv.org/abs/2305.12689 (FIT), the
    autoregressive variant: "(2)4(2)" is depth 4, `local=2, global_layers=4`. Written
    from a description of the authors' code; latents are as wide as tokens here, and
    start alike in all groups.

    Attributes:
      group: Tokens of a group.
      latents: Latent vectors of a group.
      local: Layers before each exchange, fewer than the depth.
      global_layers: Layers over the latents in each exchange.
      heads: Heads of the exchange and of its layers.
      ffn: Feed-forward layer of the global layers.
      latent_norm: Norm of the latents.
      (and those of `UniformStack`)

    Raises:
      ReslabError: If a layer is not made of sublayers, there is no exchange, or the
        heads do not divide the width.
    """

    group: Count = 64
    latents: Count = 16
    local: Count = 2
    global_layers: Count = 1
    heads: Count = 4
    ffn: registry.Spec = "swiglu"
    latent_norm: registry.Spec = "rms"

    def added_sublayers(self, layer: int) -> int:
        """Returns 1 for a layer that ends in an exchange, else 0."""
        return int((layer + 1) % self.local == 0 and layer + 1 < self.depth)

    def _inner(self, groups: int, **keywords: Any) -> UniformStack:
        """The layers, for sequences of this number of groups."""
        if self.local >= self.depth:  # Groups would never hear of each other.
            raise ReslabError(
                "stacks 'interleaved': local",
                expected=f"fewer than the {self.depth} layers, so that there is an "
                "exchange",
                got=str(self.local),
            )
        context = self.context
        exchange = Exchange(
            groups=groups,
            latents=self.latents,
            depth=self.global_layers,
            heads=self.heads,
            ffn=self.ffn,
            norm=self.latent_norm,
            context=context,
            linear=context.linear,
            init_std=context.init_std,
            output_scale=context.output_scale,
            inner_scale=context.inner_scale,
            dtype=context.dtype,
            param_dtype=context.param_dtype,
            parent=None,
        )
        # Layers may be scanned together where they have the same factory.
        made: dict[Any, BlockFactory] = {}
        blocks = []
        for layer in range(self.depth):
            block = self.blocks[layer % len(self.blocks)]
            is_end = bool(self.added_sublayers(layer))
            if (block, is_end) not in made:
                own = unbound(block)
                if not hasattr(own, "in_groups"):
                    raise ReslabError(
                        "stacks 'interleaved'",
                        expected="blocks of sublayers, as standard or macaron",
                        got=type(own).__name__,
                    )
                after = exchange if is_end else None
                made[block, is_end] = own.in_groups(self.group, after)
            blocks.append(made[block, is_end])
        return UniformStack(
            blocks=tuple(blocks),
            depth=self.depth,
            residual=self.residual,
            context=context,
            is_unrolled=self.is_unrolled,
            remat=self.remat,
            **keywords,
        )

    def init_state(
        self, batch: int, length: int, features: int, **keywords: Any
    ) -> State:
        """No tokens of a group, and the states of the exchanges."""
        size, dtype = min(self.group, length), self.context.dtype
        inner = self._inner(1, parent=None)
        return {
            "x": jnp.zeros((batch, size, features), dtype),
            "positions": jnp.zeros((batch, size), jnp.int32),
            "length": jnp.zeros((batch,), jnp.int32),
            "layers": inner.init_state(batch, length, features, **keywords),
        }

    def mixing_flops(self, length: int, features: int) -> int:
        """Counts layers that see one group, and the exchanges."""
        size = min(self.group, length)
        inner = self._inner(-(-length // size), parent=None)
        return inner.mixing_flops(size, features)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segments: jax.Array | None = None,
        state: State = None,
    ) -> tuple[jax.Array, State]:
        """Maps features (batch, length, embed) to the same shape; see the base."""
        if x.shape[-1] % self.heads:
            raise ReslabError(
                "stacks 'interleaved': heads",
                expected=f"a divisor of the width ({x.shape[-1]})",
                got=str(self.heads),
            )
        if state is not None:
            return self._continued(x, positions, segments, state)
        batch, length = x.shape[:2]
        size = min(self.group, length)
        groups = -(-length // size)

        def cut(x):
            more = [(0, 0), (0, groups * size - length), *[(0, 0)] * (x.ndim - 2)]
            return jnp.pad(x, more).reshape(batch * groups, size, *x.shape[2:])

        segments = None if segments is None else cut(segments)
        inner = self._inner(groups, name="groups")
        y, _ = inner(cut(x), positions=cut(positions), segments=segments)
        return y.reshape(batch, -1, *y.shape[2:])[:, :length], None

    def _continued(self, x, positions, segments, state):
        """Puts new tokens behind those of the last group, and computes their groups."""
        batch, length = x.shape[:2]
        size = state["x"].shape[1]
        groups = (length + size - 2) // size + 1
        is_real = ragged.real_tokens(segments)
        rank = ragged.ranks(is_real, batch, length)
        begun = state["length"] % size
        place = begun[:, None] + rank
        if is_real is not None:
            # Past the end, so that nothing is written.
            place = jnp.where(is_real, place, groups * size)
        row = jnp.arange(batch)[:, None]

        def joined(old, new):
            more = [(0, 0), (0, (groups - 1) * size), *[(0, 0)] * (new.ndim - 2)]
            return jnp.pad(old, more).at[row, place].set(new, mode="drop")

        tokens = joined(state["x"], x)
        positions = joined(state["positions"], positions.astype(jnp.int32))
        count = begun + rank[:, -1] + 1
        ends = size * (1 + jnp.arange(groups, dtype=jnp.int32))[None]
        is_whole = (count[:, None] >= ends).astype(jnp.int32)
        is_whole = jnp.repeat(is_whole, size, axis=1)

        def cut(x):
            return jnp.moveaxis(x.reshape(batch, groups, size, *x.shape[2:]), 1, 0)

        def one(inner, state, group):
            x, positions, is_whole = group
            y, state = inner(x, positions=positions, segments=is_whole, state=state)
            return state, y

        scan = nn.scan(
            one,
            variable_axes={TAPS: 0, LOSSES: 0},
            variable_broadcast=["params", CONSTANTS],
            variable_carry=BATCH_STATS,
            split_rngs={"params": False, DROPOUT: True},
            length=groups,
        )
        inner = self._inner(1, name="groups")
        xs = tuple(map(cut, (tokens, positions, is_whole)))
        layers, y = scan(inner, state["layers"], xs)
        y = jnp.moveaxis(y, 0, 1).reshape(tokens.shape)
        y = y[row, jnp.minimum(place, groups * size - 1)]

        def last(x):
            """The group of the token that comes next."""
            x = jnp.pad(x, [(0, 0), (0, size), *[(0, 0)] * (x.ndim - 2)])
            first = count // size * size
            return x[row, first[:, None] + jnp.arange(size, dtype=jnp.int32)[None]]

        return y, {
            "x": last(tokens),
            "positions": last(positions),
            "length": state["length"] + rank[:, -1] + 1,
            "layers": layers,
        }


build = InterleavedStack
