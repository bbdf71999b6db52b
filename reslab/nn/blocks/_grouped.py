"""A layer within groups of tokens, and an exchange between them after it."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax

from reslab.core.errors import ReslabError
from reslab.core.types import Branch, Shared, State, Stream
from reslab.nn.base.place import Place
from reslab.nn.blocks._sublayers import Sublayer, SublayerBlock


class _Both(NamedTuple):
    """Two branches whose arguments only the call of a layer knows."""

    mixer: Branch
    exchange: Branch


class _Grouped(SublayerBlock):
    """Makes a layer one of groups, for the class of the layer to be mixed into.

    Groups are computed whole, so that the mixer keeps no state.
    """

    parts: ClassVar[tuple[Any, Any]]
    group: ClassVar[int]

    @property
    def inner(self) -> Any:
        """The layer alone."""
        return self.parts[0]

    @property
    def exchange(self) -> Any:
        """The exchange after the layer, or None."""
        return self.parts[1]

    @property
    def sublayers(self) -> int:
        """The layer's own, and the exchange."""
        return self.inner.sublayers + (self.exchange is not None)

    @property
    def feed_forwards(self) -> int:
        """The layer's own."""
        return self.inner.feed_forwards

    @property
    def writes_shared(self) -> Collection[str]:
        """Entries of the layer, and the latents."""
        own = () if self.exchange is None else (self.exchange.entry,)
        return [*self.inner.writes_shared, *own]

    @property
    def renews_shared(self) -> Collection[str]:
        """Entries of the layer, and the latents."""
        own = () if self.exchange is None else (self.exchange.entry,)
        return [*self.inner.renews_shared, *own]

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """The state of the exchange alone."""
        del shared
        if self.exchange is None:
            return {}
        return self.exchange.init_state(batch, length // self.group, features)

    def mixing_flops(self, length: int, features: int) -> int:
        """Counts FLOPs per token of groups of `length`."""
        flops = self.inner.mixing_flops(length, features)
        if self.exchange is None:
            return flops
        return flops + self.exchange.mixing_flops(length, features)

    def branches(self, mixer: Any) -> Iterable[Sublayer]:
        """The layer's own, and the exchange; `mixer` is a pair of branches."""
        yield from super().branches(mixer.mixer)
        if self.exchange is not None:
            yield Sublayer("exchange", "mixer", mixer.exchange)

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
        """Applies the layer to groups; with a state, `segments` marks whole ones."""
        module = self.make_mixer(name="mixer")
        documents = segments if state is None else None
        place = Place.of(layer, self.context, self.sublayers, documents, shared)

        def mixer(h):
            y, place.shared, _ = module(
                h, positions=positions, segments=documents, shared=place.shared
            )
            return y

        def exchange(h):
            nonlocal state
            made = self.exchange.clone(parent=self, name="exchange")
            y, latents, state = made(
                h,
                place.shared.get(self.exchange.entry),
                positions=positions,
                segments=segments,
                state=state,
            )
            place.shared = {**place.shared, self.exchange.entry: latents}
            return y

        both: Any = _Both(mixer, exchange)
        stream = self.run(stream, both, place)
        return stream, place.shared, state


def in_groups(inner: Any, group: int, exchange: Any) -> Callable[..., Any]:
    """Returns the factory of a layer of groups.

    Args:
      inner: The layer, outside of any module.
      group: Tokens of a group.
      exchange: The exchange after it, or None.

    Raises:
      ReslabError: If the layer is not made of sublayers.
    """
    kind = type(inner)
    if kind.__call__ is not SublayerBlock.__call__:
        raise ReslabError(
            "a layer within groups of tokens",
            expected="a block of sublayers, as standard, parallel or macaron",
            got=kind.__name__,
        )
    # In a tuple: Flax takes an attribute that can be called for a method.
    fixed = {"parts": (inner, exchange), "group": group}
    made = type(kind.__name__, (_Grouped, kind), fixed)
    fields = {
        field.name: getattr(inner, field.name)
        for field in dataclasses.fields(inner)
        if field.init and field.name not in ("parent", "name")
    }
    return functools.partial(made, **fields)
