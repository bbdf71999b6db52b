"""A short causal convolution between two gates."""

from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, bounded
from reslab.nn.mixers._recurrent import RecurrentMixer, Tokens


@bounded
class GatedShortConvolution(RecurrentMixer):
    """Mixes a few tokens by a gated convolution, channel by channel.

        y = (W_g x * convolution(W_i x * W_v x)) . W_o

    No gate has an activation. The state is the last few inputs of the convolution.
    Taps do not reach across packed documents; position encodings are not used.

    Reference: Liquid AI, 2025, https://arxiv.org/abs/2511.23404 (LFM2), Section 2.

    Attributes:
      taps: Taps of the convolution.
      use_bias: Whether projections and convolution have biases.
      (and those of `RecurrentMixer`)
    """

    taps: Count = 3
    use_bias: bool = False

    def empty_state(self, batch: int, features: int) -> dict[str, jax.Array]:
        """An empty convolution."""
        return {"value": jnp.zeros((batch, self.taps - 1, features), self.dtype)}

    def step_flops(self, features: int) -> int:
        """No product beyond the kernels'."""
        del features
        return 0

    def mix(
        self, x: jax.Array, tokens: Tokens, state: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Mixes `x`; see `RecurrentMixer.mix`."""

        def wide_of(name):
            axes, size = ("embed", "mlp"), x.shape[-1]
            return self.project(name, x, size, axes, use_bias=self.use_bias)

        convolution = self.convolution(
            "value_convolution",
            ("mlp",),
            width=self.taps,
            use_bias=self.use_bias,
            is_activated=False,
        )
        tail = None if state is None else state["value"]
        h = wide_of("input_gate") * wide_of("value")
        h, tail = convolution(h, tokens.segments, tail)
        y = self.project(
            "output",
            wide_of("gate") * h,
            x.shape[-1],
            ("mlp", "embed"),
            use_bias=self.use_bias,
            scale=self.output_scale,
        )
        return y, {"value": tail}


build = GatedShortConvolution
