"""The Macaron layer: attention between two half steps (Lu et al., 2019)."""

from collections.abc import Iterable
from typing import ClassVar

from reslab.core import surroundings
from reslab.core.bounds import Real, bounded
from reslab.core.precision import scaled
from reslab.core.types import Branch
from reslab.nn.blocks._sublayers import Sublayer, SublayerBlock


@bounded
class MacaronBlock(SublayerBlock):
    """Puts the mixer between two feed-forward layers that count half.

        x = x + step * ffn_1(norm(x))
        x = x + mixer(norm(x))
        x = x + step * ffn_2(norm(x))

    The layer read as one step of a differential equation, split symmetrically. Where
    the spec of the feed-forward layers does not set `hidden`, each is half as wide as
    it would be alone, so a layer has about as many parameters as the standard one
    (widths are rounded).

    Reference: Lu et al., 2019, https://arxiv.org/abs/1906.02762, Section 3. Property
    only, no authors' code.

    Attributes:
      step: Factor on what the feed-forward layers add; the paper's is a half. With 1
        and nothing in the first, the layer is the standard one.
      (and those of `SublayerBlock`)
    """

    step: Real = 0.5

    begins_with: ClassVar[str] = "ffn"

    @property
    def sublayers(self) -> int:
        """Three: two of them feed-forward."""
        return 3

    def branches(self, mixer: Branch) -> Iterable[Sublayer]:
        """Half a step, the mixer, and half a step."""
        yield Sublayer("first_ffn", "ffn", self._half_step("first_ffn"))
        yield Sublayer("mixer", "mixer", mixer)
        yield Sublayer("second_ffn", "ffn", self._half_step("second_ffn"))

    def _half_step(self, name: str) -> Branch:
        ffn = self.make_ffn(name=name, **surroundings.FeedForwards(hidden_scale=0.5))
        return lambda h: scaled(ffn(h), self.step)


build = MacaronBlock
