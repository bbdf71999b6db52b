"""The standard layer: a mixer sublayer, then a feed-forward sublayer."""

import flax.linen as nn
import jax

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.types import Context, Shared, State, Stream
from reslab.nn.norm import mask_for


class StandardBlock(nn.Module):
    """Applies a mixer and then a feed-forward layer to the stream.

        stream = placement(residual, mixer)
        stream = placement(residual, ffn)

    Each sublayer has a residual and a placement of its own.

    Reference: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, Section
    3.1.

    Attributes:
      mixer: Spec of the token mixer.
      ffn: Spec of the feed-forward layer.
      norm: Spec of the norms that the placement puts around them.
      placement: Spec of the placement.
      residual: Spec of the residual.
      context: What the parts may ask of their surroundings.
    """

    mixer: registry.Spec = "attention"
    ffn: registry.Spec = "swiglu"
    norm: registry.Spec = "rms"
    placement: registry.Spec = "pre"
    residual: registry.Spec = "plain"
    context: Context = Context()

    def _placement(self, sublayer: str, **keywords) -> nn.Module:
        return registry.make(
            "placements",
            self.placement,
            **vars(self.context) | {"norm": self.norm},
            sublayer=sublayer,
            sublayers=2,
            **keywords,
        )

    def _part(self, family: str, sublayer: str, **keywords) -> nn.Module:
        """The mixer or ffn, with what the placement wants of it."""
        spec = getattr(self, sublayer)
        placement = self._placement(sublayer, parent=None)
        # A placement of someone else's may have nothing to say.
        adapt = getattr(placement, "adapt", lambda context: context)
        context = adapt(self.context)
        for key in ("inner_norm", "qkv_norm"):
            wants = getattr(context, key) and not getattr(self.context, key)
            # A feed-forward layer has no queries.
            is_asked = family == "mixers" or key == "inner_norm"
            if wants and is_asked and not registry.accepts(family, spec, key):
                raise ReslabError(
                    f"{type(placement).__name__} puts a norm inside the {sublayer}",
                    expected=f"one that takes {key}",
                    got=repr(spec),
                )
        return registry.make(family, spec, **vars(context), **keywords)

    def _mixer(self, **keywords) -> nn.Module:
        return self._part("mixers", "mixer", **keywords)

    @property
    def writes_shared(self) -> bool:
        """Whether the mixer of the first layer leaves something for the others."""
        return self._mixer(parent=None).writes_shared

    def init_state(self, batch: int, length: int, features: int) -> State:
        """The mixer's state before the first token."""
        return self._mixer(parent=None).init_state(batch, length, features)

    def mixing_flops(self, length: int, features: int) -> int:
        """The mixer's matrix-product FLOPs per token beyond its kernels'."""
        return self._mixer(parent=None).mixing_flops(length, features)

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        shared: Shared,
        *,
        layer: int | jax.Array,
        positions: jax.Array,
        segments: jax.Array | None = None,
        state: State = None,
    ) -> tuple[Stream, Shared, State]:
        """Applies the layer.

        Args:
          stream: The residual stream.
          shared: Depth memory.
          layer: Index of the layer among those applied, from 0; may be traced.
          positions: Position of each token in its document (batch, length).
          segments: Document of each token, or None.
          state: The mixer's state to continue from, or None.

        Returns:
          The new stream, depth memory, and state.
        """
        mixer = self._mixer(name="mixer")
        ffn = self._part("ffns", "ffn", name="ffn")

        def mix(h):
            nonlocal shared, state
            y, shared, state = mixer(
                h, positions=positions, segments=segments, shared=shared, state=state
            )
            return y

        mask = mask_for(self.norm, segments)
        around = vars(self.context) | {"norm": self.norm}
        for index, (name, branch) in enumerate((("mixer", mix), ("ffn", ffn))):
            residual = registry.make(
                "residuals", self.residual, **around, name=f"{name}_residual"
            )
            placement = self._placement(name, name=f"{name}_placement")
            site = 2 * layer + index
            stream = placement(stream, residual, branch, site=site, **mask)
        return stream, shared, state


build = StandardBlock
