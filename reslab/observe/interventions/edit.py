"""Edits: changes of named activations while a model runs."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.errors import ReslabError, nearest
from reslab.core.taps import TAPS, Here, changing, recording
from reslab.observe.watch import by_site, tapped, watching_sublayers

# Leading axes of activations that have more than (batch, length, ...).
_HEAD_AXIS = {"heads": 2}
_STREAM_AXIS = {"stream": 0}
_KINDS = ("replace", "add", "scale")

# Numbers, or arrays of them that may be traced; None selects all.
Selection = int | Sequence[int] | jax.Array | None


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "sites"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Activations:
    """An activation of several sublayers, in the order of their sites.

    Attributes:
      values: One for each sublayer that has it (sublayers, ...).
      sites: Numbers of these sublayers among all (sublayers,).
    """

    values: jax.Array
    sites: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("value", "layer", "pass_index", "sublayer", "position", "head", "stream")
    ],
    meta_fields=["name", "kind"],
)
@dataclasses.dataclass(frozen=True)
class Edit:
    """A change of an activation, in the sublayers and at the entries selected.

        replace:  h = value        add:  h = h + value        scale:  h = h * value

    A pytree: under `jax.jit` its value and its selections may be arguments, so that
    a sweep over layers or positions is one compiled program.

    Activations, by the names under which probes see them:

    * `reading` (batch, length, embed): what a sublayer reads, before its norm; of a
      residual that reads for queries, keys and values apart, the first of them;
    * `output` (batch, length, embed): what it returns to the residual;
    * `heads` (batch, length, heads, head_dim): what attention and other mixers with
      heads hand to their output projection;
    * `neurons` (batch, length, hidden): what a feed-forward layer hands to its last
      projection;
    * `stream` (streams, batch, length, embed): the residual stream before a sublayer;
      not of residuals with a history, whose sources are written once;
    * `end` (batch, length, embed): what the stack returns;
    * any other that a part passes through `reslab.core.taps.editable`.

    Attributes:
      name: Name of the activation.
      kind: "replace", "add" or "scale".
      value: Number or array that broadcasts against the activation; or `Activations`,
        as `run` returns them, one for each sublayer; others are left as they are.
      layer: Layers, among those with parameters of their own.
      pass_index: Passes of a looped stack.
      sublayer: Sublayers of a layer; 0 is the mixer of a standard block.
      position: Positions along the length; or a mask, boolean (length,) or
        (batch, length).
      head: Heads, of `heads`.
      stream: Streams, of `stream`.

    Raises:
      ReslabError: If the kind is unknown.
    """

    name: str
    kind: str
    value: Any
    layer: Selection = None
    pass_index: Selection = None
    sublayer: Selection = None
    position: Selection = None
    head: Selection = None
    stream: Selection = None

    def __post_init__(self):
        if self.kind not in _KINDS:
            raise ReslabError(
                f"unknown kind of edit {self.kind!r}", hint=nearest(self.kind, _KINDS)
            )

    def __call__(self, here: Here, name: str, old: jax.Array) -> jax.Array:
        """Returns the activation `name` of the sublayer at `here`, changed or not.

        Raises:
          ReslabError: If the activation has no such axis or entry, or the value does
            not broadcast against it.
        """
        if name != self.name:
            return old
        selected, value = self._selected(here, old), self.value
        if isinstance(value, Activations):
            is_site = jnp.asarray(value.sites) == here.site
            selected &= jnp.broadcast_to(jnp.any(is_site), old.shape)
            value = jnp.asarray(value.values)[jnp.argmax(is_site)]
        try:
            value = jnp.asarray(value)
            if jnp.issubdtype(value.dtype, jnp.complexfloating):
                raise ValueError
            value = jnp.broadcast_to(value.astype(old.dtype), old.shape)
        except (TypeError, ValueError):
            raise ReslabError(
                f"edit of {name!r}: value",
                expected=f"real numbers whose shape broadcasts to {old.shape}",
                got=f"shape {jnp.shape(value)}"
                if isinstance(value, jax.Array)
                else repr(value),
            ) from None
        changes = {"replace": value, "add": old + value, "scale": old * value}
        return jnp.where(selected, changes[self.kind], old)

    def _selected(self, here: Here, old: jax.Array) -> jax.Array:
        """Marks the entries of the activation that are changed."""
        chosen = jnp.ones(old.shape, bool)
        if here.layers:
            self._check("layer", here.layers)
            self._check("pass_index", here.passes)
        for key in ("layer", "pass_index", "sublayer"):
            wanted = getattr(self, key)
            if wanted is not None:
                self._check_kind(key)
                if self.name == "end":
                    raise ReslabError(
                        f"edit of 'end': {key}", expected="none: it follows all layers"
                    )
                chosen &= jnp.any(jnp.asarray(wanted) == getattr(here, key))
        length = 2 if self.name in _STREAM_AXIS else 1
        if self.position is not None:
            mask = jnp.asarray(self.position)
            if mask.dtype == bool:
                chosen &= self._masked(mask, old, length)
            else:
                chosen &= self._at(old, length, "position")
        if self.head is not None:
            chosen &= self._at(old, _HEAD_AXIS.get(self.name), "head")
        if self.stream is not None:
            chosen &= self._at(old, _STREAM_AXIS.get(self.name), "stream")
        return chosen

    def _masked(self, mask: jax.Array, old: jax.Array, axis: int) -> jax.Array:
        """Marks the entries at the positions of a mask."""
        shapes = old.shape[axis : axis + 1], old.shape[axis - 1 : axis + 1]
        if mask.shape not in shapes:
            raise ReslabError(
                f"edit of {self.name!r}: position",
                expected=f"a mask {shapes[0]} or {shapes[1]}",
                got=str(mask.shape),
            )
        mask = mask.reshape(mask.shape + (1,) * (old.ndim - axis - 1))
        return jnp.broadcast_to(mask, old.shape)

    def _at(self, old: jax.Array, axis: int | None, what: str) -> jax.Array:
        """Marks the entries of the activation that are selected along an axis."""
        if axis is None:
            raise ReslabError(
                f"edit of {self.name!r}: {what}", expected="none: it has no such axis"
            )
        size = old.shape[axis]
        self._check_kind(what)
        self._check(what, size)
        wanted = jnp.asarray(getattr(self, what)).reshape(-1, 1)
        found = jnp.any(jnp.arange(size)[None] == wanted, axis=0)
        found = found.reshape((size,) + (1,) * (old.ndim - axis - 1))
        return jnp.broadcast_to(found, old.shape)

    def _check_kind(self, what: str) -> None:
        """Refuses a selection of anything but whole numbers."""
        wanted = jnp.asarray(getattr(self, what))
        if not wanted.size or not jnp.issubdtype(wanted.dtype, jnp.integer):
            raise ReslabError(
                f"edit of {self.name!r}: {what}",
                expected="whole numbers",
                got=str(getattr(self, what)),
            )

    def _check(self, what: str, size: int) -> None:
        """Refuses numbers that are out of range, where they are known."""
        for index in _numbers(getattr(self, what)):
            if not 0 <= index < size:
                raise ReslabError(
                    f"edit of {self.name!r}: {what}",
                    expected=f"0 to {size - 1}",
                    got=str(index),
                )


def _numbers(selection: Selection) -> list[int]:
    """The numbers that a selection names; none where they are traced or a mask."""
    if selection is None or isinstance(selection, jax.core.Tracer):
        return []
    array = np.asarray(selection)
    return [int(n) for n in array.reshape(-1)] if array.dtype.kind in "iu" else []


def replace(name: str, value: Any, **where: Any) -> Edit:
    """An edit that puts `value` in the place of an activation."""
    return Edit(name, "replace", value, **where)


def add(name: str, value: Any, **where: Any) -> Edit:
    """An edit that adds `value` to an activation."""
    return Edit(name, "add", value, **where)


def scale(name: str, value: Any, **where: Any) -> Edit:
    """An edit that multiplies an activation by `value`."""
    return Edit(name, "scale", value, **where)


def ablate(name: str, **where: Any) -> Edit:
    """An edit that puts zeros in the place of an activation."""
    return Edit(name, "replace", 0.0, **where)


def run(
    model: nn.Module,
    variables: Mapping[str, Any],
    *arguments: Any,
    edits: Edit | Iterable[Edit] = (),
    read: str | Sequence[str] = (),
    method: Any = None,
    **keywords: Any,
) -> tuple[Any, dict[str, Activations]]:
    """Applies a model with edits, and returns activations beside its result.

    A pure function: it may be jitted, differentiated by values of edits, and mapped
    over them. Without edits and `read` it computes what `model.apply` does.

    Args:
      model: A model of reslab's, or any whose layers are its blocks and placements.
      variables: Its variables.
      *arguments: Arguments of the method.
      edits: Changes, applied in order.
      read: Names of the activations to return, as they are after the edits.
      method: The method; `__call__` if None.
      **keywords: Keyword arguments of the method, and `rngs` for `model.apply`.

    Returns:
      The result, and for each name of `read` the activations.

    Raises:
      ReslabError: If no sublayer has an activation that is named.
    """
    edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
    read = (read,) if isinstance(read, str) else tuple(read)
    if "mutable" in keywords:
        raise ReslabError(
            "interventions.run: mutable", expected="none: nothing is updated"
        )
    seen: dict[str, set[int]] = {}

    def change(here, name, value):
        seen.setdefault(name, set()).add(here.sublayer)
        for edit in edits:
            value = edit(here, name, value)
        return value

    with watching_sublayers(), changing(change), recording(read):
        found: Any = model.apply(
            variables, *arguments, method=method, mutable=[TAPS], **keywords
        )
    result, written = found
    values = tapped(written.get(TAPS, {}))
    for names, known, what in (
        ([edit.name for edit in edits], {*seen}, "change"),
        (read, {*seen, *values} - {"stream"}, "read"),
    ):
        for name in names:
            if name not in known:
                raise ReslabError(
                    f"no activation {name!r} to {what} in this model",
                    expected=", ".join(sorted(known)),
                )
    for edit in edits:
        for index in _numbers(edit.sublayer):
            if index not in seen[edit.name]:
                raise ReslabError(
                    f"edit of {edit.name!r}: sublayer",
                    expected=" or ".join(map(str, sorted(seen[edit.name]))),
                    got=str(index),
                )
    return result, {name: _activations(name, values[name]) for name in read}


def _activations(name: str, pairs: list[tuple[jax.Array, jax.Array]]) -> Activations:
    sites = jnp.concatenate([site.reshape(-1) for site, _ in pairs])
    return Activations(by_site(name, pairs), jnp.sort(sites))
