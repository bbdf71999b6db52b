"""A plain stream whose end is a learned mean of the outputs of all layers."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Real, bounded
from reslab.core.parameters import parameter
from reslab.nn.base.history import History
from reslab.nn.residuals._history import LayerHistory


@bounded
class AllLayers(LayerHistory):
    """Returns a softmax-weighted sum of what every layer left in the stream.

        x_(l+1) = x_l + f_l(x_l),    y = sum_(l=1..L) softmax(b)_l x_l

    Layers are stacked as usual; the features at the end are those of all layers, the
    embedding left out, so a model of one layer is plain. One logit b for each layer,
    zero at first, so y starts as the mean; `last_bias` is added to the last one's.
    Float32, rounded once to the dtype of the stream.

    Reference: Tran et al., 2020, https://arxiv.org/abs/2009.06676 (LATTE), whose layers
    of attention are stacked and their outputs averaged; the part about graphs is not
    here. Tested against the equation.

    Attributes:
      last_bias: Initial logit of the last layer; from 20 on a new model starts as a
        plain one.
      (and those of `HistoryResidual`)
    """

    last_bias: Real = 0.0

    adds_in_place: ClassVar[bool] = False

    @property
    def reduces_to_plain_at_init(self) -> bool:
        """Returns whether the last layer has all the weight, to a rounding."""
        return self.last_bias >= 20 or len(self.starts) == 2

    def begin(
        self, stream: History, layer: int | jax.Array
    ) -> tuple[Any, jax.Array, History]:
        """The stream alone."""
        del layer
        x = stream.carried["stream"]
        return x, x, stream

    def is_idle(self, parameter: str, site: int) -> bool:
        """No sublayer has parameters."""
        del parameter, site
        return False

    @nn.compact
    def narrow(self, stream: History) -> jax.Array:
        """Sums the outputs of all layers."""
        layers = len(self.starts) - 1

        def init(key, shape, dtype):
            del key
            return jnp.zeros(shape, dtype).at[-1].set(self.last_bias)

        logits = parameter(self, "logits", init, (layers,), (None,), self.param_dtype)
        sources = stream.before(layers + 1)
        weights = jax.nn.softmax(logits.astype(sources.dtype))
        return sources.mix(jnp.pad(weights, (1, 0))).astype(stream.dtype)


build = AllLayers
