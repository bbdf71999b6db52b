"""Language modelling: every token is predicted from those before it."""

import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES, total_loss
from reslab.core.model_state import BATCH_STATS, ModelState
from reslab.core.randomness import training_keys
from reslab.data.corpus import (
    Corpus,
    TokenStream,
    corpus_sha256,
    held_out_corpus,
    load_corpus,
)
from reslab.data.encoding import tokenizer_sha256
from reslab.data.verification import Stored
from reslab.data.windows import WindowSource
from reslab.models.lm import LanguageModel
from reslab.train.run import Run
from reslab.train.tasks import Batch, Headline, Sums
from reslab.train.tasks._tokens import TokenTask


class Language(TokenTask):
    """Windows of a corpus; losses in nats per token and bits per byte.

    With `data.predicts_end` the end of a document is a token, too: losses include it,
    bits per byte are of the text alone.

    Args:
      config: The resolved config.

    Attributes:
      tokenizer: How its text becomes tokens.
    """

    headline: ClassVar[Headline] = Headline("bpb", "bits per byte")
    source_family: ClassVar[str] = "sources"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self._replayed_files: tuple[Stored, ...] = ()
        self.tokenizer = registry.make("tokenizers", config.data.tokenizer)

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The corpus, tokenized.

        Raises:
          ReslabError: If it cannot be loaded, or its tokenizer counts no bytes.
        """
        data = self._config.data
        corpus = load_corpus(data.source, data.tokenizer)
        if corpus.train.sizes is None:
            raise ReslabError(
                f"tokenizer {data.tokenizer!r}", expected="byte_lengths", got="none"
            )
        return corpus

    def hold_out(self, source: registry.Spec) -> None:
        """Evaluates on all documents of a source, in place of the corpus."""
        self.corpus = held_out_corpus(source, self._config.data.tokenizer)

    def model_fields(self) -> dict[str, Any]:
        """Size of the vocabulary, and the longest sequence."""
        return {
            "vocabulary_size": self.tokenizer.vocabulary_size,
            "max_length": max(self._config.data.length, self.test_length),
        }

    def batch_shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch, from a window of a made-up text."""
        length = self._config.data.length
        blank = TokenStream(np.zeros(length + 1, np.uint16), np.zeros(1, np.int64))
        return {
            key: jax.ShapeDtypeStruct((rows, *row.shape), row.dtype)
            for key, row in WindowSource(blank, length)[0].items()
        }

    def record(self) -> dict[str, Any]:
        """Digests and size of the corpus, and the digest of its tokenizer."""
        return {
            **_digests(self.corpus, self._config.data.tokenizer),
            "documents": self.corpus.documents,
            "bytes": self.corpus.bytes,
        }

    def digests(self) -> dict[str, str]:
        """The part of `record` that needs no tokens."""
        data = self._config.data
        return {
            "sha256": corpus_sha256(data.source, data.tokenizer),
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer, data.tokenizer),
        }

    def check_data(self) -> None:
        """Checks that stored tokens, replayed ones as well, are still the same.

        Raises:
          ReslabError: If a file has changed.
        """
        for stored in (*self.corpus.stored, *self._replayed_files):
            stored.check()

    def train_examples(self) -> WindowSource:
        """Windows of the corpus."""
        return self._windows(self.corpus.train, self._config.data.length)

    def other_examples(self) -> list[tuple[WindowSource, float]]:
        """Windows of further sources, and replayed ones."""
        data = self._config.data
        others = [
            (self._windows(stream, data.length), share * (1 - data.replay))
            for stream, share in self.corpus.others
        ]
        if data.replay:
            others.append((self._replayed(), data.replay))
        return others

    def held_out_examples(self) -> WindowSource:
        """Windows of the held-out documents."""
        return self._windows(self.corpus.validation, self.test_length)

    def _replayed(self) -> WindowSource:
        """The text of the run that is continued.

        Raises:
          ReslabError: If it is not what it was.
        """
        source = Run(pathlib.Path(self._config.train.continue_from))
        data = source.config().data
        corpus = load_corpus(data.source, data.tokenizer)
        source.check_data(_digests(corpus, data.tokenizer))
        self._replayed_files = corpus.stored
        return self._windows(corpus.train, self._config.data.length)

    def _windows(self, stream: TokenStream, length: int) -> WindowSource:
        predicts_end = self._config.data.predicts_end
        return WindowSource(stream, length, predicts_end=predicts_end)

    def loss_sums(
        self,
        model: LanguageModel,
        variables: ModelState,
        batch: Batch,
        *,
        is_training: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Sums, ModelState]:
        """Adds up the losses of the tokens that count.

            objective = sum over tokens of nll + z_loss * log_normalizer ** 2
                        + what parts of the model add, once per token

        Terms but the first belong to training; z-loss: Chowdhery et al., 2022,
        https://arxiv.org/abs/2204.02311, Section 5.

        Args:
          model: The model.
          variables: Its parameters and state.
          batch: `tokens`, `targets`, `positions`, `segment_ids`, `loss_mask` and,
            to count bytes, `sizes`, each (batch, length).
          is_training: Whether norms over a batch see this one, and the other
            terms count.
          key: Random key, for parts that draw numbers while training.

        Returns:
          The objective; the sums `nll` (nats), `text_nll` (without ends of
          documents, if they count), `tokens` and `bytes`; and the
          statistics written.
        """
        outcome: Any = model.apply(
            variables,
            batch["tokens"],
            batch["targets"],
            positions=batch["positions"],
            segments=batch["segment_ids"],
            method="losses",
            mutable=[BATCH_STATS, LOSSES] if is_training else [],
            rngs=training_keys(key),
        )
        (nll, log_normalizer), written = outcome
        mask = batch["loss_mask"].astype(nll.dtype)
        total = jnp.sum(nll * mask)
        sums = {"nll": total, "tokens": jnp.sum(mask)}
        if "sizes" in batch:
            # Integers: a float32 sum of many bytes is rounded.
            counted = jnp.where(batch["loss_mask"], batch["sizes"], 0)
            sums["bytes"] = jnp.sum(counted)
            if self._config.data.predicts_end:
                is_text = batch["targets"] != self.tokenizer.bos
                sums["text_nll"] = jnp.sum(nll * mask * is_text.astype(nll.dtype))
        if LOSSES in written:
            total = total + jnp.sum(mask) * total_loss(written).astype(total.dtype)
        z_loss = self._config.train.z_loss
        if is_training and z_loss:
            total = total + z_loss * jnp.sum(jnp.square(log_normalizer) * mask)
        return total, sums, written.get(BATCH_STATS, {})

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Nats per token, and bits per byte of the documents' text."""
        found = {"loss": sums["nll"] / sums["tokens"]}
        if "bytes" in sums:
            size = sums["bytes"]
            if isinstance(size, jax.Array):
                size = size.astype(sums["nll"].dtype)
            nats = sums.get("text_nll", sums["nll"])
            found["bpb"] = nats / (size * math.log(2))
        return found


def _digests(corpus: Corpus, tokenizer: registry.Spec) -> dict[str, str]:
    found = {
        "sha256": corpus.sha256,
        "tokenizer_sha256": tokenizer_sha256(corpus.tokenizer, tokenizer),
    }
    if corpus.tokens_sha256:
        found["tokens_sha256"] = corpus.tokens_sha256
    return found


build = Language
