"""A residual addition and the norm that reads its sum: one function, two forms."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError, nearest
from reslab.core.platform import platform
from reslab.core.precision import statistics_dtype
from reslab.ops import evidence, tiles
from reslab.ops.add_norm import pallas_gpu, pallas_tpu
from reslab.ops.add_norm.reference import NORMS, reference_add_norm

# Rows that a norm does without where none is given, and what they then are.
_DEFAULTS = {"gain": 1.0, "bias": 0.0, "shift": 0.0}


def add_norm(
    x: jax.Array,
    update: jax.Array,
    *,
    norm: str = "rms",
    parameters: Mapping[str, jax.Array | float] | None = None,
    epsilon: float = 1e-6,
    scale: jax.Array | float = 1.0,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Adds to the residual stream and normalizes the sum.

        s = x + update,    y = scale * norm(s)

    The sum is rounded to the dtype of the stream before it is normalized, so that the
    norm reads what the next addition will. The norm is computed in float32 (float64
    for float64) and y has the dtype of the stream. Gains are what features are
    multiplied by, not offsets from one:

        rms       s / sqrt(mean(s**2) + epsilon) * gain
        layer     (s - mean(s)) / sqrt(var(s) + epsilon) * gain + bias
        crms      s / sqrt((sum(s**2) + sum(s)**2) / (features + 1) + epsilon) * gain
        seednorm  (gain + tanh(s . direction) dynamic_gain) s / sqrt(mean(s**2) + ...)
        dyt       tanh(slope s) * gain + bias
        derf      erf(slope s + shift) * gain + bias

    Single-scale RMS is `rms` with one number as its gain, LayerNorm scaling the
    `scale`. The backward pass keeps the sum alone; gradients of parameters are added
    up in float32.

    Args:
      x: The stream (batch, ..., features).
      update: What is added to it, of its shape and dtype.
      norm: One of those above.
      parameters: Each (features,) or one number; gain is 1, bias and shift are 0 if
        not given.
      epsilon: Added before the root.
      scale: Factor on what is returned, one number; may be traced.
      implementation: "reference" is plain jnp, "pallas" the kernel for a TPU, or
        that for a GPU; "auto" chooses by what was compiled (`reslab.ops.evidence`).

    Returns:
      The sum and its norm, both like `x`.

    Raises:
      ReslabError: If shapes do not fit, a parameter is missing or not the norm's, or
        the kernel cannot do what is asked.

    >>> total, y = add_norm(jnp.ones((1, 4)), jnp.full((1, 4), 2.0))
    >>> float(total[0, 0]), round(float(y[0, 0]), 3)
    (3.0, 1.0)
    """
    if norm not in NORMS:
        raise ReslabError(f"add_norm: norm {norm!r}", hint=nearest(norm, NORMS))
    if x.ndim < 2 or update.shape != x.shape or update.dtype != x.dtype:
        raise ReslabError(
            "add_norm: update",
            expected=f"the stream's (batch, ..., features) {x.dtype}{list(x.shape)}",
            got=f"{update.dtype}{list(update.shape)}",
        )
    rows = _rows(norm, parameters or {}, x, scale)
    kernel = pallas_gpu if platform() == "gpu" else pallas_tpu
    chosen = tiles.choose(
        "add_norm",
        implementation,
        kernel.obstacle(norm, x, len(rows)),
        evidence.preferred(f"add_norm_{norm}"),
    )
    if chosen == "pallas":
        return kernel.add_norm(norm, x, update, rows, epsilon)
    return reference_add_norm(norm, x, update, rows, epsilon)


def _rows(norm, parameters, x, scale):
    """The parameters as rows (features,), the scale folded into gain and bias."""
    _, names = NORMS[norm]
    wide, width = statistics_dtype(x.dtype), x.shape[-1]
    if unknown := set(parameters) - set(names):
        raise ReslabError(
            f"add_norm: parameters of {norm!r}",
            expected=", ".join(names),
            got=", ".join(sorted(unknown)),
        )
    rows = []
    for name in names:
        if name not in parameters and name not in _DEFAULTS:
            raise ReslabError(f"add_norm: {norm!r} without its parameter {name!r}")
        value = jnp.asarray(parameters.get(name, _DEFAULTS.get(name)), wide)
        if value.shape not in ((), (width,)):
            raise ReslabError(
                f"add_norm: {name}",
                expected=f"one number or ({width},)",
                got=str(value.shape),
            )
        if name in ("gain", "bias", "dynamic_gain"):
            value = value * jnp.asarray(scale, wide)
        rows.append(jnp.broadcast_to(value, (width,)))
    return tuple(rows)
