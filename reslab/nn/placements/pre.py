"""Pre-norm: the sublayer reads a normalized stream (Xiong et al., 2020)."""

from typing import ClassVar

from reslab.nn.placements._sublayer import Placement


class PreNorm(Placement):
    """Normalizes what the sublayer reads and leaves the stream untouched.

        x = x + f(norm(x))

    The identity path stays clean through all layers, so a norm is needed after
    the last one.

    Reference: Xiong et al., 2020, https://arxiv.org/abs/2002.04745, Table 1.
    """

    normalizes_input: ClassVar[bool] = True


build = PreNorm
