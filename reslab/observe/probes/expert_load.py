"""Balance of tokens over experts."""

from collections.abc import Mapping
from typing import ClassVar

import jax

from reslab.observe.probes._view import CannotAnswer, Quantity, View


class ExpertLoadProbe:
    """The share of tokens that each expert of a layer gets, and how sure its router is.

    A feed-forward layer of experts taps `expert_load` (experts,), which sums to 1, and
    may tap `router_entropy` and `dropped_choices`, the share of choices that a capacity
    dropped.

    Reference: Fedus et al., 2021, https://arxiv.org/abs/2101.03961 (the fraction of
    tokens dispatched to an expert).
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "share": Quantity("share of the tokens by expert", "sublayer x source"),
        "entropy": Quantity("entropy of the router in nats", "sublayer"),
        "dropped": Quantity("share of choices that were dropped", "sublayer"),
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Collects what the layers of experts tapped.

        Raises:
          CannotAnswer: If there are no experts.
        """
        if "expert_load" not in view.trace.others:
            raise CannotAnswer("this model has no experts")
        taps = {
            "share": "expert_load",
            "entropy": "router_entropy",
            "dropped": "dropped_choices",
        }
        others = view.trace.others
        return {name: others[tap] for name, tap in taps.items() if tap in others}


build = ExpertLoadProbe
