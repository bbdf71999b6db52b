"""Post-norm: the stream is normalized after every addition (Vaswani et al., 2017)."""

from typing import ClassVar

from reslab.nn.placements._sublayer import Placement


class PostNorm(Placement):
    """Normalizes the stream after each sublayer has been added to it.

        x = norm(x + f(x))

    The last layer's output is normalized already, so no final norm follows.
    A residual of several streams has each of them normalized, with one gain.

    Reference: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, Section
    3.1; Xiong et al., 2020, https://arxiv.org/abs/2002.04745, Table 1.
    """

    normalizes_stream: ClassVar[bool] = True
    needs_final_norm: ClassVar[bool] = False


build = PostNorm
