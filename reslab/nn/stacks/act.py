"""Adaptive computation time: every token halts alone (Dehghani et al., 2018)."""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, Count, NonNegative, Real, bounded
from reslab.core.losses import add_loss
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.nn.stacks._early import pure_pass
from reslab.nn.stacks._halting import features_of, mean_of_tokens
from reslab.nn.stacks._loops import until
from reslab.nn.stacks._repeating import RepeatingStack, Stage

_BELOW_ONE = Bounds(above=0, below=1)


@bounded
class ACTStack(RepeatingStack):
    """Applies all its layers until a token halts, at most `loops` times.

        s_t = state_(t-1) + step[t],   p_t = sigmoid(s_t . w + b)
        state_t = layers(s_t)
        y = w_t state_t + (1 - w_t) y     ("basic"), or  y = w_t state_t + y

    A token halts in the pass in which its p add up to more than 1 - epsilon; its
    weight w_t there is the rest of 1, and p_t before. Later passes change its
    state, which others attend to, but not y. The mean number of passes and the
    rest, times `cost`, is added to the loss. "basic" is the published code, whose
    weights do not sum to one; "accumulated" is Graves' mean. A token that has not
    halted after the last pass is given no rest.

    All passes are computed for all tokens, so that caches and gradients are exact. With
    exit "halting" they end, while the next token of each row is generated, when all
    rows have halted; later tokens find the keys and values of the last pass at any
    depth.

    References: Dehghani et al., 2018, https://arxiv.org/abs/1807.03819, Appendix C;
    Graves, 2016, https://arxiv.org/abs/1603.08983. Written from a description of the
    published code.

    Attributes:
      loops: Most passes.
      form: How states become the output, "basic" or "accumulated".
      epsilon: Rest at which a token halts.
      halting_bias: Initial b.
      cost: Weight of the passes in the loss.
      exit: What ends the passes while generating: nothing, or "halting".
      (and those of `RepeatingStack`)

    Raises:
      ReslabError: If a number is out of range, or the residual keeps a history.
    """

    loops: Count = 4
    form: Literal["basic", "accumulated"] = "basic"
    epsilon: Annotated[float, _BELOW_ONE] = 0.01
    halting_bias: Real = 1.0
    cost: NonNegative = 0.01
    exit: Literal["none", "halting"] = "none"
    has_step_embedding: bool = True

    @property
    def passes(self) -> int:
        """Most passes."""
        return self.loops

    @property
    def stages(self) -> list[Stage]:
        """One stage with all layers."""
        return [Stage("body", range(self.depth), self.loops, 0)]

    def apply_loop(self, layers, stream, enter, states, positions, segments):
        """Applies the passes, and mixes their states."""
        self.refuse_history("a mean of what several passes wrote")
        features = jax.tree.leaves(stream)[0].shape[-1]
        dtype = self.context.param_dtype
        kernel = parameter(
            *(self, "halt_weight", nn.initializers.normal(0.02)),
            *((features,), ("embed",), dtype),
        )
        bias = parameter(
            *(self, "halt_bias", nn.initializers.constant(self.halting_bias)),
            *((), (), dtype),
        )
        if self.is_initializing():
            return super().apply_loop(
                layers, stream, enter, states, positions, segments
            )
        wide, most = statistics_dtype(dtype), 1 - self.epsilon

        def advance(carry, number, own, run):
            stream, mean, halted, left, count = carry
            read = features_of(enter(stream, number)).astype(wide)
            score = jnp.sum(
                read * kernel.astype(wide)[None, None], axis=-1, keepdims=True
            )
            chance = jax.nn.sigmoid(score + bias.astype(wide))
            runs = halted < 1
            halts = runs & (halted + chance > most)
            goes_on = runs & ~halts
            halted = halted + jnp.where(goes_on, chance, 0)
            rest = jnp.where(halts, 1 - halted, 0)
            left, halted = left + rest, halted + rest
            count = count + runs.astype(wide)
            weight = jnp.where(goes_on, chance, rest)
            stream, own = run(stream, number, own)
            kept = 1 - weight if self.form == "basic" else jnp.ones_like(weight)

            def mixed(new, old):
                w, k = (
                    a.reshape((1,) * (new.ndim - 3) + a.shape).astype(new.dtype)
                    for a in (weight, kept)
                )
                return new * w + old * k

            mean = jax.tree.map(mixed, stream, mean)
            return (stream, mean, halted, left, count), own

        none, state = jnp.zeros((*positions.shape, 1), wide), states[self.loop_index]
        begin = stream, jax.tree.map(jnp.zeros_like, stream), none, none, none
        if self.exit == "halting" and state is not None and positions.shape[1] == 1:
            run = pure_pass(layers, enter, 0, positions, segments, "stacks 'act': exit")
            after, own, _ = until.run(
                lambda carry, number, own: advance(carry, number, own, run),
                *(begin, state, self.loops),
                lambda before, after, known: (after[2][:, 0, 0] >= 1, known),
            )
            return after[1], own

        def one_pass(layers, carry, scanned):
            def run(stream, number, own):
                layer = layers.depth * number
                return layers(enter(stream, number), layer, own, positions, segments)

            number, own = scanned
            return advance(carry, number, own, run)

        after, own = self.scan_passes(layers, one_pass, begin, state)
        _, mean, _, left, count = after
        total = (count + left)[..., 0]
        add_loss(self, "act", self.cost * mean_of_tokens(total, segments))
        return mean, own


build = ACTStack
