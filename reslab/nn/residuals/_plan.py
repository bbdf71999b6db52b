"""Tables of attention residuals: which sources each sublayer reads, and when."""

import dataclasses
import functools
import itertools


@dataclasses.dataclass(frozen=True)
class Plan:
    """Static tables over the sites of a model; see `attnres`.

    Attributes:
      starts: Site at which each layer begins, and their number.
      layer_of_site: The layer of each site.
      block: Sublayers in a block; 0 is no blocks.
      block_layers: Layers in a block; 0 is no blocks.
      is_added: Whether readings are added to a sum.
    """

    starts: tuple[int, ...]
    layer_of_site: tuple[int, ...]
    block: int
    block_layers: int
    is_added: bool

    @functools.cached_property
    def rows(self) -> int:
        """Number of sources, the last one among them."""
        return self.block_of_site[-1] + 2

    @functools.cached_property
    def is_in_blocks(self) -> bool:
        """Returns whether sources are sums of blocks."""
        return bool(self.block or self.block_layers)

    @functools.cached_property
    def block_of_site(self) -> tuple[int, ...]:
        """The block of each site."""
        if self.block_layers:
            return tuple(layer // self.block_layers for layer in self.layer_of_site)
        return tuple(site // (self.block or 1) for site in range(self.starts[-1]))

    @functools.cached_property
    def is_first(self) -> tuple[bool, ...]:
        """Returns whether a site is the first of its block."""
        blocks = self.block_of_site
        return tuple(i == 0 or blocks[i - 1] < b for i, b in enumerate(blocks))

    @functools.cached_property
    def visible(self) -> tuple[int, ...]:
        """Number of sources that each site reads."""
        blocks = self.block_of_site
        if not self.is_added or not self.is_in_blocks:
            counts = [block + 1 for block in blocks]
            if self.is_added:
                counts[0] = 0
            return tuple(counts)
        # A source appended at a boundary is visible from the next sublayer on.
        pairs = zip(blocks, self.is_first, strict=True)
        return tuple(block if is_first else block + 1 for block, is_first in pairs)

    @functools.cached_property
    def sees(self) -> frozenset[tuple[int, int]]:
        """Pairs of sites of a layer: what the first finishes, the second sees."""
        blocks, visible = self.block_of_site, self.visible
        return frozenset(
            (now, later)
            for first, end in itertools.pairwise(self.starts)
            for now, later in itertools.combinations(range(first, end), 2)
            # Only finished blocks are visible.
            if blocks[now] < blocks[now + 1] and blocks[now] + 1 < visible[later]
        )

    @functools.cached_property
    def reads_together(self) -> bool:
        """Returns whether all sites of a layer see the sources of its first."""
        visible, sees = self.visible, self.sees
        return all(
            visible[later]
            == max(visible[first], 1)
            + sum((now, later) in sees for now in range(later))
            for first, end in itertools.pairwise(self.starts)
            for later in range(first + 1, end)
        )


@functools.lru_cache(maxsize=256)
def plan(
    starts: tuple[int, ...],
    layer_of_site: tuple[int, ...],
    block: int,
    block_layers: int,
    is_added: bool,
) -> Plan:
    """Returns the tables of a model, the same object for the same arguments."""
    return Plan(starts, layer_of_site, block, block_layers, is_added)
