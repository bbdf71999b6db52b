"""Common parts of the tables of models with recurrent mixers."""

import math

from reslab.interop.base.forms import Kernel, Vector
from reslab.interop.base.tensors import Row

# The kind of layers with the delta rule in `layer_types`.
LINEAR = "linear_attention"


def expansion(wide: int, narrow: int) -> float:
    """The factor of a width whose product with it is another, rounded down."""
    factor = wide / narrow
    is_short = int(narrow * factor) < wide
    return math.nextafter(factor, math.inf) if is_short else factor


def delta_rows(name: str, norm: str, output: str) -> tuple[Row, ...]:
    """Rows that all mixers of the delta rule have in common.

    Args:
      name: What the mixer is called.
      norm: What its norm is called.
      output: What its last projection is called.
    """
    where = f"layers.{{i}}.{name}"
    return (
        Row(f"{where}.dt_bias", ("mixer/decay_bias",), Vector()),
        Row(
            f"{where}.{norm}.weight",
            ("mixer/output_norm/gain",),
            stores_gain_offset=False,
        ),
        Row(
            f"{where}.{output}.weight",
            ("mixer/output/kernel",),
            Kernel(inputs=2),
            beside="mixer/beta/kernel",
        ),
    )
