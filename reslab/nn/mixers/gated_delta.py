"""Gated DeltaNet: an associative memory that forgets and overwrites."""

import math
from collections.abc import Collection

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry, surroundings
from reslab.core.bounds import Count, Positive, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.taps import editable
from reslab.core.types import Shared, State
from reslab.nn.base.projection import ProjectingModule
from reslab.nn.mixers._convolution import ShortConvolution
from reslab.ops.gated_delta.api import gated_delta_rule


@bounded
class GatedDelta(ProjectingModule):
    """Reads and writes an associative memory S with decay and the delta rule.

        S'  = exp(g[t]) S
        S   = S' + beta[t] k[t] (v[t] - S'^T k[t])^T
        o[t] = S^T q[t] / sqrt(head_dim)
        y   = (RMSNorm(o) * silu(W_g x)) . W_o

    Queries, keys and values pass a causal convolution of four taps and a silu;
    queries and keys are then scaled to unit length; beta = sigmoid(W_b x); the
    decay is g = -exp(log_rate) softplus(W_a x + decay_bias) with exp(log_rate)
    uniform in (0, 16) and softplus(decay_bias) log-uniform in (0.001, 0.1) at
    initialization. The memory and the recurrence are float32, projections
    `dtype`. The memory is reset where a packed document begins. Position
    encodings are not used.

    Reference: Yang, Kautz & Hatamizadeh, 2024, https://arxiv.org/abs/2412.06464,
    Eq. 10; parametrization as in the authors' flash-linear-attention.

    Attributes:
      heads: Number of heads.
      head_dim: Size of a key; 0 is 3/4 of features / heads.
      value_expansion: Size of a value over the size of a key.
      (and those of `ProjectingModule`)

    Raises:
      ReslabError: If heads do not divide 3/4 of the width and head_dim is 0.
    """

    heads: Count = 4
    head_dim: Whole = 0
    value_expansion: Positive = 2.0

    writes_shared = ()
    passes_padding = True
    _taps = 4

    def sizes(self, features: int) -> tuple[int, int]:
        """Sizes of a key and of a value at a given width.

        Raises:
          ReslabError: If there is no whole size.
        """
        key_dim, rest = divmod(3 * features, 4 * self.heads)
        if not self.head_dim and rest:
            raise ReslabError(
                "mixers 'gated_delta': heads",
                expected=f"a divisor of 3/4 of the width ({features})",
                got=str(self.heads),
                hint="give head_dim, or another number of heads",
            )
        key_dim = self.head_dim or key_dim
        return key_dim, int(key_dim * self.value_expansion)

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """An empty memory and empty convolutions, whatever the length."""
        del length, shared
        key_dim, value_dim = self.sizes(features)
        shape = (batch, self._taps - 1, self.heads)
        return {
            "memory": jnp.zeros(
                (batch, self.heads, key_dim, value_dim), statistics_dtype(self.dtype)
            ),
            "query": jnp.zeros((*shape, key_dim), self.dtype),
            "key": jnp.zeros((*shape, key_dim), self.dtype),
            "value": jnp.zeros((*shape, value_dim), self.dtype),
        }

    def mixing_flops(self, length: int, features: int) -> int:
        """Reading the memory twice per token: at the key and at the query."""
        del length
        key_dim, value_dim = self.sizes(features)
        return 4 * self.heads * key_dim * value_dim

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        shared: Shared | None = None,
        state: State = None,
    ) -> tuple[jax.Array, Shared, State]:
        """Mixes `x` (batch, length, embed), from an empty memory or a state.

        Args:
          x: The input.
          positions: Not used.
          segments: Document of each token; nothing passes between documents. With a
            state, 0 marks padding, which is passed by.
          shared: Depth memory, passed through.
          state: Memory and convolution tails to continue from.

        Returns:
          The output like `x`, the depth memory, and the new state.
        """
        del positions
        key_dim, value_dim = self.sizes(x.shape[-1])
        wide = statistics_dtype(self.dtype)
        new_state = {}

        def heads_of(name, size):
            return self.project(
                name, x, (self.heads, size), ("embed", "heads", "head_dim")
            )

        def scalar_of(name):
            return self.project(name, x, self.heads, ("embed", "heads")).astype(wide)

        def convolve(name, h):
            tail = None if state is None else state[name]
            y, new_state[name] = ShortConvolution(
                self._taps, self.dtype, self.param_dtype, name=f"{name}_convolution"
            )(h, segments, tail)
            return y

        query = _unit(convolve("query", heads_of("query", key_dim)))
        key = _unit(convolve("key", heads_of("key", key_dim)))
        value = convolve("value", heads_of("value", value_dim))
        beta = nn.sigmoid(scalar_of("beta"))
        log_rate = self._per_head("log_rate", _init_log_rate).astype(wide)
        bias = self._per_head("decay_bias", _init_decay_bias).astype(wide)
        step = nn.softplus(scalar_of("decay") + bias[None, None])
        log_decay = -jnp.exp(log_rate)[None, None] * step

        resets = None
        if state is not None and segments is not None:
            # Padding neither writes to the memory nor decays it.
            is_real = (segments > 0)[..., None]
            beta, log_decay = (jnp.where(is_real, h, 0) for h in (beta, log_decay))
        elif segments is not None:
            before = jnp.pad(segments, ((0, 0), (1, 0)), mode="edge")[:, :-1]
            resets = before != segments
        y, new_state["memory"] = gated_delta_rule(
            query,
            key,
            value,
            beta,
            log_decay,
            state=None if state is None else state["memory"],
            resets=resets,
        )
        y = registry.make(
            "norms",
            "rms",
            **surroundings.Norms(logical_axis="head_dim"),
            param_dtype=self.param_dtype,
            name="output_norm",
        )(y)
        y = y.astype(self.dtype) * nn.silu(heads_of("gate", value_dim))
        y = editable(self, "heads", y)
        y = self.project(
            "output",
            y,
            x.shape[-1],
            ("heads", "head_dim", "embed"),
            scale=self.output_scale,
        )
        return y, dict(shared or {}), None if state is None else new_state

    def _per_head(self, name, init):
        return parameter(self, name, init, (self.heads,), ("heads",), self.param_dtype)


def _unit(x: jax.Array) -> jax.Array:
    wide = x.astype(statistics_dtype(x.dtype))
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)


def _init_log_rate(key, shape, dtype):
    # The smallest rate is above zero, whose logarithm is infinite.
    return jnp.log(jax.random.uniform(key, shape, dtype, 1e-3, 16.0))


def _init_decay_bias(key, shape, dtype):
    low, high = math.log(1e-3), math.log(1e-1)
    step = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return step + jnp.log(-jnp.expm1(-step))  # the inverse of softplus


build = GatedDelta
