"""Base of attention residuals: reads of a history by softmax over its sources."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, Epsilon, NonNegative, Real, Whole, bounded
from reslab.core.losses import add_loss
from reslab.core.platform import computed_once
from reslab.core.precision import statistics_dtype
from reslab.core.taps import TAPS, tap
from reslab.core.types import Inputs
from reslab.nn.base import sites
from reslab.nn.base.history import History
from reslab.nn.residuals._depth_attention import DepthAttention
from reslab.nn.residuals._history import HistoryResidual
from reslab.nn.residuals._plan import Plan, plan
from reslab.ops.depth_attention.api import (
    depth_read,
    depth_read_through,
    reads_by_kernel,
)
from reslab.ops.depth_attention.reference import merge


@bounded
class AttentionHistory(HistoryResidual):
    """Base of residuals that read a history by `DepthAttention`.

    A subclass says what it reads with `attend` and writes with `append`; `adds_reads`
    says whether its readings are added to the sum of all outputs, or replace it. With
    `source="delta"` the sources are the embedding and every output; with "cumulative"
    the embedding and every sum from the embedding on. In blocks (`block=`,
    `block_layers=`) they are the embedding and, for every finished block, the sum of
    its outputs, or the sum after it; the last block holds the remainder.

    Attributes:
      block: Sublayers in a block; 0 is no blocks.
      block_layers: Layers in a block; 0 is no blocks.
      source: "delta" or "cumulative".
      window: Number of latest sources to read beside the embedding; 0 reads all.
      use_null: Whether a learned vector is one more source.
      null_bias: Initial value of what is added to its logit.
      entropy_bonus: Reward, in nats of loss per nat, for the mean entropy of the
        weights over readings and tokens, padding among them; not over `value_read`.
      use_value_read: Whether a mixer's values come from a reading of their own, with a
        second query and gains ("*_v" in the code of https://arxiv.org/abs/2605.18855).
      epsilon: Added to mean squares of sources before the root.
      (and those of `HistoryResidual`)

    Raises:
      ReslabError: If an option is unknown, or a block is larger than the model.
    """

    block: Whole = 0
    block_layers: Whole = 0
    source: Literal["delta", "cumulative"] = "delta"
    window: Annotated[int, Bounds(least=0, words="at least 1, or 0 for all")] = 0
    use_null: bool = False
    null_bias: Real = 0.0
    entropy_bonus: NonNegative = 0.0
    use_value_read: bool = False
    epsilon: Epsilon = 1e-6

    adds_reads: ClassVar[bool] = False

    @property
    def keeps_identity(self) -> bool:
        """Returns whether the read, or its target, is a sum from the embedding on."""
        return self.adds_reads or self.source == "cumulative"

    @property
    def leaves_embedding_out(self) -> bool:
        """Returns whether the embedding is in the sum alone, and no source."""
        return False

    @property
    def reads_apart(self) -> bool:
        """Returns whether mixers are given their values apart."""
        return self.use_value_read

    def __post_init__(self):
        if self.block and self.block_layers:
            raise self.refuse("block", "0 where block_layers is given")
        for field, limit in (
            ("block", self.starts[-1]),
            ("block_layers", len(self.starts) - 1),
        ):
            if getattr(self, field) > limit:
                raise self.refuse(
                    field, f"at most the model's {limit}, or 0 for no blocks"
                )
        super().__post_init__()

    @property
    def tables(self) -> Plan:
        """Static tables: which sources every sublayer reads, and where it writes."""
        starts, layers = self.starts, tuple(self.layer_of_site)
        return plan(starts, layers, self.block, self.block_layers, self.adds_reads)

    def is_idle(self, parameter: str, site: int) -> bool:
        """Returns whether a parameter is idle at a site, like a query of one source."""
        visible = self.tables.visible[site]
        if self.window:
            visible = min(visible, self.window + 1)
        has_extra = not self.adds_reads and not self.tables.is_first[site]
        sources = visible + has_extra + self.use_null
        sources -= self.leaves_embedding_out and visible > 0
        if parameter in ("read/null", "value_read/null"):
            return False
        return sources < (1 if parameter.startswith("gated/") else 2)

    @property
    def _keeps(self) -> tuple[str, ...]:
        """Names the sums carried beside the sources: of all outputs, of a block's."""
        keeps_part = self.tables.is_in_blocks and self.source == "delta"
        return ("sum",) * self.keeps_identity + ("part",) * keeps_part

    def setup(self):
        """Makes the reader, whose parameters come when it is first called."""
        make = functools.partial(
            DepthAttention,
            self.epsilon,
            self.use_null,
            self.null_bias,
            self.param_dtype,
        )
        self.read = make()
        if self.use_value_read and self.sublayer == "mixer":
            self.value_read = make()

    def widen(self, x: jax.Array) -> History:
        """The embedding is the first source, and the sum so far."""
        start = {"sum": x, "part": jnp.zeros_like(x)}
        return History.start(
            x, self.tables.rows, **{key: start[key] for key in self._keeps}
        )

    def read_ahead(
        self,
        stream: History,
        others: Sequence["AttentionHistory"],
        *,
        site: int | jax.Array,
    ) -> History:
        """Reads for all sublayers of a layer at once what earlier layers wrote.

        Every source is then copied from memory once for all of them. What the layer
        itself writes is merged into the readings that wait.

        Args:
          stream: The history before the layer.
          others: The residuals of the sublayers that follow this one.
          site: The site of this one.

        Returns:
          The history with its readings, where a reading is one operation and the
          sublayers see the same; else as it was.
        """
        if not self.tables.reads_together or not self._reads_through(
            stream, 1 + len(others)
        ):
            return stream
        return self._with_readings(stream, (self, *others), site)

    def sums(
        self, stream: History, y: jax.Array, site: int | jax.Array
    ) -> dict[str, jax.Array]:
        """Adds a sublayer's output to the sums that the stream carries.

        Returns:
          "sum", of the embedding and all outputs, and "part", of a block's outputs so
          far; each only if the residual needs it.
        """
        carried, new = stream.carried, {}
        if "sum" in carried:
            new["sum"] = computed_once(carried["sum"] + y)
        if "part" in carried:
            part = computed_once(carried["part"] + y)
            is_first = sites.at(self.tables.is_first, site)
            new["part"] = jnp.where(is_first, y, part)
        return new

    def append(
        self,
        stream: History,
        source: jax.Array,
        sums: Mapping[str, jax.Array],
        site: int | jax.Array,
        is_in_place: bool,
    ) -> History:
        """Writes a source into the row of its block, and carries the sums.

        Args:
          stream: The history after the site's reading.
          source: The source (batch, length, embed).
          sums: From `sums`.
          site: The site.
          is_in_place: From `attend`.
        """
        row = sites.at(self.tables.block_of_site, site) + 1
        stream = stream.write(source, row, is_in_place=is_in_place).carry(**sums)
        return self._merged_ahead(stream, source, site)

    def attend(
        self,
        stream: History,
        site: int | jax.Array | None,
        unfinished: jax.Array | None = None,
    ) -> tuple[jax.Array, History, bool]:
        """Reads the sources that a site sees.

        Args:
          stream: The history.
          site: The site; None reads all sources, after the last.
          unfinished: One more source, in no row yet, that all sites but the first of a
            block see.

        Returns:
          The reading (batch, length, embed) in the dtype of statistics; the history
          for later readers; and whether they add to gradients of sources in place.
        """
        has_extra: Any = False
        if unfinished is not None and site is not None:
            has_extra = ~jnp.asarray(sites.at(self.tables.is_first, site))
        if not stream.ahead and self._reads_through(stream, 1):
            stream = self._with_readings(stream, (self,), site)
        if stream.ahead:
            (reading, logsumexp, query), *ahead = stream.ahead
            if unfinished is not None:
                reading, _ = _merged(
                    reading, logsumexp, unfinished, query, self.epsilon, has_extra
                )
            wide = reading.astype(query.dtype)
            return wide, dataclasses.replace(stream, ahead=tuple(ahead)), True
        reading, weights = self.read(*self._seen(stream, site), unfinished, has_extra)
        if self.entropy_bonus:
            self._reward(weights)
        if site is not None:
            self._tap(weights, stream.rows, site)
        return reading, stream, False

    def attend_for_values(
        self,
        stream: History,
        site: int | jax.Array,
        unfinished: jax.Array | None = None,
    ) -> jax.Array | None:
        """Reads once more, for a mixer's values, if they have a reading of their own.

        Args:
          stream: The history.
          site: The site.
          unfinished: As in `attend`.
        """
        if not self.use_value_read or self.sublayer != "mixer":
            return None
        has_extra: Any = False
        if unfinished is not None:
            has_extra = ~jnp.asarray(sites.at(self.tables.is_first, site))
        seen = self._seen(stream, site)
        return self.value_read(*seen, unfinished, has_extra)[0]

    def inputs(
        self, stream: History, h: jax.Array, values: jax.Array | None
    ) -> jax.Array | Inputs:
        """Rounds what a sublayer reads to the dtype of the stream.

        Args:
          stream: The history.
          h: Its reading.
          values: A mixer's reading for its values, or None.
        """
        h = computed_once(h.astype(stream.dtype))
        if values is None:
            return h
        return Inputs(h, h, computed_once(values.astype(stream.dtype)))

    def _seen(self, stream: History, site: int | jax.Array | None):
        """The sources up to what a site sees, and which of them it reads (rows,)."""
        visible = self.tables.rows
        if site is not None:
            visible = sites.at(self.tables.visible, site)
        sources = stream.before(visible)
        is_valid = sources.is_valid
        if self.window:
            is_recent = sources.index >= visible - self.window
            is_valid &= is_recent | (sources.index == 0)
        if self.leaves_embedding_out:
            is_valid &= sources.index > 0
        return sources, is_valid

    def _reward(self, weights):
        """Takes a share of the entropy of one reading's weights off the loss."""
        readings = self.starts[-1] + (not self.adds_reads)
        # Masked sources contribute neither entropy nor gradient.
        entropy = jax.scipy.special.entr(jnp.where(weights > 0, weights, 1.0))
        mean = jnp.mean(jnp.sum(entropy, axis=0))
        add_loss(self, "entropy", -self.entropy_bonus / readings * mean)

    def _reads_through(self, stream: History, readers: int) -> bool:
        """Returns whether readings are one operation whose weights are not watched."""
        is_plain = not (self.window or self.use_null or self.entropy_bonus)
        is_plain = is_plain and not self.use_value_read
        is_watched = self.is_mutable_collection(TAPS) or self.is_initializing()
        if not is_plain or is_watched or isinstance(stream.sources, tuple):
            return False
        return reads_by_kernel(stream.sources, readers, self.kernels)

    def query(self, features: int, dtype: Any) -> jax.Array:
        """Returns the vector that scores sources (features,)."""
        return self.read.direction(features, dtype)

    def _with_readings(self, stream, readers, site):
        """The history with what these residuals, of a site and those after it, read.

        All of them see what the first sees, which is at least the embedding, unless
        they see nothing.
        """
        values: Any = stream.sources
        dtype = statistics_dtype(values.dtype)
        queries = [one.query(values.shape[-1], dtype) for one in readers]
        arguments = values, jnp.stack(queries)
        keywords = {"epsilon": self.epsilon, "implementation": self.kernels}
        if site is None:  # No later site reads.
            readings, logsumexp = depth_read(*arguments, **keywords)
        else:
            limit = jnp.maximum(sites.at(self.tables.visible, site), 1)
            *found, values = depth_read_through(*arguments, limit=limit, **keywords)
            readings, logsumexp = found
        ahead = []
        for index, query in enumerate(queries):
            reading, total = readings[index], logsumexp[index]
            if site is not None and 0 in self.tables.visible:
                sees = jnp.asarray(sites.at(self.tables.visible, site + index)) > 0
                # Without sources the reading is zero.
                reading, total = (
                    jnp.where(sees, reading, 0),
                    jnp.where(sees, total, -1e30),
                )
            ahead.append((reading, total, query))
        return dataclasses.replace(stream, sources=values, ahead=tuple(ahead))

    def _merged_ahead(self, stream, source, site):
        """The history with what this site wrote in the readings that are to see it."""
        sees, starts, ahead = self.tables.sees, self.starts, []
        for index, (reading, logsumexp, query) in enumerate(stream.ahead, start=1):
            table = [(now, now + index) in sees for now in range(starts[-1])]
            places = [
                first + self.sublayer_index
                for first, end in itertools.pairwise(starts)
                if first + self.sublayer_index + index < end
            ]
            if any(table[place] for place in places):
                is_read = jnp.asarray(
                    all(table[place] for place in places) or sites.at(table, site), bool
                )
                reading, logsumexp = _merged(
                    reading, logsumexp, source, query, self.epsilon, is_read
                )
            ahead.append((reading, logsumexp, query))
        return dataclasses.replace(stream, ahead=tuple(ahead))

    def _tap(self, weights, rows, site):
        """Shows the mean weight of every row (rows,), unfinished ones among them."""
        means = jnp.mean(weights, axis=(1, 2))
        padded = jnp.zeros(rows, means.dtype)
        if not self.tables.is_in_blocks or self.adds_reads:
            shown = padded.at[: min(rows, means.shape[0])].set(means[:rows])
        else:
            shown = padded.at[:rows].set(means[:rows])
            row = sites.at(self.tables.block_of_site, site) + 1
            shown = shown.at[row].add(means[rows])
        tap(self, "depth_weights", shown)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=4)
def _merged(
    reading: jax.Array,
    logsumexp: jax.Array,
    source: jax.Array,
    query: jax.Array,
    epsilon: float,
    is_read: bool | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`merge` for arrays of the stream's dtype: no wider copy is kept of them."""
    wide = reading.astype(query.dtype)
    merged, total = merge(wide, logsumexp, source, query, epsilon, is_read)
    return merged.astype(reading.dtype), total
