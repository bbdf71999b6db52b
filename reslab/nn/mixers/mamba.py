"""Mamba: a selective state space model, one small state per channel."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from reslab.core.bounds import Count, Positive, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.nn.mixers._recurrent import RecurrentMixer, Tokens, init_step
from reslab.ops.diagonal_scan.api import selective_scan


@bounded
class Mamba(RecurrentMixer):
    """Passes every channel through a small state whose step the token chooses.

        u    = silu(convolution(W_v x))
        step = softplus(W_up W_down u + step_bias)
        h[t] = exp(-step rate) * h[t-1] + (step u[t]) k[t]^T
        y    = ((h[t] q[t] + skip * u[t]) * silu(W_g x)) . W_o

    Keys k (the paper's B) and queries q (C) are projections of u, the same for all
    channels. The state and the recurrence are float32, projections `dtype`. At
    initialization the rates of a channel are 1, 2, ..., and softplus(step_bias) is
    log-uniform in (0.001, 0.1). The state is reset where a packed document begins.
    Position encodings are not used.

    Reference: Gu & Dao, 2023, https://arxiv.org/abs/2312.00752, Algorithm 2 and
    Section 3.4; parametrization of the authors' code.

    Attributes:
      state_size: Size of the state of a channel.
      expansion: Number of channels over the width of the input.
      step_rank: Rank of the projection of the step; 0 is width / 16, rounded up.
      taps: Taps of the convolution.
      use_bias: Whether W_v, W_g and W_o have biases.
      use_convolution_bias: Whether the convolution has one.
      chunk: Tokens that training and prefill take together; 0 leaves it to the
        operation.
      (and those of `RecurrentMixer`)

    Raises:
      ReslabError: If there are no channels.
    """

    state_size: Count = 16
    expansion: Positive = 2.0
    step_rank: Whole = 0
    taps: Count = 4
    use_bias: bool = False
    use_convolution_bias: bool = True
    chunk: Whole = 0

    def channels(self, features: int) -> int:
        """Number of channels at a given width.

        Raises:
          ReslabError: If no channel remains.
        """
        channels = int(self.expansion * features)
        if channels < 1:
            raise ReslabError(
                "mixers 'mamba': expansion",
                expected=f"at least 1 / width (1 / {features})",
                got=str(self.expansion),
            )
        return channels

    def empty_state(self, batch: int, features: int) -> dict[str, jax.Array]:
        """A zero state and an empty convolution."""
        channels, wide = self.channels(features), statistics_dtype(self.dtype)
        return {
            "memory": jnp.zeros((batch, channels, self.state_size), wide),
            "value": jnp.zeros((batch, self.taps - 1, channels), self.dtype),
        }

    def step_flops(self, features: int) -> int:
        """Reading the state once per token."""
        return 2 * self.channels(features) * self.state_size

    def mix(
        self, x: jax.Array, tokens: Tokens, state: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Mixes `x`; see `RecurrentMixer.mix`."""
        channels, wide = self.channels(x.shape[-1]), statistics_dtype(self.dtype)
        rank, new = self.step_rank or math.ceil(x.shape[-1] / 16), {}

        def wide_of(name):
            axes = ("embed", "mlp")
            return self.project(name, x, channels, axes, use_bias=self.use_bias)

        convolution = self.convolution(
            "value_convolution",
            ("mlp",),
            width=self.taps,
            use_bias=self.use_convolution_bias,
        )
        u, new["value"] = convolution(
            wide_of("value"),
            tokens.segments,
            None if state is None else state["value"],
        )
        key = self.project("key", u, self.state_size, ("mlp", None))
        query = self.project("query", u, self.state_size, ("mlp", None))
        narrow = self.project("step_down", u, rank, ("mlp", None))
        step = self.project("step_up", narrow, channels, ("inner", "mlp")).astype(wide)
        bias = self.weight("step_bias", init_step, (channels,), ("mlp",))
        # Padding neither writes to the state nor decays it.
        (step,) = tokens.without_padding(nn.softplus(step + bias[None, None]))
        shape = (channels, self.state_size)
        rate = jnp.exp(self.weight("log_rate", _init_log_rate, shape, ("mlp", None)))
        u = u.astype(wide)
        y, new["memory"] = selective_scan(
            u,
            step,
            rate,
            key,
            query,
            state=None if state is None else state["memory"],
            resets=tokens.resets,
            chunk=self.chunk,
        )
        skip = self.weight("skip", nn.initializers.ones, (channels,), ("mlp",))
        y = (y + skip[None, None] * u).astype(self.dtype)
        y = y * nn.silu(wide_of("gate"))
        axes, kept = ("mlp", "embed"), {"use_bias": self.use_bias}
        y = self.project(
            "output", y, x.shape[-1], axes, scale=self.output_scale, **kept
        )
        return y, new


def _init_log_rate(key, shape, dtype):
    del key
    rates = jnp.arange(1, shape[-1] + 1, dtype=dtype)
    return jnp.broadcast_to(jnp.log(rates), shape)


build = Mamba
