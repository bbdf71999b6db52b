"""DenseFormer: every layer reads a weighted sum of all layers before it."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, bounded
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.taps import tap
from reslab.nn.base import sites
from reslab.nn.base.history import History
from reslab.nn.residuals._history import LayerHistory, mixtures


@bounded
class DenseFormer(LayerHistory):
    """Adds up the outputs of all earlier layers, with a weight for each pair.

        X_0 = Y_0 = embedding,   X_i = B_i(Y_(i-1)),   Y_i = sum_(j <= i) a_ij X_j

    Inside a layer B the stream is the usual sum. The weights are unconstrained; they
    start as 1 for a layer's own output and 0 for all others, which is the usual
    stack. With `dilation=k` a reading takes every k-th layer, counted back from the
    latest; with `period=p` every p-th layer is followed by one, the others hand on
    their own output.

    Weights are stored for all layers as sources, those to come among them, which never
    receive a gradient: layers that are scanned have parameters of one shape. A period
    saves no time where layers are scanned.

    Reference: Pagliardini et al., 2024, https://arxiv.org/abs/2402.02622, Eq. 1-2.
    Checked against the authors' code, which decays these weights like any other.

    Attributes:
      dilation: Distance between the layers read.
      period: Layers from one reading to the next.
      (and those of `LayerHistory`)

    Raises:
      ReslabError: If one of them is below 1.
    """

    dilation: Count = 1
    period: Count = 1

    reduces_to_plain_at_init: ClassVar[bool] = True

    @property
    def _reads(self) -> tuple[bool, ...]:
        """Returns whether a read follows this number of layers."""
        return tuple(i > 0 and i % self.period == 0 for i in range(len(self.starts)))

    def is_idle(self, parameter: str, site: int) -> bool:
        """Layers that are given the output of the last one as it is weigh nothing."""
        del parameter
        return not self._reads[self.layer_of_site[site]]

    def setup(self):
        """Makes the reader, whose weights come when it is first called."""
        self.read = WeightedSum(
            self._reads, self.dilation, self.param_dtype, self.kernels
        )

    def narrow(self, stream: History) -> jax.Array:
        """One more reading after the last layer, where one is due."""
        return super().narrow(stream) if self._reads[-1] else stream.carried["stream"]


class WeightedSum(nn.Module):
    """Reads a history by weights that are parameters.

    Attributes:
      is_read: Whether sources are averaged after each layer; otherwise the last
        source is read.
      dilation: Distance between the sources read.
      param_dtype: Dtype in which weights are stored.
      kernels: As in `HistoryResidual`.
    """

    is_read: tuple[bool, ...]
    dilation: int
    param_dtype: Any = jnp.float32
    kernels: str = "auto"

    @nn.compact
    def __call__(
        self, history: History, layer: int | jax.Array
    ) -> tuple[jax.Array, History]:
        """Returns the features after `layer` layers and the history for later reads."""
        rows = len(self.is_read)

        def one_hot(key, shape, dtype):
            del key
            return jax.nn.one_hot(layer, *shape, dtype=dtype)

        weights = parameter(
            self, "weights", one_hot, (rows,), (None,), self.param_dtype
        )
        index = jnp.arange(rows, dtype=jnp.int32)
        is_apart = (index <= layer) & ((layer - index) % self.dilation == 0)
        is_last = index == layer
        is_read = sites.at(self.is_read, layer)
        weights = jnp.where(
            is_read,
            jnp.where(is_apart, weights, 0),
            is_last.astype(weights.dtype),
        ).astype(statistics_dtype(history.dtype))
        tap(self, "depth_weights", weights)
        (mixed,), history = mixtures(self, history, weights[None], layer + 1)
        return mixed.astype(history.dtype), history


build = DenseFormer
