"""The parallel layer: mixer and feed-forward layer read the same features."""

from collections.abc import Iterable
from typing import ClassVar

from reslab.core.types import Branch
from reslab.nn.blocks._sublayers import Sublayer, SublayerBlock


class ParallelBlock(SublayerBlock):
    """Adds a mixer and a feed-forward layer to the stream at once, after one norm.

        h = norm(x)
        x = x + mixer(h) + ffn(h)

    One sublayer in all, so a placement has one norm, not two, and counts half as many
    sublayers. Neither part sees what the other one writes; the products that read
    `h` do not wait for each other.

    Reference: Chowdhery et al., 2022, https://arxiv.org/abs/2204.02311, Section 2
    ("parallel layers"), where it trains about 15% faster at scale; the form follows
    Wang & Komatsuzaki, 2021 (GPT-J). There is no golden file of either.

    Attributes:
      (those of `SublayerBlock`)
    """

    kinds: ClassVar[dict[str, str]] = {"mixer": "joint", "ffn": "joint"}
    begins_with: ClassVar[str] = "joint"

    @property
    def sublayers(self) -> int:
        """One, of both parts."""
        return 1

    def branches(self, mixer: Branch) -> Iterable[Sublayer]:
        """The sum of the mixer and the feed-forward layer."""
        ffn = self.make_ffn(name="ffn")
        yield Sublayer("joint", "joint", lambda h: mixer(h) + ffn(h))


build = ParallelBlock
