"""Base of stacks that apply layers several times with the same weights."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.freezing import frozen_layers
from reslab.core.losses import LOSSES
from reslab.core.model_state import BATCH_STATS, CONSTANTS, GRADIENT_STATS
from reslab.core.parameters import parameter
from reslab.core.randomness import DROPOUT
from reslab.core.taps import TAPS
from reslab.core.types import State, Stream
from reslab.core.varying import varying_like
from reslab.nn.stacks._layers import Layers
from reslab.nn.stacks._loops.span import BlockFactory, unbound
from reslab.nn.stacks.uniform import UniformStack


class Stage(NamedTuple):
    """Consecutive layers, applied together.

    Attributes:
      name: Name of their parameters.
      layers: Their numbers.
      passes: How often they are applied.
      first: Number of the first of them among all layers applied.
    """

    name: str
    layers: range
    passes: int
    first: int


def staged(depth: int, prelude: int, coda: int, passes: int) -> list[Stage]:
    """Prelude, loop and coda; the first and the last only where they are.

    Args:
      depth: Number of layers with parameters of their own.
      prelude: Number of first layers that are applied once.
      coda: Number of last layers that are applied once.
      passes: Number of times that those between are applied.

    Raises:
      ReslabError: If no layer is between.
    """
    first, last = prelude, depth - coda
    if last <= first:
        raise ReslabError(
            "model.depth",
            expected=f"above {prelude} + {coda}, the layers before and after the loop",
            got=str(depth),
        )
    if not prelude and not coda:
        return [Stage("body", range(depth), passes, 0)]
    # Names in the order of depth.
    after = first + passes * (last - first)
    stages = [
        Stage("body_0", range(first), 1, 0),
        Stage("body_1", range(first, last), passes, first),
        Stage("body_2", range(last, depth), 1, after),
    ]
    return [stage for stage in stages if stage.layers]


def _same(stream: Stream) -> Stream:
    return stream


class Ends(NamedTuple):
    """Changes of the stream around a loop.

    Attributes:
      start: Makes the stream that the first pass begins with.
      leave: Changes what the last pass returns.
      finish: Changes what the last layer returns.
    """

    start: Callable[[Stream], Stream] = _same
    leave: Callable[[Stream], Stream] = _same
    finish: Callable[[Stream], Stream] = _same


class Entrance(NamedTuple):
    """Changes the stream before a pass.

    Attributes:
      kernel: What the stream is projected by, or None.
      seen: What is added in every pass, or None.
      steps: A vector of each pass (passes, embed), or None.
    """

    kernel: jax.Array | None
    seen: Stream | None
    steps: jax.Array | None

    def __call__(self, stream: Stream, number: int | jax.Array) -> Stream:
        """Returns the stream that pass `number`, which may be traced, begins with."""
        if self.kernel is not None:
            kernel = self.kernel
            stream = jax.tree.map(lambda s: s @ kernel.astype(s.dtype), stream)
        if self.seen is not None:
            stream = jax.tree.map(jnp.add, stream, self.seen)
        if self.steps is not None:
            step = jnp.asarray(self.steps)[number]
            stream = jax.tree.map(
                lambda s: s + jnp.broadcast_to(step.astype(s.dtype), s.shape), stream
            )
        return stream


class RepeatingStack(UniformStack):
    """Base of stacks that apply one stage several times.

        e = prelude(x),   s_0 = e
        s_t = layers(inject(s_(t-1), e) + step[t])
        y = coda(s_passes)

    where `inject` gives its first argument, their sum, or `[s, e] . W_i`. A stack says
    in `stages` what is applied, and in `make_ends` and `apply_loop` what else is done.

    Attributes:
      has_step_embedding: Whether a learned vector of each pass is added.
      injection: How each pass sees the input of the loop: not again, added, or
        "concat", projected together with the stream.
      (and those of `UniformStack`)
    """

    has_step_embedding: bool = False
    injection: Literal["none", "add", "concat"] = "none"

    @property
    def stages(self) -> list[Stage]:
        """The stages, in order."""
        raise NotImplementedError

    @property
    def loop_index(self) -> int:
        """Index of the loop among `stages`."""
        names = [stage.name for stage in self.stages]
        return names.index("body" if "body" in names else "body_1")

    @property
    def passes(self) -> int:
        """Number of times that each layer of the loop is applied."""
        return self.stages[self.loop_index].passes

    @property
    def route(self) -> tuple[int, ...]:
        """Numbers of the layers applied, in order."""
        return sum((stage.passes * (*stage.layers,) for stage in self.stages), ())

    def applications(self, name: str) -> int:
        """Number of times that a kernel is applied to a token, by its name."""
        stage = next((s for s in self.stages if f"/{s.name}/" in f"/{name}"), None)
        return 1 if stage is None else stage.passes

    def make_stage(self, stage: Stage, **keywords) -> Layers:
        """The layers of a stage."""
        return self.make_layers(stage.layers, **keywords)

    def mixing_flops(self, length: int, features: int) -> int:
        """Adds the projection of stream and input to the layers."""
        flops = sum(
            stage.passes
            * self.make_stage(stage, parent=None).mixing_flops(length, features)
            for stage in self.stages
        )
        if self.injection == "concat":
            residual = registry.unbound(
                "residuals", self.residual, **vars(self.context)
            )
            streams = getattr(residual, "streams", 1)
            flops += (self.passes + 1) * streams * 2 * features**2
        return flops

    def init_state(
        self, batch: int, length: int, features: int, **keywords: Any
    ) -> State:
        """The state of every layer in every pass, stacked over passes of the loop."""
        states = []
        for index, stage in enumerate(self.stages):
            layers = self.make_stage(stage, parent=None)
            state = layers.init_state(batch, length, features, **keywords)
            if index == self.loop_index:
                state = jax.tree.map(
                    lambda a: jnp.broadcast_to(a, (self.passes, *a.shape)), state
                )
            states.append(state)
        return tuple(states) if len(states) > 1 else states[0]

    def apply_layers(self, stream, state, positions, segments):
        """Applies the layers, those of the loop `loops` times."""
        self._check_frozen()
        stages, ends = self.stages, self.make_ends(positions)
        states = [None] * len(stages)
        if state is not None:
            states = list(state) if len(stages) > 1 else [state]
        for index, stage in enumerate(stages):
            layers = self.make_stage(stage, name=stage.name)
            if index == self.loop_index:
                enter = self._make_entrance(stream)
                # A start that is drawn is the same on all devices; passes are not.
                stream = varying_like(ends.start(stream), stream)
                rest = enter, states, positions, segments
                stream, states[index] = self.apply_loop(layers, stream, *rest)
                stream = ends.leave(stream)
            else:
                rest = stage.first, states[index], positions, segments
                stream, states[index] = layers(stream, *rest)
        if state is not None:
            state = tuple(states) if len(stages) > 1 else states[0]
        return ends.finish(stream), state

    def make_ends(self, positions: jax.Array) -> "Ends":
        """Changes of the stream around the loop; none here."""
        del positions
        return Ends()

    def apply_loop(self, layers, stream, enter, states, positions, segments):
        """Applies the layers of the loop in every pass.

        Args:
          layers: The layers.
          stream: The stream.
          enter: Changes the stream before each pass.
          states: The states of all stages, or Nones.
          positions: Position of each token in its document (batch, length).
          segments: Document of each token, or None.

        Returns:
          The stream, and the new state of the loop.
        """
        if self.is_initializing():
            return self._create(layers, stream, enter, states, positions, segments)
        first = self.stages[self.loop_index].first

        def one_pass(layers, stream, scanned):
            number, state = scanned
            layer, stream = first + layers.depth * number, enter(stream, number)
            return layers(stream, layer, state, positions, segments)

        return self.scan_passes(layers, one_pass, stream, states[self.loop_index])

    def scan_passes(self, layers: Layers, one_pass: Any, carry: Any, state: State):
        """Scans `one_pass(layers, carry, (number, state))` over the passes.

        Args:
          layers: The layers.
          one_pass: Returns the carry and an output.
          carry: What the first pass is given.
          state: The states of the passes, stacked, or None.

        Returns:
          The last carry, and the outputs, stacked.
        """
        if GRADIENT_STATS in layers.variables:
            norms = sorted({str(unbound(block).norm) for block in layers.blocks})
            raise ReslabError(
                f"{type(self).__name__}: norm {' or '.join(norms)}",
                expected="one that is applied once a step, as the passes share it",
                got="statistics of its backward pass",
                hint="norm batch, or stack uniform",
            )
        scan = nn.scan(
            one_pass,
            variable_axes={TAPS: 0, LOSSES: 0},
            variable_broadcast=["params", CONSTANTS],
            variable_carry=BATCH_STATS,
            split_rngs={"params": False, DROPOUT: True},
            length=self.passes,
            unroll=self.passes if self.is_unrolled else 1,
        )
        carry = varying_like(carry, carry, state)
        return scan(layers, carry, (jnp.arange(self.passes), state))

    def whole_cycle(self, unique: int) -> Stage:
        """The stage of layers that are applied in turn until the depth is reached.

        Args:
          unique: Number of layers that are stored.

        Raises:
          ReslabError: If the depth is no multiple.
        """
        if self.depth % unique:
            raise ReslabError(
                f"{type(self).__name__}: unique",
                expected=f"a divisor of model.depth ({self.depth})",
                got=str(unique),
            )
        return Stage("body", range(unique), self.depth // unique, 0)

    def cycle(self, unique: int) -> tuple[BlockFactory, ...]:
        """The first layers, that all others share their parameters with in turn.

        Args:
          unique: Number of layers that are stored.

        Raises:
          ReslabError: If two layers that share parameters have different parts.
        """
        blocks = [self.blocks[layer % len(self.blocks)] for layer in range(self.depth)]
        for layer, block in enumerate(blocks):
            if block is not blocks[layer % unique]:
                again = f"patterns that repeat after {unique} layers"
                raise ReslabError(
                    f"{type(self).__name__}: layers {layer % unique} and {layer}",
                    expected="the same parts, as they share parameters",
                    got="another mixer, ffn, norm, placement or block",
                    hint=again if unique > 1 else "one spec of each for all layers",
                )
        return tuple(blocks[:unique])

    def refuse_history(self, reason: str) -> None:
        """Refuses a residual that keeps what every layer wrote.

        Args:
          reason: What the stack cannot do with it.

        Raises:
          ReslabError: If it is one.
        """
        if getattr(self.unbound_residual, "is_history", False):
            raise ReslabError(
                f"{type(self).__name__}: residual {self.residual!r}",
                expected="one that passes can share",
                got=reason,
                hint="stack looped, or residual plain",
            )

    def _create(self, layers, stream, enter, states, positions, segments):
        """Makes every parameter in one pass.

        Initial values may depend on the layer, which a loop cannot distinguish by pass.
        """
        first, state = self.stages[self.loop_index].first, states[self.loop_index]
        once = jax.tree.map(lambda a: a[0], state)
        stream, _ = layers(enter(stream, 0), first, once, positions, segments)
        return stream, state

    def _check_frozen(self) -> None:
        if frozen_layers():
            raise ReslabError(
                "a backward pass that ends at a layer",
                expected="layers that are applied once",
                got=f"{type(self).__name__}",
                hint="stack uniform, or another optimizer",
            )

    def _make_entrance(self, start: Stream) -> Entrance:
        """Makes the change of the stream before a pass; `start` is its first value."""
        leaf = jax.tree.leaves(start)[0]
        features = leaf.shape[-1]
        dtype = self.context.param_dtype
        steps = kernel = None
        if self.has_step_embedding:
            steps = parameter(
                *(self, "step_embedding", nn.initializers.normal(0.02)),
                *((self.passes, features), (None, "embed"), dtype),
            )
        if self.injection == "concat":
            kernel = parameter(
                self,
                "injection_kernel",
                nn.initializers.normal(1 / math.sqrt(2 * features)),
                (2, features, features),
                (None, "embed", None),
                dtype,
            )

        seen = None if self.injection == "none" else start
        if kernel is not None:
            # The same in every pass: projected once.
            seen = jax.tree.map(lambda x: x @ kernel[1].astype(x.dtype), start)
            kernel = kernel[0]
        return Entrance(kernel, seen, steps)
