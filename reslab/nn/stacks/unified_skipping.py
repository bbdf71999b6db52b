"""Unified layer skipping: the same layers for every token after the prompt."""

import dataclasses
import functools
import itertools
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, Count, bounded
from reslab.core.errors import ReslabError
from reslab.core.taps import TAPS
from reslab.core.types import State
from reslab.nn.stacks._loops import path, scan
from reslab.nn.stacks._loops.span import Change, Span
from reslab.nn.stacks._parts import PartedStack


@bounded
class UnifiedSkippingStack(PartedStack):
    """Applies every layer to the prompt, and some of them to all tokens after it.

        kept = {0, L - 1}, and the first multiples of floor(L / (n - 1)) until there are
        n = floor(L / speedup) of them

    Which layers are kept is known beforehand and alike for all tokens and rows, so that
    caches stay whole: later tokens find in each kept layer the prompt and the tokens
    between. The other layers are not computed for them. Where there is no cache, the
    first `prompt` tokens of a row are its prompt; with a cache, all tokens of the first
    call. Parameters are those of the uniform stack; training with it repairs what
    skipping costs. FLOPs are told for the tokens of a prompt.

    Reference: Liu et al., 2024, https://arxiv.org/abs/2404.06954, Section 3.2, and the
    authors' choice of layers; without the loss that compares with all layers.

    Attributes:
      speedup: Layers by layers kept, about the factor on the time of a later token.
      prompt: Number of first tokens of a row that all layers see.
      (and those of `UniformStack`)

    Raises:
      ReslabError: If fewer than two layers would be kept, or layers hand on more than
        a stream.
    """

    speedup: Annotated[float, Bounds(least=1, most=2**14)] = 1.5
    prompt: Count = 32

    @property
    def kept(self) -> tuple[int, ...]:
        """Numbers of the layers that tokens after the prompt meet."""
        return kept_layers(self.depth, self.speedup)

    def init_state(
        self, batch: int, length: int, features: int, **keywords: Any
    ) -> State:
        """The state of every layer, and whether rows have seen their prompt."""
        states = super().init_state(batch, length, features, **keywords)
        return states, jnp.zeros((batch,), bool)

    def apply_layers(self, stream, state, positions, segments):
        """Applies the layers to the prompt, and some to the rest."""
        kept, length = set(self.kept), positions.shape[1]
        own, is_begun = (None, None) if state is None else state

        def run(spans, stream, shared):
            path.check(spans, stream)
            if is_begun is None:
                first = min(self.prompt, length)
                if first < length and TAPS in spans[0].mutable:
                    raise ReslabError(
                        "stacks 'unified_skipping': a probe of every layer",
                        expected=f"a prompt of all {length} tokens",
                        got=f"prompt={first}, after which layers are left out",
                    )
                return _along(spans, stream, kept, first)
            along = functools.partial(_along, spans, kept=kept)
            return jax.lax.cond(
                jnp.all(is_begun),
                functools.partial(along, first=0),
                functools.partial(along, first=length),
                stream,
            )

        layers = self.make_layers(name="body")
        stream, own = layers(stream, 0, own, positions, segments, runner=run)
        if is_begun is None:
            return stream, None
        return stream, (own, jnp.ones_like(is_begun))


def kept_layers(depth: int, speedup: float) -> tuple[int, ...]:
    """Numbers of the layers that are kept for a target speed.

    Args:
      depth: Number of layers.
      speedup: The target, as a factor.

    Raises:
      ReslabError: If fewer than the first and the last would be kept.

    >>> kept_layers(12, 2.0), kept_layers(6, 1.0)
    ((0, 2, 4, 6, 8, 11), (0, 1, 2, 3, 4, 5))
    """
    count = int(depth / speedup)
    if count < min(2, depth):
        raise ReslabError(
            "stacks 'unified_skipping': speedup",
            expected=f"at most {depth / min(2, depth):g}, which keeps "
            f"{min(2, depth)} of {depth} layers",
            got=f"{speedup:g}",
        )
    found = {0, depth - 1}
    interval = int(depth / max(count - 1, 1))
    for layer in range(0, depth, interval):
        if len(found) >= count:
            break
        found.add(layer)
    return tuple(sorted(found))


def _along(spans, stream, kept, first):
    """Applies kept layers to all tokens, and the others to the `first` ones."""
    changes, number = [], 0
    for span in spans:
        parts: list[Any] = []
        is_kept_row = [number + row in kept for row in range(span.count)]
        for is_kept, run in itertools.groupby(
            range(span.count), is_kept_row.__getitem__
        ):
            rows = list(run)
            part = span.rows(slice(rows[0], rows[-1] + 1))
            if is_kept:
                stream, _, change = scan.scan(part, stream, {})
            else:
                stream, change = _on_first(part, stream, first)
            parts.append(change)
        number += span.count
        changes.append(jax.tree.map(lambda *a: jnp.concatenate(a), *parts))
    return stream, changes


def _on_first(span: Span, stream, first: int):
    """Applies layers to the first tokens alone; without any nothing is computed."""
    length = span.positions.shape[1]
    if first == length:
        stream, _, change = scan.scan(span, stream, {})
        return stream, change
    if not first:
        shapes = jax.eval_shape(lambda s: scan.scan(span, s, {})[2], stream)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes.collections)
        return stream, Change(zeros, span.state)
    segments = span.segments
    prompt = dataclasses.replace(
        span,
        positions=span.positions[:, :first],
        segments=None if segments is None else segments[:, :first],
    )
    after, _, change = scan.scan(
        prompt, jax.tree.map(lambda a: a[..., :first, :], stream), {}
    )
    stream = jax.tree.map(
        lambda new, old: jnp.concatenate([new, old[..., first:, :]], axis=-2),
        after,
        stream,
    )
    return stream, change


build = UnifiedSkippingStack
