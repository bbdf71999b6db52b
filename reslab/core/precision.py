"""Which dtype is used where: parameters, compute, statistics."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


@dataclasses.dataclass(frozen=True)
class Precision:
    """The dtypes of a run; statistics are always at least float32."""

    parameters: Any
    compute: Any


def statistics_dtype(dtype: Any) -> Any:
    """The dtype for means, variances and softmax: float32, or float64 if given.

    >>> statistics_dtype(jnp.bfloat16).name
    'float32'
    """
    # Not `promote_types`, which refuses under JAX's strict dtype promotion.
    is_double = jnp.dtype(dtype) == jnp.float64
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)


def scaled(x: jax.Array, factor: Any) -> jax.Array:
    """Multiplies an array by a factor and rounds the product alone.

    JAX rounds a Python number to the dtype of the array that it meets: in bfloat16,
    1/sqrt(3) is 0.578125, and every product is 0.13% too large. Here the product is
    taken in float32 at least, and it alone is rounded to the dtype of `x`.

    Args:
      x: An array.
      factor: A number, or an array that broadcasts against `x`.

    Returns:
      The product, of the dtype of `x`.

    >>> x = jnp.full((), 7.0, jnp.bfloat16)
    >>> float(x * 3**-0.5), float(scaled(x, 3**-0.5)), round(7 * 3**-0.5, 5)
    (4.0625, 4.03125, 4.04145)
    """
    wide = statistics_dtype(x.dtype)
    return (x.astype(wide) * jnp.asarray(factor, wide)).astype(x.dtype)


def resolve(parameters: str, compute: str, platform: str) -> Precision:
    """Turns the names in a config into dtypes.

    Args:
      parameters: "float32", "bfloat16" or "float64".
      compute: The same, or "auto": bfloat16 where the hardware multiplies it
        natively (TPU, GPU, CPUs with AMX or AVX512-BF16), float32 elsewhere.
      platform: The JAX platform name that will run the program.

    Raises:
      ReslabError: If a name is not one of these.
    """
    if compute == "auto":
        is_fast = platform != "cpu" or _cpu_multiplies_bfloat16()
        compute = "bfloat16" if is_fast else "float32"
    for field, name in (("parameters", parameters), ("compute", compute)):
        if name not in _DTYPES:
            raise ReslabError(
                f"precision.{field}", expected=", ".join(_DTYPES), got=repr(name)
            )
        if name == "float64" and not jax.config.read("jax_enable_x64"):
            raise ReslabError(
                f"precision.{field}: float64 is switched off in JAX",
                hint="JAX_ENABLE_X64=1",
            )
    return Precision(_DTYPES[parameters], _DTYPES[compute])


def _cpu_multiplies_bfloat16() -> bool:
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
