"""ResFormer: every layer also sees the first layer's values (Zhou et al., 2024)."""

from typing import Literal

import flax.linen as nn
import jax

from reslab.core.bounds import bounded
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.nn.value_paths._path import FirstValues


@bounded
class ValueResidual(FirstValues):
    """Mixes the values of each layer with those of the first.

        "constant":  0.5 v_1 + 0.5 v_n
        "learned":   first_scale * v_1 + own_scale * v_n, from 0.5 each

    v_1 are the first layer's own values. The cache holds the mixed ones.

    Reference: Zhou et al., 2024, https://arxiv.org/abs/2410.17897, Eq. 4. Both forms
    are tested against the authors' code, or a third party's that equals it.

    Attributes:
      form: "learned" or "constant".
      param_dtype: Dtype in which the scales are stored.

    Raises:
      ReslabError: If there is no such form.
    """

    form: Literal["learned", "constant"] = "learned"

    def mix_first(self, x: jax.Array, own: jax.Array, first: jax.Array) -> jax.Array:
        """A weighted sum of both."""
        del x
        dtype = statistics_dtype(own.dtype)

        def scalar(name):
            half = nn.initializers.constant(0.5)
            return parameter(self, name, half, (), (), self.param_dtype).astype(dtype)

        is_learned = self.form == "learned"
        scales = [
            scalar(n) if is_learned else 0.5 for n in ("first_scale", "own_scale")
        ]
        mixed = scales[0] * first.astype(dtype) + scales[1] * own.astype(dtype)
        return mixed.astype(own.dtype)


build = ValueResidual
