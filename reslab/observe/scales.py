"""Scales of values: the range and the colours that several charts share."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Number = float | None

# Nine colours of viridis (van der Walt & Smith, 2015, https://bids.github.io/colormap/),
# which is even in lightness to normal and colour-blind eyes; between them, straight
# lines in sRGB.
_SEQUENTIAL = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80")
_SEQUENTIAL += ("5ec962", "addc30", "fde725")

# RdBu of ColorBrewer from blue to red (Harrower & Brewer, 2003,
# https://doi.org/10.1179/000870403235002042), distinguishable with every common kind of
# colour vision.
_DIVERGING = ("053061", "2166ac", "4393c3", "92c5de", "d1e5f0", "f7f7f7")
_DIVERGING += ("fddbc7", "f4a582", "d6604d", "b2182b", "67001f")


class Scale(NamedTuple):
    """The range of values that several charts share, and its colours."""

    low: float
    high: float
    is_logarithmic: bool

    @property
    def is_diverging(self) -> bool:
        """Returns whether the colours part at zero."""
        return not self.is_logarithmic and self.low < 0 < self.high

    @property
    def span(self) -> float:
        """Width of the range, in units of the axis."""
        if self.is_logarithmic:
            return math.log(self.high) - math.log(self.low)
        return self.high - self.low

    def share(self, value: Number) -> float | None:
        """Returns a value's place in the range, 0 to 1; None without a colour."""
        if value is None or not math.isfinite(value):
            return None
        low, high = self.low, self.high
        if self.is_logarithmic:
            if value <= 0:
                return None
            value, low, high = math.log(value), math.log(low), math.log(high)
        return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5

    def colour(self, value: Number) -> str | None:
        """The colour of a value, one of 64 levels; None without one."""
        share = self.share(value)
        if share is None:
            return None
        # An even number of steps has a middle, where zero is.
        steps = 64 if self.is_diverging else 63
        return colour(round(share * steps) / steps, is_diverging=self.is_diverging)


def colour(share: float, *, is_diverging: bool = False) -> str:
    """The colour at a share of the map: dark to light, or blue over white to red.

    >>> colour(0.0), colour(1.0), colour(0.5, is_diverging=True)
    ('#440154', '#fde725', '#f7f7f7')
    """
    anchors = _DIVERGING if is_diverging else _SEQUENTIAL
    position = min(1.0, max(0.0, share)) * (len(anchors) - 1)
    index = min(int(position), len(anchors) - 2)
    rest = position - index
    mixed = (
        round((1 - rest) * int(a, 16) + rest * int(b, 16))
        for a, b in (
            (anchors[index][i : i + 2], anchors[index + 1][i : i + 2])
            for i in (0, 2, 4)
        )
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def common_scale(values: Sequence[Number], *, is_logarithmic: bool = False) -> Scale:
    """Returns a scale of all finite values, or of positive ones if logarithmic."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return Scale(0.0, 1.0, False)
    positive = [v for v in finite if v > 0]
    if is_logarithmic and positive:
        return Scale(min(positive), max(positive), True)
    return Scale(min(finite), max(finite), False)


def symmetric(scale: Scale) -> Scale:
    """Returns the scale with zero in its middle where it has both signs.

    >>> symmetric(Scale(-1.0, 3.0, False))
    Scale(low=-3.0, high=3.0, is_logarithmic=False)
    """
    if not scale.is_diverging:
        return scale
    size = max(-scale.low, scale.high)
    return Scale(-size, size, False)
