"""CART: a looped core that attends to keys and values of the prelude (Capps, 2026)."""

import functools
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.bounds import Count, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.types import State
from reslab.nn.stacks._anchor import (
    ANCHOR,
    anchored,
    appended,
    empty_anchor,
    head_size,
)
from reslab.nn.stacks._halting import features_of
from reslab.nn.stacks._loops import scan
from reslab.nn.stacks._loops.span import BlockFactory
from reslab.nn.stacks._repeating import RepeatingStack, Stage, staged

# Earlier states that a pass reads.
_MEMORY = 3
# sigmoid of the first gate.
_KEPT = 0.9


@bounded
class CARTStack(RepeatingStack):
    """Applies a prelude, a core whose keys and values are computed once, and a coda.

        e = prelude(x),   K, V = W_k W_d e, W_v W_d e,   h_0 = h_-1 = h_-2 = e
        u = sum_i softmax(w)_i h_(r - i) + W_l sinusoid(r)
        h_(r+1) = sigmoid(a) u + core(u; K, V)
        y = coda(h_loops)

    The core is a layer of the model with another mixer, which has queries alone,
    without positions; it keeps its own residuals. So generation keeps one cache for all
    passes. The gate sigmoid(a) is below 1, but core(u) holds u: this bounds no
    eigenvalue of a pass.

    The paper's ablations are arguments. A core that is not causal reads the tokens that
    it is to predict.

    Reference: Capps, 2026, https://arxiv.org/abs/2606.01495, Section 3. Checked against
    a transcription of the author's listings.

    Attributes:
      loops: Number of passes.
      prelude: Number of first layers that are applied once.
      coda: Number of last layers that are applied once.
      heads: Heads of the core's attention.
      latent: Width of W_d; 0 is a quarter of the features.
      loop_features: Width of the sinusoid; 0 leaves it out.
      core: What the core attends to, the "anchor", or its "self" by the model's mixer.
      is_frozen: Whether keys and values stay those of e; else they are of each u.
      mixes_passes: Whether u is a mean of three states; else it is the last.
      has_gate: Whether sigmoid(a) is learned; else it is 1.
      is_causal: Whether the core is causal.
      shares_core: Whether all passes have the same core; else the layers between
        prelude and coda are divided among the passes.
      (and those of `RepeatingStack`)

    Raises:
      ReslabError: If prelude and coda leave no layer between, heads do not divide the
        width, or the residual keeps a history.
    """

    loops: Count = 6
    prelude: Count = 1
    coda: Whole = 1
    heads: Count = 4
    latent: Whole = 0
    loop_features: Whole = 32
    core: Literal["anchor", "self"] = "anchor"
    is_frozen: bool = True
    mixes_passes: bool = True
    has_gate: bool = True
    is_causal: bool = True
    shares_core: bool = True

    @property
    def passes(self) -> int:
        """Number of passes."""
        return self.loops

    @property
    def stages(self) -> list[Stage]:
        """Prelude, core and coda.

        Raises:
          ReslabError: If a core that is not shared has no layers for some pass.
        """
        if self.shares_core:
            return staged(self.depth, self.prelude, self.coda, self.loops)
        layers = self.depth - self.prelude - self.coda
        if layers < 1 or layers % self.loops:
            raise ReslabError(
                "stacks 'cart': shares_core=False",
                expected=f"a multiple of loops ({self.loops}) between prelude and coda",
                got=f"{layers} of {self.depth} layers",
                hint=f"model.depth={self.prelude + self.loops + self.coda}",
            )
        return staged(self.depth, self.prelude, self.coda, 1)

    @property
    def stored_blocks(self) -> tuple[BlockFactory, ...]:
        """The blocks, those of the core with queries alone."""
        blocks = [self.blocks[layer % len(self.blocks)] for layer in range(self.depth)]
        if self.core == "anchor":
            for layer in range(self.prelude, self.depth - self.coda):
                blocks[layer] = anchored(blocks[layer], self.heads, self.is_causal)
        return tuple(blocks)

    def _latent(self, features: int) -> int:
        return self.latent or max(features // 4, 1)

    def mixing_flops(self, length: int, features: int) -> int:
        """Adds the keys and values."""
        flops = super().mixing_flops(length, features)
        if self.core == "self":
            return flops
        times = 1 if self.is_frozen else self.loops
        return flops + times * 2 * 3 * features * self._latent(features)

    def init_state(
        self, batch: int, length: int, features: int, **keywords: Any
    ) -> State:
        """The states of the stages, and last the anchor's cache."""
        states = super().init_state(batch, length, features, **keywords)
        anchor: State = {}
        if self.core == "anchor":
            size = head_size(features, self.heads)
            anchor = empty_anchor(batch, length, size, self.context.dtype)
            if not self.is_frozen:
                anchor = jax.tree.map(
                    lambda a: jnp.broadcast_to(a, (self.loops, *a.shape)), anchor
                )
        return (*states, anchor)

    def apply_loop(self, layers, stream, enter, states, positions, segments):
        """Applies the core in every pass."""
        self.refuse_history("a mean of what several passes wrote")
        first, is_cached = self.prelude, states[self.loop_index] is not None
        features = jax.tree.leaves(stream)[0].shape[-1]
        make_anchor = self._anchor(features, segments)
        weights, gate, step = self._parameters(features)
        shared, cache = {}, states[-1] if is_cached else None
        if self.core == "anchor" and self.is_frozen:
            anchor, cache = make_anchor(stream, cache)
            shared = {ANCHOR: anchor}
        if self.is_initializing():
            shared = {ANCHOR: make_anchor(stream, None)[0]}
            none = positions, segments, shared
            return layers(stream, first, None, *none)[0], states[self.loop_index]

        def one_pass(layers, memory, scanned):
            number, (own, cache) = scanned
            u = enter(
                jax.tree.map(
                    lambda *h: sum(
                        w.astype(a.dtype) * a for w, a in zip(weights, h, strict=True)
                    ),
                    *memory,
                ),
                number,
            )
            u = jax.tree.map(lambda a: a + step(number, a), u)
            known = shared
            if self.core == "anchor" and not self.is_frozen:
                anchor, cache = make_anchor(u, cache)
                known = {ANCHOR: anchor}
            layer, runner = first + layers.depth * number, None
            if not self.shares_core:
                layer, runner = first, functools.partial(self._own_core, number)
            rest = positions, segments, known
            f, own = layers(u, layer, own, *rest, runner=runner)
            h = jax.tree.map(lambda f, u: f + gate(u), f, u)
            return (h, *memory[:-1]), (own, cache)

        is_each = is_cached and not self.is_frozen and self.core == "anchor"
        scanned = states[self.loop_index], cache if is_each else None
        begin = (stream,) * (_MEMORY if self.mixes_passes else 1)
        memory, (own, caches) = self.scan_passes(layers, one_pass, begin, scanned)
        if is_cached and self.core == "anchor":
            states[-1] = caches if is_each else cache
        return memory[0], own

    def _own_core(self, number, spans, stream, shared):
        """Applies the layers of one pass, of a core that is not shared."""
        span = spans[0]
        if len(spans) > 1 or len(span.blocks) > 1:
            raise ReslabError(
                "stacks 'cart': shares_core=False",
                expected="layers between prelude and coda that are alike",
                got="several kinds",
            )
        count = span.count // self.loops
        rows = number * count + jnp.arange(count)
        stream, _, change = scan.scan(span.rows(rows), stream, shared)
        state = jax.tree.map(
            lambda every, new: every.at[rows].set(new), span.state, change.state
        )
        return stream, [change._replace(state=state)]

    def _anchor(self, features: int, segments: jax.Array | None):
        """Makes the function from a stream to its anchor, and its cache."""
        if self.core == "self":
            return lambda stream, state: ({}, state)
        size, latent = head_size(features, self.heads), self._latent(features)
        std, store = nn.initializers.normal, self.context.param_dtype
        down = parameter(
            *(self, "anchor_down", std(1 / math.sqrt(features))),
            *((features, latent), ("embed", None), store),
        )
        ups = {
            name: parameter(
                *(self, f"anchor_{name}", std(1 / math.sqrt(latent))),
                *((latent, *size), ("inner", "heads", "head_dim"), store),
            )
            for name in ("key", "value")
        }
        dtype = self.context.dtype

        def make(stream, state):
            c = features_of(stream).astype(dtype) @ down.astype(dtype)
            new = {k: jnp.tensordot(c, up.astype(dtype), 1) for k, up in ups.items()}
            return appended(new, state, segments)

        return make

    def _parameters(self, features: int):
        """Weights of earlier states, the gate, and the vector of each pass."""
        store = self.context.param_dtype
        weights = [jnp.ones((), store)]
        if self.mixes_passes:
            first = nn.initializers.constant(np.eye(_MEMORY)[0])
            stored = parameter(
                self, "memory_weights", first, (_MEMORY,), (None,), store
            )
            weights = list(jax.nn.softmax(stored))

        def gate(u):
            return u

        if self.has_gate:
            begin = nn.initializers.constant(math.log(_KEPT / (1 - _KEPT)))
            logit = parameter(self, "gate", begin, (features,), ("embed",), store)
            share = jax.nn.sigmoid(logit)

            def gate(u):
                one = share.reshape((1,) * (u.ndim - 1) + (-1,))
                return one.astype(u.dtype) * u

        def step(number, a):
            return jnp.zeros((1,) * a.ndim, a.dtype)

        if self.loop_features:
            std = nn.initializers.normal(0.02)
            shape = (self.loop_features, features)
            kernel = parameter(
                self, "loop_embedding", std, shape, (None, "embed"), store
            )
            table = jnp.asarray(_sinusoids(self.loops, self.loop_features), store)

            def step(number, a):
                row = jnp.sum(table[number][:, None] * kernel, axis=0)
                return row.reshape((1,) * (a.ndim - 1) + (-1,)).astype(a.dtype)

        return weights, gate, step


def _sinusoids(rows: int, size: int) -> np.ndarray:
    """Sines in even columns, cosines in odd ones (rows, size)."""
    angles = np.arange(rows)[:, None] / 10_000 ** (np.arange(0, size, 2) / size)
    table = np.zeros((rows, size))
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles)[:, : size // 2]
    return table


build = CARTStack
