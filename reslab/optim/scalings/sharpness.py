"""Blockwise learning rates by sharpness (Wang et al., 2025)."""

from reslab.core.layout import Layout
from reslab.optim.base.scale import Rule, Scale

# By the projection's name; other matrices in a layer are feed-forward kernels.
_PROJECTIONS = {"query": 8.0, "key": 8.0, "value": 4.0, "output": 4.0}


def build() -> Rule:
    """Gives each kind of block the learning rate that its curvature allows.

        norms 1, queries and keys 8, values and outputs 4, feed-forward 6,
        embedding and head 10

    The learning rate of the run is then the rate of the norms.

    Reference: Wang et al., 2025, https://arxiv.org/abs/2502.19002; the factors are
    those that the code of the heavy-tail learning rates uses for this baseline.

    Returns:
      The rule.
    """

    def rule(name: str, layout: Layout, depth: int) -> Scale:
        del depth
        if layout.kind == "vector":
            return Scale(1.0)
        if layout.kind != "matrix":
            return Scale(10.0)
        parts = name.split("/")
        found = (f for part, f in _PROJECTIONS.items() if part in parts)
        return Scale(next(found, 6.0) if "mixer" in parts else 6.0)

    return rule
