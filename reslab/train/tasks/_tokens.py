"""Base of the tasks of a language model."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from reslab.core.model_state import ModelState
from reslab.models.cost import training_flops_per_token
from reslab.models.lm import LanguageModel
from reslab.train.tasks import Batch
from reslab.train.tasks._examples import ExampleTask


class TokenTask(ExampleTask):
    """Base of tasks of a language model, whose examples are sequences of tokens."""

    unit: ClassVar[str] = "tokens"

    @property
    def units_per_example(self) -> int:
        """Tokens in an example."""
        return self._config.data.length

    @property
    def test_length(self) -> int:
        """Tokens in a held-out example."""
        return self._config.eval.length or self._config.data.length

    def example(self) -> tuple[Any, ...]:
        """Two tokens."""
        return (jnp.zeros((1, min(2, self._config.data.length)), jnp.int32),)

    def features(
        self, model: LanguageModel, variables: ModelState, batch: Batch, **options: Any
    ) -> Any:
        """Applies the model without its head."""
        return model.apply(
            variables,
            batch["tokens"],
            positions=batch["positions"],
            segments=batch["segment_ids"],
            method="hidden",
            **options,
        )

    def tokens(self, model: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Masks of the tokens whose loss counts, and of those at position 0."""
        del model
        return batch["loss_mask"].astype(bool), batch["positions"] == 0

    def optimizer_inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        """The batch's `tokens`."""
        del model
        return {"tokens": batch["tokens"]}

    def flops_per_unit(self, model: LanguageModel, params: Any) -> int:
        """FLOPs of a training step per token."""
        return training_flops_per_token(model, params, self._config.data.length)
