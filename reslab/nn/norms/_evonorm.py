"""Base of EvoNorms: norm and activation in one, or their affine map alone."""

import jax

from reslab.core.precision import statistics_dtype
from reslab.nn.norms._features import AffineNorm


class EvoNorm(AffineNorm):
    """Base of norms that contain their activation, unless they are affine only.

    Attributes:
      is_affine_only: Whether there is neither norm nor activation, y = x * (1 + gain) +
        bias: the paper's layer at the end of a residual branch. A `gain_start` of
        "zero" begins the branch as nothing.
      (and those of `AffineNorm`)
    """

    is_affine_only: bool = False

    @property
    def is_activation(self) -> bool:
        """Returns whether it contains an activation."""
        return not self.is_affine_only

    def affine_alone(self, x: jax.Array) -> jax.Array:
        """Applies gain and bias to `x` (..., features), in float32 at least."""
        return self.affine(x.astype(statistics_dtype(x.dtype))).astype(x.dtype)
