"""Attention residuals: every sublayer attends to what earlier ones wrote."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, bounded
from reslab.core.errors import ReslabError
from reslab.core.losses import add_loss
from reslab.core.platform import computed_once
from reslab.core.precision import statistics_dtype
from reslab.core.taps import TAPS, tap
from reslab.core.types import Branch
from reslab.nn.base import sites
from reslab.nn.base.history import History
from reslab.nn.residuals._gate import GATES, Gate
from reslab.nn.residuals._history import DepthAttention, HistoryResidual
from reslab.nn.residuals._plan import Plan, plan
from reslab.ops.depth_attention.api import (
    depth_read,
    depth_read_through,
    reads_by_kernel,
)
from reslab.ops.depth_attention.reference import merge


@bounded
class AttentionResiduals(HistoryResidual):
    """Replaces the residual sum by attention over sources, or adds it to the sum.

        routing="replace":   h_l = read_l(sources)
        routing="add":       h_l = s_l + gate * read_l(sources),   s_(l+1) = s_l + y_l
        y_l = f_l(h_l)

    `read` is softmax attention with a learned query for each sublayer, zero at first
    (`DepthAttention`). With `source="delta"` the sources are the embedding and every
    output y; with "cumulative" the embedding and every sum s. In blocks
    (`block=`, `block_layers=`) they are the embedding and, for every finished block,
    the sum of its outputs, or s after it; a block holds that many sublayers or
    layers, the last one the remainder.

    "replace" with "delta" is Attention Residuals, Full or Block: inside a block its
    unfinished sum is read too, and the features at the end are one more reading. "add"
    with "delta" is Delta Attention Residuals: the unfinished block is in s, a block
    counts as finished for the second sublayer of the next, the first
    sublayer reads nothing, and the features at the end are s.

    Reference: Kimi Team, 2026, https://arxiv.org/abs/2603.15031, Eq. 2-4 and the
    two-phase form; Delta: 2026, https://arxiv.org/abs/2605.18855. Checked against the
    code of the second, which has both: Full, Block, Delta and Delta in blocks, with
    and without `use_null`. That code starts its queries at random (the paper says
    zero), and appends `s` less the last source where the paper says the sum of a block
    (`is_as_released`). Not checked: cumulative sources, gates, windows, the bonus.

    Attributes:
      block: Sublayers in a block; 0 is no blocks.
      block_layers: Layers in a block; 0 is no blocks.
      source: "delta" or "cumulative".
      routing: "replace" or "add".
      window: Number of latest sources to read beside the embedding; 0 reads all.
      gate: With "add": "" is 1, "scalar" sigmoid(g) from sigmoid(-2), "vector"
        sigmoid(W s + b) of the same start, "alpha" a factor that is 0 at first.
      use_null: Whether a learned vector is one more source.
      null_bias: Initial value of what is added to its logit.
      entropy_bonus: Reward, in nats of loss per nat, for the mean entropy of the
        weights over readings and tokens, padding among them.
      is_as_released: Whether the sources of Delta in blocks are those of the released
        code.
      epsilon: Added to mean squares of sources before the root.
      (and those of `HistoryResidual`)

    Raises:
      ReslabError: If an option is unknown, or a block is larger than the model.
    """

    block: int = 0
    block_layers: int = 0
    source: str = "delta"
    routing: str = "replace"
    window: Annotated[int, Bounds(least=0, words="at least 1, or 0 for all")] = 0
    gate: str = ""
    use_null: bool = False
    null_bias: float = 0.0
    entropy_bonus: Annotated[float, Bounds(least=0)] = 0.0
    is_as_released: bool = False
    epsilon: float = 1e-6

    @property
    def keeps_identity(self) -> bool:
        """Returns whether the read, or its target, is a sum from the embedding on."""
        return self.routing == "add" or self.source == "cumulative"

    def __post_init__(self):
        if self.source not in ("delta", "cumulative"):
            raise self.refuse("source", "'delta' or 'cumulative'")
        if self.routing not in ("replace", "add"):
            raise self.refuse("routing", "'replace' or 'add'")
        if self.gate not in GATES:
            raise self.refuse("gate", ", ".join(map(repr, GATES)))
        if self.gate and self.routing == "replace":
            raise self.refuse("gate", "none", "routing='add' has what it gates")
        if self.block and self.block_layers:
            raise self.refuse("block", "0 where block_layers is given")
        for field, limit in (
            ("block", self.starts[-1]),
            ("block_layers", len(self.starts) - 1),
        ):
            if not 0 <= getattr(self, field) <= limit:
                raise self.refuse(
                    field, f"at most the model's {limit}, or 0 for no blocks"
                )
        if self.is_as_released and not (
            self._plan.is_in_blocks and self.routing == "add" and self.source == "delta"
        ):
            raise ReslabError(
                "residuals 'attnres': is_as_released",
                expected="routing='add', source='delta' and blocks",
            )
        super().__post_init__()

    @property
    def reduces_to_plain_at_init(self) -> bool:
        """Returns whether the sum starts without additions, to a float32 rounding."""
        is_nothing = self.use_null and self.null_bias >= 20
        return self.routing == "add" and (self.gate == "alpha" or is_nothing)

    @property
    def _plan(self) -> Plan:
        starts, layers = self.starts, tuple(self.layer_of_site)
        return plan(
            starts, layers, self.block, self.block_layers, self.routing == "add"
        )

    def is_idle(self, parameter: str, site: int) -> bool:
        """Returns whether a parameter is idle at a site, like a query of one source."""
        visible = self._plan.visible[site]
        if self.window:
            visible = min(visible, self.window + 1)
        has_extra = self.routing == "replace" and not self._plan.is_first[site]
        sources = visible + has_extra + self.use_null
        if parameter == "read/null":
            return False
        return sources < (1 if parameter.startswith("gated/") else 2)

    @property
    def _keeps(self) -> tuple[str, ...]:
        """Names the arrays carried beside the sources: the sum s, a block's sum."""
        keeps_sum = self.routing == "add" or self.source == "cumulative"
        keeps_part = self._plan.is_in_blocks and self.source == "delta"
        return ("sum",) * keeps_sum + ("part",) * keeps_part

    def setup(self):
        """Makes the reader, whose parameters come when it is first called."""
        self.read = DepthAttention(
            self.epsilon,
            self.use_null,
            self.null_bias,
            self.param_dtype,
        )
        if self.gate:
            self.gated = Gate(self.gate, self.param_dtype)

    def widen(self, x: jax.Array) -> History:
        """The embedding is the first source, and the sum so far."""
        start = {"sum": x, "part": jnp.zeros_like(x)}
        return History.start(
            x, self._plan.rows, **{key: start[key] for key in self._keeps}
        )

    def read_ahead(
        self,
        stream: History,
        others: Sequence["AttentionResiduals"],
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
        if not self._plan.reads_together or not self._reads_through(
            stream, 1 + len(others)
        ):
            return stream
        return self._with_readings(stream, (self, *others), site)

    def __call__(
        self, stream: History, branch: Branch, *, site: int | jax.Array
    ) -> History:
        """Reads the sources, applies `branch`, and writes what it returns."""
        block = sites.at(self._plan.block_of_site, site)
        is_first = sites.at(self._plan.is_first, site)
        carried = stream.carried
        reading, weights, stream = self._read(stream, site)
        if weights is not None:
            self._tap(weights, stream.rows, block)
        if self.routing == "add":
            if self.gate:
                reading = self.gated(reading, carried["sum"])
            reading = carried["sum"].astype(reading.dtype) + reading
        y = branch(computed_once(reading.astype(stream.dtype)))
        new = {}
        if "sum" in carried:
            new["sum"] = computed_once(carried["sum"] + y)
        if "part" in carried:
            part = computed_once(carried["part"] + y)
            new["part"] = jnp.where(is_first, y, part)
        source = y
        if self.source == "cumulative":
            source = new["sum"]
        elif self.is_as_released:
            source = new["sum"] - stream.row(block)
        elif "part" in new:
            source = new["part"]
        is_in_place = weights is None
        stream = stream.write(source, block + 1, is_in_place=is_in_place).carry(**new)
        return self._merged_ahead(stream, source, site)

    def narrow(self, stream: History) -> jax.Array:
        """The sum so far, or one more reading."""
        if self.routing == "add":
            return stream.carried["sum"]
        reading, *_ = self._read(stream, None)
        return reading.astype(stream.dtype)

    def _read(self, stream, site):
        """Returns a site's reading, its weights if known, and the history."""
        extra, has_extra = None, site is not None
        if has_extra and self.routing == "replace" and self._plan.is_in_blocks:
            extra = stream.carried["part" if self.source == "delta" else "sum"]
            has_extra = ~jnp.asarray(sites.at(self._plan.is_first, site))
        if not stream.ahead and self._reads_through(stream, 1):
            stream = self._with_readings(stream, (self,), site)
        if stream.ahead:
            (reading, logsumexp, query), *ahead = stream.ahead
            if extra is not None:
                reading, _ = _merged(
                    reading, logsumexp, extra, query, self.epsilon, has_extra
                )
            wide = reading.astype(query.dtype)
            return wide, None, dataclasses.replace(stream, ahead=tuple(ahead))
        visible = (
            self._plan.rows if site is None else sites.at(self._plan.visible, site)
        )
        sources = stream.before(visible)
        is_valid = sources.is_valid
        if self.window:
            is_recent = sources.index >= visible - self.window
            is_valid &= is_recent | (sources.index == 0)
        reading, weights = self.read(sources, is_valid, extra, has_extra)
        if self.entropy_bonus:
            self._reward(weights)
        return reading, weights, stream

    def _reward(self, weights):
        """Takes a share of the entropy of one reading's weights off the loss."""
        readings = self.starts[-1] + (self.routing == "replace")
        # What is not read has no entropy, and no gradient.
        entropy = jax.scipy.special.entr(jnp.where(weights > 0, weights, 1.0))
        mean = jnp.mean(jnp.sum(entropy, axis=0))
        add_loss(self, "entropy", -self.entropy_bonus / readings * mean)

    def _reads_through(self, stream: History, readers: int) -> bool:
        """Returns whether readings are one operation whose weights are not watched."""
        is_plain = not (self.window or self.use_null or self.entropy_bonus)
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
        if site is None:  # Nobody reads later.
            readings, logsumexp = depth_read(*arguments, **keywords)
        else:
            limit = jnp.maximum(sites.at(self._plan.visible, site), 1)
            *found, values = depth_read_through(*arguments, limit=limit, **keywords)
            readings, logsumexp = found
        ahead = []
        for index, query in enumerate(queries):
            reading, total = readings[index], logsumexp[index]
            if site is not None and 0 in self._plan.visible:
                sees = jnp.asarray(sites.at(self._plan.visible, site + index)) > 0
                # Without sources the reading is zero.
                reading, total = (
                    jnp.where(sees, reading, 0),
                    jnp.where(sees, total, -1e30),
                )
            ahead.append((reading, total, query))
        return dataclasses.replace(stream, sources=values, ahead=tuple(ahead))

    def _merged_ahead(self, stream, source, site):
        """The history with what this site wrote in the readings that are to see it."""
        sees, starts, ahead = self._plan.sees, self.starts, []
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

    def _tap(self, weights, rows, block):
        """Shows the mean weight of every row (rows,), unfinished ones among them."""
        means = jnp.mean(weights, axis=(1, 2))
        padded = jnp.zeros(rows, means.dtype)
        if not self._plan.is_in_blocks or self.routing == "add":
            shown = padded.at[: min(rows, means.shape[0])].set(means[:rows])
        else:
            shown = padded.at[:rows].set(means[:rows])
            shown = shown.at[block + 1].add(means[rows])
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


build = AttentionResiduals
