"""SATFormer: gated access to the first layer's values (Gunasekaran et al., 2026)."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry, surroundings
from reslab.core.bounds import Count, NonNegative, bounded
from reslab.core.errors import ReslabError, nearest
from reslab.core.precision import statistics_dtype
from reslab.nn.value_paths._path import FirstValues

_GATES: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "tanh": jnp.tanh,
    "identity": lambda logits: logits,
    "softmax": lambda logits: logits.shape[-1] * nn.softmax(logits),
    "softmax_sigmoid": lambda logits: (
        logits.shape[-1] * nn.softmax(logits) * nn.sigmoid(logits)
    ),
}


@bounded
class GatedFirstValues(FirstValues):
    """Adds to each head's values those of the first layer, gated by the token.

        v = v_n + gate(x . W) * v_1

    with one gate for each key-value head and token; x is what the layer reads, after
    its norm, and `gate` one of relu, sigmoid, tanh, identity, softmax (over heads,
    times their number) and softmax_sigmoid (that times the sigmoid). Gates are
    float32; the cache holds the sum.

    Reference: Gunasekaran et al., 2026, https://arxiv.org/abs/2605.03953. All gates
    are tested against the authors' code. The projection starts as the model's others
    do, where that code has a standard deviation of 0.02.

    Attributes:
      gate: Which gate.
      kv_heads: Number of key-value heads.
      use_bias: Whether the projection has a bias.
      linear: What a projection is.
      init_std: Initial standard deviation of the projection; 0 is by fan in.
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.

    Raises:
      ReslabError: If there is no such gate.
    """

    gate: str = "relu"
    kv_heads: Count = 4
    use_bias: bool = False
    linear: registry.Spec = "dense"
    init_std: NonNegative = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.gate not in _GATES:
            raise ReslabError(
                f"value_paths 'satformer': gate {self.gate!r}",
                hint=nearest(self.gate, _GATES),
            )
        super().__post_init__()

    def mix_first(self, x: jax.Array, own: jax.Array, first: jax.Array) -> jax.Array:
        """The layer's own values and a share of the first."""
        logits = registry.make(
            "linears",
            self.linear,
            **surroundings.Linears(
                features=self.kv_heads, kernel_axes=("embed", "heads"), role="gate"
            ),
            use_bias=self.use_bias,
            init_std=self.init_std,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="gate",
        )(x)
        dtype = statistics_dtype(own.dtype)
        gates = _GATES[self.gate](logits.astype(dtype))[..., None]
        return (own.astype(dtype) + gates * first.astype(dtype)).astype(own.dtype)


build = GatedFirstValues
