"""Tokens that layers choose to compute."""

from collections.abc import Mapping
from typing import ClassVar

import jax

from reslab.observe.probes._view import CannotAnswer, Quantity, View


class TokenRoutingProbe:
    """The share of tokens that each layer with a router computes when evaluated.

    A layer taps `routed_share`, and `routing_agreement`, the share of tokens for which
    its predictor says what the choice of training would be (see `stacks/mod`).

    Reference: Raposo et al., 2024, https://arxiv.org/abs/2404.02258, Figures 5 and 6.
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "share": Quantity("share of the tokens that are computed", "layer"),
        "agreement": Quantity("share of tokens that are predicted right", "layer"),
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Collects what the layers with a router tapped.

        Raises:
          CannotAnswer: If no layer has one.
        """
        others = view.trace.others
        if "routed_share" not in others:
            raise CannotAnswer("no layer of this model chooses tokens")
        return {
            "share": others["routed_share"],
            "agreement": others["routing_agreement"],
        }


build = TokenRoutingProbe
