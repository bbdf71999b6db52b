"""Base of hyper-connections with doubly stochastic mixing."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, bounded
from reslab.core.precision import statistics_dtype
from reslab.core.taps import tap
from reslab.core.types import Branch
from reslab.nn.residuals._streams import SeveralStreams, Streams, pass_through


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

    Attributes:
      epsilon: Added to the mean square before the root.
      (and those of `SeveralStreams`)
    """

    epsilon: Epsilon = 1e-6

    # Reads equal pre-norm's up to rounding, but every stream receives a different
    # share.
    reduces_to_plain_at_init: ClassVar[bool] = False

    def first_mix(self, dtype) -> jax.Array:
        """The logits `mix` at initialization, of one axis."""
        raise NotImplementedError

    def mixture(self, logits: jax.Array) -> jax.Array:
        """Logits (logits, ...) to matrices (streams, streams, ...), H' = M H."""
        raise NotImplementedError

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
        said = self._say(stream, {name: size for name, (_, size, _) in starts.items()})
        logits = {}
        small = nn.initializers.constant(0.01)
        for name, (init, size, axes) in starts.items():
            static = self.wide(stream, name, init, (size,), axes)
            scale = self.wide(stream, f"{name}_scale", small, (), ())
            lead = (1,) * (said[name].ndim - 1)
            logits[name] = scale * said[name] + static.reshape(size, *lead)
        mix = self.mixture(logits["mix"])[..., None]
        read = nn.sigmoid(logits["read"])[..., None]
        write = 2 * nn.sigmoid(logits["write"])[..., None]
        tap(self, "depth_weights", jnp.mean(read.reshape(n, -1), axis=1))
        weights = {"read": read, "mix": mix, "write": write}
        return pass_through(stream, branch, **weights, kernels=self.kernels)

    def _say(self, stream: Streams, sizes: dict[str, int]) -> dict[str, jax.Array]:
        """The normalized streams times each projection, (size, ...) each."""
        n, features = self.streams, stream[0].shape[-1]
        dtype = statistics_dtype(stream[0].dtype)
        kernel = jnp.concatenate(
            [
                self.wide(
                    stream,
                    f"{name}_projection",
                    nn.initializers.zeros,
                    (n, features, size),
                    ("streams", "embed", None),
                )
                for name, size in sizes.items()
            ],
            axis=-1,
        )
        products, squares = [], []
        for h, rows in zip(stream, kernel, strict=True):
            products.append(
                jnp.matmul(h, rows.astype(h.dtype), preferred_element_type=dtype)
            )
            squares.append(jnp.mean(jnp.square(h.astype(dtype)), axis=-1))
        # The norm of all streams divides the sum over them.
        factor = jax.lax.rsqrt(sum(squares[1:], squares[0]) / n + self.epsilon)
        total = sum(products[1:], products[0]) * factor[..., None]
        # Few weights per token: the following operations are elementwise.
        total = jnp.moveaxis(total, -1, 0)
        cuts = [sum(list(sizes.values())[: i + 1]) for i in range(len(sizes) - 1)]
        return dict(zip(sizes, jnp.split(total, cuts), strict=True))
