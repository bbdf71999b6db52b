"""Traces of training steps: what ran when, on the host and on the devices."""

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from reslab.core.errors import ReslabError

T = TypeVar("T")


class Profile:
    """Traces some steps of a run, all of each: kernels appear by their names.

    The trace lies in `profile/` of the run directory, where TensorBoard, xprof and
    Perfetto find it. Waiting for the step before the first and for the last one
    keeps other steps out.

    Args:
      steps: "FIRST:LAST", both traced; such as "10:13".
      total: Steps of the run.
      directory: The run directory.

    Raises:
      ReslabError: If these are no steps of the run.
    """

    def __init__(self, steps: str, total: int, directory: str | os.PathLike[str]):
        self._said = f"--profile {steps}"
        found = re.fullmatch(r"(\d+):(\d+)", steps)
        if not found:
            raise ReslabError(
                self._said, expected="FIRST:LAST, two numbers of steps", hint="10:13"
            )
        self._first, self._last = int(found[1]), int(found[2])
        if not 1 <= self._first <= self._last <= total:
            raise ReslabError(
                self._said, expected=f"steps from 1 to {total}, the first one first"
            )
        self.directory = os.path.join(directory, "profile")
        self._is_tracing = False

    def check(self, done: int) -> None:
        """Refuses steps that a run has behind it.

        Args:
          done: The step from which the run resumes.

        Raises:
          ReslabError: If the first step to be traced is not after it.
        """
        if done >= self._first:
            raise ReslabError(
                self._said,
                expected="steps that are yet to be done",
                got=f"a run that resumes from step {done}",
            )

    def __call__(self, step: int, function: Callable[..., T], *arguments: Any) -> T:
        """Gives `function(*arguments)`, traced where it is one of those steps."""
        if not self._first <= step <= self._last:
            return function(*arguments)
        if step == self._first:
            jax.block_until_ready(arguments)
            jax.profiler.start_trace(self.directory)
            self._is_tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            results = function(*arguments)
            if step == self._last:
                jax.block_until_ready(results)
        if step == self._last:
            self.close()
        return results

    def close(self) -> None:
        """Writes what was traced, also where a run ends in between."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
