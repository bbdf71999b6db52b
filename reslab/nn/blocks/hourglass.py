"""The hourglass layer: narrow steps on a wide stream (Chen et al., 2025)."""

from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry, surroundings
from reslab.core.bounds import Count, Seed, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import scaled
from reslab.core.types import Branch
from reslab.nn.base.norm import make_norm
from reslab.nn.blocks._sublayers import Sublayer, SublayerBlock


@bounded
class HourglassBlock(SublayerBlock):
    """Follows the mixer by several narrow feed-forward layers instead of a wide one.

        x = x + mixer(norm(x))
        x = x + ffn_i(norm_i(x)),                         i = 1..bottlenecks

    Skip connections meet where the features are wide, and each step passes through
    few: wide, narrow, wide. Every step is a sublayer, with the residual and the
    placement of the model. Where the spec of the feed-forward layers does not set
    `hidden`, all of them together have about as many parameters as one would have
    alone (widths are rounded as those of one are).

    With `lift` above 0, the steps run in a space wider than the stream, which a fixed
    random projection R leads to; the feed-forward part is then one sublayer:

        z = h . R,    z = z + ffn_i(norm_i(z)),    f(h) = z . W_down

    R has entries of random sign and size 1/sqrt(features), the same in every layer,
    regenerated from `seed`; it is not a parameter. (Signs do not depend on how a
    program is compiled; normal random numbers do.)

    Reference: Chen et al., 2025, https://arxiv.org/abs/2510.01796 (the lift); 2026,
    https://arxiv.org/abs/2602.06471 (the steps as a transformer's feed-forward
    part). The authors have published no code for transformers: the golden values are
    those of the equations. Where the lifted form has norms the first paper leaves
    open; here they are those of `norm`, before each step.

    Attributes:
      bottlenecks: Number of narrow feed-forward layers.
      lift: Width of the space in which they run; 0 keeps the width of the stream.
      seed: Seed of the fixed projection.
      (and those of `SublayerBlock`)

    Raises:
      ReslabError: If there are no steps, or the lift is not wider than the stream.
    """

    bottlenecks: Count = 4
    lift: Whole = 0
    seed: Seed = 0

    @property
    def sublayers(self) -> int:
        """The mixer and every step; with a lift the steps are one."""
        return 2 if self.lift else 1 + self.bottlenecks

    @property
    def feed_forwards(self) -> int:
        """The steps, with a lift as well."""
        return self.bottlenecks

    def mixing_flops(self, length: int, features: int) -> int:
        """Counts the FLOPs of the mixer and of the fixed projection."""
        return super().mixing_flops(length, features) + 2 * features * self.lift

    def branches(self, mixer: Branch) -> Iterable[Sublayer]:
        """The mixer, then the steps, each alone or all in a wider space."""
        yield Sublayer("mixer", "mixer", mixer)
        if self.lift:
            yield Sublayer("ffn", "ffn", self._lifted)
            return
        for name, ffn in self._steps(1 / self.bottlenecks):
            yield Sublayer(name, "ffn", ffn)

    def _steps(self, hidden_scale: float) -> Iterable[tuple[str, nn.Module]]:
        for index in range(self.bottlenecks):
            name = f"ffn_{index}"
            yield (
                name,
                self.make_ffn(
                    name=name, **surroundings.FeedForwards(hidden_scale=hidden_scale)
                ),
            )

    def _lifted(self, h: jax.Array) -> jax.Array:
        """Steps in a wider space, between a fixed and a learned projection."""
        features, context = h.shape[-1], self.part_context("ffn")
        if self.lift <= features:
            raise ReslabError(
                "blocks 'hourglass': lift",
                expected=f"more than the width ({features}), or 0",
                got=str(self.lift),
            )

        def whole(z):
            # Without the constraint, XLA's partitioner gave some of eight devices rows
            # of others.
            return nn.with_logical_constraint(z, ("batch", "length", None))

        # Without the barrier the compiler would draw the signs at compile time.
        key = jax.lax.optimization_barrier(jax.random.key(self.seed))
        signs = jax.random.rademacher(key, (features, self.lift), jnp.int8)
        signs = signs.astype(context.dtype)
        z = whole(scaled(h.astype(context.dtype) @ signs, features**-0.5))
        # The default width scales with the width squared, as the parameters do.
        for name, ffn in self._steps((features / self.lift) ** 2 / self.bottlenecks):
            norm = make_norm(
                self.norm, param_dtype=context.param_dtype, name=f"{name}_norm"
            )
            z = whole(z + ffn(norm(z)))
        down = registry.make(
            "linears",
            context.linear,
            **vars(context) | {"scale": context.output_scale},
            **surroundings.Linears(features=features, kernel_axes=("mlp", "embed")),
            name="down",
        )
        return down(z)


build = HourglassBlock
