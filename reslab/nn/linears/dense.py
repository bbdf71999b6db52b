"""The dense projection."""

import flax.linen as nn
import jax

from reslab.core.parameters import parameter
from reslab.nn.linears._linear import LinearModule


class Dense(LinearModule):
    """Multiplies the last axes of the input by a learned kernel.

        y = x . kernel (+ bias)

    Kernel entries start normal with standard deviation `init_std`, or
    1/sqrt(fan in) where that is 0, times `scale`; biases start at zero. The
    product is taken in `dtype`.

    Attributes:
      (those of `LinearModule`)
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., inputs) to (..., features)."""
        return self.add_bias(self.multiply(x))

    def multiply(self, x: jax.Array) -> jax.Array:
        """Multiplies by the kernel."""
        inputs = self.inputs_of(x)
        kernel = parameter(
            self,
            "kernel",
            nn.initializers.normal(self.kernel_std(inputs)),
            (*inputs, *self.outputs),
            self.kernel_axes,
            self.param_dtype,
        )
        first, contracted = x.ndim - len(inputs), len(inputs)
        return jax.lax.dot_general(
            x.astype(self.dtype),
            self.used(kernel).astype(self.dtype),
            ((tuple(range(first, x.ndim)), tuple(range(contracted))), ((), ())),
        )


build = Dense
