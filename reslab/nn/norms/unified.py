"""Unified normalization: smoothed batch statistics, outliers left out (Yang et al.)."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, Count, Whole, bounded
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._running import (
    RunningNorm,
    mean_over_all,
    row_like,
    sum_over_all,
)


@bounded
class UnifiedNorm(RunningNorm):
    """Divides every channel by a root mean square, smoothed over the last steps.

        training:  q = mean over the batch(x**2)
                   v = geometric mean of q over the last `window` steps
                   z = x / sqrt(v + epsilon),  y = z * (1 + gain) + bias
                   running <- momentum * running + (1 - momentum) * v
        backward:  r  = sqrt(v + epsilon) / sqrt(running + epsilon), in [1/5, 5]
                   dz = r * dy * (1 + gain),  d gain = sum of r * dy * z
                   dx = (dz - e * z) / sqrt(v + epsilon), where e runs after the
                   arithmetic mean of mean(dz * z) over the last
                   `backward_window` steps
        else:      y = x / sqrt(running + epsilon) * (1 + gain) + bias

    The first `warmup` steps, those before a window is full, and outliers take the
    batch's own values, and r = 1. A batch is an outlier (`is_filtering`) if in some
    channel the arithmetic mean of the window exceeds the geometric one by more than
    the window's length times the variance of all its roots; the running value then
    takes its place in the window.

    The window of gradients changes in the backward pass: it is a value in
    `gradient_stats` whose gradient is its next value (see
    `reslab.core.model_state`). Means leave padding out in the forward pass and not
    in the backward pass, as in the authors' code. Statistics are taken in float32
    whatever the input dtype; the output has the dtype of the input. Of several
    devices the batch is one.

    Evaluated, it is one factor and one addend for each channel, which the next
    projection takes in whole: `reslab transform fuse_norm`.

    Reference: Yang et al., 2022, https://arxiv.org/abs/2208.01313, Algorithm 1.

    Tested against the authors' code from a cold start with a mask, and after the
    warmup, with windows of one length and no batch filtered out. Windows of two
    lengths, the bounds of r, and what is an outlier and what not, are tested against
    the equations, written out in float64.

    Attributes:
      window: Steps over which the statistics of the forward pass are smoothed.
      backward_window: Steps over which backward statistics are averaged; 0 is `window`.
      warmup: Steps of the optimizer that only fill the windows; r stays 1 for at
        least 1,000, as in the authors' code.
      is_filtering: Whether outliers are left out; the authors do so for images
        and not for language.
      (and those of `RunningNorm`)

    Raises:
      ReslabError: If a window is below 1.
    """

    window: Count = 4
    warmup: Whole = 4000
    is_filtering: bool = False
    backward_window: Annotated[
        int,
        Bounds(least=0, words="at least 1, or 0 to take `window`"),
    ] = 0

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes `x` (batch, ..., channels); `mask` is as in `weights`."""
        h = x.astype(statistics_dtype(x.dtype))
        counted = self.weights(h, mask)
        width = h.shape[-1:]
        running = self.running("mean_square", 1.0, width)
        squares = self.running("squares", 0.0, (self.window, *width))
        backward = self.backward_window or self.window
        products = self.gradient_statistic("products", (backward, *width))
        product = self.gradient_statistic("product", width)
        updates, skipped = self.counter(), self.counter("skipped")
        if not self.is_training:
            scale = jax.lax.rsqrt(row_like(running.value, h) + self.epsilon)
            return self.affine(h * scale).astype(x.dtype)
        step = updates.value + 1
        is_warming = step < self.warmup
        q = jax.lax.stop_gradient(self.mean(jnp.square(h), counted))
        q = q.reshape(width).astype(running.value.dtype)
        kept, is_outlier = self._window_with(q, squares.value, running.value, step)
        is_skipped = is_outlier | (self.window == 1)
        geometric = jnp.exp(jnp.mean(jnp.log(kept), axis=0))
        is_own = (step <= self.window) | is_warming | is_skipped
        v = jnp.where(is_own, q, geometric)
        ratio = jnp.sqrt(v + self.epsilon) / jnp.sqrt(running.value + self.epsilon)
        is_plain = (step <= max(1000, self.warmup)) | is_skipped
        r = jnp.where(is_plain, 1.0, jnp.clip(ratio, 0.2, 5.0))
        y = _smoothed(
            h,
            self.gain_row(h) if self.use_gain else jnp.ones_like(row_like(q, h)),
            row_like(jax.lax.rsqrt(v + self.epsilon), h),
            row_like(r, h),
            products.value,
            product.value,
            (
                *(step % backward, is_skipped),
                (step <= backward) | is_warming | is_skipped,
                self.momentum,
            ),
        )
        self.write(squares, kept)
        self.write_running(running, v)
        self.write(updates, step)
        self.write(skipped, skipped.value + is_outlier.astype(jnp.int32))
        if self.use_bias:
            y = y + self.row("bias", nn.initializers.zeros, h)
        return y.astype(x.dtype)

    def _window_with(self, q, squares, running, step):
        """The window with the newest mean square, and whether it is an outlier."""
        slot = step % self.window
        kept = squares.at[slot].set(q)
        if not self.is_filtering:
            return kept, jnp.zeros((), bool)
        # Averages over the window before this step.
        limit = self.window * jnp.var(jnp.sqrt(squares), ddof=1)
        excess = jnp.mean(kept, axis=0) - jnp.exp(jnp.mean(jnp.log(kept), axis=0))
        is_outlier = jnp.any(excess > limit) & (step >= self.warmup)
        return kept.at[slot].set(jnp.where(is_outlier, running, q)), is_outlier


@jax.custom_vjp
def _smoothed(h, gain, scale, ratio, products, product, how):
    """`gain * scale * h`; its backward pass is unified normalization's."""
    return gain * (h * scale)


def _forwards(h, gain, scale, ratio, products, product, how):
    z = h * scale
    return gain * z, (z, gain, scale, ratio, products, product, how)


def _backwards(saved, gradient):
    z, gain, scale, ratio, products, product, how = saved
    slot, is_skipped, is_own, momentum = how
    gradient = gradient * ratio
    gain_gradient = row_like(sum_over_all(gradient * z), gain)
    gradient = gradient * gain
    own = mean_over_all(gradient * z).astype(product.dtype)
    next_products = products.at[slot].set(jnp.where(is_skipped, product, own))
    smooth = jnp.where(is_own, own, jnp.mean(next_products, axis=0))
    next_product = momentum * product + (1 - momentum) * smooth
    taken = jnp.where(is_skipped, smooth, next_product)
    return (
        (gradient - row_like(taken, z) * z) * scale,
        gain_gradient,
        None,
        None,
        next_products,
        next_product,
        None,
    )


_smoothed.defvjp(_forwards, _backwards)

build = UnifiedNorm
