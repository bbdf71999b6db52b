"""Place: where in depth a part is called, for parts that ask."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Collection, Iterator
from typing import Any

import flax.linen as nn
import jax

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.surroundings import Context
from reslab.core.types import Shared
from reslab.nn.base import sites

# Families whose parts receive their place.
TOLD = ("norms", "ffns", "linears", "mixers")


@dataclasses.dataclass
class Place:
    """Values that a part is told if an argument of its `__call__` has their name.

    Numbers may be traced: layers of one scan are one program. Outside a block a part
    is told nothing, so such arguments need defaults.

    Attributes:
      layer: Number of the layer among those with parameters of their own, from 0.
      pass_index: Number of the pass of a looped stack, from 0.
      site: Number of the sublayer among all that are applied, from 0.
      sublayer: Number of the sublayer in its layer, from 0.
      mask: Which tokens are in a document (batch, length); None is all.
      shared: The depth memory.
    """

    layer: int | jax.Array
    pass_index: int | jax.Array
    site: int | jax.Array
    sublayer: int
    mask: jax.Array | None
    shared: Shared

    @classmethod
    def of(
        cls,
        layer: int | jax.Array,
        context: Context,
        sublayers: int,
        documents: jax.Array | None,
        shared: Shared,
    ) -> "Place":
        """The place of the first sublayer of a layer.

        Args:
          layer: Number of the layer among those applied.
          context: Surroundings of the layer.
          sublayers: Sublayers of a layer, where the context has no table of sites.
          documents: Document of each token (batch, length), 0 for padding, or None.
          shared: The depth memory.
        """
        own, pass_index = context.layer_and_pass(layer)
        return cls(
            layer=own,
            pass_index=pass_index,
            site=sites.first_of(layer, context.sites, sublayers),
            sublayer=0,
            mask=None if documents is None else documents > 0,
            shared=shared,
        )

    def next(self) -> None:
        """Moves on to the next sublayer of the layer."""
        self.site, self.sublayer = self.site + 1, self.sublayer + 1


NAMES = tuple(field.name for field in dataclasses.fields(Place))


@contextlib.contextmanager
def telling(place: Place) -> Iterator[None]:
    """Tells the parts that are called inside what they ask for.

    Entries of the depth memory that a feed-forward layer returns are left in `place`.

    Args:
      place: The place, which the caller moves on.
    """
    running: list[nn.Module] = []

    def tell(call, args, kwargs, context):
        module = context.module
        # A class that calls its base's method receives its place once.
        is_base = any(module is other for other in running)
        if context.method_name != "__call__" or is_base:
            return call(*args, **kwargs)
        known = {
            name: getattr(place, name)
            for name, position in _asked(type(module)).items()
            if name not in kwargs and position >= len(args)
        }
        running.append(module)
        try:
            y = call(*args, **known, **kwargs)
        finally:
            running.pop()
        if _leaves(module):
            y, entries = y
            _check_entries(module, entries)
            place.shared = {**place.shared, **entries}
        return y

    with nn.intercept_methods(tell):
        yield


@functools.cache
def _asked(kind: type) -> dict[str, int]:
    """Names of what the parts of a class ask for, and their positions in a call."""
    if registry.family_of(kind) not in TOLD:
        return {}
    _, *names = inspect.signature(kind.__call__).parameters
    return {name: index for index, name in enumerate(names) if name in NAMES}


def _leaves(module: Any) -> Collection[str]:
    """Names of entries that a feed-forward layer leaves in the depth memory."""
    if not hasattr(module, "writes_shared"):
        return ()
    is_told = registry.family_of(type(module)) == "ffns"
    return module.writes_shared if is_told else ()


def _check_entries(module: Any, entries: Any) -> None:
    if set(entries) - set(module.writes_shared):
        raise ReslabError(
            f"{type(module).__name__} leaves entries in the depth memory",
            expected="those of its writes_shared, "
            + ", ".join(sorted(module.writes_shared)),
            got=", ".join(sorted(entries)),
        )
