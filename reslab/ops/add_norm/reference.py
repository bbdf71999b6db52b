"""A residual addition and a norm in plain jnp: the definition, and the norms' bodies.

The bodies also run inside the kernel, so they take what a kernel has: features in
float32 and rows of parameters that meet them.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype

Rows = Mapping[str, jax.Array]


def _mean(h: jax.Array) -> jax.Array:
    return jnp.sum(h, axis=-1, keepdims=True) * (1.0 / h.shape[-1])


def _inverse_root(h: jax.Array, epsilon: float) -> jax.Array:
    return jax.lax.rsqrt(_mean(h * h) + epsilon)


def _rms(h: jax.Array, rows: Rows, epsilon: float) -> jax.Array:
    return h * _inverse_root(h, epsilon) * rows["gain"]


def _layer(h: jax.Array, rows: Rows, epsilon: float) -> jax.Array:
    centred = h - _mean(h)
    return centred * _inverse_root(centred, epsilon) * rows["gain"] + rows["bias"]


def _crms(h: jax.Array, rows: Rows, epsilon: float) -> jax.Array:
    last = jnp.sum(h, axis=-1, keepdims=True)
    total = jnp.sum(h * h, axis=-1, keepdims=True) + last * last
    inverse = jax.lax.rsqrt(total * (1.0 / (h.shape[-1] + 1)) + epsilon)
    return h * inverse * rows["gain"]


def _seednorm(h: jax.Array, rows: Rows, epsilon: float) -> jax.Array:
    seen = jnp.tanh(jnp.sum(h * rows["direction"], axis=-1, keepdims=True))
    gain = rows["gain"] + seen * rows["dynamic_gain"]
    return h * _inverse_root(h, epsilon) * gain


def _dyt(h: jax.Array, rows: Rows, epsilon: float) -> jax.Array:
    del epsilon
    return jnp.tanh(h * rows["slope"]) * rows["gain"] + rows["bias"]


def _derf(h: jax.Array, rows: Rows, epsilon: float) -> jax.Array:
    del epsilon
    squashed = jax.lax.erf(h * rows["slope"] + rows["shift"])
    return squashed * rows["gain"] + rows["bias"]


# Each norm with the rows of parameters that it takes; a norm of one gain is `rms`
# with a row that repeats it.
NORMS: Mapping[str, tuple[Callable[..., jax.Array], tuple[str, ...]]] = {
    "rms": (_rms, ("gain",)),
    "layer": (_layer, ("gain", "bias")),
    "crms": (_crms, ("gain",)),
    "seednorm": (_seednorm, ("gain", "dynamic_gain", "direction")),
    "dyt": (_dyt, ("gain", "bias", "slope")),
    "derf": (_derf, ("gain", "bias", "slope", "shift")),
}


def normalized(
    norm: str, h: jax.Array, rows: tuple[jax.Array, ...], epsilon: float
) -> jax.Array:
    """Applies one of `NORMS` to features (tokens, features) of at least float32."""
    body, names = NORMS[norm]
    return body(h, dict(zip(names, rows, strict=True)), epsilon)


def reference_add_norm(
    norm: str,
    x: jax.Array,
    update: jax.Array,
    rows: tuple[jax.Array, ...],
    epsilon: float,
) -> tuple[jax.Array, jax.Array]:
    """Adds, rounds to the stream's dtype, and normalizes; see `api.add_norm`."""
    wide = statistics_dtype(x.dtype)
    total = (x.astype(wide) + update.astype(wide)).astype(x.dtype)
    shape = (1,) * (x.ndim - 1) + (-1,)
    fitted = tuple(row.astype(wide).reshape(shape) for row in rows)
    return total, normalized(norm, total.astype(wide), fitted, epsilon).astype(x.dtype)
