"""The chain projection: block-triangular, for models inside models (Song et al.)."""

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, bounded
from reslab.nn.base import chains as chains_of
from reslab.nn.linears._linear import LinearModule
from reslab.nn.linears.dense import Dense


@bounded
class ChainLinear(LinearModule):
    """Lets each chain of the output read only the same and the earlier chains.

        y_i = x_(<= i) . kernel_i (+ bias_i),        i = 1..chains

    Input and output are cut into chains in proportion to `chains`, along the first of
    their axes: features of the stream, or heads. Kernels above the diagonal do not
    exist, so they cost nothing. With the norm `chain_rms` of the same chains, the
    first chains of a whole model are a smaller model, which the transform
    `first_chains` takes out.

    With `is_kv_shared` (CoLM-Air), keys and values are computed from the first chain
    alone and serve all; give attention as many `kv_heads` as the first chain has
    heads, and `is_kv_cyclic=True` so that a head's keys do not depend on how many
    heads follow.

    An `init_std` other than 0 applies to a kernel that reads all inputs; kernels that
    read fewer start larger, so that all outputs start alike.

    Reference: Song et al., 2025, https://arxiv.org/abs/2505.11820. The authors have
    published no code: the golden values are those of the equation.

    Attributes:
      chains: How wide each chain is, relative to the others.
      is_kv_shared: Whether keys and values read the first chain only.
      role: Which projection of its part this is, such as "key".
      (and those of `LinearModule`)

    Raises:
      ReslabError: If the chains are no positive integers, or do not divide an axis.
    """

    chains: Annotated[tuple[int, ...], Bounds(least=1)] = (1, 1)
    is_kv_shared: bool = False
    role: str = ""

    def __post_init__(self):
        chains_of.check("linears 'chain'", self.chains)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., inputs) to (..., features).

        Raises:
          ReslabError: If the chains do not divide the inputs or the features.
        """
        inputs, outputs = self.inputs_of(x), self.outputs
        where = "linears 'chain'"
        read = chains_of.ends(where, self.chains, inputs[0])
        if self.is_kv_shared and self.role in ("key", "value"):
            read, written = read[:1], outputs[:1]
        else:
            written = chains_of.ends(where, self.chains, outputs[0])
        axis = x.ndim - len(inputs)
        parts = []
        for index, (reach, end) in enumerate(zip(read, written, strict=True)):
            begin = written[index - 1] if index else 0
            wider = math.sqrt(inputs[0] / reach)
            dense = Dense(
                (end - begin, *outputs[1:]),
                self.kernel_axes,
                use_bias=self.use_bias,
                scale=self.scale,
                init_std=self.init_std * wider,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"chain_{index}",
            )
            parts.append(dense(jax.lax.slice_in_dim(x, 0, reach, axis=axis)))
        return jnp.concatenate(parts, axis=axis)


build = ChainLinear
