"""Kimi Delta Attention: an associative memory whose channels forget on their own."""

from typing import Annotated

import flax.linen as nn
import jax

from reslab.core.bounds import Bounds, bounded
from reslab.core.precision import statistics_dtype
from reslab.nn.mixers._delta import DeltaMixer
from reslab.nn.mixers._recurrent import init_log_range

# The range for which the gate was published: exp(16 * 5) is finite in float32, so that
# 16 tokens may be taken about one reference.
_LOWEST = -5


@bounded
class KimiDelta(DeltaMixer):
    """Reads and writes an associative memory S whose key channels decay by themselves.

        S'  = diag(exp(g[t])) S
        S   = S' + beta[t] k[t] (v[t] - S'^T k[t])^T
        o[t] = S^T q[t] / sqrt(head_dim)
        y   = (RMSNorm(o) * sigmoid(W_2 W_1 x)) . W_o

    Queries, keys and values pass a causal convolution of four taps and a silu;
    queries and keys are then scaled to unit length; beta = sigmoid(W_b x). With
    f = W_d W_c x of the rank of a head, the log decays of the channels are

        g = -exp(log_rate) softplus(f + decay_bias)                   softplus gate
        g = lower_bound * sigmoid(exp(log_rate) (f + decay_bias))     bounded gate

    At initialization exp(log_rate) is uniform in (1, 16), or 1 for the bounded gate,
    and softplus(decay_bias) log-uniform in (0.001, 0.1). The memory and the recurrence
    are float32, projections `dtype`. The memory is reset where a packed document
    begins. Position encodings are not used.

    Reference: Kimi Team, 2025, https://arxiv.org/abs/2510.26692, Eq. 1 and 10;
    parametrization as in flash-linear-attention. Tested against layers of Kimi Linear,
    and of GLM-5, which has the bounded gate.

    Attributes:
      lower_bound: Least log decay of the bounded gate, at least -5; 0 is the softplus
        gate.
      is_gate_low_rank: Whether the output gate has the rank of a head, W_2 W_1, or is
        one full matrix, as in Kimi K3.
      use_gate_bias: Whether the output gate has a bias.
      (and those of `DeltaMixer`)

    Raises:
      ReslabError: If heads do not divide the width and head_dim is 0.
    """

    lower_bound: Annotated[float, Bounds(least=_LOWEST, most=0)] = 0.0
    is_gate_low_rank: bool = True
    use_gate_bias: bool = False

    def log_decay(self, x: jax.Array) -> jax.Array:
        """Log decays of the channels (batch, length, heads, key_dim)."""
        key_dim, value_dim = self.sizes(x.shape[-1])
        narrow = self.project("decay_down", x, value_dim, ("embed", "head_dim"))
        raw = self._widened("decay", narrow, key_dim)
        is_bounded = self.lower_bound < 0
        init = nn.initializers.zeros if is_bounded else init_log_range(1.0, 16.0)
        rate, bias = self.rates(init, (key_dim,))
        rate, raw = rate[None, None, :, None], raw.astype(statistics_dtype(self.dtype))
        if is_bounded:
            return self.lower_bound * nn.sigmoid(rate * (raw + bias[None, None]))
        return -rate * nn.softplus(raw + bias[None, None])

    def output_gate(self, x: jax.Array) -> jax.Array:
        """The gate of the output before its sigmoid."""
        _, value_dim = self.sizes(x.shape[-1])
        if not self.is_gate_low_rank:
            return self.heads_of(
                "gate", x, self.heads, value_dim, use_bias=self.use_gate_bias
            )
        narrow = self.project("gate_down", x, value_dim, ("embed", "head_dim"))
        return self._widened("gate", narrow, value_dim, self.use_gate_bias)

    def activate(self, gate: jax.Array) -> jax.Array:
        """Applies the sigmoid of the gate."""
        return nn.sigmoid(gate)

    def _widened(self, name, narrow, size, use_bias=False):
        axes = ("inner", "heads", "head_dim")
        return self.project(name, narrow, (self.heads, size), axes, use_bias=use_bias)


build = KimiDelta
