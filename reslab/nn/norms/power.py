"""PowerNorm: running quadratic means in place of a token's own (Shen et al., 2020)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Momentum, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._running import RunningNorm, mean_over_all, row_like


@bounded
class PowerNorm(RunningNorm):
    """Divides every channel by a running root mean square over the batch.

        u = x / sqrt(mean over the group(x**2) + epsilon)         group scaling
        v = mean over the batch(u**2)
        training:  y = u / sqrt(psi + epsilon) * (1 + gain) + bias
                   psi = v in the first `warmup` steps t, then the running one
                   psi <- (psi * (t - 1) + v) / t, before step `warmup`
                   psi <- momentum * psi + (1 - momentum) * v
        backward:  a  = dz - (1 - backward_momentum) * nu * z,  du = a / sqrt(v + eps)
                   nu <- nu + mean over the batch(a * z)
        else:      the running psi

    z is the quotient, dz its gradient. The backward pass is not the derivative: it
    takes psi for given and stands in for what that leaves out with the running nu.
    So nu changes in the backward pass; it is a value in `gradient_stats` whose
    gradient is its next value (see `reslab.core.model_state`). Means leave padding
    out in the forward pass and not in the backward pass, as in the authors' code.
    Statistics are taken in float32 whatever the input dtype; the output has the
    dtype of the input. Of several devices the batch is one.

    PN-V of the paper is `power(is_running=False, groups=0)`: the batch's own v while
    training, with its exact derivative.

    Reference: Shen et al., 2020, https://arxiv.org/abs/2003.07845, Algorithms 1-2.

    Tested against the authors' code, which divides the gradient by the batch's root
    mean square (above) where the paper, as far as could be checked, has the running
    one. There is no PN-V in that code; it is tested against its derivative.

    Attributes:
      groups: Groups of channels for group scaling, which evaluation has too; 0 is
        no group scaling.
      warmup: Steps that divide by the batch's own statistics. Steps of the
        optimizer, however many parts each has.
      is_running: Whether training divides by running statistics (PN, not PN-V).
      backward_momentum: How much of the running gradient statistic stays.
      (and those of `RunningNorm`)

    Raises:
      ReslabError: If the groups do not divide the channels.
    """

    groups: Whole = 1
    warmup: Whole = 1000
    is_running: bool = True
    backward_momentum: Momentum = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes `x` (batch, ..., channels); `mask` is as in `weights`."""
        h = self._group_scaled(x.astype(statistics_dtype(x.dtype)))
        counted = self.weights(h, mask)
        width = h.shape[-1:]
        running = self.running("mean_square", 1.0, width)
        noise = None
        if self.is_running:
            noise = self.gradient_statistic("noise", width)
        updates = self.counter()
        if not self.is_training:
            z = h * jax.lax.rsqrt(row_like(running.value, h) + self.epsilon)
            return self.affine(z).astype(x.dtype)
        batch = self.mean(jnp.square(h), counted)
        step = updates.value + 1
        if noise is None:
            z = h * jax.lax.rsqrt(batch + self.epsilon)
        else:
            is_warm = step <= self.warmup
            psi = jnp.where(is_warm, batch, row_like(running.value, h))
            z = _approximately(
                h,
                jax.lax.rsqrt(psi + self.epsilon),
                jax.lax.rsqrt(batch + self.epsilon),
                noise.value,
                1 - self.backward_momentum,
            )
        self._remember(running, batch, step)
        self.write(updates, step)
        return self.affine(z).astype(x.dtype)

    def _group_scaled(self, h: jax.Array) -> jax.Array:
        if not self.groups:
            return h
        channels = h.shape[-1]
        if channels % self.groups:
            raise ReslabError(
                "norms 'power': groups",
                expected=f"0 or a divisor of the {channels} channels",
                got=str(self.groups),
            )
        grouped = h.reshape(*h.shape[:-1], self.groups, -1)
        mean_square = jnp.mean(jnp.square(grouped), axis=-1, keepdims=True)
        return (grouped * jax.lax.rsqrt(mean_square + self.epsilon)).reshape(h.shape)

    def _remember(self, running: Any, batch: jax.Array, step: jax.Array) -> None:
        old = running.value
        new = jax.lax.stop_gradient(batch).reshape(old.shape).astype(old.dtype)
        if self.is_running:
            count = step.astype(old.dtype)
            mean = (old * (count - 1) + new) / count
            old = jnp.where(step < self.warmup, mean, old)
        self.write(running, self.momentum * old + (1 - self.momentum) * new)


@jax.custom_vjp
def _approximately(h, forward_scale, backward_scale, noise, rate):
    """`h * forward_scale`; its backward pass is PowerNorm's."""
    return h * forward_scale


def _forwards(h, forward_scale, backward_scale, noise, rate):
    z = h * forward_scale
    return z, (z, backward_scale, noise, rate)


def _backwards(saved, gradient):
    z, backward_scale, noise, rate = saved
    a = gradient - rate * row_like(noise, z) * z
    next_noise = noise + mean_over_all(a * z).astype(noise.dtype)
    return a * backward_scale, None, None, next_noise, None


_approximately.defvjp(_forwards, _backwards)

build = PowerNorm
