"""Base of stacks that decide layer by layer whether it is applied."""

from reslab.nn.stacks._layers import Layers
from reslab.nn.stacks.uniform import UniformStack


class PartedStack(UniformStack):
    """Applies its layers in order, in spans of one block each, as those of a path."""

    def make_layers(self, layers: range | None = None, **keywords) -> Layers:
        """The loop over the layers, in parts of one block."""
        order = tuple(range(self.depth))
        return super().make_layers(layers, order=order, **keywords)
