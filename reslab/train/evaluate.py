"""Held-out loss: every validation example once, in order."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax

from reslab.core.model_state import ModelState
from reslab.data.prefetch import prefetch
from reslab.parallel.compiler import compiler_options
from reslab.parallel.mesh import place_on, use_mesh
from reslab.train.state import Setup
from reslab.train.tasks import Batch, Sums


def make_sums(setup: Setup) -> Callable[[ModelState, Batch], Sums]:
    """An evaluation step: a pure function of the model's variables and a batch."""

    def sums(variables: ModelState, batch: Batch) -> Sums:
        return setup.task.loss_sums(setup.model, variables, batch)[1]

    return sums


def jit_sums(setup: Setup) -> Any:
    """`make_sums`'s function, jitted as evaluation compiles it."""
    options = compiler_options(setup.mesh.devices.flat[0].platform)
    return jax.jit(make_sums(setup), compiler_options=options)


class EvaluationStopped(Exception):
    """An evaluation was asked to stop before its end."""


class Evaluator:
    """Evaluates a model on the held-out examples of its task.

    Compiled once, at the first call.

    Args:
      setup: Model, task, config and mesh.
      sums: The compiled step; `jit_sums` makes it if None.
    """

    def __init__(self, setup: Setup, sums: Callable[..., Any] | None = None):
        self._task, self._mesh = setup.task, setup.mesh
        self._rows = setup.config.eval.batch
        setup.task.validation_batches(self._rows)  # Raises if the split is too short.
        self._sums = sums or jit_sums(setup)

    def __call__(
        self,
        variables: ModelState,
        most: int | None = None,
        *,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """Evaluates on the whole split, or on a sample that is spread over it.

        Args:
          variables: The model's parameters and state.
          most: Number of evaluation steps, of examples evenly spaced in the split;
            None is the whole split.
          is_stopping: Asked after every step; the same in all processes.

        Returns:
          The task's metrics and its number of units, each name after `eval_`: for
          language `eval_loss`, `eval_bpb` and `eval_tokens`.

        Raises:
          EvaluationStopped: If `is_stopping` returns True.
        """
        place = place_on(self._mesh)
        totals: dict[str, float] = {}
        chosen = prefetch(self._task.validation_batches(self._rows, most), place)
        with use_mesh(self._mesh), contextlib.closing(chosen):
            for batch in chosen:
                sums = jax.device_get(self._sums(variables, batch))
                # Summed in double precision on the host, in a fixed order.
                totals = {k: totals.get(k, 0.0) + float(v) for k, v in sums.items()}
                if is_stopping():
                    raise EvaluationStopped
        return {
            **{f"eval_{k}": v for k, v in self._task.metrics(totals).items()},
            f"eval_{self._task.unit}": totals[self._task.unit],
        }
