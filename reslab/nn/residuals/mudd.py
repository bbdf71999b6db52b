"""MUDD: dense connections whose weights depend on the token, one set for each use."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, bounded
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.taps import tap
from reslab.core.types import Inputs
from reslab.nn.base.history import History
from reslab.nn.residuals._history import Kernel, LayerHistory, mixtures


@bounded
class MultiwayDense(LayerHistory):
    """Mixes all earlier layers for query, key, value and residual, token by token.

        A = W_2 gelu(W_1 rms(X_l)) + S         (ways x sources, for every token)
        x_c = sum_(i <= l) A[c, i] X_i,        c in query, key, value, residual
        X_(l+1) = layer(x_q, x_k, x_v; x_r)

    X_0 is the embedding, X_l the output of the latest layer, which the weights come
    from. The mixer reads the first three and adds to the last, inside a layer the
    stream is the usual sum, and the features at the end are one mixture more, from a
    network four times as wide. W_2 is zero and S is 1 for the latest layer at first,
    0 for all others: the usual stack. Weights are not normalized.

    The network of layer l has `ways * (l + 1)` hidden units in the paper. Layers that
    are scanned have parameters of one shape, so all have those of the end; units and
    sources beyond a layer's own are never used, and never receive a gradient.

    Reference: Xiao et al., 2025, https://arxiv.org/abs/2502.12170. Checked against the
    authors' code but for their variant with norms before and after the mixing, the
    widths of their feed-forward layers (growing with depth), and their norms of
    queries, keys and values, which are three; here one norm does all.

    Attributes:
      epsilon: Added to mean squares before the root.
      (and those of `LayerHistory`)
    """

    epsilon: Epsilon = 1e-6

    reduces_to_plain_at_init: ClassVar[bool] = True
    reads_apart: ClassVar[bool] = True

    def setup(self):
        """Makes the mixing network, whose parameters come when it is first called."""
        rows, is_mixer = len(self.starts), self.sublayer == "mixer"
        ways = 4 if is_mixer else 1
        self.mix = DynamicMix(rows, ways, self.epsilon, self.param_dtype, self.kernels)

    def begin(
        self, stream: History, layer: int | jax.Array
    ) -> tuple[Any, jax.Array, History]:
        """Returns the mixer's input, the start of the layer's sum, and the history."""
        (*others, last), stream = self.mix(stream, layer)
        return Inputs(*others) if others else last, last, stream

    def narrow(self, stream: History) -> jax.Array:
        """One mixture more."""
        (mixed,), _ = self.mix(stream, len(self.starts) - 1)
        return mixed


class DynamicMix(nn.Module):
    """Several mixtures of a history, by weights that its latest source gives.

    Attributes:
      rows: Number of sources that there will be.
      ways: Number of mixtures.
      epsilon: Added to mean squares before the root.
      param_dtype: Dtype in which parameters are stored.
      kernels: As in `HistoryResidual`.
    """

    rows: int
    ways: int
    epsilon: float = 1e-6
    param_dtype: Any = jnp.float32
    kernels: str = "auto"

    @nn.compact
    def __call__(
        self, history: History, layer: int | jax.Array
    ) -> tuple[list[jax.Array], History]:
        """Mixes what is there after `layer` layers; the history for later readers."""
        dtype, rows, ways = statistics_dtype(history.dtype), self.rows, self.ways
        # The latest source. As a carry it is saved once more per layer; read from its
        # row, its gradient would be as large as all rows.
        latest = history.carried["stream"].astype(dtype)
        features = latest.shape[-1]
        # The final mixture has a network four times as wide.
        hidden = 4 * rows

        def one_hot(key, shape, dtype):
            del key
            return jnp.broadcast_to(jax.nn.one_hot(layer, rows, dtype=dtype), shape)

        args = (self.param_dtype,)
        inner = Kernel((features, hidden), features**-0.5, *args, name="inner")()
        args = (*args, (None, None))
        outer = Kernel((hidden, ways * rows), 0.0, *args, name="outer")()
        shape = (ways, rows)
        static = parameter(
            self, "static", one_hot, shape, (None, None), self.param_dtype
        )
        mean_square = jnp.mean(jnp.square(latest), axis=-1, keepdims=True)
        normalized = latest * jax.lax.rsqrt(mean_square + self.epsilon)
        units = jax.nn.gelu(normalized @ inner.astype(dtype), approximate=False)
        width = 4 * (layer + 1)
        is_own = jnp.arange(hidden, dtype=jnp.int32) < width
        units = jnp.where(is_own[None, None], units, 0)
        weights = units @ outer.astype(dtype)
        weights = weights.reshape(*weights.shape[:-1], ways, rows)
        weights = weights + static.astype(dtype)[None, None]
        # Before the first layer the embedding is the only source.
        first = jax.nn.one_hot(0, rows, dtype=dtype)
        first = first[None, None, None]
        weights = jnp.where(jnp.asarray(layer) > 0, weights, first)
        is_valid = jnp.arange(rows, dtype=jnp.int32) <= layer
        weights = jnp.where(is_valid[None, None, None], weights, 0)
        tap(self, "depth_weights", jnp.mean(weights, axis=(0, 1, 2)))
        weights = jnp.moveaxis(weights, (2, 3), (0, 1))
        mixed, history = mixtures(self, history, weights, layer + 1)
        return [one.astype(history.dtype) for one in mixed], history


build = MultiwayDense
