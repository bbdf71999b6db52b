"""Training tasks, one per file; a model names its own, and a config may name another.

A task knows its data and what is lost on them. The step, the loop, checkpoints,
evaluation and reports are the same for all.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from reslab.core import registry, surroundings
from reslab.core.model_state import ModelState

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Headline:
    """The held-out figure by which runs of a task are compared.

    Attributes:
      metric: Its name among the task's metrics.
      name: Its name in words.
      is_higher_better: Whether a larger figure is a better one.
    """

    metric: str
    name: str
    is_higher_better: bool = False

    def order(self, value: float) -> float:
        """A key by which figures sort, the best first."""
        return -value if self.is_higher_better else value


class Batches(Iterator[dict[str, np.ndarray]], Protocol):
    """Training batches without end, each a pure function of seed and index."""

    state: int

    def close(self) -> None:
        """Ends what works in the background."""
        ...


class Task(Protocol):
    """`build(config)` makes one; the data are loaded when first asked for.

    Attributes:
      unit: What is counted: loss is a mean over these, throughput is of these.
      units_per_example: How many a row of a batch has.
      headline: The metric that is the result.
      source_family: Family that `data.source` is of.
    """

    unit: ClassVar[str]
    headline: ClassVar[Headline]
    source_family: ClassVar[str]
    units_per_example: int

    def model_fields(self) -> dict[str, Any]:
        """Fields of the model that the data decide."""
        ...

    def example(self) -> tuple[Any, ...]:
        """Inputs with which the model's parameters are made."""
        ...

    def batch_shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch; loads nothing."""
        ...

    def record(self) -> dict[str, Any]:
        """Identity of the data for `run.json`, `sha256` included."""
        ...

    def check_data(self) -> None:
        """Checks that data which are read while a run trains have not changed.

        Raises:
          ReslabError: If they have.
        """
        ...

    def train_batches(self) -> Batches:
        """Shuffled batches without end, of this process."""
        ...

    def validation_batches(
        self, rows: int, most: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields every held-out example of this process once, in order.

        Args:
          rows: Examples of a batch, over all processes.
          most: Number of batches, of examples spread evenly over all; None is all.
        """
        ...

    def loss_sums(
        self,
        model: nn.Module,
        variables: ModelState,
        batch: Batch,
        *,
        is_training: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Sums, ModelState]:
        """Adds up what is lost.

        With a random key, parts of the model that draw numbers do.

        Returns:
          What training minimizes, summed over units; the sums, among them the
          number of units; and, if `is_training`, the statistics it wrote.
        """
        ...

    def features(
        self, model: Any, variables: ModelState, batch: Batch, **options: Any
    ) -> Any:
        """Applies the model to a batch, up to its head where it can end there.

        Args:
          model: The model.
          variables: Its parameters and state.
          batch: The batch.
          **options: Those of `model.apply`.
        """
        ...

    def tokens(self, model: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Masks of the tokens that count, and of those that begin a document.

        Returns:
          Two masks (batch, length).
        """
        ...

    def optimizer_inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        """Inputs that optimizers may request of a batch: `tokens`, or `grams`."""
        ...

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """`loss`, the mean over units, and other figures, from sums."""
        ...

    def flops_per_unit(self, model: Any, params: Any) -> int:
        """FLOPs of the matrix products of a training step, per unit."""
        ...


def make_task(config: ConfigDict) -> Task:
    """The task of a config: what is lost on which data."""
    given = surroundings.Tasks(config=config)
    return registry.make("tasks", config.train.task, **given)
