"""SkipInit: a learned scale on branches without norms (De & Smith, 2020)."""

from reslab.core.bounds import Real, bounded
from reslab.nn.residuals._single import ScaledBranch


@bounded
class SkipInit(ScaledBranch):
    """Multiplies each branch by one learned number, zero or small at first.

        x = x + scale * f(x)

    The paper takes batch normalization out of residual networks and finds any start
    up to 1/sqrt(number of branches) good enough; zero is what it uses. Used as there,
    the placement is `none`; started at zero it is then the same as `rezero`, which
    was found for other networks. The sum is taken in float32 and stored in the
    stream's dtype.

    Reference: De & Smith, 2020, https://arxiv.org/abs/2002.10444, Section 4.
    Tested against the equation; no output of the authors' code.

    Attributes:
      start: The scale at initialization.
      param_dtype: Dtype in which `scale` (the paper's alpha) is stored.
    """

    start: Real = 0.0

    def first_scale(self) -> float:
        """The scale at initialization."""
        return self.start


build = SkipInit
