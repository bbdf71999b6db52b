"""DeltaNet: an associative memory that overwrites."""

import jax

from reslab.core.bounds import bounded
from reslab.nn.mixers._delta import DeltaMixer


@bounded
class Delta(DeltaMixer):
    """Reads and writes an associative memory S by the delta rule, without decay.

        S   = S + beta[t] k[t] (v[t] - S^T k[t])^T
        o[t] = S^T q[t] / sqrt(head_dim)
        y   = RMSNorm(o) . W_o

    Queries, keys and values pass a causal convolution of four taps and a silu;
    queries and keys are then scaled to unit length; beta = sigmoid(W_b x). The memory
    and the recurrence are float32, projections `dtype`. The memory is reset where a
    packed document begins. Position encodings are not used.

    Reference: Yang et al., 2024, https://arxiv.org/abs/2406.06484, Eq. 5 and
    Section 4; parametrization as in the authors' flash-linear-attention.

    Attributes:
      use_gate: Whether the normed output is multiplied by silu(W_g x).
      (and those of `DeltaMixer`)

    Raises:
      ReslabError: If heads do not divide the width and head_dim is 0.
    """

    use_gate: bool = False

    def log_decay(self, x: jax.Array) -> None:
        """Nothing decays."""
        del x

    def output_gate(self, x: jax.Array) -> jax.Array | None:
        """The gate of the output before its silu, if there is one."""
        if not self.use_gate:
            return None
        return self.heads_of("gate", x, self.heads, self.sizes(x.shape[-1])[1])


build = Delta
