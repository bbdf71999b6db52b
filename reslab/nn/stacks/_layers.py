"""The loop over layers that stacks are made of."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError, nearest
from reslab.core.freezing import frozen_layers
from reslab.core.losses import LOSSES, add_loss, total_loss
from reslab.core.model_state import MODEL_STATE
from reslab.core.randomness import DROPOUT, without_randomness
from reslab.core.taps import TAPS, is_watched
from reslab.core.trees import unbox
from reslab.core.types import Shared, State, Stream
from reslab.nn.base.depth_memory import DEPTH_READ
from reslab.nn.base.history import History
from reslab.nn.stacks import _history
from reslab.nn.stacks._reversible import reversible_scan

BlockFactory = Callable[..., nn.Module]

_READS = jax.checkpoint_policies.save_only_these_names(DEPTH_READ)

# What the backward pass keeps of each layer instead of computing it again.
REMAT_POLICIES: Mapping[str, Any] = {
    "none": None,
    "full": _READS,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _READS
    ),
}


class Period(nn.Module):
    """One period of the pattern of blocks: the body of the scan.

    Attributes:
      blocks: One factory for each layer of the period.
    """

    blocks: tuple[BlockFactory, ...]

    def __call__(
        self,
        stream: Stream,
        scanned: tuple[jax.Array, Any],
        shared: Shared,
        positions: jax.Array,
        segments: jax.Array | None,
    ) -> tuple[Stream, tuple[Any, Shared]]:
        """Applies the blocks to the stream, from layer `scanned[0]` on.

        Returns:
          The stream; new states; and what the blocks were the first to leave in the
          depth memory.
        """
        known = set(shared)
        stream, states, shared = self.apply_blocks(
            stream, scanned, shared, positions, segments
        )
        written = {key: value for key, value in shared.items() if key not in known}
        return stream, (states, written)

    @nn.compact
    def apply_blocks(
        self,
        stream: Stream,
        scanned: tuple[jax.Array, Any],
        shared: Shared,
        positions: jax.Array,
        segments: jax.Array | None,
    ) -> tuple[Stream, Any, Shared]:
        """Applies the blocks; returns stream, states and depth memory."""
        first_layer, states = scanned
        new_states = []
        for index, block in enumerate(self.blocks):
            stream, shared, state = block(name=f"block_{index}")(
                stream,
                shared,
                layer=first_layer + index,
                positions=positions,
                segments=segments,
                state=None if states is None else states[index],
            )
            new_states.append(state)
        return stream, None if states is None else tuple(new_states), shared


class RenewingPeriod(Period):
    """A period that changes what is in the depth memory, and so carries that along."""

    def __call__(
        self,
        carry: tuple[Stream, Shared],
        scanned: tuple[jax.Array, Any],
        shared: Shared,
        positions: jax.Array,
        segments: jax.Array | None,
    ) -> tuple[tuple[Stream, Shared], tuple[Any, Shared]]:
        """Applies the blocks to the stream and the changing part of the memory."""
        stream, changing = carry
        known = {**shared, **changing}
        stream, states, after = self.apply_blocks(
            stream, scanned, known, positions, segments
        )
        written = {key: value for key, value in after.items() if key not in known}
        return (stream, {key: after[key] for key in changing}), (states, written)


class Layers(nn.Module):
    """Applies `depth` layers, tiling a pattern of blocks, in few scans.

    The parameters of each scan are stacked on axis 0 under `segment_<i>`, in the
    same tree whether the scan is rolled or unrolled. Where a block is the first to
    leave something in the depth memory, its first period runs before the scan, which
    then closes over what it left: a value written once is saved once. What later
    layers renew is carried by the scan.

    Attributes:
      blocks: The pattern, tiled over depth. Layers may be scanned together where
        they have the same factory, the very object.
      depth: Number of layers.
      is_unrolled: Whether to lay the layers out one after the other, which runs
        faster on a CPU and compiles slower everywhere.
      remat: What the backward pass recomputes: a key of `REMAT_POLICIES`.
    """

    blocks: tuple[BlockFactory, ...]
    depth: int
    is_unrolled: bool = False
    remat: str = "none"

    def segments(self) -> list[tuple[tuple[BlockFactory, ...], int]]:
        """The scans: each a period of blocks and how often it is repeated."""
        layers = [self.blocks[i % len(self.blocks)] for i in range(self.depth)]
        plan, known = [], set()
        for blocks, count in _repetitions(layers):
            left = set().union(*(_written(block) for block in blocks))
            if left - known and count > 1:
                plan.append((blocks, 1))
                count -= 1
            plan.append((blocks, count))
            known |= left
        return plan

    def init_state(
        self, batch: int, length: int, features: int, *, is_shared: bool = True
    ) -> State:
        """The state of every layer before the first token, stacked like parameters.

        Unless `is_shared`, that which it would be if no layer found anything in the
        depth memory.
        """
        states, known = [], set()
        for blocks, count in self.segments():
            period = []
            for block in blocks:
                # Those who read nothing need not know what there is to be read.
                found = {"shared": frozenset(known)} if known else {}
                state = unbound(block).init_state(batch, length, features, **found)
                known |= _written(block) if is_shared else set()
                period.append(
                    jax.tree.map(
                        lambda a, n=count: jnp.broadcast_to(a, (n, *a.shape)), state
                    )
                )
            states.append(tuple(period))
        return tuple(states)

    def _renewed(self) -> set[str]:
        """Names the entries of the depth memory that change after the first write."""
        return set().union(
            *(getattr(unbound(block), "renews_shared", ()) for block in {*self.blocks})
        )

    def _is_undone(self, blocks: Sequence[BlockFactory], shared: Shared) -> bool:
        """Returns whether the backward pass inverts a segment instead of saving it."""
        modules = [unbound(block) for block in blocks]
        is_reversible = all(getattr(m, "is_reversible", False) for m in modules)
        left = set().union(*map(_written, blocks))
        writes = left - set(shared) or left & self._renewed()
        # Undoing is no place for what watches a layer, or changes more than the stream.
        is_alone = not is_watched() and set(self.variables) == {"params"}
        is_alone = is_alone and not self.is_initializing()
        return is_reversible and not writes and is_alone

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        first_layer: int | jax.Array,
        state: State,
        positions: jax.Array,
        segments: jax.Array | None,
    ) -> tuple[Stream, State]:
        """Applies every layer; returns the stream and the new state.

        Raises:
          ReslabError: If `remat` names no policy.
        """
        if self.remat not in REMAT_POLICIES:
            raise ReslabError(
                f"unknown remat policy {self.remat!r}",
                hint=nearest(self.remat, REMAT_POLICIES),
            )
        renewed = self._renewed()
        is_history = isinstance(stream, History) and state is None
        if is_history and self._is_alone() and not renewed:
            return self._over_history(stream, first_layer, positions, segments), None
        shared: dict[str, Any] = {}
        new_states, applied = [], 0
        for index, (blocks, count) in enumerate(self.segments()):
            changing = {key: shared[key] for key in sorted(renewed & set(shared))}
            body: Any = RenewingPeriod if changing else Period
            if self.remat != "none":
                # Inside a rolled scan nothing can be merged across the boundary.
                body = nn.remat(
                    body,
                    policy=REMAT_POLICIES[self.remat],
                    prevent_cse=self.is_unrolled,
                )
            scan = nn.scan(
                body,
                variable_axes={
                    name: 0 for name in ("params", TAPS, LOSSES, *MODEL_STATE)
                },
                split_rngs={"params": True, DROPOUT: True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=count,
                unroll=count if self.is_unrolled else 1,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            layers = first_layer + applied + len(blocks) * jnp.arange(count)
            frozen = min(max(frozen_layers() - applied, 0) // len(blocks), count)
            applied += len(blocks) * count
            if state is None and self._is_undone(blocks, shared):
                with without_randomness(self, "a backward pass that undoes layers"):
                    stream = reversible_scan(
                        blocks,
                        unbox(self.variables["params"][f"segment_{index}"]),
                        stream,
                        layers,
                        shared,
                        positions,
                        segments,
                        is_unrolled=self.is_unrolled,
                    )
                continue
            scanned = (layers, None if state is None else state[index])
            fixed = {key: shared[key] for key in shared if key not in changing}
            if frozen and not self.is_initializing():
                inputs = stream, layers, shared, positions, segments
                with without_randomness(self, "a backward pass that ends at a layer"):
                    stream, written = self._cut(index, blocks, frozen, *inputs)
                new_state = None
            else:
                carry, (new_state, written) = scan(blocks, name=f"segment_{index}")(
                    (stream, changing) if changing else stream,
                    *(scanned, fixed, positions, segments),
                )
                stream, changing = carry if changing else (carry, {})
            written = jax.tree.map(lambda a: a[0], written)
            shared = {**fixed, **changing, **written}
            new_states.append(new_state)
        return stream, None if state is None else tuple(new_states)

    def _cut(
        self, index, blocks, frozen, stream, layers, shared, positions, segments
    ) -> tuple[Stream, Shared]:
        """A scan in two: the backward pass ends where the second part begins."""
        if self._renewed():
            raise ReslabError(
                "a backward pass that ends at a layer",
                expected="a depth memory that is written once",
                got=", ".join(sorted(self._renewed())),
                hint="another value path, or another optimizer",
            )
        if set(self.variables) != {"params"}:
            raise ReslabError(
                "a backward pass that ends at a layer",
                expected="layers with parameters alone",
                got=", ".join(sorted(self.variables)),
                hint="a norm without running statistics, or another optimizer",
            )
        params = self.variables["params"][f"segment_{index}"]
        period = Period(blocks, parent=None)

        def body(stream, scanned):
            own, layer = scanned
            stream, (_, written) = period.apply(
                {"params": own}, stream, (layer, None), shared, positions, segments
            )
            return stream, written

        if self.remat != "none":
            policy = REMAT_POLICIES[self.remat]
            body = jax.checkpoint(body, policy=policy, prevent_cse=self.is_unrolled)
        parts = []
        for part in (slice(None, frozen), slice(frozen, None)):
            scanned = jax.tree.map(lambda leaf, part=part: leaf[part], (params, layers))
            if part.start is None:
                stream, scanned = jax.lax.stop_gradient((stream, scanned))
            count = scanned[1].shape[0]
            if count:
                unroll = count if self.is_unrolled else 1
                stream, written = jax.lax.scan(body, stream, scanned, unroll=unroll)
                parts.append(written)
            if part.start is None:
                stream, parts = jax.lax.stop_gradient((stream, parts))
        return stream, jax.tree.map(lambda *a: jnp.concatenate(a), *parts)

    def _is_alone(self) -> bool:
        """Returns whether the layers neither create parameters nor are watched."""
        return not self.is_initializing() and not self.is_mutable_collection(TAPS)

    def _over_history(
        self,
        history: History,
        first_layer: int | jax.Array,
        positions: jax.Array,
        segments: jax.Array | None,
    ) -> History:
        """Applies every layer, in the loops that keep sources once.

        A rolled loop computes every period again in its backward pass, whatever
        `remat` says. An unrolled one knows its sites, so its sources are a list.
        """
        if frozen_layers():
            raise ReslabError(
                "a backward pass that ends at a layer",
                expected="a residual that is carried",
                got="a history of all layers",
                hint="residual plain, or another optimizer",
            )
        # The backward pass of the loops knows what is carried, not collections.
        has_losses = self.is_mutable_collection(LOSSES)
        if has_losses:
            history = history.carry(**history.carried, **{LOSSES: jnp.zeros(())})
        # The passes of a looped stack are not known apart, unrolled or not.
        is_listed = self.is_unrolled and isinstance(first_layer, int)
        plan, names, applied = [], [], 0
        for index, (blocks, count) in enumerate(self.segments()):
            names.append(f"segment_{index}")
            own = {
                collection: unbox(tree[names[-1]])
                for collection, tree in self.variables.items()
                if names[-1] in tree
            }
            mutable = [name for name in own if self.is_mutable_collection(name)]
            mutable += [LOSSES] * has_losses
            scope: Any = self.scope
            streams = [name for name in scope.rngs if name != "params"]
            keys = {s: jax.random.split(self.make_rng(s), count) for s in streams}
            period = Period(blocks, parent=None)

            def step(variables, history, shared, layer, period=period, mutable=mutable):
                own, keys = variables
                carried = dict(history.carried)
                added = carried.pop(LOSSES, None)
                history = history.carry(**carried)
                (history, (_, written)), updates = period.apply(
                    *(own, history, (layer, None), shared, positions, segments),
                    mutable=mutable,
                    rngs=keys,
                )
                if added is not None:
                    added += total_loss(updates)
                    history = history.carry(**history.carried, **{LOSSES: added})
                    updates = {k: v for k, v in updates.items() if k != LOSSES}
                return history, written, updates

            if self.remat != "none" and is_listed:
                policy = REMAT_POLICIES[self.remat]
                step = jax.checkpoint(step, policy=policy, static_argnums=3)
            first, size = first_layer + applied, len(blocks)
            layers = first + size * jnp.arange(count)
            if is_listed:
                layers = tuple(range(first, first + size * count, size))
            plan.append(_history.Segment(step, (own, keys), layers, count))
            applied += size * count
        if is_listed:
            history, changed = _history.listed(plan, history.listed(), {})
        else:
            history, changed = _history.append_only_scan(plan, history, {})
        if has_losses:
            carried = dict(history.carried)
            add_loss(self, "layers", carried.pop(LOSSES))
            history = history.carry(**carried)
        for name, updates in zip(names, changed, strict=True):
            for collection, tree in updates.items():
                self.put_variable(collection, name, tree)
        return history


@functools.lru_cache(maxsize=1024)
def unbound(block: BlockFactory) -> Any:
    """The block of a factory outside of any module, to read its traits."""
    return block(parent=None)


def _written(block: BlockFactory) -> set[str]:
    """Names the entries that a block may write to the depth memory."""
    return set(unbound(block).writes_shared or ())


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
    begin, alone = 0, 0  # Layers from `alone` to `begin` repeat nothing so far.
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
