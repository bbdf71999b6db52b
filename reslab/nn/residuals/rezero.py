"""ReZero: every branch starts switched off (Bachlechner et al., 2020)."""

from reslab.nn.residuals._single import ScaledBranch


class ReZero(ScaledBranch):
    """Multiplies each branch by one learned number that starts at zero.

        x = x + scale * f(x)

    A network starts as the identity whatever its depth. The paper leaves norms out:
    that is placement `none`. The sum is taken in float32 and stored in the stream's
    dtype.

    Reference: Bachlechner et al., 2020, https://arxiv.org/abs/2003.04887, Eq. 1.
    Tested against the equation; no output of the authors' code.

    Attributes:
      param_dtype: Dtype in which `scale` (the paper's alpha) is stored.
    """


build = ReZero
