"""Hyper-connections: several residual streams, mixed at every sublayer."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.taps import tap
from reslab.core.types import Branch
from reslab.nn.base.norm import make_norm
from reslab.nn.residuals._streams import SeveralStreams, Streams, pass_through


class HyperConnections(SeveralStreams):
    """Keeps n streams; each sublayer reads a mixture and writes to all of them.

        h0     = sum_s mix[s, 0] * H[s]
        H'[t]  = sum_s mix[s, 1 + t] * H[s] + write[t] * f(h0)

    The streams start as n copies of the embedding and are summed at the end.
    `mix` starts as [e_(k mod n) | I], with k the site, and `write` as ones: all
    streams are then equal at initialization and their sum is n times the
    pre-norm stream, which a final norm cannot tell from it. Mixing is done in
    float32 and stored in the stream's dtype.

    The dynamic form adds to these weights what each token's streams say, zero at
    initialization:

        mix[s]   += mix_scale * tanh(norm(H[s]) . mix_projection)
        write[s] += write_scale * tanh(norm(H[s]) . write_projection)

    with both scales 0.01 at first and `norm` a layer normalization that adds 1e-5.

    The paper also multiplies the initial standard deviation of the output
    projections by sqrt(n) (as reported by later readers of its code); that is
    not done here, so that the model equals `plain` at initialization.

    Reference: Zhu et al., 2024, https://arxiv.org/abs/2409.19606, Eq. 1-13 and
    Algorithm 2. Both forms, with and without tanh, are tested against a third
    party's code, which matches that algorithm.

    Attributes:
      streams: Number of streams n.
      is_dynamic: Whether the weights depend on the token.
      use_tanh: Whether what depends on the token is bounded by tanh.
      param_dtype: Dtype in which `mix` (the paper's A), `write` (B) and the
        projections (W) are stored.

    Raises:
      ReslabError: If `streams` is below 1.
    """

    is_dynamic: bool = False
    use_tanh: bool = True

    reduces_to_plain_at_init: ClassVar[bool] = True

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

        mix = self.wide(stream, "mix", init_mix, (n, n + 1), ("streams", None))
        write = self.wide(stream, "write", nn.initializers.ones, (n,), ("streams",))
        # For each stream: its weight in the reading, its weights in the new streams,
        # and its weight of the output.
        weights = [[*mix[s], write[s]] for s in range(n)]
        if self.is_dynamic:
            weights = [
                [static + of_token for static, of_token in zip(*both, strict=True)]
                for both in zip(weights, self._of_tokens(stream), strict=True)
            ]
        read, *mix, write = zip(*weights, strict=True)
        tap(self, "depth_weights", jnp.stack([jnp.mean(weight) for weight in read]))
        weights = {"read": read, "mix": mix, "write": write}
        return pass_through(stream, branch, **weights, kernels=self.kernels)

    def _of_tokens(self, stream: Streams) -> list[list[jax.Array]]:
        """Returns each token's addition to the weights of streams, (..., 1) each."""
        n, features = self.streams, stream[0].shape[-1]
        small, zeros = nn.initializers.constant(0.01), nn.initializers.zeros
        norm = make_norm(
            "layer(epsilon=1e-05)", param_dtype=self.param_dtype, name="norm"
        )
        projections, scales = [], []
        for name, size in (("mix", n + 1), ("write", 1)):
            shape, axes = (features, size), ("embed", None)
            projections.append(
                self.wide(stream, f"{name}_projection", zeros, shape, axes)
            )
            scale = self.wide(stream, f"{name}_scale", small, (), ())
            scales += [scale] * size
        kernel = jnp.concatenate(projections, axis=1)
        added = []
        for h in stream:
            said = jnp.matmul(
                norm(h), kernel.astype(h.dtype), preferred_element_type=kernel.dtype
            )
            said = jnp.tanh(said) if self.use_tanh else said
            columns = jnp.split(said, n + 2, axis=-1)
            added.append([s * c for s, c in zip(scales, columns, strict=True)])
        return added


build = HyperConnections
