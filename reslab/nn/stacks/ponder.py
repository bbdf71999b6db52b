"""PonderNet: a learned distribution over passes (Banino et al., 2021), and PALBERT."""

import dataclasses
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry, surroundings
from reslab.core.bounds import Bounds, Count, Fraction, NonNegative, bounded
from reslab.core.errors import ReslabError
from reslab.core.losses import add_loss
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.randomness import training_key
from reslab.core.types import State
from reslab.nn.base.exits import Exits, offer
from reslab.nn.stacks._early import pure_pass
from reslab.nn.stacks._exits import narrowed, streams_after_passes
from reslab.nn.stacks._halting import (
    divergence,
    features_of,
    halting_distribution,
    mean_of_tokens,
    prior,
    quantile_exit,
)
from reslab.nn.stacks._loops import until
from reslab.nn.stacks._repeating import RepeatingStack, Stage


@bounded
class PonderStack(RepeatingStack):
    """Applies all its layers `loops` times, and learns after which pass to end.

        lambda_n = sigmoid(f(h_n)),   p_n = lambda_n prod_(j < n) (1 - lambda_j)
        loss = sum_n p_n loss(h_n) + beta * KL

    h_n is the output after pass n, and lambda of the last pass is 1. In training the
    loss is the mean over passes; evaluated, the output is the mean of h_n ("mean"), or
    h_n of the first pass with sum_(j <= n) p_j > quantile ("quantile"). Every token
    has a distribution of its own. All passes are computed for all tokens, unless
    `saves_passes`.

    f is linear, or what PALBERT has: three layers of tanh on h_n and h_(n-1), then a
    linear one.

    References: Banino et al., 2021, https://arxiv.org/abs/2107.05407, Section 2;
    Balagansky & Gavrilov, 2022, https://arxiv.org/abs/2204.03276, Section 3. The
    paper's divergence is "p_to_prior"; published implementations have the other.

    Attributes:
      loops: Most passes.
      halting: The form of f.
      prior: The prior over passes: "geometric", cut off; "closed", with its rest in
        the last pass; or "normal" around 1 / rate.
      rate: Chance of the prior to end after a pass.
      direction: Direction of the divergence.
      beta: Its weight in the loss.
      exit: The output when evaluated.
      quantile: The quantile, for that exit.
      saves_passes: Whether the passes end, while the next token of each row is
        generated, when all rows have come to their exit; later tokens find the keys and
        values of the last pass at any depth.
      (and those of `RepeatingStack`)

    Raises:
      ReslabError: If a number is out of range, or the residual keeps a history.
    """

    loops: Count = 4
    halting: Literal["linear", "palbert"] = "linear"
    prior: Literal["geometric", "closed", "normal"] = "closed"
    rate: Annotated[float, Bounds(above=0, below=1)] = 0.2
    direction: Literal["p_to_prior", "prior_to_p"] = "p_to_prior"
    beta: NonNegative = 0.01
    exit: Literal["mean", "quantile"] = "mean"
    quantile: Fraction = 0.5
    saves_passes: bool = False

    @property
    def passes(self) -> int:
        """Number of passes."""
        return self.loops

    @property
    def stages(self) -> list[Stage]:
        """One stage with all layers."""
        return [Stage("body", range(self.depth), self.loops, 0)]

    def applications(self, name: str) -> int:
        """Number of times that a kernel is applied; f is after every pass."""
        return self.loops if "/halting_" in name else super().applications(name)

    def apply_loop(self, layers, stream, enter, states, positions, segments):
        """Applies the passes; the streams after them are stacked."""
        self.refuse_history("the outputs of several passes")
        rest = states, positions, segments
        if self._ends_early(positions, states[self.loop_index]):
            return self._until_halted(layers, stream, enter, *rest)
        if self.is_initializing():
            stream, own = super().apply_loop(layers, stream, enter, *rest)
            return jax.tree.map(lambda s: s[None], stream), own

        return streams_after_passes(self, layers, stream, enter, *rest)

    def _ends_early(self, positions: jax.Array, state: State) -> bool:
        """Returns whether passes end when all rows have halted."""
        if not self.saves_passes or state is None or positions.shape[1] > 1:
            return False
        if self.exit != "quantile":
            raise ReslabError(
                "stacks 'ponder': saves_passes",
                expected="exit 'quantile', which takes the output of one pass",
                got=f"exit {self.exit!r}",
            )
        return True

    def _until_halted(self, layers, stream, enter, states, positions, segments):
        """Applies passes to one token of each row; returns the features of its exit."""
        where = "stacks 'ponder': saves_passes"
        run = pure_pass(layers, enter, 0, positions, segments, where)
        variables, alone = dict(self.variables), _Chances(**self._fields())
        ends = registry.make(
            "residuals", self.residual, **vars(self.context), parent=None
        )
        of_ends = {c: t["residual"] for c, t in variables.items() if "residual" in t}

        def one_pass(carry, number, own):
            stream, before, going, ended = carry
            stream, own = run(stream, number, own)
            h = ends.apply(of_ends, stream, method="narrow")
            pair = jnp.stack([before, h])
            chances: Any = alone.apply(variables, pair)
            chance = chances[1][..., None]
            ended = ended + chance * going
            return (stream, h, going * (1 - chance), ended), own

        wide = statistics_dtype(self.context.param_dtype)
        one = jnp.ones((*positions.shape, 1), wide)
        begun = jnp.zeros_like(features_of(stream))
        (_, features, *_), own, _ = until.run(
            one_pass,
            (stream, begun, one, 0 * one),
            *(states[self.loop_index], self.loops),
            lambda before, after, known: (after[3][:, 0, 0] > self.quantile, known),
        )
        return features, own

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segments: jax.Array | None = None,
        state: State = None,
    ) -> tuple[jax.Array, State]:
        """Maps features (batch, length, embed) to the same shape.

        Args:
          x: Features.
          positions: Position of each token in its document (batch, length).
          segments: Document of each token, or None.
          state: State to continue from while generating, or None.

        Returns:
          The output, and the new state.
        """
        ends = registry.make(
            "residuals", self.residual, **vars(self.context), name="residual"
        )
        given = state
        streams, state = self.apply_layers(ends.widen(x), state, positions, segments)
        if self._ends_early(positions, given):
            return streams, state
        features = narrowed(ends, streams)
        chances = self._chances(features)
        if self.is_initializing():
            return features[-1], state
        p = halting_distribution(chances)
        expected = prior(self.prior, self.loops, self.rate)
        cost = divergence(p, expected, self.direction)
        add_loss(self, "ponder", self.beta * mean_of_tokens(cost, segments))
        if training_key(self) is not None:
            offer(Exits(features, p))
        if self.exit == "quantile":
            chosen = quantile_exit(p, self.quantile)[None, ..., None]
            return jnp.take_along_axis(features, chosen, axis=0)[0], state
        wide = features.astype(p.dtype)
        return jnp.sum(p[..., None] * wide, axis=0).astype(features.dtype), state

    def _chances(self, features: jax.Array) -> jax.Array:
        """The chance to halt after each pass (passes, batch, length)."""
        z, dtypes = features, self._dtypes()
        size = features.shape[-1]
        if self.halting == "palbert":
            none = jnp.zeros_like(z[:1])
            z = jnp.concatenate([z, jnp.concatenate([none, z[:-1]])], axis=-1)
            for index in range(3):
                fields = surroundings.Linears(
                    features=size, kernel_axes=("embed" if not index else None, None)
                )
                make = registry.make(
                    *("linears", "dense"),
                    **{**fields, **dtypes},
                    use_bias=True,
                    name=f"halting_{index}",
                )
                z = jnp.tanh(make(z))
        store = dtypes["param_dtype"]
        wide = statistics_dtype(store)
        init = nn.initializers.normal(0.02)
        weight = parameter(self, "halt_weight", init, (size,), ("embed",), store)
        bias = parameter(self, "halt_bias", nn.initializers.zeros, (), (), store)
        weight = weight.astype(wide)[None, None, None]
        score = jnp.sum(z.astype(wide) * weight, axis=-1) + bias.astype(wide)
        return jax.nn.sigmoid(score)

    def _fields(self) -> dict[str, Any]:
        """The fields of the stack, for one that is not bound."""
        names = (field.name for field in dataclasses.fields(self) if field.init)
        return {n: getattr(self, n) for n in names if n not in ("parent", "name")}

    def _dtypes(self) -> dict[str, Any]:
        return {"dtype": self.context.dtype, "param_dtype": self.context.param_dtype}


class _Chances(PonderStack):
    """The chances alone, as a module."""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps features (passes, batch, length, embed) to chances."""
        return self._chances(features)


build = PonderStack
