"""ELC-BERT: every layer reads a convex mixture of all layers before it."""

from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, bounded
from reslab.core.parameters import parameter
from reslab.core.platform import computed_once
from reslab.core.precision import statistics_dtype
from reslab.core.taps import tap
from reslab.core.types import Branch
from reslab.nn.base.history import History
from reslab.nn.residuals._history import LayerHistory, mixtures


@bounded
class EveryLayerCounts(LayerHistory):
    """Feeds each layer a softmax-weighted mean of the outputs of all earlier ones.

        x = sum_i softmax(a_l)_i X_i,        X_0 = embedding
        base:               y = f_1(x);    X_(l+1) = y + f_2(y)
        zero:               y = f_1(x);    X_(l+1) = y + f_2(x + y)
        normalized:         as zero, then X_(l+1) is layer-normalized, without a gain
        weighted_output:    as zero; the features at the end are one more mixture

    The mixture takes the place of the residual connection: a layer's output does
    not hold what it has read. The logits start at zero, with a 1 for the latest layer
    in "base". Further sublayers of a layer read as the second does.

    Logits are stored for all layers as sources, those to come among them, which never
    receive a gradient: layers that are scanned have parameters of one shape.

    Reference: Charpentier & Samuel, 2023, https://arxiv.org/abs/2311.02265. Checked
    against the authors' code, which also starts the feed-forward layers of layer l,
    from 1, smaller by 1/sqrt(2 l) and does not decay the logits; neither is done here.

    Attributes:
      form: "base", "zero", "normalized" or "weighted_output".
      epsilon: Added to the variance, in "normalized".
      (and those of `LayerHistory`)

    Raises:
      ReslabError: If the form is unknown.
    """

    form: Literal["base", "zero", "normalized", "weighted_output"] = "base"
    epsilon: Epsilon = 1e-7

    reduces_to_plain_at_init: ClassVar[bool] = False

    @property
    def keeps_identity(self) -> bool:
        """No: what is read is an average."""
        return False

    def setup(self):
        """Makes the reader, whose logits come when it is first called."""
        latest = 1.0 if self.form == "base" else 0.0
        self.read = ConvexSum(len(self.starts), latest, self.param_dtype, self.kernels)

    def widen(self, x: jax.Array) -> History:
        """The embedding is the first source."""
        return History.start(x, len(self.starts), sum=x, input=x)

    def __call__(
        self, stream: History, branch: Branch, *, site: int | jax.Array
    ) -> History:
        """Reads at the beginning of a layer, writes at its end."""
        layer = self.layer(site)
        if self.begins_layer:
            x, stream = self.read(stream, layer)
            y = branch(x)
        else:
            x, y = stream.carried["input"], stream.carried["sum"]
            y = y + branch(y if self.form == "base" else x + y)
        y = computed_once(y)
        if self.ends_layer:
            if self.form == "normalized":
                y = self._normalized(y)
            stream = self.write(stream, y, layer)
        return stream.carry(sum=y, input=x)

    def narrow(self, stream: History) -> jax.Array:
        """The output of the last layer, or one more mixture."""
        if self.form == "weighted_output":
            return self.read(stream, len(self.starts) - 1)[0]
        return stream.carried["sum"]

    def _normalized(self, x):
        wide = x.astype(statistics_dtype(x.dtype))
        centered = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
        return (centered * jax.lax.rsqrt(variance + self.epsilon)).astype(x.dtype)


class ConvexSum(nn.Module):
    """Reads a history by the softmax of logits that are parameters.

    Attributes:
      rows: Number of sources that there will be.
      latest: Initial logit of the latest source; the others start at zero.
      param_dtype: Dtype in which logits are stored.
      kernels: As in `HistoryResidual`.
    """

    rows: int
    latest: float = 0.0
    param_dtype: Any = jnp.float32
    kernels: str = "auto"

    @nn.compact
    def __call__(
        self, history: History, layer: int | jax.Array
    ) -> tuple[jax.Array, History]:
        """Returns the features after `layer` layers and the history for later reads."""

        def start(key, shape, dtype):
            del key
            return self.latest * jax.nn.one_hot(layer, *shape, dtype=dtype)

        args = ("logits", start, (self.rows,), (None,), self.param_dtype)
        logits = parameter(self, *args)
        is_there = jnp.arange(self.rows, dtype=jnp.int32) <= layer
        logits = logits.astype(statistics_dtype(history.dtype))
        weights = jax.nn.softmax(jnp.where(is_there, logits, -jnp.inf))
        tap(self, "depth_weights", weights)
        (mixed,), history = mixtures(self, history, weights[None], layer + 1)
        return mixed.astype(history.dtype), history


build = EveryLayerCounts
