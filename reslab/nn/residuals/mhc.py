"""Manifold-constrained hyper-connections, by Sinkhorn's iteration (Xie et al.)."""

import functools

import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, Repeats, bounded
from reslab.nn.residuals._manifold import ManifoldConnections


@bounded
class ManifoldHyperConnections(ManifoldConnections):
    """Hyper-connections whose streams are mixed by rows and columns that sum to one.

        v     = H / sqrt(mean of H**2 over all streams and features + epsilon)
        a[i]  = a_scale * (v . a_projection)[i] + a[i]    for a in read, write, mix
        h0    = sum_s sigmoid(read[s]) H[s]
        H'[t] = sum_s sinkhorn(mix)[t, s] H[s] + 2 sigmoid(write[t]) f(h0)

    Sinkhorn's iteration starts from exp(mix) and divides by the sums of its columns,
    then by those of its rows, `iterations` times: rows sum to one up to rounding,
    columns nearly. So the streams stay as large through any number of layers as they
    were. Its weights depend on the token and are float32; the backward pass computes
    them again.

    `mix` starts at 0 on the diagonal and -8 beside it, nearly the identity; `read`
    and `write` at 1 for stream site mod n and -1 for the others. The paper does not
    say; this is the choice of Yang & Gao, 2026, https://arxiv.org/abs/2601.05732.
    Streams start as copies of the embedding and are summed at the end.

    Reference: Xie et al., 2025, https://arxiv.org/abs/2512.24880, Eq. 7-9. No code
    of these authors is public: tested against a transcription of their equations;
    initial values and `sinkhorn` also against the code of Yang & Gao, which divides
    rows before columns. With `weight_epsilon=1e-6` and `collapse="weighted"` it is
    tested against the code of DeepSeek-V4 in transformers; GLM-5's code has
    `collapse="mean"` instead. Both store `mix` transposed.

    Attributes:
      iterations: Number of iterations.
      weight_epsilon: Added to the weights of readings, to the entries of `mix` after
        the first division, and to all sums that divide after it.
      (and those of `ManifoldConnections`)

    Raises:
      ReslabError: If `streams` or `iterations` is below 1.
    """

    iterations: Repeats = 20
    weight_epsilon: Epsilon = 0.0

    def first_mix(self, dtype) -> jax.Array:
        """Nearly the identity."""
        return (8 * (jnp.eye(self.streams, dtype=dtype) - 1)).reshape(-1)

    def mixture(self, logits: jax.Array) -> jax.Array:
        """Sinkhorn's iteration on exp(logits)."""
        square = logits.reshape(self.streams, self.streams, *logits.shape[1:])
        scale = functools.partial(
            sinkhorn, iterations=self.iterations, epsilon=self.weight_epsilon
        )
        return jax.checkpoint(scale)(square)

    def reading(self, logits: jax.Array) -> jax.Array:
        """Logits (streams, ...) to the weights of a reading."""
        return super().reading(logits) + self.weight_epsilon


def sinkhorn(logits: jax.Array, iterations: int, epsilon: float = 0.0) -> jax.Array:
    """Scales exp(logits) until rows and columns sum to one, nearly.

    Args:
      logits: Matrices (rows, columns, ...).
      iterations: How often columns, then rows, are divided by their sums.
      epsilon: Added to the entries after the first division, and to every later sum.

    Returns:
      Matrices of that shape; rows sum to one up to rounding.

    >>> m = sinkhorn(jnp.asarray([[0.0, 1.0], [3.0, -1.0]]), 50)
    >>> [round(float(total), 4) for total in (*m.sum(0), *m.sum(1))]
    [1.0, 1.0, 1.0, 1.0]
    """

    def once(logits, _):
        for axis in (0, 1):
            logits = logits - jax.nn.logsumexp(logits, axis=axis, keepdims=True)
        return logits, None

    if not epsilon:
        return jnp.exp(jax.lax.scan(once, logits, None, length=iterations)[0])

    def divided(matrix, axis):
        return matrix / (jnp.sum(matrix, axis=axis, keepdims=True) + epsilon)

    def once_more(matrix, _):
        return divided(divided(matrix, 0), 1), None

    start = divided(jax.nn.softmax(logits, axis=0) + epsilon, 1)
    return jax.lax.scan(once_more, start, None, length=iterations - 1)[0]


build = ManifoldHyperConnections
