"""Recurrent depth: a core looped a random number of times (Geiping et al., 2025)."""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.bounds import Count, NonNegative, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES
from reslab.core.model_state import BATCH_STATS
from reslab.core.precision import statistics_dtype
from reslab.core.randomness import DROPOUT, training_key
from reslab.core.types import Stream
from reslab.nn.base.norm import make_norm
from reslab.nn.base.read_out import read_out
from reslab.nn.stacks._early import is_settled, pure_pass
from reslab.nn.stacks._loops import until
from reslab.nn.stacks._repeating import Ends
from reslab.nn.stacks.looped import LoopedStack

# Logarithm of the spread of the number of passes around its mean.
_SPREAD = 0.5
# Most passes, as a multiple of the mean; one draw in 800 is cut off (estimated).
_MOST = 4


@bounded
class HuginnStack(LoopedStack):
    """Applies a prelude, a core a random number of times, and a coda.

        e = prelude(x),   s_0 ~ N(0, start_std^2), cut off at three deviations
        s_t = core([s_(t-1), e] . W_i),   t = 1 ... r
        y = norm(coda(norm(s_r)))

        r = 1 + Poisson(loops * exp(z / 2 - 1 / 8)),   z ~ N(0, 1)

    In training r is drawn for each step, one for the whole batch, and the backward pass
    goes through the last `backward_loops` passes, and through e to the prelude. The
    program does not depend on r. Evaluated, r is `loops`, and s_0 is a fixed draw for
    each position, so that a cache gives what a full pass does. Both norms are one.

    The authors' own model: placement `sandwich(after='addition')`, loops 32, prelude 2,
    coda 2, a core of 4 layers, embedding_scale sqrt(features), tied embeddings. FLOPs
    are told for `loops` passes, forward and backward.

    Reference: Geiping et al., 2025, https://arxiv.org/abs/2502.05171, Section 3.

    Attributes:
      loops: Number of passes of the core when evaluated; its mean in training.
      backward_loops: Last passes that the backward pass goes through.
      is_random: Whether the number of passes is drawn in training.
      start_std: Standard deviation of s_0.
      loop_norm: Spec of the norm after the core and after the coda; "" disables it.
      exit: What ends the passes of a row that generates its next token: nothing, or
        a change by less than `threshold` from pass to pass: of the "latent" s_t by its
        own size, of the "entropy" of the next token, or of its distribution ("kl", of
        the new one from the last). Later tokens find the keys and values of the last
        pass at any depth. The prompt takes all passes.
      threshold: The change below which a row is done; 0 never is.
      (and those of `LoopedStack`)

    Raises:
      ReslabError: If a count is below 1, prelude and coda leave no layer between, or
        a norm or residual cannot be shared by a random number of passes.
    """

    loops: Count = 4
    prelude: Whole = 1
    coda: Whole = 1
    injection: Literal["none", "add", "concat"] = "concat"
    backward_loops: Count = 8
    is_random: bool = True
    start_std: NonNegative = math.sqrt(2 / 5)
    loop_norm: registry.Spec = "rms"
    exit: Literal["none", "latent", "entropy", "kl"] = "none"
    threshold: NonNegative = 0.0

    @property
    def reads_out(self) -> bool:
        """Returns whether it asks for logits inside."""
        return self.exit in ("entropy", "kl")

    def make_ends(self, positions: jax.Array) -> Ends:
        """The random start, and the norm after core and coda."""
        self.refuse_history("a row for what each layer wrote, whose number is random")
        key = training_key(self)

        def start(stream: Stream) -> Stream:
            leaf = jax.tree.leaves(stream)[0]
            size = leaf.shape[-1]
            if key is None:
                noise = _noise_by_position(positions, size, leaf.dtype)
            else:
                noise = _noise(key, (*positions.shape, size), leaf.dtype)
            noise = (self.start_std * noise).astype(leaf.dtype)
            return jax.tree.map(lambda s: jnp.broadcast_to(noise, s.shape), stream)

        if not self.loop_norm:
            return Ends(start)
        dtype = self.context.param_dtype
        norm = make_norm(self.loop_norm, param_dtype=dtype, name="loop_norm")
        return Ends(start, *2 * (lambda stream: jax.tree.map(norm, stream),))

    def apply_loop(self, layers, stream, enter, states, positions, segments):
        """Applies the core; in training a random number of times."""
        rest = enter, states, positions, segments
        is_cached = states[self.loop_index] is not None
        if self.exit != "none" and is_cached and positions.shape[1] == 1:
            return self._until_done(layers, stream, *rest)
        key = training_key(self) if self.is_random else None
        if key is None or is_cached or self.is_initializing():
            return super().apply_loop(layers, stream, *rest)
        if (
            layers.is_mutable_collection(BATCH_STATS)
            and BATCH_STATS in layers.variables
        ):
            raise ReslabError(
                "stacks 'huginn': a norm with running statistics",
                expected="one that passes can share",
                got="passes without a backward pass, whose number is random",
                hint="norm rms, or is_random=False",
            )
        count_key, pass_key = jax.random.split(key)
        count = draw_passes(count_key, self.loops)
        unheard = jnp.maximum(count - self.backward_loops, 0)
        core, first = (
            layers.clone(parent=None, name=None),
            self.stages[self.loop_index].first,
        )

        def applied(stream, number, limit, variables, enter):
            def run(stream):
                (stream, _), written = core.apply(
                    variables,
                    enter(stream, number),
                    *(first + core.depth * number, None, positions, segments),
                    mutable=[LOSSES],
                    rngs={DROPOUT: jax.random.fold_in(pass_key, number)},
                )
                return stream, dict(written)

            def skip(stream):
                shapes = jax.eval_shape(run, stream)[1]
                return stream, jax.tree.map(
                    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes
                )

            return jax.lax.cond(number < limit, run, skip, stream)

        variables = dict(layers.variables)
        stopped = jax.lax.stop_gradient((variables, enter))
        stream, _ = jax.lax.scan(
            lambda stream, n: (applied(stream, n, unheard, *stopped)[0], None),
            jax.lax.stop_gradient(stream),
            jnp.arange(max(_MOST * self.loops - self.backward_loops, 0)),
        )
        stream, written = jax.lax.scan(
            lambda stream, n: applied(stream, unheard + n, count, variables, enter),
            jax.lax.stop_gradient(stream),
            jnp.arange(self.backward_loops),
        )
        for collection, tree in written.items():
            for name, leaf in tree.items():
                layers.put_variable(collection, name, leaf)
        return stream, None

    def _until_done(self, layers, stream, enter, states, positions, segments):
        """Applies the core to one token of each row until it is done."""
        first = self.stages[self.loop_index].first
        one_pass = pure_pass(
            *(layers, enter, first, positions, segments),
            f"stacks 'huginn': exit {self.exit!r}",
        )
        criterion: until.Criterion = self._latent_criterion
        if self.reads_out:
            criterion = self._logit_criterion(states, positions, segments)
        stream, state, _ = until.run(
            *(one_pass, stream, states[self.loop_index], self.loops, criterion)
        )
        return stream, state

    def _latent_criterion(self, before, after, known):
        """Compares the change of the stream with its size."""
        return is_settled(before, after, self.threshold), known

    def _logit_criterion(self, states, positions, segments):
        """Makes what compares distributions of the next token."""

        def pure(name, module, *args, **keywords):
            own = {c: tree[name] for c, tree in variables.items() if name in tree}
            return module.apply(own, *args, **keywords)

        variables, head = dict(self.variables), read_out()
        if head is None:
            raise ReslabError(
                f"stacks 'huginn': exit {self.exit!r}",
                expected="a language model around the stack",
                got="no head",
                hint="exit 'latent'",
            )
        norm, dtype = lambda x: x, self.context.param_dtype
        if self.loop_norm:
            made = make_norm(self.loop_norm, param_dtype=dtype, parent=None)
            norm = functools.partial(pure, "loop_norm", made)
        ends = registry.make(
            "residuals", self.residual, **vars(self.context), parent=None
        )

        def log_probabilities(stream):
            stream = jax.tree.map(norm, stream)
            for stage, state in zip(self.stages, states, strict=True):
                if stage.first > self.prelude:
                    coda = self.make_stage(stage, parent=None)
                    rest = stage.first, state, positions, segments
                    stream, _ = pure(stage.name, coda, stream, *rest)
            x = pure("residual", ends, jax.tree.map(norm, stream), method="narrow")
            return jax.nn.log_softmax(head(x)[:, 0])

        def criterion(before, after, known):
            del before
            new = log_probabilities(after)
            if known is None:
                return jnp.zeros(new.shape[0], bool), new
            if self.exit == "kl":
                change = jnp.sum(jnp.exp(new) * (new - known), axis=-1)
            else:
                entropies = (-jnp.sum(jnp.exp(p) * p, axis=-1) for p in (new, known))
                change = jnp.abs(jnp.subtract(*entropies))
            return change < self.threshold, new

        return criterion


def draw_passes(key: jax.Array, mean: int) -> jax.Array:
    """Draws a number of passes, at least 1 and at most `_MOST * mean`."""
    spread, number = jax.random.split(key)
    logarithm = math.log(mean) - _SPREAD**2 / 2
    rate = jnp.exp(logarithm + _SPREAD * jax.random.normal(spread))
    count = 1 + jax.random.poisson(number, rate)
    return jnp.minimum(count, _MOST * mean)


def _noise(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    wide = statistics_dtype(dtype)
    return jax.random.truncated_normal(key, -3, 3, shape, wide)


def _noise_by_position(positions: jax.Array, size: int, dtype: Any) -> jax.Array:
    """A fixed draw (batch, length, size) that depends on the position alone."""
    key = jax.random.key(0)
    one = jax.vmap(lambda p: _noise(jax.random.fold_in(key, p), (size,), dtype))
    return jax.vmap(one)(positions)


build = HuginnStack
