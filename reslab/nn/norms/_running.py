"""Base of norms over a batch: masked moments and running statistics."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, Momentum, bounded
from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS, UPDATES
from reslab.nn.norms._features import AffineNorm


@bounded
class RunningNorm(AffineNorm):
    """Base of norms whose statistics are those of a channel over a batch.

    While training they are those of the batch, over all devices: under `jit` the
    batch is one array. Elsewhere they are running ones, kept in `batch_stats`. It
    trains exactly where that collection is mutable.

    In a causal model a token of a training batch so sees, through two numbers a
    channel, the tokens behind it; evaluated, it does not.

    Attributes:
      momentum: Share of the running statistics that a step keeps.
      epsilon: Added to the variance before the root.
      (and those of `AffineNorm`)
    """

    momentum: Momentum = 0.9
    epsilon: Epsilon = 1e-5

    needs_batch: ClassVar[bool] = True

    @property
    def is_training(self) -> bool:
        """Returns whether the statistics are those of the batch."""
        return self.is_mutable_collection(BATCH_STATS)

    def running(self, name: str, start: float, shape: tuple[int, ...]) -> Any:
        """A float32 statistic that steps update, or float64 where JAX has it."""
        dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
        return self.variable(BATCH_STATS, name, lambda: jnp.full(shape, start, dtype))

    def counter(self, name: str = UPDATES) -> Any:
        """A number of steps, int32."""
        return self.variable(BATCH_STATS, name, lambda: jnp.zeros((), jnp.int32))

    def gradient_statistic(self, name: str, shape: tuple[int, ...]) -> Any:
        """A statistic that the backward pass replaces, zero at first."""
        dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
        return self.variable(GRADIENT_STATS, name, lambda: jnp.zeros(shape, dtype))

    def write(self, variable: Any, value: jax.Array) -> None:
        """Updates a statistic, but for when parameters are only being made."""
        if not self.is_initializing():
            old = variable.value
            variable.value = value.reshape(old.shape).astype(old.dtype)

    def write_running(self, variable: Any, new: jax.Array) -> None:
        """Lets a statistic follow what the batch has."""
        old = variable.value
        new = new.reshape(old.shape).astype(old.dtype)
        self.write(variable, self.momentum * old + (1 - self.momentum) * new)

    def weights(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Returns the positions that count, with an axis for channels.

        Args:
          h: Features (batch, ..., channels).
          mask: True for positions that count (batch, ...); None counts all, and is
            refused for sequences while training.

        Raises:
          ReslabError: If a sequence comes without a mask, or one position or one
            row is the whole batch.
        """
        if mask is None:
            if self.is_training and h.ndim == 3 and not self.is_initializing():
                raise ReslabError(
                    f"{type(self).__name__} trains on sequences without a mask",
                    expected="mask (batch, length), false where there is padding",
                    hint="segments for a language model; all true without padding",
                )
            mask = jnp.ones(h.shape[:-1], bool)
        if self.is_training and h.shape[0] < 2 and not self.is_initializing():
            raise ReslabError(
                f"{type(self).__name__} needs several rows in a batch",
                expected="at least 2 rows over all devices and in each part of a step",
                got=str(h.shape[0]),
                hint="a larger data.batch, a smaller train.accumulate, or norm group",
            )
        return mask[..., None]

    def mean(self, h: jax.Array, counted: jax.Array) -> jax.Array:
        """Averages (batch, ..., channels) over what counts, one row in all."""
        axes = tuple(range(h.ndim - 1))
        number = jnp.maximum(jnp.sum(counted.astype(h.dtype)), 1)
        # Zero times infinity is NaN, so excluded values are replaced before the sum.
        total = jnp.sum(jnp.where(counted, h, 0), axes, keepdims=True)
        return total / number

    def batch_variance(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        """The biased variance of every channel: the batch's, or the running one."""
        counted = self.weights(h, mask)
        running = self.running("variance", 1.0, h.shape[-1:])
        updates = self.counter()
        if not self.is_training:
            return row_like(running.value, h)
        mean = self.mean(h, counted)
        variance = self.mean(jnp.square(h - mean), counted)
        self.write_running(running, variance)
        self.write(updates, updates.value + 1)
        return variance


def row_like(row: jax.Array, h: jax.Array) -> jax.Array:
    """One number per channel, shaped and typed to meet `h`."""
    return row.astype(h.dtype).reshape((1,) * (h.ndim - 1) + (-1,))


def sum_over_all(h: jax.Array) -> jax.Array:
    """One number per channel: its sum over all positions (channels,)."""
    return jnp.sum(h, axis=tuple(range(h.ndim - 1)))


def mean_over_all(h: jax.Array) -> jax.Array:
    """One number per channel: its mean over all positions (channels,)."""
    return jnp.mean(h, axis=tuple(range(h.ndim - 1)))


def unbiased(variance: jax.Array, counted: jax.Array) -> jax.Array:
    """Estimates a population's variance from the variance of the counted positions."""
    number = jnp.sum(counted.astype(variance.dtype))
    return variance * number / jnp.maximum(number - 1, 1)


def positions(h: jax.Array) -> tuple[int, ...]:
    """The axes between batch and channels."""
    return tuple(range(1, h.ndim - 1))


def instance_mean(h: jax.Array) -> jax.Array:
    """Averages each channel of each sample over its positions."""
    axes = positions(h)
    return jnp.sum(h, axes, keepdims=True) / math.prod(h.shape[axis] for axis in axes)
