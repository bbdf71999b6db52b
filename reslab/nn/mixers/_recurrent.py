"""Base of mixers that keep a state of fixed size: directions, documents, padding."""

import functools
import math
from collections.abc import Collection
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.types import Shared, State
from reslab.nn.base import ragged
from reslab.nn.base.projection import ProjectingModule
from reslab.nn.mixers._convolution import ShortConvolution


class Tokens(NamedTuple):
    """Facts about the tokens of a batch, arrays (batch, length).

    Attributes:
      positions: Position of each token in its document, or None.
      segments: Document of each token, or None.
      resets: Where a new document starts while training, or None.
      is_real: Which tokens a state takes in, or None for all.
    """

    positions: jax.Array | None
    segments: jax.Array | None
    resets: jax.Array | None
    is_real: jax.Array | None

    @classmethod
    def of(
        cls, positions: jax.Array | None, segments: jax.Array | None, has_state: bool
    ) -> "Tokens":
        """Reads segments as documents, or as padding where there is a state."""
        if segments is None:
            return cls(positions, None, None, None)
        if has_state:
            return cls(positions, segments, None, ragged.real_tokens(segments))
        return cls(positions, segments, ragged.starts(segments), None)

    def without_padding(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        """Sets arrays (batch, length, ...) to zero where a token is padding."""
        if self.is_real is None:
            return arrays

        def masked(x):
            shape = (*x.shape[:2], *[1] * (x.ndim - 2))
            return jnp.where(self.is_real.reshape(shape), x, 0)

        return tuple(map(masked, arrays))


@bounded
class RecurrentMixer(ProjectingModule):
    """Base of recurrent mixers, each causal or, with parameters twice, both ways.

        y = mix(x)                                           causal
        y = mix_forward(x) + reverse(mix_backward(reverse(x)))      is_bidirectional

    A mixer defines `mix` and `empty_state`, and `step_flops` of one direction.

    Attributes:
      is_bidirectional: Whether a second set of parameters goes from the end.
      (and those of `ProjectingModule`)

    Raises:
      ReslabError: If a bidirectional mixer is asked to generate.
    """

    is_bidirectional: bool = False

    writes_shared: ClassVar[tuple[str, ...]] = ()
    passes_padding: ClassVar[bool] = True

    def mix(
        self, x: jax.Array, tokens: Tokens, state: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Mixes `x` (batch, length, embed) from the first token to the last.

        Args:
          x: The input.
          tokens: Positions, documents, padding.
          state: The state to continue from, or None for an empty one.

        Returns:
          The output like `x`, and the state after the last token.
        """
        raise NotImplementedError

    def empty_state(self, batch: int, features: int) -> dict[str, jax.Array]:
        """The state before the first token."""
        raise NotImplementedError

    def step_flops(self, features: int) -> int:
        """Matrix-product FLOPs per token and direction, beyond the kernels'."""
        raise NotImplementedError

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """The state before the first token, whatever the length."""
        del length, shared
        self._check_causal()
        return self.empty_state(batch, features)

    def mixing_flops(self, length: int, features: int) -> int:
        """Reading and writing the state, per token."""
        del length
        return self.step_flops(features) * (2 if self.is_bidirectional else 1)

    def _check_causal(self) -> None:
        if self.is_bidirectional:
            raise ReslabError(
                f"{type(self).__name__} with is_bidirectional reads later tokens",
                expected="a causal mixer, to generate",
                hint="is_bidirectional=False",
            )

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
        """Mixes `x` (batch, length, embed), from an empty state or a given one.

        Args:
          x: The input.
          positions: Position of each token in its document (batch, length).
          segments: Document of each token; nothing passes between documents. With a
            state, 0 marks padding, which is passed by.
          shared: Depth memory, passed through.
          state: State to continue from.

        Returns:
          The output like `x`, the depth memory, and the new state.
        """
        if self.is_bidirectional:
            if state is not None:
                self._check_causal()

            way = functools.partial(self.clone, parent=self, is_bidirectional=False)
            given = {"positions": positions, "segments": segments}
            y = way(name="forward")(x, **given)[0]
            x, given = jax.tree.map(lambda a: a[:, ::-1], (x, given))
            y = y + way(name="backward")(x, **given)[0][:, ::-1]
            return y, dict(shared or {}), None
        tokens = Tokens.of(positions, segments, state is not None)
        y, new = self.mix(x, tokens, state)
        return y, dict(shared or {}), None if state is None else new

    def weight(self, name: str, init: Any, shape: Any, axes: Any) -> jax.Array:
        """A parameter of its own, in the dtype of statistics."""
        made = parameter(self, name, init, shape, axes, self.param_dtype)
        return made.astype(statistics_dtype(self.dtype))

    def convolution(
        self, name: str, axes: tuple[str | None, ...], **fields: Any
    ) -> ShortConvolution:
        """A short causal convolution along the tokens."""
        return ShortConvolution(
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            axes=axes,
            **fields,
            parent=self,
            name=name,
        )


def init_log_range(least: float, most: float) -> Any:
    """Initializes with logarithms of numbers drawn uniformly from a range."""

    def init(key, shape, dtype):
        return jnp.log(jax.random.uniform(key, shape, dtype, least, most))

    return init


def init_step(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
    """Initializes biases with a softplus drawn log-uniformly from (0.001, 0.1)."""
    low, high = math.log(1e-3), math.log(1e-1)
    step = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return step + jnp.log(-jnp.expm1(-step))  # The inverse of softplus.
