"""Static hyper-connections: several residual streams, mixed at every sublayer."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.platform import computed_once
from reslab.core.precision import statistics_dtype
from reslab.core.taps import tap
from reslab.core.types import Branch

# Separate arrays, not one: a stacked axis would be copied at every mixing.
Streams = tuple[jax.Array, ...]


class HyperConnections(nn.Module):
    """Keeps n streams; each sublayer reads a mixture and writes to all of them.

        h0     = sum_s mix[s, 0] * H[s]
        H'[t]  = sum_s mix[s, 1 + t] * H[s] + write[t] * f(h0)

    The streams start as n copies of the embedding and are summed at the end.
    `mix` starts as [e_(k mod n) | I], with k the site, and `write` as ones: all
    streams are then equal at initialization and their sum is n times the
    pre-norm stream, which a final norm cannot tell from it. Mixing is done in
    float32 and stored in the stream's dtype.

    The paper also multiplies the initial standard deviation of the output
    projections by sqrt(n) (as reported by later readers of its code); that is
    not done here, so that the model equals `plain` at initialization.

    Reference: Zhu et al., 2024, https://arxiv.org/abs/2409.19606, Eq. 1-5 and
    Algorithm 2 (static form).

    Attributes:
      streams: Number of streams n.
      param_dtype: Dtype in which `mix` (the paper's A) and `write` (B) are
        stored.

    Raises:
      ReslabError: If `streams` is below 1.
    """

    streams: int = 4
    param_dtype: Any = jnp.float32

    reduces_to_plain_at_init: ClassVar[bool] = True

    def __post_init__(self):
        if self.streams < 1:
            raise ReslabError(
                "residuals 'hyper': streams",
                expected="at least 1",
                got=str(self.streams),
            )
        super().__post_init__()

    def widen(self, x: jax.Array) -> Streams:
        """Copies the embeddings to every stream."""
        return (x,) * self.streams

    @nn.compact
    def __call__(
        self, stream: Streams, branch: Branch, *, site: int | jax.Array
    ) -> Streams:
        """Mixes the streams, applies `branch` to the reading, writes to all."""
        n = self.streams

        def init_mix(key, shape, dtype):
            del key, shape
            read = jax.nn.one_hot(jnp.asarray(site) % n, n, dtype=dtype)
            return jnp.concatenate([read[:, None], jnp.eye(n, dtype=dtype)], axis=1)

        mix = parameter(
            self, "mix", init_mix, (n, n + 1), ("streams", None), self.param_dtype
        )
        write = parameter(
            self, "write", nn.initializers.ones, (n,), ("streams",), self.param_dtype
        )
        dtype = statistics_dtype(stream[0].dtype)
        mix, write = mix.astype(dtype), write.astype(dtype)
        tap(self, "depth_weights", mix[:, 0])

        # Sums of scaled streams, not a matrix product: n is far below the width
        # of a matrix unit, and these fuse into one pass over the streams.
        def mixed(column):
            terms = [mix[s, column] * h.astype(dtype) for s, h in enumerate(stream)]
            return functools.reduce(jnp.add, terms)

        reading = computed_once(mixed(0).astype(stream[0].dtype))
        output = computed_once(branch(reading)).astype(dtype)
        return tuple(
            (mixed(1 + t) + write[t] * output).astype(h.dtype)
            for t, h in enumerate(stream)
        )

    def narrow(self, stream: Streams) -> jax.Array:
        """Sums the streams."""
        dtype = statistics_dtype(stream[0].dtype)
        total = functools.reduce(jnp.add, [h.astype(dtype) for h in stream])
        return total.astype(stream[0].dtype)


build = HyperConnections
