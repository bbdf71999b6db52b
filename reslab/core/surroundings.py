"""Surroundings of a part: arguments that its `build` receives by name.

Callers build parts with these forms. A spec string cannot set what a form passes,
except fields of `Context` that are not `Given`: defaults for all parts.
"""

import collections
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, NotRequired, TypedDict, TypeVar

import jax.numpy as jnp

from reslab.core.registry import Spec

_GIVEN = object()
_Kind = TypeVar("_Kind")
# Marks a field of a context that a spec cannot set.
Given = Annotated[_Kind, _GIVEN]


@dataclasses.dataclass(frozen=True)
class Context:
    """Surroundings that a part may request by argument name.

    The registry passes each field to the variants whose `build` takes an
    argument of that name; an argument written in the spec string wins over fields that
    are not `Given`.

    Attributes:
      depth: Number of layers applied, counting every pass of a loop.
      passes: Number of times that a layer is applied, at most.
      route: Numbers of the layers applied, in order; () is all of them in each pass.
      sites: First site of every layer applied, and one past the last; () is unknown
        (see `reslab.nn.base.sites`).
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.
      norm: Default normalization, for parts that normalize inside.
      linear: What a projection is.
      position: Position encoding.
      init_std: Standard deviation of projection kernels; 0 is 1/sqrt(fan in).
      output_scale: Factor on the initial standard deviation of projections
        that write into the residual stream.
      inner_scale: The same factor for values and for projections that widen.
      inner_norm: Norm before the projection into the stream; "" disables it.
      activation_norm: Norm before each activation of feed-forward layers; "" disables
        it.
      qkv_norm: Norm of every query, key and value head; "" disables it.
      is_causal: Whether a position may see those before it alone.
      grid: Rows and columns of the tokens of an image; () where they are a sequence.
      dropout: Rate at which outputs of sublayers are dropped during training.
      kernels: Implementation of the operations that have a kernel.
    """

    depth: Given[int] = 1
    passes: Given[int] = 1
    route: Given[tuple[int, ...]] = ()
    sites: Given[tuple[int, ...]] = ()
    dtype: Given[Any] = jnp.float32
    param_dtype: Given[Any] = jnp.float32
    norm: Spec = "rms"
    linear: Spec = "dense"
    position: Spec = "none"
    init_std: float = 0.0
    output_scale: float = 1.0
    inner_scale: Given[float] = 1.0
    inner_norm: Given[Spec] = ""
    activation_norm: Spec = ""
    qkv_norm: Spec = ""
    is_causal: Given[bool] = True
    grid: Given[tuple[int, ...]] = ()
    dropout: float = 0.0
    kernels: Given[str] = "auto"

    @property
    def layers(self) -> int:
        """Number of layers with parameters of their own."""
        if self.route:
            return max(self.route) + 1
        return max(self.depth // self.passes, 1)

    def layer_and_pass(self, applied: Any) -> tuple[Any, Any]:
        """Number of a layer among those with parameters of their own, and of its pass.

        Args:
          applied: Number of the layer among those applied; may be traced.
        """
        if self.passes == 1:
            return applied, 0
        if not self.route:
            return applied % self.layers, applied // self.layers
        tables = self.route, _passes(self.route)
        if isinstance(applied, int):
            return tables[0][applied], tables[1][applied]
        layers, passes = (jnp.asarray(table, jnp.int32)[applied] for table in tables)
        return layers, passes


@functools.cache
def _passes(route: tuple[int, ...]) -> tuple[int, ...]:
    """Counts the earlier applications of each layer of a route.

    >>> _passes((0, 1, 2, 1, 2, 3))
    (0, 0, 0, 1, 1, 0)
    """
    known, found = collections.Counter[int](), []
    for layer in route:
        found.append(known[layer])
        known[layer] += 1
    return tuple(found)


class Norms(TypedDict):
    """A norm over the last axis that has a logical name."""

    logical_axis: str


class Placements(TypedDict):
    """A placement around one sublayer of a layer; models add the layer."""

    sublayer: str
    sublayers: int
    layer: NotRequired[int]
    layers: NotRequired[int]


class Residuals(TypedDict):
    """A residual of one sublayer of a layer."""

    sublayer: str
    sublayers: int
    sublayer_index: int


class FeedForwards(TypedDict):
    """A feed-forward layer that is one of several in its sublayer."""

    hidden_scale: float


class Linears(TypedDict):
    """A projection that its owner calls by its role."""

    features: int | Sequence[int]
    kernel_axes: Sequence[str | None]
    role: NotRequired[str]


class Positions(TypedDict):
    """A position encoding of a model."""

    max_length: int


class Blocks(TypedDict):
    """A layer of a model."""

    residual: Spec
    context: Context


class Stacks(TypedDict):
    """The layers of a model."""

    blocks: tuple[Callable[..., Any], ...]
    depth: int
    residual: Spec
    context: Context
    is_unrolled: bool
    remat: str


class Optimizers(TypedDict):
    """The optimizer of a group of parameters."""

    learning_rate: Any
    weight_decay: float
    layouts: Any
    epsilon_scale: NotRequired[float]
    steps: NotRequired[int]


class Schedules(TypedDict):
    """A schedule over a run of `steps`."""

    steps: int


class Tasks(TypedDict):
    """A task, which reads its own fields of the config."""

    config: Any


class Transforms(TypedDict):
    """A transform of a run: its variables, and its config by dotted name."""

    variables: Any
    fields: Mapping[str, Any]


class Writers(TypedDict):
    """A writer into a run directory."""

    directory: str


# Forms that each family is built with; other families are given nothing.
FORMS: Mapping[str, tuple[type, ...]] = types.MappingProxyType(
    {
        "norms": (Context, Norms),
        "placements": (Context, Placements),
        "residuals": (Context, Residuals),
        "mixers": (Context,),
        "ffns": (Context, FeedForwards),
        "linears": (Context, Linears),
        "positions": (Context, Positions),
        "value_paths": (Context,),
        "blocks": (Blocks,),
        "stacks": (Stacks,),
        # A model passes on what its stack and its position encoding are given.
        "models": (Context, Stacks, Positions),
        "optimizers": (Optimizers,),
        "schedules": (Schedules,),
        "tasks": (Tasks,),
        "writers": (Writers,),
        "transforms": (Transforms,),
    }
)


@functools.cache
def reserved(family: str) -> Collection[str]:
    """Returns the names of arguments that a spec of a family cannot set.

    >>> sorted(reserved("optimizers") - reserved("schedules"))
    ['epsilon_scale', 'layouts', 'learning_rate', 'weight_decay']
    """
    return frozenset(
        name
        for form in FORMS.get(family, ())
        for name, hint in typing.get_type_hints(form, include_extras=True).items()
        if form is not Context or _GIVEN in getattr(hint, "__metadata__", ())
    )
