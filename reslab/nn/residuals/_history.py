"""Bases of residuals over a history, and sums of its sources."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.platform import computed_once
from reslab.core.types import Branch
from reslab.nn.base import sites
from reslab.nn.base.history import History
from reslab.ops.depth_attention.api import (
    depth_mix,
    depth_mix_through,
    mixes_by_kernel,
)


class HistoryResidual(nn.Module):
    """Base of residuals whose sublayers read from many earlier ones.

    Attributes:
      depth: Number of layers applied.
      sites: Where their sublayers begin.
      sublayer: Which sublayer this is: "mixer", "ffn" or "joint".
      sublayers: Number of sublayers in a layer, where all are alike.
      sublayer_index: Which of them this is, from 0.
      param_dtype: Dtype in which parameters are stored.
      kernels: Implementation of what has a kernel: "auto", "reference" or "pallas".
    """

    depth: int = 1
    sites: tuple[int, ...] = ()
    sublayer: str = "ffn"
    sublayers: int = 1
    sublayer_index: int = 0
    param_dtype: Any = jnp.float32
    kernels: str = "auto"

    is_history: ClassVar[bool] = True

    @property
    def keeps_identity(self) -> bool:
        """Returns whether a stream without additions is unchanged; not for averages."""
        return True

    def is_idle(self, parameter: str, site: int) -> bool:
        """Returns whether a parameter has no effect at a site.

        Layers that are scanned have parameters of one shape, also where one of them
        has nothing to choose from.

        Args:
          parameter: Its path inside the residual, such as "read/query".
          site: The site.
        """
        del parameter, site
        return False

    @property
    def starts(self) -> tuple[int, ...]:
        """First site of every layer, and one past the last."""
        return self.sites or sites.table([self.sublayers] * self.depth)

    @property
    def layer_of_site(self) -> tuple[int, ...]:
        """The layer of every site."""
        starts = self.starts
        return tuple(
            layer
            for layer in range(len(starts) - 1)
            for _ in range(starts[layer], starts[layer + 1])
        )

    @property
    def begins_layer(self) -> bool:
        """Returns whether this is the first sublayer of its layer."""
        return self.sublayer_index == 0

    @property
    def ends_layer(self) -> bool:
        """Returns whether this is the last sublayer of its layer."""
        return self.sublayer_index == self.sublayers - 1

    def layer(self, site: int | jax.Array) -> int | jax.Array:
        """The layer of a site; a number for a number."""
        return sites.at(self.layer_of_site, site)

    def refuse(self, field: str, expected: str, hint: str | None = None) -> ReslabError:
        """The error of a field that is out of range."""
        name = type(self).__module__.rpartition(".")[2]
        got = repr(getattr(self, field))
        where = f"residuals {name!r}: {field}"
        return ReslabError(where, expected=expected, got=got, hint=hint)


class LayerHistory(HistoryResidual):
    """Base of residuals whose sources are the outputs of layers.

        X_0 = embedding,    (h, r) = begin(X_0 .. X_l),    X_(l+1) = r + f(h) + ...

    A layer is the usual sum of its sublayers; what its first sublayer reads, and what
    the sum begins with, comes from all layers before it. A subclass sets up `read`,
    and says by `adds_in_place` whether that reads by `mixtures` alone.
    """

    adds_in_place: ClassVar[bool] = True

    def widen(self, x: jax.Array) -> History:
        """The embedding is the first source."""
        return History.start(x, len(self.starts), stream=x)

    def is_idle(self, parameter: str, site: int) -> bool:
        """The first layer has the embedding alone to read."""
        del parameter
        return self.layer_of_site[site] == 0

    def begin(
        self, stream: History, layer: int | jax.Array
    ) -> tuple[Any, jax.Array, History]:
        """Returns the first sublayer's input, the start of the sum, and the history."""
        x, stream = self.read(stream, layer)
        return x, x, stream

    def __call__(
        self, stream: History, branch: Branch, *, site: int | jax.Array
    ) -> History:
        """Reads at the beginning of a layer, writes at its end."""
        layer = self.layer(site)
        h = x = stream.carried["stream"]
        if self.begins_layer:
            h, x, stream = self.begin(stream, layer)
        x = computed_once(x + branch(h))
        if self.ends_layer:
            stream = self.write(stream, x, layer)
        return stream.carry(stream=x)

    def write(self, stream: History, x: jax.Array, layer: int | jax.Array) -> History:
        """Adds the output of a layer to the sources."""
        is_in_place = self.adds_in_place and has_kernel(self, stream)
        return stream.write(x, layer + 1, is_in_place=is_in_place)

    def narrow(self, stream: History) -> jax.Array:
        """One more reading, after the last layer."""
        return self.read(stream, len(self.starts) - 1)[0]


def has_kernel(module: nn.Module, history: History, sums: int = 1) -> bool:
    """Returns whether `mixtures` runs a kernel that adds to gradients in place.

    Args:
      module: The reading module; its `kernels` are as in `HistoryResidual`.
      history: The history.
      sums: Number of sums at once.

    Raises:
      ReslabError: If the kernel is asked for and cannot do what is asked.
    """
    sources = history.sources
    if module.is_initializing() or isinstance(sources, tuple):
        return False
    return mixes_by_kernel(sources, sums, module.kernels)


def mixtures(
    module: nn.Module, history: History, weights: jax.Array, limit: int | jax.Array
) -> tuple[list[jax.Array], History]:
    """Weighted sums of the first sources.

    Args:
      module: The reading module; its `kernels` are as in `HistoryResidual`.
      history: The history.
      weights: Of every sum (sums, rows), or for every token (sums, rows, batch,
        length); zero for sources that are not to be read.
      limit: Number of sources, which may be traced.

    Returns:
      The sums (batch, length, embed), float32, or rounded to the dtype of the sources
      by the kernel; and the history for later readers.

    Raises:
      ReslabError: If the kernel is asked for and cannot do what is asked.
    """
    if not has_kernel(module, history, len(weights)):
        sources = history.before(limit)
        count = len(sources.index)
        return [sources.mix(own[:count]) for own in weights], history
    values: Any = history.sources
    if weights.ndim == 2:
        weights = weights[..., None, None]
    weights = jnp.broadcast_to(weights, (len(weights), *values.shape[:-1]))
    keywords = {"limit": limit, "implementation": module.kernels}
    if isinstance(limit, int) and limit == history.rows:  # No later site reads.
        return list(depth_mix(values, weights, **keywords)), history
    sums, values = depth_mix_through(values, weights, **keywords)
    return list(sums), dataclasses.replace(history, sources=values)


class Kernel(nn.Module):
    """A matrix, normal at first.

    Attributes:
      shape: Features of the model, and columns.
      deviation: Its initial standard deviation.
      param_dtype: Dtype in which it is stored.
      axes: Logical names of its axes.
    """

    shape: tuple[int, int]
    deviation: float
    param_dtype: Any = jnp.float32
    axes: tuple[str | None, ...] = ("embed", None)

    @nn.compact
    def __call__(self) -> jax.Array:
        """The matrix."""
        init = nn.initializers.normal(self.deviation)
        args = ("kernel", init, self.shape, self.axes, self.param_dtype)
        return parameter(self, *args)
