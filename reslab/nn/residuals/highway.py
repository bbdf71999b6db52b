"""Highway: a learned gate between the branch and the stream (Srivastava et al.)."""

from typing import ClassVar

import flax.linen as nn
import jax

from reslab.core.bounds import Real, bounded
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.types import Branch
from reslab.nn.base.projection import ProjectingModule


@bounded
class Highway(ProjectingModule):
    """Interpolates each feature between the stream and the branch.

        t = sigmoid(W x + b)
        x = t * f(x) + (1 - t) * x

    What the branch writes takes the place of what was there: the stream of a deep
    network forgets. `W` starts at zero (the paper's starts random), so that the gate
    is at first sigmoid(b) for every feature, and `b` negative: the paper takes -1 to
    -4, the deeper the lower. Gate and sum are float32, stored in the stream's dtype.

    Reference: Srivastava et al., 2015, https://arxiv.org/abs/1505.00387, Eq. 3 (the
    carry gate coupled to the transform gate). Tested against the equation; no output
    of the authors' code.

    Attributes:
      bias: The gate's bias b at initialization.
      (and those of `ProjectingModule`)
    """

    bias: Real = -4.0

    reduces_to_plain_at_init: ClassVar[bool] = False

    def widen(self, x: jax.Array) -> jax.Array:
        """The embeddings are the stream."""
        return x

    @nn.compact
    def __call__(
        self, stream: jax.Array, branch: Branch, *, site: int | jax.Array
    ) -> jax.Array:
        """Returns `t * branch(stream) + (1 - t) * stream`, whatever the site."""
        del site
        features, dtype = stream.shape[-1], statistics_dtype(stream.dtype)
        logits = self.project("gate", stream, features, ("embed", None), scale=0.0)
        bias = parameter(
            self,
            "gate_bias",
            nn.initializers.constant(self.bias),
            (features,),
            ("embed",),
            self.param_dtype,
        ).astype(dtype)
        lead = (1,) * (stream.ndim - 1)
        gate = nn.sigmoid(logits.astype(dtype) + bias.reshape(*lead, -1))
        x = stream.astype(dtype)
        return (x + gate * (branch(stream).astype(dtype) - x)).astype(stream.dtype)

    def narrow(self, stream: jax.Array) -> jax.Array:
        """The stream is the features."""
        return stream


build = Highway
