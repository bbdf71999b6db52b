"""Streams that square themselves, layer after layer, until they overflow."""

import math
from collections.abc import Iterable

from reslab.core import registry
from reslab.core.errors import ReslabError

# Measured with 32 features: at 7 gated layers the first loss is 5e15 and the gradient
# norm 7e18, whose square is near the end of float32; at 8 it is infinite.
MOST_SQUARINGS = 6


def check_growth(
    layers: Iterable[tuple[registry.Spec, registry.Spec, registry.Spec]],
) -> None:
    """Checks that layers do not square what they pass on until it overflows.

    Behind a norm that passes a share of its input on (`passes_input`), a feed-forward
    layer of degree two makes x^2 of a stream of size x, and so does every later one.

    Args:
      layers: Specs of norm, feed-forward layer and block of every layer with norms
        around its sublayers.

    Raises:
      ReslabError: If there are too many such layers.
    """
    squarings, named = 0.0, ("", "", "")
    for norm, ffn, block in layers:
        if not getattr(registry.unbound("norms", norm), "passes_input", False):
            continue
        named = norm, ffn, block
        degree = getattr(registry.unbound("ffns", ffn), "degree", 1)
        count = getattr(registry.unbound("blocks", block), "feed_forwards", 1)
        squarings += count * math.log2(degree)
    if squarings > MOST_SQUARINGS:
        norm, ffn, block = named
        raise ReslabError(
            f"norm {norm!r} passes its input on, and {ffn!r} in block {block!r} "
            "squares it: the stream overflows at the first step",
            expected=f"at most {MOST_SQUARINGS} feed-forward layers that square",
            got=f"{squarings:.0f}",
            hint="an initial_skip of 0, ffn gelu, norm progressive_rep_batch, or "
            "fewer layers",
        )
