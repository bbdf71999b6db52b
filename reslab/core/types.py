"""The protocols: what a part of a model must offer to be combined with the others.

Nothing inherits from these; a module that has the methods fits. Arrays are
`(batch, length, embed)` unless a docstring says otherwise.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from reslab.core.surroundings import Context

Array = jax.Array


class Inputs(NamedTuple):
    """Separate inputs of a mixer for queries, keys and values.

    Mixers that accept `Inputs` set `takes_inputs = True`; all others receive one array.
    Residuals that produce `Inputs` set `reads_apart = True`.
    """

    query: Array
    key: Array
    value: Array


# Maps one array, or `Inputs`, to one array.
Branch = Callable[..., jax.Array]
# State that flows along depth: any pytree of fixed structure and shapes whose leaves
# end in (batch, length, embed).
Stream = Any
# Depth memory: entries that layers leave for later ones, by name. Each is an array or a
# pytree of arrays.
Shared = Mapping[str, Any]
# State of a mixer between calls while generating: a key-value cache or a recurrent
# state.
State = Any

# Every logical axis name that a parameter or activation may carry.
LOGICAL_AXES = (
    "batch",
    "length",
    "embed",
    "mlp",
    "heads",
    "head_dim",
    "inner",
    "vocab",
    "layers",
    "experts",
    "streams",
    "window_rows",
    "window_columns",
    "channels",
)

# Axes of a device mesh, and the ones that spread a batch and heads. More axes exist
# only on request: "sequence" spreads the tokens of a row, and "expert" the experts of
# a layer, and the batch elsewhere.
MESH_AXES = ("data", "fsdp", "tensor")
SEQUENCE_AXIS = "sequence"
EXPERT_AXIS = "expert"
BATCH_AXES = ("data", "fsdp", EXPERT_AXIS)
HEAD_AXES = ("tensor",)


class Norm(Protocol):
    """Keeps shape and dtype; statistics in float32 over the last axis.

    One that takes statistics of a batch says so by `needs_batch = True`. It is also
    given `mask` (batch, length), where that is known, and keeps running statistics
    (see `reslab.core.model_state`).
    """

    def __call__(self, x: Array) -> Array:
        """Normalizes `x` of shape (..., features)."""
        ...


class Residual(Protocol):
    """The depth stream: how sublayers read from it and write to it.

    `reduces_to_plain_at_init` says whether a network with this residual
    computes, at initialization, what it would compute with `plain`. One whose
    sublayers read what many earlier ones wrote says `is_history = True`, and its
    stream is a `reslab.nn.base.history.History`. `build` is told which `sublayer` it is
    for, its `sublayer_index` among the `sublayers` of a layer, and the `depth` and
    `sites` applied.
    """

    reduces_to_plain_at_init: bool

    def widen(self, x: Array) -> Stream:
        """Embeddings to stream, once."""
        ...

    def __call__(self, stream: Stream, branch: Branch, *, site: int | Array) -> Stream:
        """Reads from the stream, calls `branch` once, writes its output back.

        `site` counts sublayers from 0 and may be traced.
        """
        ...

    def narrow(self, stream: Stream) -> Array:
        """Stream to features for the final norm, once."""
        ...


class Placement(Protocol):
    """Position of norms around a sublayer.

    `needs_final_norm` says whether a norm must follow the last layer, and
    `normalizes_embedding` whether one must precede the first. `build` is told which
    `sublayer` it is for ("mixer", "ffn", or "joint" for both in one), how many
    `sublayers` a layer has, the `layer` among all `layers` with parameters of their
    own, and the `depth` and `sites` applied. `normalizes_stream`, where a placement
    has it, says whether it does more to the stream than to add to it.
    """

    needs_final_norm: bool
    normalizes_embedding: bool

    def adapt(self, context: Context) -> Context:
        """Adapts the context of the sublayer's parts: norms inside, initial scales."""
        ...

    def __call__(
        self,
        stream: Stream,
        residual: Residual,
        branch: Branch,
        *,
        site: int | Array,
    ) -> Stream:
        """Applies `branch` to the stream through the residual, once."""
        ...


class FeedForward(Protocol):
    """Maps every token independently."""

    def __call__(self, x: Array) -> Array:
        """Maps (batch, length, embed) to the same shape."""
        ...


class Linear(Protocol):
    """A projection of the last axes, made for given output features."""

    def __call__(self, x: Array) -> Array:
        """Maps (..., inputs) to (..., features)."""
        ...


class Mixer(Protocol):
    """A token mixer along the sequence.

    `writes_shared` names the entries of the depth memory that a layer may write.
    Later layers may overwrite only entries that the optional `renews_shared` names.
    One with `passes_padding = True` takes no token into its state where `segments` is
    0, so that rows of one batch may differ in length while generating. One with
    `keeps_every_token = True` has a state with a place for each token, as a cache. One
    with
    `is_bidirectional = True` reads later tokens; causal models refuse it.
    """

    writes_shared: Collection[str]

    def __call__(
        self,
        x: Array,
        *,
        positions: Array,
        segments: Array | None,
        shared: Shared,
        state: State = None,
    ) -> tuple[Array, Shared, State]:
        """Mixes `x`; with a state, continues from it and returns the next one."""
        ...

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """The state before the first token, for at most `length` tokens.

        `shared` names what the layer will find in the depth memory.
        """
        ...

    def mixing_flops(self, length: int, features: int) -> int:
        """Matrix-product FLOPs per token, forward, beyond the kernels'."""
        ...


class Block(Protocol):
    """One layer: sublayers applied to the stream.

    `sublayers` says how many; two where a block does not say. `writes_shared` is its
    mixer's.
    """

    sublayers: int
    writes_shared: Collection[str]

    def __call__(
        self,
        stream: Stream,
        shared: Shared,
        *,
        layer: int | Array,
        positions: Array,
        segments: Array | None = None,
        state: State = None,
    ) -> tuple[Stream, Shared, State]:
        """Applies layer number `layer`, which may be traced."""
        ...

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """The state before the first token; `shared` as for the mixer."""
        ...

    def mixing_flops(self, length: int, features: int) -> int:
        """Matrix-product FLOPs per token, forward, beyond the kernels'."""
        ...


class Stack(Protocol):
    """Blocks laid along depth, between the two ends of a residual.

    `passes` says how often each layer is applied; the optional `route` lists the
    numbers of all layers applied, in order, where that differs between them.
    """

    passes: int

    def __call__(
        self,
        x: Array,
        *,
        positions: Array,
        segments: Array | None = None,
        state: State = None,
    ) -> tuple[Array, State]:
        """Maps features (batch, length, embed) to the same shape."""
        ...

    def init_state(
        self, batch: int, length: int, features: int, *, is_shared: bool = True
    ) -> State:
        """The state of every layer before the first token.

        Unless `is_shared`, as if no layer found anything in the depth memory.
        """
        ...

    def mixing_flops(self, length: int, features: int) -> int:
        """Matrix-product FLOPs per token beyond the kernels', over all layers."""
        ...


class ValuePath(Protocol):
    """Keys and values of a layer, with those of earlier layers mixed in.

    `leaves` and `renews` name what it leaves in the depth memory, as a mixer's
    `writes_shared` and `renews_shared` do; `keeps` what it needs a cache for.
    """

    leaves: Collection[str]
    renews: Collection[str]

    def keeps(self, found: Collection[str]) -> Collection[str]:
        """Returns those of "key" and "value" to cache, given the depth memory."""
        ...

    def __call__(
        self,
        x: Array,
        *,
        key: Callable[[], Array],
        value: Callable[[], Array],
        keep: Callable[[str, Array], Array],
        shared: Shared,
    ) -> tuple[Array, Array, Shared]:
        """Keys, values and depth memory.

        `key` and `value` make the layer's own; `keep` puts them into the cache, if
        there is one, and gives back all that is in it.
        """
        ...


class Position(Protocol):
    """Position encoding: added to embeddings, or applied to queries and keys.

    One may also have `slopes(heads)`: the fall of scores with distance (heads,).
    """

    def embed(self, x: Array, positions: Array) -> Array:
        """Adds to the embeddings (batch, length, embed)."""
        ...

    def rotate(self, x: Array, positions: Array) -> Array:
        """Transforms queries or keys (batch, length, heads, head_dim)."""
        ...
