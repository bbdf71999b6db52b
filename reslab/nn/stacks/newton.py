"""Layers in parallel, corrected by structured Newton steps (Han et al., 2026)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, Fraction, NonNegative, Repeats, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.losses import add_loss
from reslab.core.randomness import training_key
from reslab.core.types import State
from reslab.nn.stacks._halting import mean_of_tokens
from reslab.nn.stacks._loops import newton, scan
from reslab.nn.stacks._loops.span import renewed, unbound
from reslab.nn.stacks.uniform import UniformStack


@bounded
class NewtonStack(UniformStack):
    """Evaluates the last layers at once, and corrects what they read.

        F_l = f_l(h_(l-1))    for all l at once
        h_l = F_l + (1 - damping) * J_l (new h_(l-1) - h_(l-1)),   `iterations` times

    With as many iterations as layers the result is exact; with one, and J = I, it is
    h_0 plus the sum of what every layer adds to h_0. Training goes through the layers
    one after the other; `weight` makes it learn layers for which one iteration is
    enough:

        loss + weight * sum_l mean |h_l of one iteration - h_l| / |h_l|

    over every `stride`-th layer and the last. Parameters are those of the uniform
    stack: `reslab eval RUN --stack "newton(iterations=2)"` evaluates its runs so.
    Every iteration has caches of its own, so that a cache gives what a full pass does.

    Reference: Han et al., 2026, https://arxiv.org/abs/2605.17842: the identity form,
    the form for hyper-connections, chunks. Checked against the authors' corrections on
    a toy stack. Their diagonal estimate of the Jacobian is left out.

    Attributes:
      parallel: Number of last layers that are evaluated at once; 0 is all that are
        alike.
      iterations: Number of corrections.
      start: The first inputs: h_0 for all layers, the "input", or what they return for
        it, "forward", which costs as much as an iteration.
      damping: The share of the correction that is left out.
      jacobian: J, the "identity", as plain residuals have it, or of the "stream", which
        residuals such as hyper-connections mix: the derivative of a layer with given
        outputs of its branches.
      fused: Layers that act as one, whose branches read the same stream sublayer by
        sublayer; for one stream to which layers add.
      weight: Weight of the error of one iteration in the loss.
      stride: Layers from one that counts there to the next; 0 is the last alone, and
        of f_l(h_0) without the sum.
      stops_target: Whether the error has no gradient by the layers in sequence.
      (and those of `UniformStack`)

    Raises:
      ReslabError: If there are fewer layers, they do not end a pattern, or layers hand
        on more than a stream.
    """

    parallel: Whole = 0
    iterations: Repeats = 1
    start: Literal["input", "forward"] = "input"
    damping: Fraction = 0.0
    jacobian: Literal["identity", "stream"] = "identity"
    fused: Count = 1
    weight: NonNegative = 0.0
    stride: Whole = 1
    stops_target: bool = False

    @property
    def steps(self) -> newton.Newton:
        """The steps of the method."""
        return newton.Newton(
            *(self.iterations, 1 - self.damping, self.start == "forward"),
            *(self.jacobian == "stream", self.fused),
        )

    def _periods(self) -> int:
        """Periods of the last span that are evaluated at once."""
        plan = self.make_layers(parent=None).plan()
        blocks, count = plan[-1]
        layers = self.parallel or len(blocks) * count
        most = len(blocks) * count
        if layers > most or layers % len(blocks):
            raise ReslabError(
                "stacks 'newton': parallel",
                expected=f"at most {most} of the {self.depth} layers, which are alike"
                + (f", and a multiple of {len(blocks)}" if len(blocks) > 1 else ""),
                got=str(layers),
            )
        periods = layers // len(blocks)
        if periods % self.fused:
            raise ReslabError(
                "stacks 'newton': fused",
                expected=f"a divisor of {periods}, the layers that are evaluated at "
                "once",
                got=str(self.fused),
            )
        # Told before a run that trains in sequence comes to its first evaluation.
        residual = self.unbound_residual
        if periods > 1 and getattr(residual, "is_history", False):
            newton.check(newton.HISTORY)
        if periods > 1 and any(map(renewed, blocks)):
            newton.check(newton.MEMORY)
        return periods

    def _sweeps(self) -> int:
        """Number of times that the last layers are evaluated; once if there is one."""
        return self.steps.sweeps if self._periods() > 1 else 1

    def applied_entries(self, name: str, entries: int, rows: int) -> int:
        """Entries of a kernel, as often as a token meets them."""
        last = len(self.make_layers(parent=None).plan()) - 1
        if f"/segment_{last}/" not in name:
            return entries
        return entries // rows * (rows + self._periods() * (self._sweeps() - 1))

    def mixing_flops(self, length: int, features: int) -> int:
        """Matrix-product FLOPs per token beyond the kernels', over all sweeps."""
        layers = self.make_layers(parent=None)
        each = sum(
            unbound(block).mixing_flops(length, features)
            for block in layers.plan()[-1][0]
        )
        more = self._periods() * (self._sweeps() - 1)
        return layers.mixing_flops(length, features) + more * each

    def init_state(
        self, batch: int, length: int, features: int, **keywords: Any
    ) -> State:
        """The state of every layer, and of the last ones in the other sweeps."""
        state = super().init_state(batch, length, features, **keywords)
        shape = self._sweeps() - 1, self._periods()
        earlier = jax.tree.map(
            lambda a: jnp.broadcast_to(a[:1], (*shape, *a.shape[1:])), state[-1]
        )
        return state, earlier

    def apply_layers(self, stream, state, positions, segments):
        """Applies the layers, the last ones at once."""
        own, earlier = (None, None) if state is None else state
        layers, is_training = self.make_layers(name="body"), False
        if not self.is_initializing():
            is_training = training_key(self) is not None and state is None
        count, losses = self._periods(), []

        def run(spans, stream, shared):
            nonlocal earlier
            *first, last = spans
            stream, shared, changes = scan.run(first, stream, shared)
            if count == 1:
                stream, _, change = scan.scan(last, stream, shared)
                return stream, [*changes, change]
            cut, parts = last.count - count, []
            if cut:
                rows = last.rows(slice(None, cut))
                stream, shared, change = scan.scan(rows, stream, shared)
                parts.append(change)
            suffix = last.rows(slice(cut, None))
            self._check_fused(stream)
            if is_training:
                newton.check(newton.refusal(suffix, stream, shared))
                found, change = newton.trace(suffix, stream, shared)
                if self.weight:
                    losses.append(self._error(suffix, stream, shared, found, segments))
                stream = jax.tree.map(lambda a: a[-1], found)
            else:
                rest = shared, self.steps, earlier
                stream, change, earlier = newton.run(suffix, stream, *rest)
            parts.append(change)
            joined = jax.tree.map(lambda *a: jnp.concatenate(a), *parts)
            return stream, [*changes, joined]

        stream, own = layers(stream, 0, own, positions, segments, runner=run)
        if losses:
            add_loss(self, "newton", self.weight * losses[0])
        return stream, None if state is None else (own, earlier)

    def _check_fused(self, stream) -> None:
        leaves = jax.tree.leaves(stream)
        if self.fused > 1 and (len(leaves) > 1 or leaves[0].ndim > 3):
            raise ReslabError(
                "stacks 'newton': fused",
                expected="one stream, to which layers add",
                got="several",
                hint="residual plain, or fused=1",
            )

    def _error(self, span, stream, shared, found, segments) -> jax.Array:
        """The relative error of one iteration, added over layers."""
        count = span.count // self.fused
        found = jax.tree.map(lambda a: a[self.fused - 1 :: self.fused], found)
        inputs = newton.repeated(stream, count)
        outputs, slope, _ = newton.evaluate(span, inputs, shared, self.steps)
        chosen = {count - 1}
        if self.stride:
            outputs = newton.corrected(outputs, inputs, self.steps.factor, slope)
            chosen |= set(range(self.stride - 1, count, self.stride))
        if self.stops_target:
            found = jax.lax.stop_gradient(found)

        def size(tree):
            # (periods, streams..., batch, length, embed) to (periods, batch, length)
            squares = [
                jnp.sum(jnp.square(a.astype(jnp.float32)), axis=-1)
                for a in jax.tree.leaves(tree)
            ]
            rows = [s.reshape(len(s), -1, *s.shape[-2:]).sum(axis=1) for s in squares]
            return jnp.sqrt(sum(rows[1:], rows[0]) + 1e-12)

        change = size(jax.tree.map(jnp.subtract, outputs, found))
        error = change / jnp.maximum(size(found), 1e-6)
        means = [mean_of_tokens(error[row], segments) for row in sorted(chosen)]
        return jnp.sum(jnp.stack(means))


build = NewtonStack
