"""The weights with which sublayers mix what earlier ones left."""

from collections.abc import Mapping
from typing import ClassVar

import jax

from reslab.observe.probes._view import CannotAnswer, Quantity, View


class DepthWeightsProbe:
    """Weights with which every sublayer reads each source along depth.

    The sources are the residual's own: streams for hyper-connections, earlier
    outputs for attention over depth. A residual that mixes taps `depth_weights`
    (sources,), averaged over tokens where they depend on them.

    Reference: Zhu et al., 2024, https://arxiv.org/abs/2409.19606 (connection
    patterns).
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "read": Quantity("weight of each source in a reading", "sublayer x source")
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Collects what the residual tapped.

        Raises:
          CannotAnswer: If the residual mixes nothing.
        """
        if "depth_weights" not in view.trace.others:
            raise CannotAnswer("this residual reads from one stream as it is")
        return {"read": view.trace.others["depth_weights"]}


build = DepthWeightsProbe
