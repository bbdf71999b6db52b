"""A layer applied several times, within groups of tokens, with a change after each."""

import functools
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.randomness import training_key
from reslab.core.surroundings import Context
from reslab.core.types import Shared, State, Stream
from reslab.nn.base.norm import make_norm
from reslab.nn.stacks._loops.span import BlockFactory, unbound


class SlicedLayer(nn.Module):
    """One layer several times over; see `stacks/sliced`.

    Attributes:
      block: Factory of the layer.
      groups: Groups of tokens in each application.
      hidden: Hidden width of what follows each; 0 is the features.
      context: What parts may ask of their surroundings.
    """

    block: BlockFactory
    groups: tuple[int, ...]
    hidden: int = 0
    context: Context = Context()

    @property
    def inner(self) -> Any:
        """The layer outside of any module."""
        return unbound(self.block)

    @property
    def unbound_mixer(self) -> Any:
        """The layer's mixer outside of any module."""
        return self.inner.unbound_mixer

    @property
    def writes_shared(self) -> Collection[str]:
        """Entries of the layer."""
        return self.inner.writes_shared or ()

    @property
    def renews_shared(self) -> Collection[str]:
        """Entries of the layer."""
        return getattr(self.inner, "renews_shared", ())

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """The states of all applications."""
        states, known = [], frozenset(shared)
        for _ in self.groups:
            found = {"shared": known} if known else {}
            states.append(self.inner.init_state(batch, length, features, **found))
            known |= frozenset(self.writes_shared)
        return tuple(states)

    def mixing_flops(self, length: int, features: int) -> int:
        """FLOPs per token in groups, over all applications."""
        return sum(
            self.inner.mixing_flops(length // groups, features)
            for groups in self.groups
        )

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
        """Applies the layer, and what follows it, for each number of groups.

        Args:
          stream: The residual stream.
          shared: Depth memory.
          layer: Number of the layer among those with parameters of their own.
          positions: Position of each token in its document (batch, length).
          segments: Document of each token, or None.
          state: The states to continue from, or None.
        """
        block, states = self.block(name="layer"), []
        for index, groups in enumerate(self.groups):
            sliced = self._slices(groups, index, layer, positions.shape)
            rest = {
                "layer": layer * len(self.groups) + index,
                "positions": sliced.of_tokens(positions),
                "segments": None if segments is None else sliced.of_tokens(segments),
                "state": None if state is None else state[index],
            }
            inside = jax.tree.map(sliced.of_features, stream)
            inside, shared, own = block(inside, shared, **rest)
            stream = jax.tree.map(sliced.joined, inside)
            stream = self._project(stream, index)
            states.append(own)
        return stream, shared, None if state is None else tuple(states)

    def _slices(self, groups, index, layer, shape) -> "_Slices":
        """The groups of tokens in an application."""
        length = shape[1]
        if length % groups:
            raise ReslabError(
                "stacks 'sliced': groups",
                expected=f"divisors of the {length} tokens",
                got=str(groups),
            )
        if not index or groups == 1:
            return _Slices(shape[0], groups, None)
        key = None if self.is_initializing() else training_key(self)
        return _Slices(shape[0], groups, permutation(key, layer, index, length))

    def _project(self, stream: Stream, index: int) -> Stream:
        """Applies what follows an application, which shares no parameters."""
        kept = {"param_dtype": self.context.param_dtype}
        leaf = jax.tree.leaves(stream)[0]
        spec = registry.spec_text(
            "gelu", {"hidden": self.hidden or leaf.shape[-1], "is_exact": True}
        )
        norm = make_norm(
            self.context.norm,
            has_mask=False,
            **kept,
            logical_axis="embed",
            name=f"projection_norm_{index}",
        )
        context = {**vars(self.context), "use_bias": True}
        ffn = registry.make("ffns", spec, **context, name=f"projection_{index}")
        scales = registry.make(
            "residuals", "weighted", **kept, name=f"projection_scales_{index}"
        )
        return jax.tree.map(lambda x: scales(x, lambda h: ffn(norm(h)), site=0), stream)


class _Slices:
    """Groups of neighbouring tokens as rows of their own, after a permutation."""

    def __init__(self, batch: int, groups: int, order: jax.Array | None):
        self._batch, self._groups, self._order = batch, groups, order

    def of_tokens(self, x: jax.Array) -> jax.Array:
        """Cuts (batch, length) into (batch * groups, length / groups)."""
        return self.of_features(x[..., None])[..., 0]

    def of_features(self, x: jax.Array) -> jax.Array:
        """Cuts (..., batch, length, embed) in the same way."""
        if self._order is not None:
            x = jnp.take(x, self._order, axis=-2)
        rows = self._batch * self._groups
        return x.reshape(*x.shape[:-3], rows, -1, x.shape[-1])

    def joined(self, x: jax.Array) -> jax.Array:
        """Puts features together again, in their own order."""
        x = x.reshape(*x.shape[:-3], self._batch, -1, x.shape[-1])
        if self._order is None:
            return x
        return jnp.take(x, jnp.argsort(self._order), axis=-2)


def permutation(
    key: jax.Array | None, layer: int | jax.Array, index: int, length: int
) -> jax.Array:
    """An order of tokens: drawn in training, else one of the layer and application.

    Args:
      key: A key while training, or None.
      layer: Number of the layer.
      index: Number of the application.
      length: Number of tokens.
    """
    if key is None:
        fixed = jax.random.key(index)
        key = jax.random.fold_in(fixed, jnp.asarray(layer, jnp.uint32))
    return jax.random.permutation(key, length)


@functools.lru_cache(maxsize=1024)
def sliced(
    block: BlockFactory, groups: tuple[int, ...], hidden: int, context: Context
) -> Callable[..., nn.Module]:
    """The layer several times over; one object for one block.

    Raises:
      ReslabError: If it has to see all tokens.
    """
    if max(groups) > 1:
        _check(unbound(block), context)
    fields = {"block": block, "groups": groups, "hidden": hidden, "context": context}
    return functools.partial(SlicedLayer, **fields)


def _check(layer: Any, context: Context) -> None:
    reason = ""
    if context.is_causal:
        reason = "a model that predicts the next token"
    elif layer.writes_shared:
        reason = "a depth memory of all tokens"
    elif getattr(layer.unbound_mixer, "grid", ()):
        reason = f"{type(layer.unbound_mixer).__name__}, which sees rows and columns"
    if reason:
        raise ReslabError(
            "stacks 'sliced': groups",
            expected="(1, ...), or layers of a classifier that see any tokens",
            got=reason,
            hint="model.name vit and mixer attention without a value path",
        )
