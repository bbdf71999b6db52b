"""Sandwich norm: before and after every sublayer (Ding et al., 2021)."""

from typing import ClassVar

from reslab.nn.placements._sublayer import Placement


class SandwichNorm(Placement):
    """Normalizes what the sublayer reads and what it adds to the stream.

        x = x + norm_out(f(norm_in(x)))

    Each addition has a size that only the output norm's gain decides, so the
    variance of the stream grows at most linearly with depth.

    Reference: Ding et al., 2021, https://arxiv.org/abs/2105.13290. Checked against
    the "sandwich" block of the LayerNorm-Scaling authors' code.
    """

    normalizes_input: ClassVar[bool] = True
    normalizes_output: ClassVar[bool] = True


build = SandwichNorm
