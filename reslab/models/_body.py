"""Base of models with layers: parts by name, and the stack of them."""

import collections
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from reslab.core import registry, surroundings
from reslab.core.bounds import Count, Momentum, NonNegative, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import NamedModule
from reslab.core.surroundings import Context
from reslab.models._growth import check_growth
from reslab.nn.base import sites as sites_of
from reslab.nn.base.norm import make_norm
from reslab.ops.tiles import IMPLEMENTATIONS

Specs = registry.Spec | Sequence[registry.Spec]


@bounded
class Body(NamedModule):
    """Base of models that are a stack of layers between two ends.

    Every part is named by a spec string. A sequence of specs is tiled over depth.

    Attributes:
      features: Width of the model.
      depth: Number of layers with parameters of their own.
      mixer: Token mixer, or a sequence of them.
      ffn: Feed-forward layer, or a sequence of them.
      norm: Normalization, or a sequence of them.
      placement: Where the norms sit, or a sequence of placements.
      residual: How the depth stream is read and written.
      block: How sublayers form a layer, or a sequence of blocks.
      stack: How blocks are laid along depth.
      linear: What a projection is.
      position: Position encoding.
      embedding_std: Initial standard deviation of the embedding.
      post_embedding_norm: Norm between embedding and first layer; "none" leaves it
        to the placement.
      init_std: Initial standard deviation of projections; 0 is 1/sqrt(fan in).
      scales_output_by_depth: Whether projections into the stream start smaller
        by 1/sqrt(sublayers applied) (Radford et al., 2019, Section 2.3).
      dropout: Rate at which outputs of sublayers are dropped during training, before
        the norm that follows them, if any (Vaswani et al., 2017, Section 5.4).
      kernels: Implementation of the operations that have a kernel: "auto",
        "reference" or "pallas" (see `reslab.ops.evidence`).
      is_unrolled: Whether layers are unrolled instead of scanned.
      remat: What the backward pass recomputes: "none", "dots" or "full".
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.
    """

    features: Count = 128
    depth: int = 4
    mixer: Specs = "attention"
    ffn: Specs = "swiglu"
    norm: Specs = "rms"
    placement: Specs = "pre"
    residual: registry.Spec = "plain"
    block: Specs = "standard"
    stack: registry.Spec = "uniform"
    linear: registry.Spec = "dense"
    position: registry.Spec = "rope"
    embedding_std: NonNegative = 0.02
    post_embedding_norm: registry.Spec = "none"
    init_std: NonNegative = 0.0
    scales_output_by_depth: bool = True
    dropout: Momentum = 0.0
    kernels: str = "auto"
    is_unrolled: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def is_causal(self) -> bool:
        """Returns whether a position sees only earlier positions."""
        return True

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns of the tokens of an image, or ()."""
        return ()

    @property
    def passes_padding(self) -> bool:
        """Returns whether rows of one batch may differ in length while generating."""
        mixers = [registry.unbound("mixers", spec) for spec in tiled(self.mixer)]
        return all(getattr(mixer, "passes_padding", False) for mixer in mixers)

    def make_position(self, max_length: int, **keywords) -> nn.Module:
        """The position encoding, for at most `max_length` positions."""
        return registry.make(
            "positions",
            self.position,
            **surroundings.Positions(max_length=max_length),
            embedding_std=self.embedding_std,
            param_dtype=self.param_dtype,
            **keywords,
        )

    def placement_of(self, layer: int) -> Any:
        """The placement of a layer, unbound."""
        specs = tiled(self.placement)
        return registry.unbound(
            "placements", specs[layer % len(specs)], layer=layer, layers=self.depth
        )

    def last(self, kind: str) -> registry.Spec:
        """The spec of a kind that the last layer has."""
        specs = tiled(getattr(self, kind))
        return specs[(self.depth - 1) % len(specs)]

    def make_stack(self, **keywords) -> nn.Module:
        """Builds the stack; with `parent=None`, one that is not bound to `self`."""
        build_stack = registry.factory("stacks", self.stack)
        sites = sites_of.of_model(self.stack, tiled(self.block), self.depth)
        route = sites_of.route_of(self.stack, self.depth)
        passes = max(collections.Counter(route).values())
        context = Context(
            depth=len(route),
            passes=passes,
            route=() if route == passes * (*range(self.depth),) else route,
            sites=sites,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            norm=self.last("norm"),
            linear=self.linear,
            position=self.position,
            is_causal=self.is_causal,
            grid=self.grid,
            dropout=self.dropout,
            kernels=self.kernels,
            init_std=self.init_std,
            output_scale=sites[-1] ** -0.5 if self.scales_output_by_depth else 1.0,
        )
        kinds = {
            "mixer": tiled(self.mixer),
            "ffn": tiled(self.ffn),
            "norm": tiled(self.norm),
            "placement": tiled(self.placement),
            "block": tiled(self.block),
        }
        blocks: list[Any] = []
        known: dict[Any, Any] = {}
        for layer in range(self.depth):
            chosen = {kind: specs[layer % len(specs)] for kind, specs in kinds.items()}
            # Layers with the same factory are scanned together; a placement that
            # depends on the layer may be the same in several.
            key = *chosen.values(), repr(self.placement_of(layer))
            if key not in known:
                build = registry.factory("blocks", chosen.pop("block"))
                chosen["placement"] = functools.partial(
                    registry.factory("placements", chosen["placement"]),
                    layer=layer,
                    layers=self.depth,
                )
                known[key] = functools.partial(
                    build,
                    **chosen,
                    **surroundings.Blocks(residual=self.residual, context=context),
                )
            blocks.append(known[key])
        return build_stack(
            **surroundings.Stacks(
                blocks=tuple(blocks),
                depth=self.depth,
                residual=self.residual,
                context=context,
                is_unrolled=self.is_unrolled,
                remat=self.remat,
            ),
            **keywords,
        )

    def check_depth(self) -> None:
        """Checks depth, `kernels`, the mixers, and that the stream stays finite.

        Raises:
          ReslabError: If a check fails.
        """
        if self.depth < 1:
            raise ReslabError("model.depth", expected="at least 1", got=str(self.depth))
        if self.kernels not in IMPLEMENTATIONS:
            raise ReslabError(
                "model.kernels",
                expected=", ".join(IMPLEMENTATIONS),
                got=repr(self.kernels),
            )
        for spec in tiled(self.mixer):
            # A part of the caller's is not built before its placement was asked.
            is_named = isinstance(spec, str)
            mixer = registry.unbound("mixers", spec) if is_named else spec
            if self.is_causal and getattr(mixer, "is_bidirectional", False):
                raise ReslabError(
                    f"model.mixer {spec!r} reads later tokens",
                    expected="a causal mixer, in a model that predicts and generates",
                    hint="model.name=vit, where every token is given",
                )
        # Raises for more layers than can be traced one by one.
        sites_of.of_model(self.stack, tiled(self.block), self.depth)
        norm, ffn, block = (tiled(kind) for kind in (self.norm, self.ffn, self.block))
        check_growth(
            (
                norm[layer % len(norm)],
                ffn[layer % len(ffn)],
                block[layer % len(block)],
            )
            for layer in sites_of.route_of(self.stack, self.depth)
            if getattr(self.placement_of(layer), "has_norms", True)
        )

    @property
    def first_norm(self) -> registry.Spec:
        """Spec of the norm before the first layer, or "none"."""
        if self.post_embedding_norm != "none":
            return self.post_embedding_norm
        is_wanted = getattr(self.placement_of(0), "normalizes_embedding", False)
        return tiled(self.norm)[0] if is_wanted else "none"

    def embedding_norm_or_none(self) -> Any:
        """The norm before the first layer, or what does nothing."""
        return self._end_norm(self.first_norm != "none", self.first_norm)

    def final_norm_or_none(self) -> Any:
        """The norm after the last layer, or what does nothing."""
        is_wanted = self.placement_of(self.depth - 1).needs_final_norm
        return self._end_norm(is_wanted, self.last("norm"))

    def _end_norm(self, is_wanted: bool, spec: registry.Spec) -> Any:
        if not is_wanted:
            return lambda x, mask=None: x
        return make_norm(spec, has_mask=True, param_dtype=self.param_dtype)


def tiled(specs: Specs) -> tuple[registry.Spec, ...]:
    """One spec, or several to be repeated over depth, as a tuple."""
    if isinstance(specs, str) or callable(specs):
        return (specs,)
    return tuple(specs)
