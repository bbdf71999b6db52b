"""No norm anywhere."""

from typing import ClassVar

from reslab.nn.placements._sublayer import Placement


class NoNorm(Placement):
    """Leaves stream and sublayers as they are; no norm follows the last layer.

        x = x + f(x)

    The stream grows unchecked with depth: for models whose norms were removed
    (Baroni et al., 2025, https://arxiv.org/abs/2507.02559) and as a control.
    """

    needs_final_norm: ClassVar[bool] = False


build = NoNorm
