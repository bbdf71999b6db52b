"""The base of mixers of the delta rule: addresses, convolutions, state, output."""

import math
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.bounds import Bounds, Count, Positive, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.core.taps import editable
from reslab.nn.mixers._gated_norm import gated_norm
from reslab.nn.mixers._recurrent import RecurrentMixer, Tokens, init_step
from reslab.ops.delta_rule.api import FEWEST, delta_rule
from reslab.ops.triangular_inverse.api import UNSTABLE

_TAPS = 4
Inverse = Literal[
    "block", "forward_substitution", "newton_schulz", "neumann", "recursive"
]
# A chunk's systems are chunk x chunk for every head.
Chunk = Annotated[int, Bounds(least=0, most=512)]


@bounded
class DeltaMixer(RecurrentMixer):
    """Base of mixers that read and write an associative memory by the delta rule.

    Attributes:
      heads: Number of heads of the values.
      head_dim: Size of a key; 0 takes it from the width.
      key_heads: Number of heads of queries and keys, a divisor of `heads`;
        neighbouring heads share one of them. 0 is `heads`.
      value_expansion: Size of a value over the size of a key.
      allow_negative_eigenvalues: Whether strengths reach 2 instead of 1, so that a
        write may turn what was stored at its key around.
      is_convolution_combined: Whether queries, keys and values, in this order, pass
        one convolution with one array of taps.
      output_norm: Norm of what each head reads.
      chunk: Tokens that training and prefill take together, a power of two; 0
        chooses, 1 goes token by token.
      inverse: Method of `triangular_inverse` for the systems of chunks.
      kernels: Implementation of the rule for more than a few tokens: "pallas" is the
        TPU kernel, "reference" plain JAX; "auto" chooses by compiled cost.
      (and those of `RecurrentMixer`)
    """

    heads: Count = 4
    head_dim: Whole = 0
    key_heads: Whole = 0
    value_expansion: Positive = 1.0
    allow_negative_eigenvalues: bool = False
    is_convolution_combined: bool = False
    output_norm: registry.Spec = "rms"
    chunk: Chunk = 0
    inverse: Inverse = "block"
    kernels: str = "auto"

    # All keys together over the width, where `head_dim` is 0.
    _share: ClassVar[tuple[int, int]] = (1, 1)

    def __post_init__(self) -> None:
        """Refuses arguments that do not fit each other."""
        super().__post_init__()
        if self.chunk & (self.chunk - 1):
            self._refuse("chunk", "a power of two", self.chunk)
        if self.key_heads and self.heads % self.key_heads:
            self._refuse(
                "key_heads", f"a divisor of heads ({self.heads})", self.key_heads
            )
        if self.inverse in UNSTABLE and self.allow_negative_eigenvalues:
            self._refuse(
                "inverse",
                "a stable method beside negative eigenvalues",
                f"{self.inverse!r}, whose error is 8e-3 where keys are alike",
            )

    def _refuse(self, field: str, expected: str, got: Any, hint: str = "") -> None:
        name = type(self).__module__.rpartition(".")[2]
        raise ReslabError(
            f"mixers {name!r}: {field}", expected=expected, got=str(got), hint=hint
        )

    def sizes(self, features: int) -> tuple[int, int]:
        """Sizes of a key and of a value at a given width.

        Raises:
          ReslabError: If there is no whole size.
        """
        part, whole = self._share
        key_dim, rest = divmod(part * features, whole * self.heads)
        if not self.head_dim and rest:
            share = "" if part == whole else f"{part}/{whole} of "
            self._refuse(
                "heads",
                f"a divisor of {share}the width ({features})",
                self.heads,
                "give head_dim, or another number of heads",
            )
        key_dim = self.head_dim or key_dim
        return key_dim, int(key_dim * self.value_expansion)

    def _addresses(self, features: int) -> dict[str, tuple[int, int]]:
        key_dim, value_dim = self.sizes(features)
        key = (self.key_heads or self.heads, key_dim)
        return {"query": key, "key": key, "value": (self.heads, value_dim)}

    def empty_state(self, batch: int, features: int) -> dict[str, jax.Array]:
        """An empty memory and empty convolutions."""
        memory = (batch, self.heads, *self.sizes(features))
        tails: dict[str, Any] = self._addresses(features)
        if self.is_convolution_combined:
            tails = {"convolution": (sum(map(math.prod, tails.values())),)}
        return {
            "memory": jnp.zeros(memory, statistics_dtype(self.dtype)),
            **{
                name: jnp.zeros((batch, _TAPS - 1, *shape), self.dtype)
                for name, shape in tails.items()
            },
        }

    def step_flops(self, features: int) -> int:
        """Reading the memory twice per token: at the key and at the query."""
        key_dim, value_dim = self.sizes(features)
        return 4 * self.heads * key_dim * value_dim

    def log_decay(self, x: jax.Array) -> jax.Array | None:
        """Log decays (batch, length, heads) or with an axis of channels, if any."""
        raise NotImplementedError

    def output_gate(self, x: jax.Array) -> jax.Array | None:
        """The gate of the output before its activation, if any."""
        raise NotImplementedError

    def activate(self, gate: jax.Array) -> jax.Array:
        """Applies the activation of the gate, a silu unless overridden."""
        return nn.silu(gate)

    def mix(
        self, x: jax.Array, tokens: Tokens, state: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Mixes `x` (batch, length, embed), from an empty memory or a state."""
        projected = {
            name: self.heads_of(name, x, *shape)
            for name, shape in self._addresses(x.shape[-1]).items()
        }
        read, new_state = self._convolve(projected, tokens.segments, state)
        beta = nn.sigmoid(self.scalars_of("beta", x))
        if self.allow_negative_eigenvalues:
            beta = 2 * beta
        # Padding neither writes to the memory nor decays it.
        (beta,) = tokens.without_padding(beta)
        log_decay = self.log_decay(x)
        if log_decay is not None:
            (log_decay,) = tokens.without_padding(log_decay)
        y, new_state["memory"] = delta_rule(
            _unit(read["query"]),
            _unit(read["key"]),
            read["value"],
            beta,
            log_decay,
            state=None if state is None else state["memory"],
            resets=tokens.resets,
            chunk=self.chunk,
            inverse=self.inverse,
            implementation=self._implementation(x.shape[1]),
        )
        gate, spec = self.output_gate(x), self.output_norm
        y = gated_norm(self, y, gate, spec=spec, activation=self.activate)
        y = editable(self, "heads", y)
        axes = ("heads", "head_dim", "embed")
        y = self.project("output", y, x.shape[-1], axes, scale=self.output_scale)
        return y, new_state

    def _implementation(self, length: int) -> str:
        """The form of the rule; few tokens go one by one, as in decoding."""
        is_short = length < FEWEST or self.chunk == 1 or self.is_initializing()
        forms = {"reference": "recurrent" if is_short else "chunked"}
        if is_short and self.kernels == "pallas":
            return "auto"
        return forms.get(self.kernels, self.kernels)

    def heads_of(
        self, name: str, x: jax.Array, heads: int, size: int, *, use_bias: bool = False
    ) -> jax.Array:
        """Projects `x` (batch, length, embed) to heads of one size."""
        axes = ("embed", "heads", "head_dim")
        return self.project(name, x, (heads, size), axes, use_bias=use_bias)

    def scalars_of(self, name: str, x: jax.Array) -> jax.Array:
        """Projects `x` to one number a head, in the dtype of statistics."""
        y = self.project(name, x, self.heads, ("embed", "heads"))
        return y.astype(statistics_dtype(self.dtype))

    def rates(self, init: Any, bias_shape: tuple[int, ...] = ()) -> Any:
        """Rate of the decay of each head, and a bias of each head or channel."""
        shape = (self.heads, *bias_shape)
        rate = self.weight("log_rate", init, (self.heads,), ("heads",))
        axes = ("heads", "head_dim")[: len(shape)]
        return jnp.exp(rate), self.weight("decay_bias", init_step, shape, axes)

    def _convolve(
        self, projected: dict[str, jax.Array], segments: jax.Array | None, state: Any
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """Passes all projections through convolutions, or their one convolution."""

        def convolution(h, prefix, axes):
            tail = None if state is None else state[prefix[:-1] or "convolution"]
            module = self.convolution(f"{prefix}convolution", axes, width=_TAPS)
            return module(h, segments, tail)

        if not self.is_convolution_combined:
            read, tails = {}, {}
            for name, h in projected.items():
                axes = ("heads", "head_dim")
                read[name], tails[name] = convolution(h, f"{name}_", axes)
            return read, tails
        flat = [h.reshape(*h.shape[:2], -1) for h in projected.values()]
        ends = [sum(h.shape[2] for h in flat[:n]) for n in (1, 2)]
        joined, tail = convolution(jnp.concatenate(flat, axis=-1), "", (None,))
        parts = zip(projected.items(), jnp.split(joined, ends, axis=-1), strict=True)
        read = {name: part.reshape(h.shape) for (name, h), part in parts}
        return read, {"convolution": tail}


def _unit(x: jax.Array) -> jax.Array:
    wide = x.astype(statistics_dtype(x.dtype))
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)
