"""Mamba-2: a state space model whose decay is one number per head and token."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from reslab.core.bounds import Count, Epsilon, Positive, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.core.taps import editable
from reslab.nn.mixers._gated_norm import gated_norm
from reslab.nn.mixers._recurrent import (
    RecurrentMixer,
    Tokens,
    init_log_range,
    init_step,
)
from reslab.ops.ssd.api import FEWEST, ssd


@bounded
class Mamba2(RecurrentMixer):
    """Writes tokens into a memory S with a decay that each of them chooses.

        step = softplus(W_d x + step_bias)
        S[t] = exp(-step exp(log_rate)) S[t-1] + step k[t] v[t]^T
        o[t] = S[t]^T q[t] + skip v[t]
        y    = RMSNorm(o * silu(W_g x)) . W_o

    Values, keys (the paper's B) and queries (C) pass a causal convolution and a silu.
    The norm takes statistics over the heads of a group. The memory and the recurrence
    are float32, projections `dtype`. At initialization exp(log_rate) is uniform in
    (1, 16) and softplus(step_bias) log-uniform in (0.001, 0.1). The memory is reset
    where a packed document begins. Position encodings are not used.

    Reference: Dao & Gu, 2024, https://arxiv.org/abs/2405.21060, Section 7;
    parametrization of the authors' code.

    Attributes:
      heads: Number of heads.
      state_size: Size of a key.
      groups: Number of keys and queries that heads share.
      expansion: Width of all values over the input's.
      taps: Taps of the convolution.
      use_bias: Whether projections have biases.
      use_convolution_bias: Whether convolutions have them.
      is_gain_offset: Whether the gain of the norm is stored as an offset from one.
      epsilon: Added to the mean square of the norm.
      chunk: Tokens that training and prefill take together; 0 leaves it to the
        operation.
      kernels: Implementation of the recurrence for more than a few tokens: "pallas" is
        the TPU kernel, "reference" plain JAX; "auto" chooses by compiled cost.
      (and those of `RecurrentMixer`)

    Raises:
      ReslabError: If heads do not divide the expanded width, or groups the heads.
    """

    heads: Count = 4
    state_size: Count = 64
    groups: Count = 1
    expansion: Positive = 2.0
    taps: Count = 4
    use_bias: bool = False
    use_convolution_bias: bool = True
    is_gain_offset: bool = True
    epsilon: Epsilon = 1e-5
    chunk: Whole = 0
    kernels: str = "auto"

    def head_dim(self, features: int) -> int:
        """Size of a value at a given width.

        Raises:
          ReslabError: If there is no whole size, or groups do not divide heads.
        """
        if self.heads % self.groups:
            raise ReslabError(
                "mixers 'mamba2': groups",
                expected=f"a divisor of heads ({self.heads})",
                got=str(self.groups),
            )
        width = int(self.expansion * features)
        if width < 1 or width % self.heads:
            raise ReslabError(
                "mixers 'mamba2': heads",
                expected=f"a divisor of expansion * width ({width})",
                got=str(self.heads),
                hint="another number of heads, or another expansion",
            )
        return width // self.heads

    def empty_state(self, batch: int, features: int) -> dict[str, jax.Array]:
        """An empty memory and empty convolutions."""
        size, tail = self.head_dim(features), (batch, self.taps - 1)
        memory = (batch, self.heads, self.state_size, size)
        return {
            "memory": jnp.zeros(memory, statistics_dtype(self.dtype)),
            "value": jnp.zeros((*tail, self.heads, size), self.dtype),
            "key": jnp.zeros((*tail, self.groups, self.state_size), self.dtype),
            "query": jnp.zeros((*tail, self.groups, self.state_size), self.dtype),
        }

    def step_flops(self, features: int) -> int:
        """Reading the memory once per token."""
        return 2 * self.heads * self.state_size * self.head_dim(features)

    def _implementation(self, length: int) -> str:
        """The form of the recurrence; few tokens go one by one, as in decoding."""
        is_short = length < FEWEST or self.chunk == 1 or self.is_initializing()
        forms = {"reference": "recurrent" if is_short else "chunked"}
        if is_short and self.kernels == "pallas":
            return "auto"
        return forms.get(self.kernels, self.kernels)

    def mix(
        self, x: jax.Array, tokens: Tokens, state: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Mixes `x`; see `RecurrentMixer.mix`."""
        size, wide = self.head_dim(x.shape[-1]), statistics_dtype(self.dtype)
        new = {}

        def projected(name, shape, axes):
            axes = ("embed", *axes)
            return self.project(name, x, shape, axes, use_bias=self.use_bias)

        def convolved(name, shape, axes):
            h = projected(name, shape, axes)
            convolution = self.convolution(
                f"{name}_convolution",
                axes,
                width=self.taps,
                use_bias=self.use_convolution_bias,
            )
            tail = None if state is None else state[name]
            y, new[name] = convolution(h, tokens.segments, tail)
            return y

        of_heads, of_groups = ("heads", "head_dim"), (None, None)
        value = convolved("value", (self.heads, size), of_heads).astype(wide)
        key = convolved("key", (self.groups, self.state_size), of_groups)
        query = convolved("query", (self.groups, self.state_size), of_groups)
        one = (self.heads,), ("heads",)
        rate = jnp.exp(self.weight("log_rate", init_log_range(1.0, 16.0), *one))
        bias = self.weight("step_bias", init_step, *one)
        step = projected("step", self.heads, ("heads",)).astype(wide)
        # Padding neither writes to the memory nor decays it.
        (step,) = tokens.without_padding(nn.softplus(step + bias[None, None]))
        y, new["memory"] = ssd(
            query,
            key,
            step[..., None] * value,
            -step * rate[None, None],
            state=None if state is None else state["memory"],
            resets=tokens.resets,
            chunk=self.chunk,
            implementation=self._implementation(x.shape[1]),
        )
        skip = self.weight("skip", nn.initializers.ones, *one)
        y = y.astype(wide) + skip[:, None][None, None] * value
        y = self._normed(y, projected("gate", (self.heads, size), of_heads))
        y = editable(self, "heads", y)
        y = self.project(
            "output",
            y,
            x.shape[-1],
            (*of_heads, "embed"),
            use_bias=self.use_bias,
            scale=self.output_scale,
        )
        return y, new

    def _normed(self, y, gate):
        """Gates, norms over the heads of each group, and scales every channel."""
        groups = *y.shape[:2], self.groups, -1
        spec = f"rms(use_gain=False, epsilon={self.epsilon})"
        h = gated_norm(
            self,
            y.reshape(groups),
            gate.reshape(groups),
            spec=spec,
            is_gated_first=True,
        ).reshape(y.shape)
        axes = ("heads", "head_dim")
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        init = zeros if self.is_gain_offset else ones
        gain = self.weight("gain", init, y.shape[2:], axes)
        gain = 1 + gain if self.is_gain_offset else gain
        return h * gain[None, None].astype(self.dtype)


build = Mamba2
