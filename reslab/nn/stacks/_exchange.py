"""Latents by which groups of tokens know earlier groups."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry, surroundings
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.surroundings import Context
from reslab.core.trees import named_leaves
from reslab.core.types import Shared, State
from reslab.nn.base.norm import make_norm
from reslab.nn.base.projection import ProjectingModule

_HEADS = ("heads", "head_dim")


class Exchange(ProjectingModule):
    """Latents read their group and each other; tokens read those of the group before.

        z[g] = z[g] + attend(z[g] to x[g])
        z    = global layers(z),   where z[g] sees all z[g'] with g' <= g
        y[g] = attend(x[g] to z[g - 1])

    Of documents that share a row, latents know the one of the last token of their
    group. Groups are rows of the batch here, `groups` of them for each sequence.

    Attributes:
      groups: Groups of a sequence.
      latents: Latent vectors of a group.
      depth: Global layers.
      heads: Heads of all attention here.
      ffn: Feed-forward layer of the global layers.
      norm: Norm of latents before they are projected.
      context: What the global layers may ask of their surroundings.
      (and those of `ProjectingModule`)
    """

    groups: int = 1
    latents: int = 16
    depth: int = 1
    heads: int = 4
    ffn: registry.Spec = "swiglu"
    norm: registry.Spec = "rms"
    context: Context = Context()

    # Entry of the depth memory in which the latents are.
    entry: ClassVar[str] = "latents"

    def global_block(self, **keywords: Any) -> Any:
        """One global layer."""
        return registry.factory("blocks", "standard")(
            mixer=f"attention(heads={self.heads},group={self.latents})",
            ffn=self.ffn,
            norm=self.norm,
            **surroundings.Blocks(residual="plain", context=self.context),
            **keywords,
        )

    def init_state(self, batch: int, groups: int, features: int) -> State:
        """Latents of no group, and empty caches for those of `groups`."""
        cached = self.latents * max(groups, 1)
        block = self.global_block(parent=None)
        return {
            "latents": jnp.zeros((batch, self.latents, features), self.dtype),
            "groups": jnp.zeros((batch,), jnp.int32),
            "caches": tuple(
                block.init_state(batch, cached, features) for _ in range(self.depth)
            ),
        }

    def mixing_flops(self, group: int, features: int) -> int:
        """Counts attention per token, and kernels that take latents, not tokens."""
        block = self.global_block(parent=None)
        shared: Shared = {}
        x = jax.ShapeDtypeStruct((1, 1, features), self.dtype)
        places = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        init = functools.partial(block.init, shared=shared, layer=0)
        made = jax.eval_shape(
            lambda x, p: init(jax.random.key(0), x, positions=p), x, places
        )
        sizes = named_leaves(made["params"]).items()
        kernels = sum(leaf.size for name, leaf in sizes if name.endswith("/kernel"))
        seen = self.groups * self.latents
        of_latents = 4 * features**2 + self.depth * kernels
        flops = 2 * of_latents * (self.latents - group)
        flops += self.latents * self.depth * block.mixing_flops(seen, features)
        return 8 * self.latents * features + flops // group

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        latents: jax.Array | None,
        *,
        positions: jax.Array,
        segments: jax.Array | None,
        state: State,
    ) -> tuple[jax.Array, jax.Array, State]:
        """Exchanges; `x` is (sequences * groups, tokens, embed).

        Args:
          x: Tokens of each group.
          latents: Latents of each group, or None before the first exchange.
          positions: Position of each token in its document.
          segments: Document of each token, or None; with a state, 1 where the group
            has all its tokens, else 0.
          state: The state to continue from, or None.

        Returns:
          What is added to the tokens, the latents, and the new state.
        """
        rows, _, features = x.shape
        groups = 1 if state is not None else self.groups
        if latents is None:
            init, shape = nn.initializers.normal(1.0), (self.latents, features)
            start = parameter(
                self, "start", init, shape, (None, "embed"), self.param_dtype
            )
            latents = jnp.broadcast_to(start.astype(self.dtype), (rows, *shape))
        documents: Any = segments
        last: Any = None if segments is None else segments[:, -1]
        is_read: Any = None
        is_written: Any = None
        if last is not None and state is None:
            is_read = jnp.equal(documents, last[:, None])[:, None]
        query = self._norm("read_norm", latents)
        latents = latents + self._attend("read", query, x, is_read)
        caches = None if state is None else state["caches"]
        latents, caches = self._mixed(latents, groups, positions, last, caches)
        if state is None:
            before = _earlier(latents, groups)
            is_written = (jnp.arange(rows) % groups > 0)[:, None, None]
            if last is not None:
                is_same = jnp.equal(documents, _earlier(last, groups)[:, None])
                is_written = is_written & is_same[..., None]
        else:
            before, is_done = state["latents"], last > 0
            is_written = (state["groups"] > 0)[:, None, None]
            state = {
                "latents": jnp.where(is_done[:, None, None], latents, before),
                "groups": state["groups"] + is_done.astype(jnp.int32),
                "caches": caches,
            }
        source = self._norm("write_norm", before)
        return self._attend("write", x, source, is_written), latents, state

    def _mixed(self, latents, groups, positions, last, caches):
        """Applies the global layers to the latents of all groups of a sequence."""

        def of_latents(x):
            return jnp.repeat(x.reshape(-1, groups), self.latents, axis=1)

        shape = latents.shape
        z = latents.reshape(-1, groups * self.latents, shape[-1])
        given = {
            "layer": 0,
            "positions": of_latents(positions[:, -1]),
            "segments": None if last is None else of_latents(last),
        }
        new = []
        for index in range(self.depth):
            own = None if caches is None else caches[index]
            block = self.global_block(name=f"global_{index}")
            z, _, own = block(z, {}, state=own, **given)
            new.append(own)
        return z.reshape(shape), None if caches is None else tuple(new)

    def _norm(self, name, x):
        axis = surroundings.Norms(logical_axis="embed")
        kept = {"param_dtype": self.param_dtype, "parent": self, "name": name}
        return make_norm(self.norm, **axis, **kept)(x)

    def _attend(self, name, x, source, is_seen):
        """Attends from `x` to `source`; to nothing where nothing is seen."""
        features = x.shape[-1]
        size, axes = (self.heads, features // self.heads), ("embed", *_HEADS)
        query = self.project(f"{name}_query", x, size, axes)
        key = self.project(f"{name}_key", source, size, axes)
        value = self.project(
            f"{name}_value", source, size, axes, scale=self.inner_scale
        )
        wide = statistics_dtype(self.dtype)
        scores = jnp.einsum(
            "bqhd,bkhd->bhqk", query, key, preferred_element_type=wide
        ) * (size[1] ** -0.5)
        if is_seen is not None:
            scores = jnp.where(is_seen[:, None], scores, 0.7 * jnp.finfo(wide).min)
        weights = jax.nn.softmax(scores, axis=-1)
        if is_seen is not None:
            weights = jnp.where(is_seen[:, None], weights, 0)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
        return self.project(
            f"{name}_output", y, features, (*_HEADS, "embed"), scale=self.output_scale
        )


def _earlier(x: jax.Array, groups: int) -> jax.Array:
    """Shifts groups by one, with zeros for the first of a sequence."""
    x = x.reshape(-1, groups, *x.shape[1:])
    x = jnp.pad(x, [(0, 0), (1, 0), *[(0, 0)] * (x.ndim - 2)])[:, :-1]
    return x.reshape(-1, *x.shape[2:])
