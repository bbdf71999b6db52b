"""RG-LRU: a gated linear recurrence with a decay per channel and token."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from reslab.core.bounds import Count, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.nn.mixers._recurrent import RecurrentMixer, Tokens
from reslab.ops.diagonal_scan.api import linear_recurrence

# Factor of an open gate on the logarithm of the decay.
_SHARPNESS = 8.0


@bounded
class RecurrentGatedUnit(RecurrentMixer):
    """Passes every channel through a leaky sum whose leak the token chooses.

        u    = convolution(W_v x)
        log a = -8 sigmoid(W_r u + b_r) softplus(rate)
        h[t] = a h[t-1] + sqrt(1 - a^2) (sigmoid(W_i u + b_i) * u)
        y    = (h * gelu(W_g x)) . W_o

    The gates W_r and W_i are block diagonal, a block for each head. The first token of
    a document enters whole. The state and the recurrence are float32, projections
    `dtype`. At initialization exp(-2 softplus(rate)) is uniform in (0.81, 0.998).
    Position encodings are not used, but position 0 begins a document.

    Reference: De et al., 2024, https://arxiv.org/abs/2402.19427, Section 2.4; Botev et
    al., 2024, https://arxiv.org/abs/2404.07839.

    Attributes:
      heads: Number of blocks of the gates.
      width: Number of channels; 0 is the width of the input.
      taps: Taps of the convolution.
      use_bias: Whether the three projections have biases.
      chunk: Tokens that training and prefill take together; 0 leaves it to the
        operation.
      (and those of `RecurrentMixer`)

    Raises:
      ReslabError: If heads do not divide the channels.
    """

    heads: Count = 4
    width: Whole = 0
    taps: Count = 4
    use_bias: bool = False
    chunk: Whole = 0

    def channels(self, features: int) -> int:
        """Number of channels at a given width.

        Raises:
          ReslabError: If heads do not divide it.
        """
        width = self.width or features
        if width % self.heads:
            raise ReslabError(
                "mixers 'rg_lru': heads",
                expected=f"a divisor of the channels ({width})",
                got=str(self.heads),
            )
        return width

    def empty_state(self, batch: int, features: int) -> dict[str, jax.Array]:
        """A zero state and an empty convolution."""
        width = self.channels(features)
        return {
            "memory": jnp.zeros((batch, width), statistics_dtype(self.dtype)),
            "value": jnp.zeros((batch, self.taps - 1, width), self.dtype),
        }

    def step_flops(self, features: int) -> int:
        """No product beyond the kernels'."""
        del features
        return 0

    def mix(
        self, x: jax.Array, tokens: Tokens, state: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Mixes `x`; see `RecurrentMixer.mix`."""
        width, wide, new = self.channels(x.shape[-1]), statistics_dtype(self.dtype), {}

        def wide_of(name):
            axes = ("embed", "mlp")
            return self.project(name, x, width, axes, use_bias=self.use_bias)

        convolution = self.convolution(
            "value_convolution",
            ("mlp",),
            width=self.taps,
            use_bias=True,
            is_activated=False,
        )
        tail = None if state is None else state["value"]
        u, new["value"] = convolution(wide_of("value"), tokens.segments, tail)
        u = u.astype(wide)
        rate = self.weight("rate", _init_rate, (width,), ("mlp",))
        gate = self._gate("recurrent_gate", u)
        log_decay = -_SHARPNESS * gate * nn.softplus(rate)[None, None]
        is_first = jnp.arange(x.shape[1])[None] == 0
        if tokens.positions is not None:
            is_first = tokens.positions == 0
        elif state is not None:
            is_first = is_first & False
        if tokens.resets is not None:
            is_first = is_first | tokens.resets
        share = _root(-jnp.expm1(2 * log_decay))
        share = jnp.where(is_first[..., None], 1, share)
        write = share * self._gate("input_gate", u) * u
        log_decay, write = tokens.without_padding(log_decay, write)
        h, new["memory"] = linear_recurrence(
            log_decay,
            write,
            state=None if state is None else state["memory"],
            resets=tokens.resets,
            chunk=self.chunk,
        )
        y = (h * nn.gelu(wide_of("gate").astype(wide))).astype(self.dtype)
        y = self.project(
            "output",
            y,
            x.shape[-1],
            ("mlp", "embed"),
            use_bias=self.use_bias,
            scale=self.output_scale,
        )
        return y, new

    def _gate(self, name, u):
        size = u.shape[-1] // self.heads
        init, axes = nn.initializers.normal(size**-0.5), ("heads", "inner", "head_dim")
        kernel = self.weight(f"{name}_kernel", init, (self.heads, size, size), axes)
        zeros, shape = nn.initializers.zeros, (self.heads, size)
        bias = self.weight(f"{name}_bias", zeros, shape, ("heads", "head_dim"))
        split = u.reshape(*u.shape[:2], self.heads, size).astype(self.dtype)
        h = jnp.einsum("bthi,hij->bthj", split, kernel.astype(self.dtype))
        return nn.sigmoid(h.astype(bias.dtype) + bias[None, None]).reshape(u.shape)


@jax.custom_jvp
def _root(x):
    """The square root, with a slope of at most 1,000."""
    return jnp.sqrt(x)


@_root.defjvp
def _root_slope(primals, tangents):
    (x,), (slope,) = primals, tangents
    return _root(x), slope * jax.lax.rsqrt(jnp.maximum(4 * x, 1e-6))


def _init_rate(key, shape, dtype):
    square = jax.random.uniform(key, shape, dtype, 0.9**2, 0.999**2)
    return jnp.log(jnp.expm1(-0.5 * jnp.log(square)))  # The inverse of softplus.


build = RecurrentGatedUnit
