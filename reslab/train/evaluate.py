"""Held-out loss: every validation window once, in order."""

import itertools
from typing import Any

import jax

from reslab.data.batches import validation_batches
from reslab.data.corpus import Corpus
from reslab.data.prefetch import prefetch
from reslab.data.windows import WindowSource
from reslab.models.lm import LanguageModel
from reslab.parallel.mesh import place_on, use_mesh
from reslab.train.step import bits_per_byte, loss_sums


class Evaluator:
    """Evaluates parameters on the held-out documents of a corpus.

    Compiled once, at the first call.

    Args:
      model: The model.
      mesh: The devices.
      corpus: The corpus, whose validation split is used.
      length: Tokens in a window.
      batch: Windows in a step.
    """

    def __init__(
        self,
        model: LanguageModel,
        mesh: jax.sharding.Mesh,
        corpus: Corpus,
        *,
        length: int,
        batch: int,
    ):
        WindowSource(corpus.validation, length)  # Refuses a split that is too short.
        self._mesh = mesh
        self._corpus = corpus
        self._length = length
        self._batch = batch
        byte_lengths = corpus.tokenizer.byte_lengths()
        self._sums = jax.jit(
            lambda params, batch: loss_sums(model, params, batch, byte_lengths)[1]
        )

    def __call__(
        self, params: Any, batches: int | None = None, *, first: int | None = None
    ) -> dict[str, float]:
        """Evaluates on the first `batches` steps, or on all.

        Args:
          params: The model's parameters.
          batches: Number of evaluation steps; None is the whole split.
          first: Also gives the figure on this many first steps, by itself.

        Returns:
          `eval_loss` in nats per token, `eval_bpb`, and `eval_tokens`; with
          `first` also `eval_first_bpb`.
        """
        host = validation_batches(
            self._corpus.validation,
            self._length,
            self._batch,
            jax.process_index(),
            jax.process_count(),
        )
        place = place_on(self._mesh)
        totals: dict[str, float] = {}
        beginning = {}
        with use_mesh(self._mesh):
            chosen = prefetch(itertools.islice(host, batches), place)
            for index, batch in enumerate(chosen, start=1):
                sums = jax.device_get(self._sums(params, batch))
                # Summed in double precision on the host, in a fixed order.
                totals = {k: totals.get(k, 0.0) + float(v) for k, v in sums.items()}
                if first is not None and index <= first:
                    beginning = {"eval_first_bpb": bits_per_byte(totals)}
        return {
            "eval_loss": totals["nll"] / max(totals["tokens"], 1.0),
            "eval_bpb": bits_per_byte(totals),
            "eval_tokens": totals["tokens"],
            **beginning,
        }
