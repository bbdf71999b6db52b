"""Bases of tasks: batches of examples, and models of one input."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reslab.core.model_state import ModelState
from reslab.observe.flops import count_flops
from reslab.train.tasks import Batch

if TYPE_CHECKING:  # Grain takes a second to import, and a model needs no batches.
    from reslab.data.batches import Examples, TrainBatches


class ExampleTask:
    """Base of tasks whose data are examples that can be indexed.

    Args:
      config: The resolved config.
    """

    def __init__(self, config: ConfigDict):
        self._config = config

    def train_examples(self) -> "Examples":
        """Examples to train on."""
        raise NotImplementedError

    def other_examples(self) -> "Sequence[tuple[Examples, float]]":
        """Further examples to train on, each with its share of the rows."""
        return ()

    def held_out_examples(self) -> "Examples":
        """Examples to evaluate on."""
        raise NotImplementedError

    def check_data(self) -> None:
        """Passes: nothing is read while a run trains."""

    def train_batches(self) -> "TrainBatches":
        """Shuffled examples without end."""
        from reslab.data.batches import TrainBatches

        return TrainBatches(
            self.train_examples(),
            self._config.data.batch,
            self._config.seed,
            jax.process_index(),
            jax.process_count(),
            worker_count=self._config.data.workers,
            others=self.other_examples(),
        )

    def validation_batches(
        self, rows: int, most: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields every held-out example once, or some that are spread evenly."""
        from reslab.data.batches import validation_batches

        return validation_batches(
            self.held_out_examples(),
            rows,
            jax.process_index(),
            jax.process_count(),
            most=most,
        )


class InputTask(ExampleTask):
    """Base of tasks whose model takes one array of a batch.

    Attributes:
      input_name: Name of the array.
    """

    units_per_example: ClassVar[int] = 1
    input_name: ClassVar[str]

    def batch_shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch."""
        raise NotImplementedError

    def example(self) -> tuple[Any, ...]:
        """Two blank inputs."""
        blank = self.batch_shapes(2)[self.input_name]
        return (jnp.zeros(blank.shape, blank.dtype),)

    def features(
        self, model: Any, variables: ModelState, batch: Batch, **options: Any
    ) -> Any:
        """Applies the model, head included."""
        return model.apply(variables, batch[self.input_name], **options)

    def optimizer_inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        """`grams` of the model's first kernel, for `tract`."""
        return {"grams": model.first_grams(batch[self.input_name])}

    def flops_per_unit(self, model: Any, params: Any) -> int:
        """FLOPs of a training step per example: three times the forward pass's."""
        del params
        forward = count_flops(
            lambda x: model.init_with_output(jax.random.key(0), x)[0],
            self.batch_shapes(2)[self.input_name],
        )
        return 3 * forward // 2
