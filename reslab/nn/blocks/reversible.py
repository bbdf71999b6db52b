"""The reversible layer: it keeps no activations (Gomez et al., 2017)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.types import Branch, Shared
from reslab.nn.base.coupling import Coupled, undo
from reslab.nn.base.place import Place, telling
from reslab.nn.blocks.standard import StandardBlock


class ReversibleBlock(StandardBlock):
    """The standard layer on two coupled streams, undone in the backward pass.

        forward:    (a, b) -> (b, a + f(norm(b)))        for the mixer, then the ffn
        backward:   (b, c) -> (c - f(norm(b)), b)        in the other order

    The backward pass starts from what the last layer left, and finds what each
    sublayer has read by undoing it; a stack of these blocks keeps one stream, however
    deep it is. Each sublayer is computed once more, as with `remat="full"`, and
    `remat` changes nothing. Undoing rounds: gradients are those of activations that
    differ from the first ones in float32's last digits.

    The residual must be `reversible`, and the placement one that leaves the stream
    alone but for adding to it.

    Reference: Gomez et al., 2017, https://arxiv.org/abs/1707.04585, Section 3;
    Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, Section 3. Property
    only, no authors' code.

    Attributes:
      (those of `SublayerBlock`)

    Raises:
      ReslabError: If residual or placement cannot be undone.
    """

    residual: registry.Spec = "reversible"

    is_reversible = True

    def __post_init__(self):
        text = self.residual if isinstance(self.residual, str) else "another"
        if registry.parse(text).name != "reversible":
            raise ReslabError(
                "blocks 'reversible': its steps must be undone",
                expected="residual 'reversible'",
                got=repr(self.residual),
                hint="model.residual='reversible'",
            )
        super().__post_init__()
        placement = self.unbound_placement("mixer")
        if getattr(placement, "normalizes_stream", False):
            raise ReslabError(
                "blocks 'reversible': its steps must be undone",
                expected="a placement that normalizes branches, not the stream",
                got=type(placement).__name__,
                hint="pre, peri or sandwich",
            )

    def backward(
        self,
        params: Any,
        after: Coupled,
        cotangent: Coupled,
        shared: Shared,
        *,
        layer: int | jax.Array,
        positions: jax.Array,
        segments: jax.Array | None,
    ) -> tuple[Coupled, Coupled, Any, Shared]:
        """Undoes the layer and takes its gradient, from what it left alone.

        Args:
          params: The layer's parameters.
          after: The stream that the layer returned.
          cotangent: The gradient by it.
          shared: Depth memory, which the layer only reads.
          layer: Index of the layer.
          positions: As in the forward pass.
          segments: As in the forward pass.

        Returns:
          The stream before the layer, and the gradients by it, by the parameters and
          by the depth memory.
        """
        gradients = jax.tree.map(jnp.zeros_like, (params, shared))
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("parent", "name")
        }
        for index in reversed(range(self.sublayers)):
            branch = _Branch(**fields, index=index, parent=None)

            def apply(h, params, shared, branch=branch) -> Any:
                keywords = {"positions": positions, "segments": segments}
                return branch.apply(
                    {"params": params}, h, shared, layer=layer, **keywords
                )

            after, cotangent, more = undo(apply, after, cotangent, params, shared)
            gradients = jax.tree.map(jnp.add, gradients, more)
        return after, cotangent, *gradients


class _Branch(StandardBlock):
    """One sublayer of the layer, with its norms, as a function of what it reads."""

    index: int = 0

    @nn.compact
    def __call__(self, h, shared, *, layer, positions, segments):
        module = self.make_mixer(name="mixer")

        def mixer(h):
            return module(h, positions=positions, segments=segments, shared=shared)[0]

        name, kind, branch = self.trained_branches(mixer)[self.index]
        placement = self.make_placement(kind, name=f"{name}_placement")
        place = Place.of(layer, self.context, self.sublayers, segments, shared)
        for _ in range(self.index):
            place.next()
        with telling(place):
            return placement(h, _only_branch, branch, site=place.site)


def _only_branch(stream: jax.Array, branch: Branch, *, site: Any) -> jax.Array:
    """A residual that adds nothing: what is written instead of where."""
    del site
    return branch(stream)


build = ReversibleBlock
