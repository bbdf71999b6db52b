"""LayerScale: a small learned gain on every feature of a branch (Touvron et al.)."""

from typing import ClassVar

from reslab.core.bounds import Real, bounded
from reslab.nn.residuals._single import ScaledBranch


@bounded
class LayerScale(ScaledBranch):
    """Multiplies the features of each branch by learned gains that start small.

        x = x + scale * f(x),    scale a vector

    The gains start at 0.1 up to 18 layers, 1e-5 up to 24 and 1e-6 beyond, unless
    `start` says otherwise. The sum is taken in float32 and stored in the stream's
    dtype.

    Reference: Touvron et al., 2021, https://arxiv.org/abs/2103.17239, Section 2,
    Eq. 4. Tested against the equation; no output of the authors' code.

    Attributes:
      start: The gains at initialization; 0 is by depth.
      depth: Number of layers applied.
      param_dtype: Dtype in which `scale` is stored.
    """

    start: Real = 0.0
    depth: int = 1

    scales_features: ClassVar[bool] = True

    def first_scale(self) -> float:
        """The gains at initialization."""
        if self.start:
            return self.start
        return 0.1 if self.depth <= 18 else 1e-5 if self.depth <= 24 else 1e-6


build = LayerScale
