"""Gated DeltaNet: an associative memory that forgets and overwrites."""

import flax.linen as nn
import jax

from reslab.core.bounds import Positive, bounded
from reslab.nn.mixers._delta import DeltaMixer
from reslab.nn.mixers._recurrent import init_log_range


@bounded
class GatedDelta(DeltaMixer):
    """Reads and writes an associative memory S with decay and the delta rule.

        S'  = exp(g[t]) S
        S   = S' + beta[t] k[t] (v[t] - S'^T k[t])^T
        o[t] = S^T q[t] / sqrt(head_dim)
        y   = (RMSNorm(o) * silu(W_g x)) . W_o

    Queries, keys and values pass a causal convolution of four taps and a silu;
    queries and keys are then scaled to unit length; beta = sigmoid(W_b x); the
    decay is g = -exp(log_rate) softplus(W_a x + decay_bias) with exp(log_rate)
    uniform in (0, 16) and softplus(decay_bias) log-uniform in (0.001, 0.1) at
    initialization. The memory and the recurrence are float32, projections
    `dtype`. The memory is reset where a packed document begins. Position
    encodings are not used.

    Reference: Yang, Kautz & Hatamizadeh, 2024, https://arxiv.org/abs/2412.06464,
    Eq. 10; parametrization as in the authors' flash-linear-attention. Qwen3-Next has
    fewer `key_heads` than heads, `is_convolution_combined` and a `value_expansion` of
    1, OLMo-Hybrid `allow_negative_eigenvalues`; tested against layers of both.

    Attributes:
      head_dim: Size of a key; 0 is 3/4 of features / heads.
      value_expansion: Size of a value over the size of a key.
      (and those of `DeltaMixer`)

    Raises:
      ReslabError: If heads do not divide 3/4 of the width and head_dim is 0.
    """

    value_expansion: Positive = 2.0

    _share = (3, 4)

    def log_decay(self, x: jax.Array) -> jax.Array:
        """Log decays of the heads (batch, length, heads)."""
        step = self.scalars_of("decay", x)
        # The smallest rate is above zero, whose logarithm is infinite.
        rate, bias = self.rates(init_log_range(1e-3, 16.0))
        return -rate[None, None] * nn.softplus(step + bias[None, None])

    def output_gate(self, x: jax.Array) -> jax.Array:
        """The gate of the output before its silu."""
        return self.heads_of("gate", x, self.heads, self.sizes(x.shape[-1])[1])


build = GatedDelta
