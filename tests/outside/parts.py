"""Parts written outside of reslab, against its documented protocols alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.losses import add_loss
from reslab.core.parameters import parameter
from reslab.nn.base.projection import ProjectingModule
from reslab.nn.blocks.standard import StandardBlock
from reslab.nn.linears.dense import Dense
from reslab.nn.stacks.looped import LoopedStack

RANKS = ((1, 4, 2), (3, 0, 4))


class DepthwiseLoRA(Dense):
    """A dense projection and a low-rank one, of a rank for each layer and pass."""

    ranks: tuple[tuple[int, ...], ...] = RANKS

    @nn.compact
    def __call__(self, x, *, layer=0, pass_index=0):
        y, inputs = self.multiply(x), self.inputs_of(x)
        most = max(map(max, self.ranks))
        down = parameter(
            *(self, "lora_down", nn.initializers.normal(0.1), (*inputs, most)),
            *((*self.input_axes, None), self.param_dtype),
        )
        up = parameter(
            *(self, "lora_up", nn.initializers.normal(0.1), (most, *self.outputs)),
            *((None, *self.output_axes), self.param_dtype),
        )
        rank = jnp.asarray(self.ranks)[pass_index, layer]
        h = jnp.tensordot(x.astype(self.dtype), down.astype(self.dtype), len(inputs))
        h = jnp.where(jnp.arange(most) < rank, h, 0)
        return self.add_bias(y + jnp.tensordot(h, up.astype(self.dtype), 1))


class CarriedRouter(ProjectingModule):
    """Two experts, chosen by a score that adds up over layers, balanced by a loss."""

    writes_shared = ("router",)
    renews_shared = ("router",)

    @nn.compact
    def __call__(self, x, *, mask=None, shared=None):
        score = self.project("score", x, 2, ("embed", None))
        score += (shared or {}).get("router", 0.0)
        weight = jax.nn.softmax(score)
        mask = jnp.ones(x.shape[:2], x.dtype) if mask is None else mask.astype(x.dtype)
        share = jnp.sum(weight[..., 0] * mask) / jnp.sum(mask)
        add_loss(self, "balance", jnp.square(share - 0.5))
        ys = [self.project(f"up_{e}", x, x.shape[-1], ("embed", "mlp")) for e in "ab"]
        y = weight[..., :1] * ys[0] + weight[..., 1:] * ys[1]
        return y, {"router": score}


class Ponder(LoopedStack):
    """Halts each token by chance, and gives back the mean over the passes."""

    cost: float = 0.01

    @nn.compact
    def __call__(self, x, *, positions, segments=None, state=None):
        ends = registry.make(
            "residuals", self.residual, **vars(self.context), name="residual"
        )
        layers = self.make_layers(name="body")
        kernel = parameter(
            *(self, "halt", nn.initializers.normal(0.1), (x.shape[-1], 1)),
            *(("embed", None), jnp.float32),
        )
        stream, states, steps = ends.widen(x), [], jnp.zeros(x.shape[:2], x.dtype)
        left, y = jnp.ones(x.shape[:2], x.dtype), jnp.zeros_like(x)
        # One pass makes every parameter.
        loops = 1 if self.is_initializing() else self.loops
        for index in range(loops):
            own = jax.tree.map(lambda a, i=index: a[i], state)
            stream, own = layers(stream, index * self.depth, own, positions, segments)
            states.append(own)
            h = ends.narrow(stream)
            halts = nn.sigmoid((h @ kernel.astype(h.dtype))[..., 0])
            here = left * (halts if index < loops - 1 else 1.0)
            left, steps = left - here, steps + here * index
            y += here[..., None] * h
        add_loss(self, "ponder", self.cost * jnp.mean(steps))
        if state is not None:
            state = jax.tree.map(lambda *a: jnp.stack(a), *states)
        return y, state


class MixtureOfDepths(StandardBlock):
    """Lets only the tokens with the highest scores pass through the layer."""

    capacity: float = 0.5

    @nn.compact
    def __call__(self, stream, shared, *, layer, positions, segments=None, state=None):
        score = nn.Dense(1, param_dtype=self.context.param_dtype, name="router")(
            jax.tree.leaves(stream)[0]
        )[..., 0]
        count = max(1, int(self.capacity * score.shape[1]))
        chosen = jnp.sort(jax.lax.top_k(score, count)[1], -1)

        def take(a):
            index = chosen.reshape(chosen.shape + (1,) * (a.ndim - 2))
            return jnp.take_along_axis(a, index, 1)

        inner = StandardBlock(
            *(self.mixer, self.ffn, self.norm, self.placement, self.residual),
            self.context,
            name="inner",
        )
        part = jax.tree.map(take, stream)
        after, shared, state = inner(
            *(part, shared),
            layer=layer,
            positions=take(positions),
            segments=None if segments is None else take(segments),
            state=state,
        )
        weight = nn.sigmoid(take(score))[..., None]

        def put(whole, old, new):
            rows = jnp.arange(whole.shape[0])[:, None]
            new = old + weight.astype(whole.dtype) * (new - old)
            return whole.at[rows, chosen].set(new)

        return jax.tree.map(put, stream, part, after), shared, state
