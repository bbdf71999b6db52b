"""The decoder language model: embedding, stack, final norm, head."""

import contextlib
import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, Momentum, NonNegative, Positive, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.losses import add_loss
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.types import State
from reslab.models._body import Body
from reslab.nn.base.dropout import dropout
from reslab.nn.base.exits import Exits, Taught, collecting_exits
from reslab.nn.base.norm import mask_for
from reslab.nn.base.read_out import reading_out
from reslab.nn.base.token_shifts import Tokens, follows_tokens, telling_tokens
from reslab.ops.cross_entropy.api import token_losses
from reslab.ops.cross_entropy.divergence import token_divergences
from reslab.ops.cross_entropy.reference import capped


@bounded
class LanguageModel(Body):
    """A causal language model of any residual-stream design.

        x      = embedding_scale * embedding[tokens] + position
        x      = stack(x)
        logits = norm(x) . head (+ bias)

    Every part is named by a spec string. A sequence of specs is tiled over
    depth. Parameters carry logical axis names; compute is in `dtype`, logits
    and losses in float32.

    Attributes:
      vocabulary_size: Number of token ids.
      max_length: Longest sequence, for position tables.
      tie_embeddings: Whether the head is the transposed embedding.
      embedding_scale: Factor on the embedded tokens, before anything else; the head of
        tied embeddings is without it.
      logit_softcap: Bound of the logits, softcap * tanh(logits / softcap); 0 disables
        it.
      embedding_dropout: Rate at which entries of the embedded tokens are dropped
        during training.
      head_scale: Factor on the initial standard deviation of a head of its own; 0
        begins with equal logits.
      use_head_bias: Whether the head adds a learned bias to every logit.
      use_embedding_projection: Whether a square projection, orthogonal at first,
        follows the embedding, and another precedes the head (Park et al., 2025,
        https://arxiv.org/abs/2506.19697): with `single_scale` and Muon, part of
        pre-training without outliers.
      vocabulary_multiple: The vocabulary is padded to a multiple of this; the
        padding never receives probability.
      vocabulary_chunks: Parts in which the cross-entropy takes the vocabulary;
        0 chooses by size.
      (and those of `Body`)
    """

    vocabulary_size: Count = dataclasses.field(kw_only=True)
    max_length: int = 1024
    tie_embeddings: bool = False
    head_scale: NonNegative = 1.0
    embedding_scale: Positive = 1.0
    logit_softcap: NonNegative = 0.0
    embedding_dropout: Momentum = 0.0
    use_head_bias: bool = False
    use_embedding_projection: bool = False
    vocabulary_multiple: Count = 1
    vocabulary_chunks: Whole = 0

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
        encoding = self.make_position(self.max_length, parent=None)
        return getattr(encoding, "max_length", None)

    def setup(self):
        """Makes the parts."""
        self.check_depth()
        if not 0 <= self.vocabulary_chunks <= self.padded_vocabulary:
            raise ReslabError(
                "model.vocabulary_chunks",
                expected=f"0 to {self.padded_vocabulary}, the vocabulary",
                got=str(self.vocabulary_chunks),
            )
        if self.tie_embeddings and self.head_scale != 1:
            raise ReslabError(
                "model.head_scale",
                expected="1 with model.tie_embeddings: there is no other head",
                got=str(self.head_scale),
                hint="model.embedding_std",
            )
        shape = (self.padded_vocabulary, self.features)
        init = nn.initializers.normal(self.embedding_std)
        self.embedding = parameter(
            self, "embedding", init, shape, ("vocab", "embed"), self.param_dtype
        )
        self.position_encoding = self.make_position(self.max_length)
        self.layers = self.make_stack()
        self.embedding_norm = self.embedding_norm_or_none()
        self.final_norm = self.final_norm_or_none()
        if self.use_embedding_projection:
            self.embedding_projection = self._square("embedding_projection")
            self.head_projection = self._square("head_projection")
        if not self.tie_embeddings:
            std = self.head_scale * (self.init_std or 1 / math.sqrt(self.features))
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

        Raises:
          ReslabError: If `positions` is None and the model has fewer.
        """
        if positions is None:
            limit = getattr(self.position_encoding, "max_length", None)
            if limit is not None and tokens.shape[1] > limit:
                raise ReslabError(
                    "sequence length",
                    expected=f"at most {limit}, the positions of the model",
                    got=str(tokens.shape[1]),
                )
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x = self.embed(tokens, positions=positions, segments=segments)
        ends, state = self._ends_of(state)
        with self._known_head(), telling_tokens(Tokens(segments, ends)) as known:
            x, state = self.layers(
                x, positions=positions, segments=segments, state=state
            )
        if ends is not None:
            state = {"ends": known.left, "layers": state}
        mask = mask_for(self.last("norm"), segments)
        return self._projected(self.final_norm(x, **mask)), state

    def embed(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Features (batch, length, embed) of tokens, before the first layer.

        Args:
          tokens: Token ids (batch, length).
          positions: Position of each token in its document.
          segments: As in `hidden`.
        """
        x = jnp.take(self.embedding.astype(self.dtype), tokens, axis=0)
        if self.embedding_scale != 1:
            x = x * jnp.asarray(self.embedding_scale, x.dtype)
        if self.use_embedding_projection:
            x = x @ self.embedding_projection.astype(self.dtype)
        x = self.position_encoding.embed(x, positions)
        x = self.embedding_norm(x, **mask_for(self.first_norm, segments))
        x = dropout(self, x, self.embedding_dropout)
        return nn.with_logical_constraint(x, ("batch", "length", None))

    def _known_head(self) -> contextlib.AbstractContextManager[None]:
        """Makes the head known to a stack that asks for logits inside."""
        if self.is_initializing() or not getattr(self.layers, "reads_out", False):
            return contextlib.nullcontext()
        model, variables = self.unbind()

        def head(x: jax.Array) -> Any:
            return model.apply(variables, x, method="read_out")

        return reading_out(head)

    def _square(self, name: str) -> jax.Array:
        return parameter(
            self,
            name,
            nn.initializers.orthogonal(),
            (self.features, self.features),
            ("embed", None),
            self.param_dtype,
        )

    def _projected(self, x: jax.Array) -> jax.Array:
        """Returns the features that the head reads, from normalized ones."""
        if not self.use_embedding_projection:
            return x
        return x @ self.head_projection.astype(self.dtype)

    def head_kernel(self) -> jax.Array:
        """The head's kernel (embed, padded vocabulary), in the compute dtype."""
        kernel = self.embedding.T if self.tie_embeddings else self.head
        return kernel.astype(self.dtype)

    def _factors(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Two factors whose product is the logits: `x` and the head's kernel."""
        kernel = self.head_kernel()
        if not self.use_head_bias:
            return x, kernel
        # Appended as a row of the kernel with an input of one, the bias needs no
        # separate loss.
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
        return self.logits(self._projected(self.final_norm(x)))

    def logits(self, x: jax.Array) -> jax.Array:
        """Float32 logits of features that `hidden` returned."""
        wide = statistics_dtype(self.dtype)
        y = jnp.matmul(*self._factors(x), preferred_element_type=wide)
        return capped(y[..., : self.vocabulary_size], self.logit_softcap)

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
          Negative log-likelihood in nats and log-normalizer, (batch, length); where the
          stack offers outputs of several depths, their weighted sums.
        """
        with collecting_exits() as found:
            x, _ = self.hidden(tokens, positions=positions, segments=segments)
        options = {
            "vocabulary_size": self.vocabulary_size,
            "chunks": self.vocabulary_chunks,
            "softcap": self.logit_softcap,
        }
        exits = found[-1] if found else None
        if isinstance(exits, Taught):
            self._teach(exits, segments)
        if not isinstance(exits, Exits):
            return token_losses(*self._factors(x), targets, **options)
        features, weights = exits
        x = self._projected(self.final_norm(features.reshape(-1, *features.shape[-2:])))
        every = jnp.tile(targets, (len(features), 1))
        nll, normalizer = (
            jnp.sum(weights * one.reshape(weights.shape).astype(weights.dtype), axis=0)
            for one in token_losses(*self._factors(x), every, **options)
        )
        return nll, normalizer

    def _teach(self, exits: Taught, segments: jax.Array | None) -> None:
        """Adds the divergence of earlier outputs from the last one to the loss."""
        *earlier, last = exits.features
        teacher, kernel = self._factors(self._projected(self.final_norm(last)))
        counted = jnp.ones(last.shape[:2], statistics_dtype(self.dtype))
        if segments is not None:
            counted = (segments > 0).astype(counted.dtype)
        for features in earlier:
            x, _ = self._factors(self._projected(self.final_norm(features)))
            each = token_divergences(
                *(x, teacher, kernel),
                vocabulary_size=self.vocabulary_size,
                softcap=self.logit_softcap,
            )
            mean = jnp.sum(each * counted) / jnp.maximum(jnp.sum(counted), 1)
            add_loss(self, "distillation", exits.weight * mean)

    def init_state(self, batch: int, length: int) -> State:
        """The state before the first token, for at most `length` tokens."""
        stack = self.make_stack(parent=None)
        state = stack.init_state(batch, length, self.features)
        residual: Any = getattr(stack, "unbound_residual", None)
        if not follows_tokens(residual):
            return state
        tails = residual.empty_tails(batch, self.features, self.dtype, is_end=True)
        return {"ends": tails, "layers": state}

    def _ends_of(self, state: State) -> tuple[Any, State]:
        """Takes the state of the ends of the stream and of the layers apart."""
        if state is None:
            return None, None
        stack = self.make_stack(parent=None)
        if not follows_tokens(getattr(stack, "unbound_residual", None)):
            return None, state
        return state["ends"], state["layers"]


build = LanguageModel
