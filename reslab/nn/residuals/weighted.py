"""A learned scale on the stream and one on the branch (Shen et al., 2021)."""

from typing import ClassVar

import flax.linen as nn
import jax

from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.types import Branch
from reslab.nn.residuals._single import SingleStream


class WeightedSum(SingleStream):
    """Multiplies the stream and the branch by learned numbers, one at first.

        x = a x + b f(x)

    The sum is taken in float32 and stored in the stream's dtype. The stream is scaled
    at every sublayer: a far from one lets it grow or vanish exponentially with depth.

    Reference: Shen, Liu & Xing, 2021, https://arxiv.org/abs/2111.05297, Section 3.3.
    Tested against the authors' code in `stacks/sliced`.

    Attributes:
      param_dtype: Dtype in which both scales are stored.
    """

    reduces_to_plain_at_init: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, stream: jax.Array, branch: Branch, *, site: int | jax.Array
    ) -> jax.Array:
        """Returns `a * stream + b * branch(stream)`, whatever the site."""
        del site
        dtype, one = statistics_dtype(stream.dtype), nn.initializers.ones
        kept, added = (
            parameter(self, name, one, (), (), self.param_dtype)
            .astype(dtype)
            .reshape((1,) * stream.ndim)
            for name in ("stream_scale", "branch_scale")
        )
        branched = branch(stream).astype(dtype)
        return (kept * stream.astype(dtype) + added * branched).astype(stream.dtype)


build = WeightedSum
