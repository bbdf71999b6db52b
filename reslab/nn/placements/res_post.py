"""Res-post-norm: the branch is normalized before it is added (Liu et al., 2022)."""

from typing import ClassVar

from reslab.nn.placements._sublayer import Placement


class ResPostNorm(Placement):
    """Normalizes what the sublayer adds to the stream, and nothing else.

        x = x + norm(f(x))

    The sublayer reads the stream as it is; each addition has a size that only the
    norm's gain decides. Unlike in post-norm the stream itself is never normalized, so a
    norm is needed after the last layer.

    Reference: Liu et al., 2022, https://arxiv.org/abs/2111.09883, Section 3.2; in
    language models: OLMo Team, 2024, https://arxiv.org/abs/2501.00656, Section 3.1.
    """

    normalizes_output: ClassVar[bool] = True


build = ResPostNorm
