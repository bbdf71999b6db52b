"""Base of hyper-connections with doubly stochastic mixing."""

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, bounded
from reslab.core.precision import statistics_dtype
from reslab.core.taps import tap
from reslab.core.types import Branch
from reslab.nn.residuals._streams import (
    SeveralStreams,
    Streams,
    pass_through,
    weighted_sum,
)


@bounded
class ManifoldConnections(SeveralStreams):
    """Base of connections whose streams are mixed by a doubly stochastic matrix.

        v     = H / sqrt(mean of H**2 over all streams and features + epsilon)
        a[i]  = a_scale * (v . a_projection)[i] + a[i]    for a in read, write, mix
        H'[t] = sum_s mixture(mix)[t, s] H[s] + 2 sigmoid(write[t]) f(h0)
        h0    = sum_s sigmoid(read[s]) H[s]

    All weights depend on the token, and are computed in float32; the product with
    the projections is taken in the stream's dtype and summed in float32.
    Projections start at zero, scales at 0.01; `read` and `write` at 1 for stream
    site mod n and -1 for the others, as in the code of Yang & Gao, 2026
    (arXiv 2601.05732), since the first paper does not say.

    At the end the streams are summed, or averaged, or read once more: the last weights,

        sigmoid(end_scale * (v . end_projection)[s] + end[s])

    start at one half.

    Attributes:
      epsilon: Added to the mean square before the root.
      collapse: What becomes of the streams at the end: "sum", "mean" or "weighted".
      (and those of `SeveralStreams`)
    """

    epsilon: Epsilon = 1e-6
    collapse: Literal["sum", "mean", "weighted"] = "sum"

    # Reads equal pre-norm's up to rounding, but every stream receives a different
    # share.
    reduces_to_plain_at_init: ClassVar[bool] = False

    def first_mix(self, dtype) -> jax.Array:
        """The logits `mix` at initialization, of one axis."""
        raise NotImplementedError

    def mixture(self, logits: jax.Array) -> jax.Array:
        """Logits (logits, ...) to matrices (streams, streams, ...), H' = M H."""
        raise NotImplementedError

    def reading(self, logits: jax.Array) -> jax.Array:
        """Logits (streams, ...) to the weights of a reading."""
        return nn.sigmoid(logits)

    def writing(self, logits: jax.Array) -> jax.Array:
        """Logits (streams, ...) to the shares of the branch's output."""
        return 2 * nn.sigmoid(logits)

    def setup(self):
        """Makes the last reading, if there is one."""
        if self.collapse == "weighted":
            self.last = LastLogits(self.streams, self.param_dtype, epsilon=self.epsilon)

    def narrow(self, stream: Streams) -> jax.Array:
        """Collapses the streams to features."""
        if self.collapse == "sum":
            return super().narrow(stream)
        dtype = statistics_dtype(stream[0].dtype)
        weights = [jnp.asarray(1 / self.streams, dtype)] * self.streams
        if self.collapse == "weighted":
            weights = self.reading(self.last(stream))[..., None]
        return weighted_sum(weights, stream).astype(stream[0].dtype)

    @nn.compact
    def __call__(
        self, stream: Streams, branch: Branch, *, site: int | jax.Array
    ) -> Streams:
        """Mixes the streams, applies `branch` to the reading, writes to all."""
        n = self.streams

        def init_one(key, shape, dtype):
            del key, shape
            return 2 * jax.nn.one_hot(jnp.asarray(site) % n, n, dtype=dtype) - 1

        def init_mix(key, shape, dtype):
            del key, shape
            return self.first_mix(dtype)

        shape = jax.eval_shape(lambda: self.first_mix(jnp.float32)).shape
        starts = {
            "read": (init_one, n, ("streams",)),
            "write": (init_one, n, ("streams",)),
            "mix": (init_mix, *shape, (None,)),
        }
        logits = token_logits(self, stream, starts, self.epsilon)
        mix = self.mixture(logits["mix"])[..., None]
        read = self.reading(logits["read"])[..., None]
        write = self.writing(logits["write"])[..., None]
        tap(self, "depth_weights", jnp.mean(read.reshape(n, -1), axis=1))
        weights = {"read": read, "mix": mix, "write": write}
        return pass_through(stream, branch, **weights, kernels=self.kernels)


class LastLogits(SeveralStreams):
    """Logits of the weights with which streams are read at the end, zero at first.

    Attributes:
      epsilon: Added to the mean square before the root.
      (and those of `SeveralStreams`)
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, stream: Streams) -> jax.Array:
        """Returns the logits (streams, ...)."""
        start = nn.initializers.zeros, self.streams, ("streams",)
        return token_logits(self, stream, {"end": start}, self.epsilon)["end"]


def token_logits(
    module: SeveralStreams,
    stream: Streams,
    starts: Mapping[str, tuple[Any, int, tuple[str | None, ...]]],
    epsilon: float,
) -> dict[str, jax.Array]:
    """Logits of each token: what its normalized streams say, scaled, plus constants.

    Args:
      module: Makes the parameters.
      stream: The streams.
      starts: By name: initializer of the constants, their number, their axes.
      epsilon: Added to the mean square of all streams before the root.

    Returns:
      By name, logits (number, ...).
    """
    n, features = module.streams, stream[0].shape[-1]
    dtype = statistics_dtype(stream[0].dtype)
    sizes = [size for _, size, _ in starts.values()]
    zeros, small = nn.initializers.zeros, nn.initializers.constant(0.01)
    kernels = [
        module.wide(
            stream,
            f"{name}_projection",
            zeros,
            (n, features, size),
            ("streams", "embed", None),
        )
        for name, (_, size, _) in starts.items()
    ]
    products, squares = [], []
    for h, rows in zip(stream, jnp.concatenate(kernels, axis=-1), strict=True):
        products.append(
            jnp.matmul(h, rows.astype(h.dtype), preferred_element_type=dtype)
        )
        squares.append(jnp.mean(jnp.square(h.astype(dtype)), axis=-1))
    # The norm of all streams divides the sum over them.
    factor = jax.lax.rsqrt(sum(squares[1:], squares[0]) / n + epsilon)
    total = sum(products[1:], products[0]) * factor[..., None]
    # Few weights per token: the following operations are elementwise.
    total = jnp.moveaxis(total, -1, 0)
    cuts = list(itertools.accumulate(sizes))[:-1]
    logits = {}
    for (name, (init, size, axes)), said in zip(
        starts.items(), jnp.split(total, cuts), strict=True
    ):
        static = module.wide(stream, name, init, (size,), axes)
        scale = module.wide(stream, f"{name}_scale", small, (), ())
        logits[name] = scale * said + static.reshape(size, *(1,) * (said.ndim - 1))
    return logits
