"""The layer of one sublayer: a mixer, without a feed-forward layer."""

from collections.abc import Iterable

from reslab.core.types import Branch
from reslab.nn.blocks._sublayers import Sublayer, SublayerBlock


class MixerOnlyBlock(SublayerBlock):
    """Applies a mixer to the stream, and no feed-forward layer.

        x = x + mixer(norm(x))

    The form of Mamba models, whose mixers widen the features themselves; `ffn` is not
    used. One sublayer, so a placement counts half as many of them.

    Reference: Gu & Dao, 2023, https://arxiv.org/abs/2312.00752, Section 3.4. Tested
    against checkpoints of Mamba and Mamba-2.

    Attributes:
      (those of `SublayerBlock`)
    """

    @property
    def sublayers(self) -> int:
        """One, of the mixer."""
        return 1

    @property
    def feed_forwards(self) -> int:
        """Zero."""
        return 0

    def branches(self, mixer: Branch) -> Iterable[Sublayer]:
        """The mixer."""
        yield Sublayer("mixer", "mixer", mixer)


build = MixerOnlyBlock
