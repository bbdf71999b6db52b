"""Delta attention residuals: attention over earlier outputs, added to the sum."""

from typing import ClassVar, Literal

import jax

from reslab.core.bounds import bounded
from reslab.core.errors import ReslabError
from reslab.core.types import Branch
from reslab.nn.base import sites
from reslab.nn.base.history import History
from reslab.nn.residuals._attention_history import AttentionHistory
from reslab.nn.residuals._gate import Gate


@bounded
class DeltaAttentionResiduals(AttentionHistory):
    """Adds attention over earlier outputs to what a sublayer reads from the sum.

        h_l = s_l + gate * sum_i a_i v_i,    a = softmax_i(w_l . (g_l * v_i / rms(v_i)))
        y_l = f_l(h_l),    s_(l+1) = s_l + y_l,    v = embedding, y_0, ..., y_(l-1)

    Each sublayer has a query w, zero at first, and gains g, one at first; the first
    sublayer reads nothing but s, and the features at the end are s. In blocks, each of
    their sums is one source. The unfinished block is in s already, and a block counts
    as finished for the second sublayer of the next.

    Reference: 2026, https://arxiv.org/abs/2605.18855. Checked against the authors'
    code: Delta and Delta in blocks, with and without `use_null`. That code starts its
    queries at random (the paper says zero), and appends `s` less the last source where
    the paper says the sum of a block (`is_as_released`). Not checked: cumulative
    sources, gates, windows, the bonus. With `use_value_read` (its modes "*_v"), tested
    against equations read in that code, the null source of the values is their own;
    there the two readings share it, without blocks the embedding is no source
    (`is_as_released`), and in blocks the attention ignores the second reading.

    Attributes:
      gate: "" is 1, "scalar" sigmoid(g) from sigmoid(-2), "vector" sigmoid(W s + b)
        of the same start, "alpha" a factor that is 0 at first.
      is_as_released: Whether the sources in blocks, or those without blocks beside
        `use_value_read`, are as in the released code.
      (and those of `AttentionHistory`)

    Raises:
      ReslabError: If an option is unknown, or a block is larger than the model.
    """

    gate: Literal["", "scalar", "vector", "alpha"] = ""
    is_as_released: bool = False

    adds_reads: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        differs = self.tables.is_in_blocks or self.use_value_read
        if self.is_as_released and not (differs and self.source == "delta"):
            what = "residuals 'delta_attnres': is_as_released"
            raise ReslabError(what, expected="source='delta' and blocks")

    @property
    def leaves_embedding_out(self) -> bool:
        """Returns whether the embedding is in the sum alone, and no source."""
        return self.is_as_released and not self.tables.is_in_blocks

    @property
    def reduces_to_plain_at_init(self) -> bool:
        """Returns whether the sum starts without additions, to a float32 rounding."""
        is_nothing = self.use_null and self.null_bias >= 20
        return self.gate == "alpha" or is_nothing

    def setup(self):
        """Makes the reader and the gate; parameters come when they are called."""
        super().setup()
        if self.gate:
            self.gated = Gate(self.gate, self.param_dtype)

    def __call__(
        self, stream: History, branch: Branch, *, site: int | jax.Array
    ) -> History:
        """Adds a reading to the sum, applies `branch`, and writes what it returns."""
        s = stream.carried["sum"]
        values = self.attend_for_values(stream, site)
        reading, stream, is_in_place = self.attend(stream, site)
        h = self._added(s, reading)
        if values is not None:
            values = self._added(s, values)
        y = branch(self.inputs(stream, h, values))
        sums = self.sums(stream, y, site)
        source = y
        if self.source == "cumulative":
            source = sums["sum"]
        elif self.is_as_released and self.tables.is_in_blocks:
            block = sites.at(self.tables.block_of_site, site)
            source = sums["sum"] - stream.row(block)
        elif self.tables.is_in_blocks:
            source = sums["part"]
        return self.append(stream, source, sums, site, is_in_place)

    def _added(self, s: jax.Array, reading: jax.Array) -> jax.Array:
        """The sum and a reading of its sources, through the gate."""
        if self.gate:
            reading = self.gated(reading, s)
        return s.astype(reading.dtype) + reading

    def narrow(self, stream: History) -> jax.Array:
        """The sum so far."""
        return stream.carried["sum"]


build = DeltaAttentionResiduals
