"""The stack that applies its layers along a path of one's choice."""

from reslab.core.errors import ReslabError
from reslab.nn.stacks._layers import Layers
from reslab.nn.stacks.uniform import UniformStack


class PathStack(UniformStack):
    """Applies layers in any order, each as often as it is named.

        x = layer[order[n]](... layer[order[1]](layer[order[0]](x)))

    For trained models whose layers are left out, repeated or reordered: parameters
    are those of the uniform stack, so its checkpoints fit. A layer keeps its own
    number wherever it is applied, for parts that scale by depth. The residual must
    not read what every earlier layer wrote, and no part may use the depth memory.

    Reference: Sun et al., 2024, https://arxiv.org/abs/2407.09298 (skipping, swapping
    and repeating layers of a trained transformer).

    Attributes:
      order: Numbers of the layers, from 0; all of them once if empty.
      (and those of `UniformStack`)

    Raises:
      ReslabError: If there is no such layer.
    """

    order: tuple[int, ...] = ()

    def make_layers(self, **keywords) -> Layers:
        """The loop over the layers along the path."""
        for layer in self.order:
            if not isinstance(layer, int) or not 0 <= layer < self.depth:
                raise ReslabError(
                    "stacks 'path': order",
                    expected=f"numbers of layers, from 0 to {self.depth - 1}",
                    got=repr(layer),
                )
        return super().make_layers(order=tuple(self.order), **keywords)


build = PathStack
