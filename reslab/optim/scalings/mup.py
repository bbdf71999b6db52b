"""muP and CompleteP: learning rates that carry over from a small model."""

from reslab.core.bounds import NonNegative, Positive, bounded
from reslab.core.layout import Layout
from reslab.optim.base.scale import Rule, Scale


@bounded
def build(
    wider: Positive = 1.0,
    deeper: Positive = 1.0,
    alpha: NonNegative = 1.0,
) -> Rule:
    """Scales what was tuned on a model that was narrower and shallower.

        hidden matrices     lr wider^-1 deeper^(alpha - 1), decay wider
        vectors in layers   lr deeper^(alpha - 1)
        others              lr 1
        Adam's epsilon      wider^-1, in layers also deeper^-alpha

    That is the optimizer's part. The model's is to be set beside it: initial
    variances of 1 / fan in, branches of the residual times deeper^-alpha, logits
    times wider^-1. The rules are Adam's; methods without an epsilon refuse them.

    Reference: Yang et al., 2022, https://arxiv.org/abs/2203.03466, Table 8; Dey et
    al., 2025, https://arxiv.org/abs/2505.01618, Table 1 (alpha 1 is CompleteP, 0.5
    depth-muP). The factors were compared with the table of the authors' code in
    nanoGPT, by hand; that transfer is exact was not tested here.

    Args:
      wider: Width divided by the width of the tuned model.
      deeper: Depth divided by the depth of the tuned model.
      alpha: Exponent of the depth.

    Returns:
      The rule.

    Raises:
      ReslabError: If a ratio is not positive.
    """

    def rule(name: str, layout: Layout, depth: int) -> Scale:
        del name, depth
        if not layout.layers:
            return Scale(epsilon=1 / wider)
        lr, epsilon = deeper ** (alpha - 1), deeper**-alpha / wider
        if layout.kind == "matrix":
            return Scale(lr / wider, weight_decay=wider, epsilon=epsilon)
        return Scale(lr, epsilon=epsilon)

    return rule
