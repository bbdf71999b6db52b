"""Tokens sent to their experts and back, across the devices of a mesh.

Each device arranges its own tokens. Where the mesh has an axis for experts, tokens
cross it in one exchange there and one back; matrices of experts stay where they are.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from reslab.core.platform import platform
from reslab.core.types import BATCH_AXES, EXPERT_AXIS, SEQUENCE_AXIS
from reslab.core.varying import varying_like
from reslab.ops.grouped import fits, grouped_product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sent:
    """Tokens at the devices of their experts, and the way back.

    Arrays have a first axis of devices; it is 1 where tokens are not divided.

    Attributes:
      tokens: Rows in order of their expert (devices, rows, features); or slots
        (devices, experts, slots, features).
      sizes: Rows of each expert that a device has (devices, experts), and rows behind
        them that are no token's; None of slots.
      place: Row or slot of each choice at its sender (devices, choices).
      source: Choice in each row or slot (devices, rows).
      counts: Choices of each device for the experts of each (devices, experts); None
        of slots.
      arrangement: Received row in each place (devices, rows); None where nothing was
        exchanged, and of slots.
      axes: Mesh axes among which rows, and tokens of a row, are divided.
    """

    tokens: jax.Array
    sizes: jax.Array | None
    place: jax.Array
    source: jax.Array
    counts: jax.Array | None
    arrangement: jax.Array | None
    axes: tuple[Any, ...] = dataclasses.field(metadata={"static": True})


def send(x: jax.Array, experts: jax.Array, count: int) -> Sent:
    """Sends every token to each of its experts.

    On a mesh whose axis `expert` has n devices, the k-th of them has the k-th part of
    the experts, and room for all tokens of the n devices: none is dropped, whatever
    the router chooses.

    Args:
      x: Tokens (batch, length, features).
      experts: Their experts (batch, length, chosen).
      count: Number of experts; the axis divides it.
    """
    axes = _axes(x.shape[0], x.shape[1])
    local = functools.partial(_send, count=count, parts=_experts_parts(axes))
    spec, devices = _specs(axes)
    tokens, *way = _mapped(local, axes, (spec, spec), devices)(x, experts)
    return Sent(tokens, *way, axes=axes)


def send_to_slots(
    x: jax.Array, experts: jax.Array, place: jax.Array, count: int, most: int
) -> Sent:
    """Sends tokens to slots of their experts, apart for each row of the batch.

    Args:
      x: Tokens (batch, length, features).
      experts: Their experts (batch, length, chosen).
      place: Slot of each choice at its expert (batch, length, chosen); a choice whose
        slot is not below `most` is dropped.
      count: Number of experts; the axis divides it.
      most: Slots of an expert for each row.
    """
    # A device does not know the places of a part of a row; the compiler gathers it.
    axes = _axes(x.shape[0], 1)
    local = functools.partial(
        _send_to_slots, count=count, most=most, parts=_experts_parts(axes)
    )
    spec, devices = _specs(axes)
    tokens, place, source = _mapped(local, axes, (spec,) * 3, devices)(
        x, experts, place
    )
    return Sent(tokens, None, place, source, None, None, axes)


def product(x: jax.Array, kernel: jax.Array, sent: Sent) -> jax.Array:
    """Multiplies rows or slots by the matrix of their expert.

    Args:
      x: Arranged as `sent.tokens`, (..., in).
      kernel: A matrix of every expert (experts, in, out).
      sent: What was returned by `send` or `send_to_slots`.

    Returns:
      The products (..., out); those of rows that are no token's have no meaning.
    """
    _, devices = _specs(sent.axes)
    owners = PartitionSpec(EXPERT_AXIS if _experts_parts(sent.axes) > 1 else None)
    dtype = x.dtype
    if platform() == "cpu" and dtype == jnp.bfloat16:
        # XLA's compiler for CPUs aborts where devices add up slopes in bfloat16.
        kernel = kernel.astype(jnp.float32)

    def owned(kernel, x):
        return varying_like(kernel, x).astype(dtype)

    if sent.sizes is None:

        def of_slots(x, kernel):
            return jnp.einsum("esd,edh->esh", x[0], owned(kernel, x))[None]

        return _mapped(of_slots, sent.axes, (devices, owners), devices)(x, kernel)
    # The compiler divides no kernel: other axes of the mesh must be of one device.
    mesh = jax.sharding.get_abstract_mesh()
    used = {*sent.axes[0], *sent.axes[1]}
    others = math.prod(size for axis, size in mesh.shape.items() if axis not in used)
    is_tiled = platform() == "tpu" and others == 1 and fits(x, kernel)

    def of_rows(x, kernel, sizes):
        kernel = owned(kernel, x)
        return grouped_product(x[0], kernel, sizes[0], is_tiled=is_tiled)[None]

    inputs = (devices, owners, devices)
    if not is_tiled:
        return _mapped(of_rows, sent.axes, inputs, devices)(x, kernel, sent.sizes)
    if mesh.empty:
        return of_rows(x, kernel, sent.sizes)
    # The kernel does not declare how its outputs vary over the mesh.
    run = jax.shard_map(of_rows, in_specs=inputs, out_specs=devices, check_vma=False)
    return run(x, kernel, sent.sizes)


def take_back(answers: jax.Array, weights: jax.Array, sent: Sent) -> jax.Array:
    """Adds up what each token's experts answered.

    Args:
      answers: Arranged as `sent.tokens`, (..., out).
      weights: Weights (batch, length, chosen) of the answers.
      sent: What was returned by `send` or `send_to_slots`.

    Returns:
      Features (batch, length, out).
    """
    parts = _experts_parts(sent.axes)
    local = functools.partial(_take_back, parts=parts)
    spec, devices = _specs(sent.axes)
    way = (sent.place, sent.source, sent.counts, sent.arrangement)
    inputs = (devices, spec, *(devices,) * len(way))
    return _mapped(local, sent.axes, inputs, spec)(answers, weights, *way)


def _axes(batch: int, length: int) -> tuple[Any, ...]:
    """The mesh axes that divide rows, and those that divide their tokens."""
    sizes = jax.sharding.get_abstract_mesh().shape
    rows = tuple(name for name in BATCH_AXES if sizes.get(name, 1) > 1)
    if batch % math.prod(sizes[name] for name in rows):
        return (), ()
    parts = sizes.get(SEQUENCE_AXIS, 1)
    return rows, (SEQUENCE_AXIS,) if parts > 1 and length % parts == 0 else ()


def _experts_parts(axes: tuple[Any, ...]) -> int:
    if EXPERT_AXIS not in axes[0]:
        return 1
    return jax.sharding.get_abstract_mesh().shape[EXPERT_AXIS]


def _specs(axes: tuple[Any, ...]) -> tuple[PartitionSpec, PartitionSpec]:
    """Divisions of (batch, length, ...) and of (devices, ...)."""
    rows, lengths = axes
    return PartitionSpec(rows or None, *lengths), PartitionSpec((*rows, *lengths))


def _mapped(function: Any, axes: tuple[Any, ...], inputs: Any, outputs: Any) -> Any:
    """Runs a function on each device's own tokens; other axes stay the compiler's."""
    if not any(axes):
        return function
    return jax.shard_map(
        function,
        in_specs=inputs,
        out_specs=outputs,
        axis_names={*axes[0], *axes[1]},
    )


def _send(x: jax.Array, experts: jax.Array, *, count: int, parts: int):
    chosen = experts.shape[-1]
    flat = experts.reshape(-1)
    source = jnp.argsort(flat, stable=True)
    place = jnp.argsort(source)
    sizes = jnp.bincount(flat, length=count).astype(jnp.int32)
    tokens = x.reshape(-1, x.shape[-1])
    rows = _taken(tokens, source // chosen, place.reshape(-1, chosen))
    if parts == 1:
        return rows[None], sizes[None], place[None], source[None], None, None
    own = count // parts
    gathered = jax.lax.all_gather(sizes, EXPERT_AXIS)
    counts = gathered.reshape(parts, parts, own).sum(-1)
    # A token asks at most `own` experts of one device.
    most = rows.shape[0] // chosen * min(chosen, own)
    received = _exchange(rows, counts, most, parts * most)
    begin = jax.lax.axis_index(EXPERT_AXIS) * own
    each = jax.lax.dynamic_slice_in_dim(gathered, begin, own, axis=1)
    # The experts of the rows as they come: of each sender in order.
    owner = _owners(each.reshape(-1), received.shape[0])
    expert = jnp.where(owner < parts * own, owner % own, own)
    arrangement = jnp.argsort(expert, stable=True)
    rows = _taken(received, arrangement, jnp.argsort(arrangement)[:, None])
    return (
        *(rows[None], each.sum(0)[None], place[None], source[None]),
        *(counts[None], arrangement[None]),
    )


def _send_to_slots(x, experts, place, *, count: int, most: int, parts: int):
    (batch, _, chosen), features = experts.shape, x.shape[-1]
    row = jnp.arange(batch, dtype=experts.dtype)[:, None, None]
    slots, choices = count * batch * most, experts.size
    slot = jnp.where(place < most, (experts * batch + row) * most + place, slots)
    slot = slot.reshape(choices)
    empty = varying_like(jnp.full(slots, choices, jnp.int32), slot)
    numbers = jnp.arange(choices, dtype=jnp.int32)
    source = empty.at[slot].set(numbers, mode="drop")
    tokens = x.reshape(-1, features)
    # Without a choice it is a token behind the last: 0.
    rows = _taken(tokens, source // chosen, slot.reshape(-1, chosen))
    rows = rows.reshape(count, batch * most, features)
    if parts > 1:
        rows = jax.lax.all_to_all(rows, EXPERT_AXIS, 0, 1, tiled=True)
    return rows[None], slot[None], source[None]


def _take_back(answers, weights, place, source, counts, arrangement, *, parts: int):
    rows, chosen = answers[0], weights.shape[-1]
    if counts is None and parts > 1:
        rows = jax.lax.all_to_all(rows, EXPERT_AXIS, 1, 0, tiled=True)
    rows = rows.reshape(-1, rows.shape[-1])
    if counts is not None and parts > 1:
        back = jnp.argsort(arrangement[0])
        rows = _taken(rows, back, arrangement[0][:, None])
        size = place.shape[1]
        rows = _exchange(rows, counts[0].T, size, size)
    rows = _taken(rows, place[0], source[0][:, None])
    rows = rows.reshape(*weights.shape[:-1], chosen, -1)
    return jnp.sum(rows * weights[..., None], axis=-2)


@jax.custom_vjp
def _taken(x: jax.Array, index: jax.Array, places: jax.Array) -> jax.Array:
    """Rows of `x` by their numbers; 0 for numbers behind the last.

    The gradient takes rows as well; the gradient of plain indexing scatters them.

    Args:
      x: Rows (rows, features).
      index: Which of them (taken,).
      places: All places of `index` with each row's number (rows, most), filled up with
        numbers behind the last place.
    """
    del places
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _taken_forward(x, index, places):
    return _taken(x, index, places), places


def _taken_backward(places, slope):
    each = jnp.take(slope, places, axis=0, mode="fill", fill_value=0)
    return jnp.sum(each, axis=1), None, None


_taken.defvjp(_taken_forward, _taken_backward)


def _exchange(x: jax.Array, counts: jax.Array, most: int, rows: int) -> jax.Array:
    """Sends consecutive rows to the devices of the axis, the first to the first.

    Args:
      x: Rows of this device (rows, features).
      counts: Rows that go from each device to each (devices, devices).
      most: The most rows that one device may send another.
      rows: Rows that a device has room for.

    Returns:
      Rows (rows, features): of each sender in order, then rows without meaning.
    """
    here = jax.lax.axis_index(EXPERT_AXIS)
    given, taken = counts[here], counts[:, here]
    begins = jnp.cumsum(given) - given
    if platform() == "tpu":
        # Where this device's rows begin at each receiver.
        places = (jnp.cumsum(counts, axis=0) - counts)[here]
        room = varying_like(jnp.zeros((rows, x.shape[1]), x.dtype), x, counts)
        return jax.lax.ragged_all_to_all(
            *(x, room, begins, given, places, taken), axis_name=EXPERT_AXIS
        )
    inside = begins[:, None] + jnp.arange(most)[None]
    packed = x[jnp.minimum(inside, x.shape[0] - 1)]
    got = jax.lax.all_to_all(packed, EXPERT_AXIS, 0, 0)
    sender = _owners(taken, rows)
    is_sent, sender = sender < len(taken), jnp.minimum(sender, len(taken) - 1)
    within = jnp.arange(rows) - (jnp.cumsum(taken) - taken)[sender]
    row = got[sender, jnp.clip(within, 0, most - 1)]
    return jnp.where(is_sent[:, None], row, 0)


def _owners(counts: jax.Array, rows: int) -> jax.Array:
    """The group of each of `rows` rows, in order of groups of `counts` rows each.

    `len(counts)` for those behind the last. `jnp.searchsorted` of the ends is not
    defined where counts differ from device to device.
    """
    steps = jnp.zeros(rows + 1, jnp.int32).at[jnp.cumsum(counts)].add(1)
    return jnp.cumsum(steps)[:-1]
