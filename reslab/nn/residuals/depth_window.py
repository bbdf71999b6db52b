"""Attention over the latest states of a token along depth, with its own projections."""

import math
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, Count, Epsilon, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.platform import computed_once
from reslab.core.precision import statistics_dtype
from reslab.core.taps import tap
from reslab.core.types import Branch
from reslab.nn.base.history import History, Sources
from reslab.nn.residuals._history import HistoryResidual


@bounded
class DepthWindow(HistoryResidual):
    """Precedes every sublayer by sliding-window attention along depth.

        z_l = sum_i a_i (n_i . W_V) . W_O,    a = softmax_i(n_l . W_Q . (n_i . W_K) / c)
        x   = x_l + z_l,    x_(l+1) = x + f(x)

    over the last `window` states x_i of the same token, the own one x_l included, with
    n = gain * x / rms(x) and c = sqrt(head_dim). The states are what earlier sublayers
    were given. W_O is zero at first, so a new model computes what a plain residual
    does. Depth takes the place of the sequence in ordinary causal attention with a
    short window; for such attention along the sequence see block `short_window`.

    A key is never computed: the query is mapped back through W_K, and values are mixed
    before W_V, so a site costs four products of its own token however many states it
    reads. Float32 but for the stream, which keeps its dtype.

    Reference: Zhang, 2026, https://arxiv.org/abs/2603.16039, depth-wise sliding-window
    attention, in the pre-norm form that it gives short windows. A note without code or
    experiments: tested against its equations, and against `reslab.ops.attention` on
    states whose depth is laid along the sequence.

    Attributes:
      window: Number of latest states; 0 is all.
      heads: Number of heads.
      head_dim: Size of a head; 0 is features / heads.
      epsilon: Added to mean squares before the root.
      (and those of `HistoryResidual`)

    Raises:
      ReslabError: If heads do not divide the width.
    """

    window: Annotated[int, Bounds(least=0, words="at least 1, or 0 for all")] = 4
    heads: Count = 1
    head_dim: Whole = 0
    epsilon: Epsilon = 1e-6

    reduces_to_plain_at_init: ClassVar[bool] = True

    def setup(self):
        """Makes the reader; its parameters come when it is first called."""
        self.read = WindowRead(
            self.window, self.heads, self.head_dim, self.epsilon, self.param_dtype
        )

    def is_idle(self, parameter: str, site: int) -> bool:
        """Returns whether a site has one state to choose from."""
        is_alone = site == 0 or self.window == 1
        return is_alone and parameter in ("read/query", "read/key")

    def widen(self, x: jax.Array) -> History:
        """The embedding is the first state."""
        return History.start(x, self.starts[-1] + 1, stream=x)

    def __call__(
        self, stream: History, branch: Branch, *, site: int | jax.Array
    ) -> History:
        """Reads the latest states, applies `branch`, and writes the next state."""
        x = stream.carried["stream"]
        reading, weights = self.read(stream.before(site + 1), x, site)
        padded = jnp.zeros(stream.rows, weights.dtype)
        tap(self, "depth_weights", padded.at[: len(weights)].set(weights))
        x = computed_once((x.astype(reading.dtype) + reading).astype(x.dtype))
        x = computed_once(x + branch(x))
        return stream.write(x, site + 1).carry(stream=x)

    def narrow(self, stream: History) -> jax.Array:
        """The last state."""
        return stream.carried["stream"]


class WindowRead(nn.Module):
    """Attends from a state to the latest ones of a history.

    Attributes:
      window: Number of latest states; 0 is all.
      heads: Number of heads.
      head_dim: Size of a head; 0 is features / heads.
      epsilon: Added to mean squares before the root.
      param_dtype: Dtype in which parameters are stored.
    """

    window: int
    heads: int = 1
    head_dim: int = 0
    epsilon: float = 1e-6
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, sources: Sources, x: jax.Array, site: int | jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Reads the states up to the own one.

        Args:
          sources: The states, the own one in row `site`.
          x: The own one (batch, length, embed).
          site: The site.

        Returns:
          The reading (batch, length, embed), and the mean weight of every row.

        Raises:
          ReslabError: If heads do not divide the width.
        """
        features, dtype = x.shape[-1], statistics_dtype(x.dtype)
        if not self.head_dim and features % self.heads:
            raise ReslabError(
                "residuals 'depth_window': heads",
                expected=f"a divisor of the width ({features})",
                got=str(self.heads),
                hint="give head_dim, or another number of heads",
            )
        size = self.head_dim or features // self.heads
        # Heads may be fewer than the devices that those of a mixer are spread over.
        inward = (features, self.heads, size), ("embed", None, None)
        query, key, value = (
            self._kernel(name, *inward, features**-0.5, dtype)
            for name in ("query", "key", "value")
        )
        outward = (self.heads, size, features), (None, None, "embed")
        output = self._kernel("output", *outward, 0.0, dtype)
        gain = 1 + self._kernel("gain", (features,), ("embed",), 0.0, dtype)

        is_seen = sources.is_valid
        if self.window:
            is_seen &= sources.index > site - self.window
        scale = jax.lax.rsqrt(sources.mean_squares() + self.epsilon)
        own = x.astype(dtype)
        square = jnp.mean(jnp.square(own), axis=-1, keepdims=True)
        own = own * jax.lax.rsqrt(square + self.epsilon) * gain[None, None]
        # The scores of a head are products of the states with one vector per token.
        asked = jnp.einsum("bld,dhk->blhk", own, query) / math.sqrt(size)
        asked = jnp.einsum("blhk,dhk->hbld", asked, key) * gain[None, None, None]
        lowest = jnp.asarray(-1e30, dtype)
        read, shown = [], jnp.zeros(len(is_seen), dtype)
        for head in range(self.heads):
            scores = sources.dots(asked[head]) * scale
            scores = jnp.where(is_seen[:, None, None], scores, lowest)
            weights = jax.nn.softmax(scores, axis=0)
            shown = shown + jnp.mean(weights, axis=(1, 2)) / self.heads
            mixed = sources.mix(weights * scale) * gain[None, None]
            read.append(jnp.einsum("bld,dk->blk", mixed, value[:, head]))
        return jnp.einsum("hblk,hkd->bld", jnp.stack(read), output), shown

    def _kernel(self, name, shape, axes, deviation, dtype) -> jax.Array:
        init = nn.initializers.normal(deviation)
        if not deviation:
            init = nn.initializers.zeros
        args = (name, init, shape, axes, self.param_dtype)
        return parameter(self, *args).astype(dtype)


build = DepthWindow
