"""The decoder language model: embedding, stack, final norm, head."""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.types import Context, State
from reslab.nn import sites as sites_of
from reslab.nn.norm import make_norm, mask_for
from reslab.ops.cross_entropy.api import token_losses

Specs = registry.Spec | Sequence[registry.Spec]


class LanguageModel(nn.Module):
    """A causal language model of any residual-stream design.

        x      = embedding[tokens] + position
        x      = stack(x)
        logits = norm(x) . head (+ bias)

    Every part is named by a spec string. A sequence of specs is tiled over
    depth. Parameters carry logical axis names; compute is in `dtype`, logits
    and losses in float32.

    Attributes:
      vocabulary_size: Number of token ids.
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
      max_length: Longest sequence, for position tables.
      tie_embeddings: Whether the head is the transposed embedding.
      use_head_bias: Whether the head adds a learned bias to every logit.
      vocabulary_multiple: The vocabulary is padded to a multiple of this; the
        padding never receives probability.
      vocabulary_chunks: Parts in which the cross-entropy takes the vocabulary;
        0 chooses by size.
      embedding_std: Initial standard deviation of the embedding.
      init_std: Initial standard deviation of projections; 0 is 1/sqrt(fan in).
      scales_output_by_depth: Whether projections into the stream start smaller
        by 1/sqrt(sublayers applied) (Radford et al., 2019, Section 2.3).
      is_unrolled: Whether layers are unrolled instead of scanned.
      remat: What the backward pass recomputes: "none", "dots" or "full".
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.
    """

    vocabulary_size: int
    features: int = 128
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
    max_length: int = 1024
    tie_embeddings: bool = False
    use_head_bias: bool = False
    vocabulary_multiple: int = 1
    vocabulary_chunks: int = 0
    embedding_std: float = 0.02
    init_std: float = 0.0
    scales_output_by_depth: bool = True
    is_unrolled: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    task: ClassVar[str] = "language"

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the embedding: the vocabulary and its padding."""
        return self.vocabulary_multiple * math.ceil(
            self.vocabulary_size / self.vocabulary_multiple
        )

    @property
    def position_limit(self) -> int | None:
        """Number of positions that can be encoded; None where there is no end."""
        encoding = self._make_position(parent=None)
        return getattr(encoding, "max_length", None)

    def _make_position(self, **keywords) -> nn.Module:
        return registry.make(
            "positions",
            self.position,
            max_length=self.max_length,
            embedding_std=self.embedding_std,
            param_dtype=self.param_dtype,
            **keywords,
        )

    def _placement(self, layer: int) -> Any:
        """The placement of a layer, unbound."""
        specs = _tiled(self.placement)
        return registry.make(
            "placements",
            specs[layer % len(specs)],
            layer=layer,
            layers=self.depth,
            parent=None,
        )

    def _sublayers(self) -> list[int]:
        """Number of sublayers in each layer."""
        blocks = [registry.make("blocks", s, parent=None) for s in _tiled(self.block)]
        counts = [getattr(block, "sublayers", sites_of.USUAL) for block in blocks]
        return [counts[layer % len(counts)] for layer in range(self.depth)]

    def _last(self, kind: str) -> registry.Spec:
        """The spec of a kind that the last layer has."""
        specs = _tiled(getattr(self, kind))
        return specs[(self.depth - 1) % len(specs)]

    def make_stack(self, **keywords) -> nn.Module:
        """Builds the stack; with `parent=None`, one that is not bound to `self`."""
        build_stack = registry.factory("stacks", self.stack)
        passes = build_stack(blocks=(), depth=1, parent=None).passes
        sites = sites_of.table(passes * self._sublayers())
        context = Context(
            depth=passes * self.depth,
            sites=sites,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            norm=self._last("norm"),
            linear=self.linear,
            position=self.position,
            init_std=self.init_std,
            output_scale=sites[-1] ** -0.5 if self.scales_output_by_depth else 1.0,
        )
        kinds = {
            "mixer": _tiled(self.mixer),
            "ffn": _tiled(self.ffn),
            "norm": _tiled(self.norm),
            "placement": _tiled(self.placement),
            "block": _tiled(self.block),
        }
        blocks: list[Any] = []
        known: dict[Any, Any] = {}
        for layer in range(self.depth):
            chosen = {kind: specs[layer % len(specs)] for kind, specs in kinds.items()}
            # Layers with the same factory are scanned together; a placement that
            # depends on the layer may be the same in several.
            key = *chosen.values(), repr(self._placement(layer))
            if key not in known:
                build = registry.factory("blocks", chosen.pop("block"))
                chosen["placement"] = functools.partial(
                    registry.factory("placements", chosen["placement"]),
                    layer=layer,
                    layers=self.depth,
                )
                known[key] = functools.partial(
                    build, **chosen, residual=self.residual, context=context
                )
            blocks.append(known[key])
        return build_stack(
            blocks=tuple(blocks),
            depth=self.depth,
            residual=self.residual,
            context=context,
            is_unrolled=self.is_unrolled,
            remat=self.remat,
            **keywords,
        )

    def setup(self):
        """Makes the parts."""
        if self.depth < 1:
            raise ReslabError("model.depth", expected="at least 1", got=str(self.depth))
        shape = (self.padded_vocabulary, self.features)
        init = nn.initializers.normal(self.embedding_std)
        self.embedding = parameter(
            self, "embedding", init, shape, ("vocab", "embed"), self.param_dtype
        )
        self.position_encoding = self._make_position()
        self.layers = self.make_stack()
        self.embedding_norm = self._end_norm(
            getattr(self._placement(0), "normalizes_embedding", False),
            _tiled(self.norm)[0],
        )
        self.final_norm = self._end_norm(
            self._placement(self.depth - 1).needs_final_norm, self._last("norm")
        )
        if not self.tie_embeddings:
            std = self.init_std or 1 / math.sqrt(self.features)
            self.head = parameter(
                self,
                "head",
                nn.initializers.normal(std),
                shape[::-1],
                ("embed", "vocab"),
                self.param_dtype,
            )
        if self.use_head_bias:
            self.head_bias = parameter(
                self,
                "head_bias",
                nn.initializers.zeros,
                shape[:1],
                ("vocab",),
                self.param_dtype,
            )

    def _end_norm(self, is_wanted: bool, spec: registry.Spec) -> Any:
        if not is_wanted:
            return lambda x, mask=None: x
        return make_norm(spec, has_mask=True, param_dtype=self.param_dtype)

    def hidden(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        state: State = None,
    ) -> tuple[jax.Array, State]:
        """Maps tokens (batch, length) to normalized features for the head.

        Args:
          tokens: Token ids.
          positions: Position of each token in its document; 0, 1, ... if None.
          segments: Document of each token, 0 for padding; all one document if
            None.
          state: State to continue from while generating, or None.

        Returns:
          Features (batch, length, embed) and the new state.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x = jnp.take(self.embedding.astype(self.dtype), tokens, axis=0)
        x = self.position_encoding.embed(x, positions)
        x = self.embedding_norm(x, **mask_for(_tiled(self.norm)[0], segments))
        x = nn.with_logical_constraint(x, ("batch", "length", None))
        x, state = self.layers(x, positions=positions, segments=segments, state=state)
        mask = mask_for(self._last("norm"), segments)
        return self.final_norm(x, **mask), state

    def head_kernel(self) -> jax.Array:
        """The head's kernel (embed, padded vocabulary), in the compute dtype."""
        kernel = self.embedding.T if self.tie_embeddings else self.head
        return kernel.astype(self.dtype)

    def _factors(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Two factors whose product is the logits: `x` and the head's kernel."""
        kernel = self.head_kernel()
        if not self.use_head_bias:
            return x, kernel
        # As one more row, met by a one, the bias needs no losses of its own.
        ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
        row = self.head_bias.astype(self.dtype)[None]
        return jnp.concatenate([x, ones], -1), jnp.concatenate([kernel, row])

    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Float32 logits (batch, length, vocabulary) of the next tokens."""
        x, _ = self.hidden(tokens, positions=positions, segments=segments)
        return self.logits(x)

    def read_out(self, x: jax.Array) -> jax.Array:
        """Float32 logits of the stream at any depth: final norm, then head."""
        return self.logits(self.final_norm(x))

    def logits(self, x: jax.Array) -> jax.Array:
        """Float32 logits of features that `hidden` returned."""
        wide = statistics_dtype(self.dtype)
        y = jnp.matmul(*self._factors(x), preferred_element_type=wide)
        return y[..., : self.vocabulary_size]

    def losses(
        self,
        tokens: jax.Array,
        targets: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Cross-entropy of each target, without ever holding a large logit array.

        Args:
          tokens: Token ids (batch, length).
          targets: The tokens to be predicted (batch, length).
          positions: As in `hidden`.
          segments: As in `hidden`.

        Returns:
          Negative log-likelihood in nats and log-normalizer, (batch, length).
        """
        x, _ = self.hidden(tokens, positions=positions, segments=segments)
        return token_losses(
            *self._factors(x),
            targets,
            vocabulary_size=self.vocabulary_size,
            chunks=self.vocabulary_chunks,
        )

    def init_state(self, batch: int, length: int) -> State:
        """The state before the first token, for at most `length` tokens."""
        stack = self.make_stack(parent=None)
        return stack.init_state(batch, length, self.features)


def _tiled(specs: Specs) -> tuple[registry.Spec, ...]:
    if isinstance(specs, str) or callable(specs):
        return (specs,)
    return tuple(specs)


build = LanguageModel
