"""Recursive transformers: few layers in a cycle, changed by LoRA (Bae et al., 2024)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.bounds import Count, NonNegative, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.randomness import training_key
from reslab.core.registry import spec_text
from reslab.core.surroundings import Context
from reslab.core.types import State
from reslab.nn.base.exits import Taught, offer
from reslab.nn.stacks._early import check_caches, is_settled
from reslab.nn.stacks._exits import narrowed, streams_after_passes
from reslab.nn.stacks._loops.span import BlockFactory
from reslab.nn.stacks._repeating import RepeatingStack, Stage

# A stream from features, that after a pass, and features again.
Start = Callable[[jax.Array], Any]
Advance = Callable[..., tuple[Any, Any, jax.Array]]
Finish = Callable[[Any], jax.Array]


@bounded
class RecursiveStack(RepeatingStack):
    """Applies the layers of a cycle until `depth` of them were applied.

        layer l = block(l mod unique), its projections x . W + (x . A_l) . B_l

    Only `unique` layers are stored; with a `lora_rank` each of the `depth` layers has
    factors A_l and B_l of its own, B_l zero at first. Rank 0 is the loop, a rank as
    large as the projections can be any uniform stack. The transform `to_recursive`
    makes such a model of a trained one.

    With an `exit_weight`, outputs after earlier passes learn from the last output:

        loss + exit_weight * sum_(i < passes) KL(p_last || p_i)

    where p_i is what the model's norm and head make of the stream after pass i, and
    p_last has no gradient. `reslab eval RUN --stack "recursive(..., exit_after=1)"`
    evaluates what the model says after one pass.

    Reference: Bae et al., 2024, https://arxiv.org/abs/2410.20672, Section 2 ("CYCLE"),
    Section 2.4 (exits; 0.1 was best).

    Attributes:
      unique: Number of layers in the cycle; the depth is a multiple.
      lora_rank: Rank of the change of each projection at each depth; 0 disables it.
      exit_weight: Weight of the divergence of earlier outputs in the loss.
      exit_after: Passes after which the output is taken; 0 is all of them.
      (and those of `RepeatingStack`)

    Raises:
      ReslabError: If the depth is no multiple of `unique`, there are fewer passes than
        `exit_after`, layers that share parameters have different parts, projections are
        not dense, or the residual keeps a history whose outputs learn.
    """

    unique: Count = 1
    lora_rank: Whole = 0
    exit_weight: NonNegative = 0.0
    exit_after: Whole = 0

    @property
    def stages(self) -> list[Stage]:
        """The cycle."""
        whole = self.whole_cycle(self.unique)
        if self.exit_after > whole.passes:
            raise ReslabError(
                "stacks 'recursive': exit_after",
                expected=f"at most {whole.passes}, the passes",
                got=str(self.exit_after),
            )
        return [whole._replace(passes=self.exit_after or whole.passes)]

    @property
    def stored_blocks(self) -> tuple[BlockFactory, ...]:
        """The blocks of the cycle, with projections that know their depth."""
        blocks = self.cycle(self.unique)
        if not self.lora_rank:
            return blocks
        if self.context.linear != "dense":
            raise ReslabError(
                "stacks 'recursive': lora_rank",
                expected="0, or model.linear 'dense'",
                got=f"{self.lora_rank} and {self.context.linear!r}",
            )
        depths = self.whole_cycle(self.unique).passes
        linear = spec_text("lora", {"rank": self.lora_rank, "depths": depths})
        return tuple(_with_linear(block, linear) for block in blocks)

    def _teaches(self, state: State) -> bool:
        """Returns whether earlier outputs learn from the last."""
        if not self.exit_weight or self.is_initializing() or state is not None:
            return False
        self.refuse_history("the outputs of several passes")
        return training_key(self) is not None

    def apply_loop(self, layers, stream, enter, states, positions, segments):
        """Applies the cycle in every pass; streams are stacked where outputs learn."""
        rest = layers, stream, enter, states, positions, segments
        if self._teaches(states[self.loop_index]):
            return streams_after_passes(self, *rest)
        return super().apply_loop(*rest)

    def slot_pass(self, variables: Any) -> tuple[Start, Advance, Finish]:
        """A pass over one token, for slots that are at different passes.

        Args:
          variables: The variables of the model.

        Returns:
          Functions from features (1, 1, embed) to the stream, from the stream before a
          pass to that after it, and from a stream to features.

        Raises:
          ReslabError: If passes are changed by more than their layers.
        """
        self.refuse_history("slots at different passes")
        if self.has_step_embedding or self.injection != "none":
            raise ReslabError(
                "slots",
                expected="passes without a step embedding or an injection",
                got=f"injection {self.injection!r}, has_step_embedding "
                f"{self.has_step_embedding}",
            )
        ends = registry.make(
            "residuals", self.residual, **vars(self.context), parent=None
        )
        (stage,) = self.stages
        layers = self.make_stage(stage, parent=None)
        own = {
            name: {c: tree["layers"].get(name, {}) for c, tree in variables.items()}
            for name in ("residual", stage.name)
        }

        def advance(stream, number, state, position, threshold):
            was = jax.tree.map(
                lambda a: jax.lax.dynamic_index_in_dim(a, number, keepdims=False), state
            )
            rest = layers.depth * number, was, position[None, None], None
            after, new = layers.apply(own[stage.name], stream, *rest)
            is_last = number + 1 >= stage.passes
            if not threshold:
                return after, jax.tree.map(_put(number), state, new), is_last
            check_caches(layers, "slots with exit 'latent'")
            is_last |= jnp.all(is_settled(stream, after, threshold))

            def put(all_, new, was):
                passes = jnp.arange(stage.passes).reshape(-1, *(1,) * new.ndim)
                deeper = (passes > number) & is_last & (new != was)[None]
                return jnp.where((passes == number) | deeper, new[None], all_)

            return after, jax.tree.map(put, state, new, was), is_last

        def ended(method):
            return lambda x: ends.apply(own["residual"], x, method=method)

        return ended("widen"), advance, ended("narrow")

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segments: jax.Array | None = None,
        state: State = None,
    ) -> tuple[jax.Array, State]:
        """Maps features (batch, length, embed) to the same shape; see the base."""
        given = {"positions": positions, "segments": segments, "state": state}
        if not self._teaches(state):
            return super().__call__(x, **given)
        ends = registry.make(
            "residuals", self.residual, **vars(self.context), name="residual"
        )
        streams, _ = self.apply_layers(ends.widen(x), state, positions, segments)
        features = narrowed(ends, streams)
        offer(Taught(features, self.exit_weight))
        return features[-1], None


def _put(number: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Replaces the state of one pass."""
    return lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, number, 0)


@functools.lru_cache(maxsize=1024)
def _with_linear(block: BlockFactory, linear: str) -> BlockFactory:
    """The same block, whose projections are others; one object for one block."""
    known = getattr(block, "keywords", {})
    context = dataclasses.replace(known.get("context", Context()), linear=linear)
    return functools.partial(block, context=context)


build = RecursiveStack
