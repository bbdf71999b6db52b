"""The standard layer: a mixer sublayer, then a feed-forward sublayer."""

from collections.abc import Iterable

from reslab.core.types import Branch
from reslab.nn.blocks._sublayers import Sublayer, SublayerBlock


class StandardBlock(SublayerBlock):
    """Applies a mixer and then a feed-forward layer to the stream.

        x = x + mixer(norm(x))
        x = x + ffn(norm(x))

    written for a plain residual and pre-norm; both may be others.

    Reference: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, Section
    3.1.

    Attributes:
      (those of `SublayerBlock`)
    """

    def branches(self, mixer: Branch) -> Iterable[Sublayer]:
        """The mixer, then the feed-forward layer."""
        yield Sublayer("mixer", "mixer", mixer)
        yield Sublayer("ffn", "ffn", self.make_ffn(name="ffn"))


build = StandardBlock
