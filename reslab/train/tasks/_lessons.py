"""Examples whose paths are known, and the loss by which routers learn them."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reslab.core.bounds import Momentum, NonNegative, bounded
from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, ModelState
from reslab.core.randomness import training_keys
from reslab.core.routes import watching
from reslab.train.paths import files
from reslab.train.tasks import Batch, Sums
from reslab.train.tasks._tokens import TokenTask

# Decisions of a layer: skipped, applied once, applied twice.
_CHOICES = 3
_LABELS = "routes"


@bounded
class Lessons(TokenTask):
    """Mixed into a task: routers learn the paths that a search has found.

        loss = mean over layers of w_c (1 - p_c)^gamma (-log p_c),   c = the path's
        w_c ~ (1 - beta) / (1 - beta^(number of labels c)),   three of them sum to 3

    The layers before a router are applied as the path says (teacher forcing). Held-out
    figures are the task's, with the routers' own decisions, and `layers_applied`, the
    mean over sequences. Without `labels` training minimizes the task's loss.

    Reference: Heakl et al., 2025, https://arxiv.org/abs/2510.12773, Section 3.3; focal
    loss: Lin et al., 2017, https://arxiv.org/abs/1708.02002, Eq. 4; weights: Cui et
    al., 2019, https://arxiv.org/abs/1901.05555, Eq. 4.

    Args:
      config: The resolved config.
      labels: File that `reslab search paths RUN --split training` has written.
      gamma: Exponent of the focal loss.
      beta: Strength of the weighting by the number of labels; 0 disables it.
    """

    gamma: NonNegative
    beta: Momentum

    def __init__(
        self,
        config: ConfigDict,
        labels: str = "",
        gamma: float = 2.0,
        beta: float = 0.999,
    ):
        super().__init__(config)
        self._labels, self.gamma, self.beta = labels, gamma, beta
        self.__post_init__()

    def __post_init__(self) -> None:
        """Checks the numbers, by `bounded`."""

    @property
    def _base(self) -> Any:
        """The task that this is mixed into."""
        return super()

    @functools.cached_property
    def _known(self) -> tuple[str, np.ndarray, np.ndarray]:
        """The split, and of each example its number and its decisions."""
        file, depth = pathlib.Path(self._labels), self._config.model.depth
        about, done = files.read(file)
        if about["depth"] != depth:
            raise ReslabError(
                f"{file}: paths of a model of {about['depth']} layers",
                expected=f"model.depth, {depth}",
                hint="reslab search paths of this run",
            )
        if about.get("corpus") != self._base.record()["sha256"]:
            raise ReslabError(
                f"{file}: paths of other data",
                expected="data.source of the run that was searched",
            )
        pairs = list(files.labels(done, depth))
        if not pairs:
            raise ReslabError(f"{file}", expected="at least one sample")
        examples, decisions = zip(*pairs, strict=True)
        return about["split"], np.array(examples), np.array(decisions, np.int32)

    def train_examples(self) -> Any:
        """The examples that were searched, with their decisions."""
        if not self._labels:
            return self._base.train_examples()
        split, chosen, decisions = self._known
        is_held_out = split == "held_out"
        base = self._base
        examples = base.held_out_examples() if is_held_out else base.train_examples()
        return _Labelled(examples, chosen, decisions)

    def batch_shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch, with its decisions."""
        shapes = dict(self._base.batch_shapes(rows))
        if self._labels:
            shape = rows, self._config.model.depth
            shapes[_LABELS] = jax.ShapeDtypeStruct(shape, jnp.int32)
        return shapes

    def loss_sums(
        self,
        model: Any,
        variables: ModelState,
        batch: Batch,
        *,
        is_training: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Sums, ModelState]:
        """Adds up the loss of the routers, or the task's.

        Args:
          model: The model, whose stack has routers.
          variables: Its parameters and state.
          batch: The task's batch, with `routes` (batch, layers) while training.
          is_training: Whether the routers learn.
          key: Random key, for parts that draw numbers while training.

        Returns:
          The objective; the sums; and the statistics written.

        Raises:
          ReslabError: If no routers of the stack have logits.
        """
        if not (is_training and _LABELS in batch):
            with watching() as found:
                total, sums, written = self._base.loss_sums(
                    model, variables, batch, is_training=is_training, key=key
                )
            return total, sums | _applied(found.times, batch), written
        labels = batch[_LABELS]
        with watching(labels) as found:
            _, written = self.features(
                *(model, variables, batch),
                mutable=[BATCH_STATS],
                rngs=training_keys(key),
            )
        if found.scores is None:
            raise ReslabError(
                "train.task routes: labels",
                expected="a stack whose routers learn from them",
                got=repr(model.stack),
                hint="stack dr_llm",
            )
        loss = focal_loss(*(found.scores, labels, self._weights()), gamma=self.gamma)
        tokens = jnp.sum(batch["loss_mask"].astype(loss.dtype))
        is_right = jnp.argmax(found.scores, axis=-1) == labels
        right = jnp.mean(is_right.astype(loss.dtype))
        sums = {"nll": loss * tokens, "tokens": tokens, "right": right * tokens}
        return loss * tokens, sums, written.get(BATCH_STATS, {})

    def _weights(self) -> np.ndarray:
        numbers = np.bincount(self._known[2].ravel(), minlength=_CHOICES)
        return effective_weights(numbers, self.beta)

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """The task's figures; of routers that learn, their share of right decisions."""
        if "right" in sums:
            return {k: sums[s] / sums["tokens"] for k, s in _OF_LESSONS.items()}
        found = self._base.metrics(sums)
        if "applied" in sums:
            found["layers_applied"] = sums["applied"] / sums["rows"]
        return found


_OF_LESSONS = {"loss": "nll", "right_decisions": "right"}


class _Labelled:
    """Examples with the decisions of their paths."""

    def __init__(self, examples: Any, chosen: np.ndarray, decisions: np.ndarray):
        self._examples, self._chosen, self._decisions = examples, chosen, decisions

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = self._examples[int(self._chosen[index])]
        return {**example, _LABELS: self._decisions[index]}


def _applied(times: jax.Array | None, batch: Batch) -> Sums:
    """Layers applied, summed over rows that have tokens, and the number of rows."""
    if times is None:
        return {}
    is_row = jnp.any(batch["loss_mask"], axis=1)
    applied = jnp.where(is_row, jnp.sum(times, axis=1), 0)
    return {
        "applied": jnp.sum(applied.astype(jnp.float32)),
        "rows": jnp.sum(is_row.astype(jnp.float32)),
    }


def focal_loss(
    scores: jax.Array, labels: jax.Array, weights: np.ndarray, gamma: float
) -> jax.Array:
    """The focal loss, the mean over all decisions.

    Args:
      scores: Logits (batch, layers, choices).
      labels: The right choices (batch, layers).
      weights: Weight of each choice (choices,).
      gamma: Exponent.
    """
    log = jax.nn.log_softmax(scores)
    log = jnp.take_along_axis(log, labels[..., None], axis=-1)[..., 0]
    weight = jnp.asarray(weights, log.dtype)[labels]
    return jnp.mean(-weight * (1 - jnp.exp(log)) ** gamma * log)


def effective_weights(numbers: np.ndarray, beta: float) -> np.ndarray:
    """Weights by the effective number of labels; as many in sum as there are choices.

    >>> effective_weights(np.array([5, 5, 5]), 0.9).tolist()
    [1.0, 1.0, 1.0]
    """
    weights = (1 - beta) / (1 - beta ** np.maximum(numbers, 1))
    return len(weights) * weights / np.sum(weights)
