"""Attention residuals: every sublayer attends to what earlier ones wrote."""

from typing import ClassVar

import jax

from reslab.core.bounds import bounded
from reslab.core.types import Branch
from reslab.nn.base.history import History
from reslab.nn.residuals._attention_history import AttentionHistory

# Readings that are added to the sum are a separate variant.
RENAMED = {"routing": {"replace": "attnres", "add": "delta_attnres"}}


@bounded
class AttentionResiduals(AttentionHistory):
    """Replaces the residual sum by attention over what it sums.

        h_l = sum_i a_i v_i,    a = softmax_i(w_l . (g_l * v_i / rms(v_i)))
        y_l = f_l(h_l),         v = embedding, y_0, ..., y_(l-1)

    Each sublayer has a query w, zero at first, and gains g, one at first. The features
    at the end are one more reading. In blocks, each of their sums is one source, and
    inside a block its unfinished sum is read too. With `source="cumulative"` the
    sources are the sums s_l = s_(l-1) + y_(l-1) instead, from the embedding on.

    Reference: Kimi Team, 2026, https://arxiv.org/abs/2603.15031, Eq. 2-4 and the
    two-phase form. Checked against the code of Delta Attention Residuals, which has
    Full and Block, with zero queries (that code draws them at random), and, as
    `attnres(block_layers=12, epsilon=1e-5)`, against the order of readings in the
    released Kimi K3. Not checked: cumulative sources, windows, the bonus; readings for
    values are tested against their equations.

    Attributes:
      (those of `AttentionHistory`)

    Raises:
      ReslabError: If an option is unknown, or a block is larger than the model.
    """

    reduces_to_plain_at_init: ClassVar[bool] = False

    def __call__(
        self, stream: History, branch: Branch, *, site: int | jax.Array
    ) -> History:
        """Reads the sources, applies `branch`, and writes what it returns."""
        unfinished = None
        if self.tables.is_in_blocks:
            unfinished = stream.carried["part" if self.source == "delta" else "sum"]
        values = self.attend_for_values(stream, site, unfinished)
        h, stream, is_in_place = self.attend(stream, site, unfinished)
        y = branch(self.inputs(stream, h, values))
        sums = self.sums(stream, y, site)
        source = y
        if self.source == "cumulative":
            source = sums["sum"]
        elif self.tables.is_in_blocks:
            source = sums["part"]
        return self.append(stream, source, sums, site, is_in_place)

    def narrow(self, stream: History) -> jax.Array:
        """One more reading."""
        reading, *_ = self.attend(stream, None)
        return reading.astype(stream.dtype)


build = AttentionResiduals
