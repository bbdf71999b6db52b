"""The loop over layers that stacks are made of."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError, nearest
from reslab.core.freezing import frozen_layers
from reslab.core.randomness import DROPOUT
from reslab.core.trees import unbox
from reslab.core.types import Shared, State, Stream
from reslab.nn.stacks._loops import append_only, cut, listed, path, reversible, scan
from reslab.nn.stacks._loops.span import (
    READ,
    REMAT_POLICIES,
    WRITTEN,
    BlockFactory,
    Change,
    Period,
    Span,
    unbound,
    written,
)


def check_numbers(what: str, layers: Sequence[Any], depth: int) -> None:
    """Checks numbers of layers that a caller has named.

    Args:
      what: The argument.
      layers: The numbers.
      depth: Number of layers.

    Raises:
      ReslabError: If there is no layer of a number.
    """
    for layer in layers:
        is_number = isinstance(layer, int) and not isinstance(layer, bool)
        if not is_number or not 0 <= layer < depth:
            raise ReslabError(
                what,
                expected=f"numbers of layers, from 0 to {depth - 1}",
                got=repr(layer),
            )


class Layers(nn.Module):
    """Applies `depth` layers, tiling a pattern of blocks, in few loops.

    The parameters of each span are stacked on axis 0 under `segment_<i>`, in the
    same tree whatever loop applies it. Where a block is the first to leave something
    in the depth memory, its first period is a span of its own, and later ones close
    over what it left: a value written once is saved once.

    Attributes:
      blocks: The pattern, tiled over depth. Layers may be scanned together where
        they have the same factory, the very object.
      depth: Number of layers.
      is_unrolled: Whether to lay the layers out one after the other, which runs
        faster on a CPU and compiles slower everywhere.
      remat: What the backward pass recomputes: a key of `REMAT_POLICIES`.
      order: Numbers of the layers to apply, in order; all of them once if empty.
    """

    blocks: tuple[BlockFactory, ...]
    depth: int
    is_unrolled: bool = False
    remat: str = "none"
    order: tuple[int, ...] = ()

    def plan(self) -> list[tuple[tuple[BlockFactory, ...], int]]:
        """The spans: each a period of blocks and how often it is repeated."""
        layers = [self.blocks[i % len(self.blocks)] for i in range(self.depth)]
        plan, known = [], set()
        for blocks, count in _repetitions(layers):
            left = set().union(*map(written, blocks))
            if left - known and count > 1:
                plan.append((blocks, 1))
                count -= 1
            plan.append((blocks, count))
            known |= left
        return plan

    def applied(self) -> list[tuple[tuple[BlockFactory, ...], int]]:
        """The same of the layers that are applied, along `order`."""
        plan = self.plan()
        if not self.order:
            return plan
        return [
            ((plan[span][0][block],), len(periods))
            for span, (block, periods) in path.parts(plan, self.order)
        ]

    def mixing_flops(self, length: int, features: int) -> int:
        """Matrix-product FLOPs per token beyond the kernels', over all that applies."""
        return sum(
            count * unbound(block).mixing_flops(length, features)
            for blocks, count in self.applied()
            for block in blocks
        )

    def init_state(
        self, batch: int, length: int, features: int, *, is_shared: bool = True
    ) -> State:
        """The state of every layer before the first token, stacked like parameters.

        Unless `is_shared`, that which it would be if no layer found anything in the
        depth memory.
        """
        states, known = [], set()
        for blocks, count in self.applied():
            period = []
            for block in blocks:
                # Pass `shared` only to mixers that accept it.
                found = {"shared": frozenset(known)} if known else {}
                state = unbound(block).init_state(batch, length, features, **found)
                known |= written(block) if is_shared else set()
                period.append(
                    jax.tree.map(
                        lambda a, n=count: jnp.broadcast_to(a, (n, *a.shape)), state
                    )
                )
            states.append(tuple(period))
        return tuple(states)

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        first_layer: int | jax.Array,
        state: State,
        positions: jax.Array,
        segments: jax.Array | None,
        shared: Shared | None = None,
        runner: Callable[..., tuple[Stream, list[Change]]] | None = None,
    ) -> tuple[Stream, State]:
        """Applies every layer; returns the stream and the new state.

        Args:
          stream: The stream.
          first_layer: Number of the first layer among all that are applied.
          state: State to continue from, or None.
          positions: Position of each token in its document (batch, length).
          segments: Document of each token, or None.
          shared: Entries of the depth memory that the first layer finds.
          runner: Applies spans instead of the loop that the layers choose:
            `(spans, stream, shared) -> (stream, changes)`.

        Raises:
          ReslabError: If `remat` names no policy, or no loop can carry what the
            layers have.
        """
        if self.remat not in REMAT_POLICIES:
            raise ReslabError(
                f"unknown remat policy {self.remat!r}",
                hint=nearest(self.remat, REMAT_POLICIES),
            )
        if self.is_initializing():
            rest = first_layer, positions, segments, dict(shared or {})
            return self._create(stream, *rest), state
        kind, found = "segment", self._spans(first_layer, positions, segments)
        if self.order:
            kind, parts = "part", path.parts(self.plan(), self.order)
            found = [path.part(found[index], *where) for index, where in parts]
        states = [None] * len(found) if state is None else state
        found = [
            dataclasses.replace(span, keys=self._keys(span.count), state=own)
            for span, own in zip(found, states, strict=True)
        ]
        run = self._run if runner is None else runner
        stream, changes = run(found, stream, dict(shared or {}))
        for index, change in enumerate(changes):
            for collection, tree in change.collections.items():
                self.put_variable(collection, f"{kind}_{index}", tree)
        if state is not None:
            state = tuple(change.state for change in changes)
        return stream, state

    def _spans(self, first_layer, positions, segments) -> list[Span]:
        """Every span, without keys and states."""
        mutable = tuple(name for name in WRITTEN if self.is_mutable_collection(name))
        found, applied = [], 0
        for index, (blocks, count) in enumerate(self.plan()):
            name = f"segment_{index}"
            first, size = first_layer + applied, len(blocks)
            applied += size * count
            layers: Any = first + size * jnp.arange(count)
            # The passes of a looped stack share one trace, unrolled or not.
            if self.is_unrolled and isinstance(first_layer, int):
                layers = tuple(range(first, first + size * count, size))
            collections = {
                collection: unbox(self.variables[collection][name])
                for collection in READ
                if name in self.variables.get(collection, {})
            }
            found.append(
                Span(
                    *(blocks, collections, {}, layers, None, positions, segments),
                    *(mutable, self.remat, self.is_unrolled),
                )
            )
        return found

    def _keys(self, count: int) -> dict[str, jax.Array]:
        """Random keys, one for each period; empty while the model is evaluated."""
        if not self.has_rng(DROPOUT):
            return {}
        return {DROPOUT: jax.random.split(self.make_rng(DROPOUT), count)}

    def _run(
        self, spans: Sequence[Span], stream: Stream, shared: Shared
    ) -> tuple[Stream, list[Change]]:
        """Applies spans by the loop that keeps least and carries what they have."""
        frozen = frozen_layers()
        if self.order:
            if frozen:
                raise ReslabError(
                    "a backward pass that ends at a layer",
                    expected="layers in their order",
                    got="stack 'path'",
                    hint="stack uniform, or another optimizer",
                )
            stream, _, changes = path.run(spans, stream, shared)
            return stream, changes
        if not append_only.refusal(spans, stream):
            if frozen:
                raise ReslabError(
                    "a backward pass that ends at a layer",
                    expected="a residual that is carried",
                    got="a history of all layers",
                    hint="residual plain, or another optimizer",
                )
            is_listed = not listed.refusal(spans, stream)
            run = listed.run if is_listed else append_only.run
            stream, _, changes = run(spans, stream, shared)
            return stream, changes
        changes = []
        for span in spans:
            size = len(span.blocks)
            below = min(frozen // size, span.count)
            frozen -= min(frozen, size * span.count)
            if below:
                after = cut.run(span, below, stream, shared)
            elif not reversible.refusal(span, shared):
                after = reversible.run(span, stream, shared)
            else:
                after = scan.scan(span, stream, shared)
            stream, shared, change = after
            changes.append(change)
        return stream, changes

    def _create(self, stream, first_layer, positions, segments, shared) -> Stream:
        """Makes the variables of every layer, in a lifted scan over each span."""
        applied = 0
        for index, (blocks, count) in enumerate(self.plan()):

            def body(period, carry, layer, known=frozenset(shared)):
                stream, shared = carry
                stream, after, _ = period(
                    stream,
                    shared,
                    None,
                    layer=layer,
                    positions=positions,
                    segments=segments,
                )
                first = {key: after[key] for key in after if key not in known}
                return (stream, {key: after[key] for key in known}), first

            create = nn.scan(
                body,
                variable_axes={name: 0 for name in {*READ, *WRITTEN}},
                split_rngs={"params": True, DROPOUT: True},
                length=count,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            layers = first_layer + applied + len(blocks) * jnp.arange(count)
            applied += len(blocks) * count
            period = Period(blocks, name=f"segment_{index}")
            (stream, shared), first = create(period, (stream, shared), layers)
            shared = {**shared, **jax.tree.map(lambda leaf: leaf[0], first)}
        return stream


def _repetitions(
    layers: Sequence[BlockFactory],
) -> list[tuple[tuple[BlockFactory, ...], int]]:
    """Cuts a sequence into periods and how often each is repeated in a row.

    At every point the period is taken whose repetitions reach furthest, the shortest
    among equals; what repeats nothing is joined to one period.

    >>> [("".join(period), count) for period, count in _repetitions("aaabbbb")]
    [('a', 3), ('b', 4)]
    >>> [("".join(period), count) for period, count in _repetitions("aabaaba")]
    [('aab', 2), ('a', 1)]
    """
    plan: list[tuple[tuple[BlockFactory, ...], int]] = []
    # Layers from `alone` to `begin` have no repeated pattern so far.
    begin, alone = 0, 0
    while begin < len(layers):
        reach, period = 0, 0
        for size in range(1, (len(layers) - begin) // 2 + 1):
            end = begin + size
            while layers[end : end + size] == layers[end - size : end]:
                end += size
                if end + size > len(layers):
                    break
            if end > begin + size and end > reach:
                reach, period = end, size
        if not period:
            begin += 1
            continue
        if alone < begin:
            plan.append((tuple(layers[alone:begin]), 1))
        plan.append((tuple(layers[begin : begin + period]), (reach - begin) // period))
        begin = alone = reach
    if alone < begin:
        plan.append((tuple(layers[alone:]), 1))
    return plan
