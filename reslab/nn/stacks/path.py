"""The stack that applies its layers along a path of one's choice."""

import functools
import re

from reslab.core.errors import ReslabError
from reslab.core.routes import given_route
from reslab.nn.stacks._layers import Layers, check_numbers
from reslab.nn.stacks._loops import path
from reslab.nn.stacks.uniform import UniformStack

RENAMED = {"order": "layers"}


class PathStack(UniformStack):
    """Applies layers in any order, each as often as it is named.

        x = layer[layers[n]](... layer[layers[1]](layer[layers[0]](x)))

    For trained models whose layers are left out, repeated or reordered: parameters
    are those of the uniform stack, so its checkpoints fit. A layer keeps its own
    number wherever it is applied, for parts that scale by depth. The residual must
    not read what every earlier layer wrote, and no part may use the depth memory.
    `reslab search paths RUN` looks for the path of each sample.

    Reference: Sun et al., 2024, https://arxiv.org/abs/2407.09298 (skipping, swapping
    and repeating layers of a trained transformer); Li et al., 2025,
    https://arxiv.org/abs/2507.07996 ("CoLa": paths of one sample).

    Attributes:
      layers: Numbers of the layers, from 0; all of them once if empty.
      (and those of `UniformStack`)

    Raises:
      ReslabError: If there is no such layer.
    """

    layers: tuple[int, ...] = ()

    @property
    def has_repeats(self) -> bool:
        """Returns whether a layer is named more than once."""
        return len({*self.layers}) < len(self.layers)

    @property
    def route(self) -> tuple[int, ...]:
        """Numbers of the layers applied, in order."""
        check_numbers("stacks 'path': layers", self.layers, self.depth)
        return tuple(self.layers) or super().route

    def make_layers(self, layers: range | None = None, **keywords) -> Layers:
        """The loop over the layers along the path."""
        order = self.route if self.layers else ()
        return super().make_layers(layers, order=order, **keywords)

    def applied_entries(self, name: str, entries: int, rows: int) -> int:
        """Entries of a kernel, as often as the path names its layers."""
        found = re.search(r"segment_(\d+)/block_(\d+)/", name)
        if not self.layers or found is None:
            return super().applied_entries(name, entries, rows)
        here = tuple(map(int, found.groups()))
        plan = self.make_layers(parent=None).plan()
        parts = path.parts(plan, self.layers)
        times = sum(len(p) for span, (block, p) in parts if (span, block) == here)
        return entries // rows * times

    def apply_layers(self, stream, state, positions, segments):
        """Applies the layers of the path, or those of a route that the caller gives."""
        route, layers = given_route(), self.make_layers(name="body")
        if route is None or self.is_initializing():
            return layers(stream, 0, state, positions, segments)
        if self.layers or state is not None:
            raise ReslabError(
                "a route through the layers that is an array",
                expected="stack 'path' without layers, and no cache",
                got="either",
            )
        runner = functools.partial(path.run_route, route)
        return layers(stream, 0, None, positions, segments, runner=runner)


build = PathStack
