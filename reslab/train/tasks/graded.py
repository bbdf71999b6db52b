"""Problems with known answers: the share of graded answers that is wrong."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES, total_loss
from reslab.core.model_state import BATCH_STATS, ModelState
from reslab.core.randomness import training_keys
from reslab.data.problems import Examples, Problem, make_problem
from reslab.models.lm import LanguageModel
from reslab.train.tasks import Batch, Headline, Sums
from reslab.train.tasks._tokens import TokenTask


class Graded(TokenTask):
    """Problems of the family `problems`; losses are of the graded answers alone.

    `data.source` names the problem. Held-out examples are the same for all seeds, of
    `eval.length` tokens.

    Args:
      config: The resolved config.

    Raises:
      ReslabError: If the model is not one of language.
    """

    headline: ClassVar[Headline] = Headline("error", "error")
    source_family: ClassVar[str] = "problems"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        model = registry.module("models", registry.parse(config.model.name).name).build
        if getattr(model, "task", None) != "language":
            raise ReslabError(
                "train.task graded",
                expected="a model of language, such as lm",
                got=config.model.name,
            )

    @functools.cached_property
    def problem(self) -> Problem:
        """The problem."""
        shortest = min(self._config.data.length, self.test_length)
        return make_problem(self._config.data.source, shortest)

    def model_fields(self) -> dict[str, Any]:
        """Size of the vocabulary, and the longest sequence."""
        return {
            "vocabulary_size": self.problem.vocabulary,
            "max_length": max(self._config.data.length, self.test_length),
        }

    def batch_shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch, from one example."""
        return {
            key: jax.ShapeDtypeStruct((rows, *row.shape), row.dtype)
            for key, row in self._examples(is_held_out=False)[0].items()
        }

    def _examples(self, *, is_held_out: bool) -> Examples:
        length = self.test_length if is_held_out else self._config.data.length
        return Examples(
            self.problem, length, self._config.seed, is_held_out=is_held_out
        )

    def record(self) -> dict[str, Any]:
        """Digest of the held-out examples, which all runs of a problem share."""
        held_out = self._examples(is_held_out=True)
        digest = hashlib.sha256()
        for index in range(len(held_out)):
            for key, row in held_out[index].items():
                digest.update(f"{key} {row.shape}\n".encode())
                digest.update(row.astype("<i4").tobytes())
        return {"sha256": digest.hexdigest(), "examples": len(held_out)}

    def train_examples(self) -> Examples:
        """Examples of the run's seed."""
        return self._examples(is_held_out=False)

    def held_out_examples(self) -> Examples:
        """Examples that all seeds share."""
        return self._examples(is_held_out=True)

    def loss_sums(
        self,
        model: LanguageModel,
        variables: ModelState,
        batch: Batch,
        *,
        is_training: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Sums, ModelState]:
        """Adds up the cross-entropies of the graded answers.

            objective = sum over answers of nll + what parts of the model add

        Args:
          model: The model.
          variables: Its parameters and state.
          batch: `tokens`, `targets`, `positions`, `segment_ids`, `loss_mask` and
            `kinds`, each (batch, length).
          is_training: Whether norms over a batch see this one, and the second term
            counts.
          key: Random key, for parts that draw numbers while training.

        Returns:
          The objective; the sums `nll` (nats), `tokens` (answers) and `wrong`, these
          two for each kind as well; and the statistics written.
        """
        outcome: Any = model.apply(
            variables,
            batch["tokens"],
            positions=batch["positions"],
            segments=batch["segment_ids"],
            mutable=[BATCH_STATS, LOSSES] if is_training else [],
            rngs=training_keys(key),
        )
        logits, written = outcome
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        mask = batch["loss_mask"].astype(nll.dtype)
        is_wrong = (jnp.argmax(logits, -1) != batch["targets"]).astype(nll.dtype) * mask
        total = jnp.sum(nll * mask)
        sums = {"nll": total, "tokens": jnp.sum(mask), "wrong": jnp.sum(is_wrong)}
        for number, kind in enumerate(self.problem.kinds):
            is_kind = (batch["kinds"] == number).astype(nll.dtype)
            sums[f"tokens_{kind}"] = jnp.sum(mask * is_kind)
            sums[f"wrong_{kind}"] = jnp.sum(is_wrong * is_kind)
        if LOSSES in written:
            total = total + jnp.sum(mask) * total_loss(written).astype(total.dtype)
        return total, sums, written.get(BATCH_STATS, {})

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Nats per answer, and the share of wrong answers.

        Held-out figures also have those of each kind that has answers.
        """
        found = {
            "loss": sums["nll"] / sums["tokens"],
            "error": sums["wrong"] / sums["tokens"],
        }
        if isinstance(sums["nll"], jax.Array):  # A training batch has few of a kind.
            return found
        for kind in self.problem.kinds:
            if count := sums[f"tokens_{kind}"]:
                found[f"error_{kind}"] = sums[f"wrong_{kind}"] / count
        return found


build = Graded
