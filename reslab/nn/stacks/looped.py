"""A stack whose layers are applied several times with the same weights."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, bounded
from reslab.core.errors import ReslabError
from reslab.core.freezing import frozen_layers
from reslab.core.losses import LOSSES
from reslab.core.model_state import BATCH_STATS, CONSTANTS, GRADIENT_STATS
from reslab.core.randomness import DROPOUT
from reslab.core.taps import TAPS
from reslab.core.types import State
from reslab.nn.stacks.uniform import UniformStack


@bounded
class LoopedStack(UniformStack):
    """Applies all its layers `loops` times over.

        x = layers(layers(... layers(x)))

    Parameters do not grow with `loops`. The depth memory starts empty in each
    pass, and each pass keeps a state of its own while generating. Layers are
    counted over all passes, for parts that scale by depth.

    Reference: Dehghani et al., 2018, https://arxiv.org/abs/1807.03819, Section
    2.1 (fixed number of steps, without step embeddings).

    Attributes:
      loops: Number of passes.
      (and those of `UniformStack`)

    Raises:
      ReslabError: If `loops` is below 1.
    """

    loops: Count = 2

    @property
    def passes(self) -> int:
        """Number of times that each layer is applied."""
        return self.loops

    def init_state(
        self, batch: int, length: int, features: int, **keywords: Any
    ) -> State:
        """The state of every layer in every pass, stacked over passes."""
        state = super().init_state(batch, length, features, **keywords)
        return jax.tree.map(
            lambda a: jnp.broadcast_to(a, (self.loops, *a.shape)), state
        )

    def apply_layers(self, stream, state, positions, segments):
        """Applies the layers `loops` times."""
        layers = self.make_layers(name="body")
        if self.is_initializing():
            # One pass creates every parameter: initial values may depend on the layer,
            # which a loop cannot distinguish by pass.
            once = jax.tree.map(lambda a: a[0], state)
            return layers(stream, 0, once, positions, segments)[0], state

        if frozen_layers():
            raise ReslabError(
                "a backward pass that ends at a layer",
                expected="layers that are applied once",
                got="stack 'looped'",
                hint="stack uniform, or another optimizer",
            )
        if GRADIENT_STATS in layers.variables:
            raise ReslabError(
                "stacks 'looped': a norm whose backward pass keeps statistics",
                expected="one that is applied once a step, as the passes share it",
                hint="norm batch, or stack uniform",
            )

        def one_pass(layers, stream, scanned):
            first_layer, state = scanned
            return layers(stream, first_layer, state, positions, segments)

        scan = nn.scan(
            one_pass,
            variable_axes={TAPS: 0, LOSSES: 0},
            variable_broadcast=["params", CONSTANTS],
            variable_carry=BATCH_STATS,
            split_rngs={"params": False, DROPOUT: True},
            length=self.loops,
            unroll=self.loops if self.is_unrolled else 1,
        )
        return scan(layers, stream, (self.depth * jnp.arange(self.loops), state))


build = LoopedStack
