"""Vertical attention between layers, as far as it is known."""

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, Epsilon, bounded
from reslab.core.parameters import parameter
from reslab.core.taps import tap
from reslab.nn.base.history import History
from reslab.nn.residuals._history import Kernel, LayerHistory


@bounded
class VerticalAttention(LayerHistory):
    """Adds to what a layer reads an attention over the outputs of all before it.

        x = X_l + gate * sum_(i <= l) a_i X_i,    a = softmax_i(q . k_i / sqrt(d_k))
        q = W_q rms(X_l),    k_i = W_k rms(X_i)

    Each layer has its own W_q, W_k and gate, which is zero at first: the stack starts
    as the usual one. The first layer and the end read the stream as it is.

    Reference: Kojima et al., 2026, OpenReview A6uabXKiXc. No text and no code were to
    be had beside the abstract ("a small number of parameterized attention modules at
    the beginning of each layer"): the equations are this project's reading of it, and
    what they give must not be reported as the paper's method.

    Attributes:
      head_dim: Size of queries and keys; 0 is an eighth of the width, at least 1.
      epsilon: Added to mean squares before the root.
      (and those of `LayerHistory`)

    Raises:
      ReslabError: If `head_dim` is negative.
    """

    head_dim: Annotated[
        int, Bounds(least=0, words="at least 1, or 0 for an eighth of the width")
    ] = 0
    epsilon: Epsilon = 1e-6

    reduces_to_plain_at_init: ClassVar[bool] = True
    # The logits also have gradients by all sources, so a kernel for the sums alone
    # saves nothing: compiled at 24 layers, a step takes as long with it.
    adds_in_place: ClassVar[bool] = False

    def setup(self):
        """Makes the reader, whose parameters come when it is first called."""
        self.read = VerticalRead(self.head_dim, self.epsilon, self.param_dtype)

    def narrow(self, stream: History) -> jax.Array:
        """The output of the last layer."""
        return stream.carried["stream"]


class VerticalRead(nn.Module):
    """Attention of the latest source over all of them, gated and added to it.

    Attributes:
      head_dim: Size of queries and keys; 0 is an eighth of the width, at least 1.
      epsilon: Added to mean squares before the root.
      param_dtype: Dtype in which parameters are stored.
    """

    head_dim: int
    epsilon: float
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, history: History, layer: int | jax.Array
    ) -> tuple[jax.Array, History]:
        """Returns the features after `layer` layers and the history for later reads."""
        sources = history.before(layer + 1)
        latest = history.row(layer).astype(sources.dtype)
        features = latest.shape[-1]
        size = self.head_dim or max(1, features // 8)
        mean_square = jnp.mean(jnp.square(latest), axis=-1, keepdims=True)
        normalized = latest * jax.lax.rsqrt(mean_square + self.epsilon)
        # q . (W_k x) = (W_k^T q) . x, so keys are never computed.
        args = ((features, size), features**-0.5, self.param_dtype)
        led = normalized @ Kernel(*args, name="query")().astype(sources.dtype)
        led = led @ Kernel(*args, name="key")().astype(sources.dtype).T
        logits = sources.dots(led) * size**-0.5
        logits = logits * jax.lax.rsqrt(sources.mean_squares() + self.epsilon)
        is_valid = sources.is_valid[:, None, None]
        weights = jax.nn.softmax(jnp.where(is_valid, logits, -1e30), axis=0)
        zero = nn.initializers.zeros
        gate = parameter(self, "gate", zero, (), (), self.param_dtype)
        gate = jnp.where(jnp.asarray(layer) > 0, gate.astype(sources.dtype), 0)
        tap(self, "depth_weights", jnp.mean(weights, axis=(1, 2)))
        return (latest + gate * sources.mix(weights)).astype(history.dtype), history


build = VerticalAttention
