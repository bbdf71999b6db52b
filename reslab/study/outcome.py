"""One run of a study: what it measured, by step, tokens and time."""

import bisect
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run, as far as it got.

    Attributes:
      case: The case that it belongs to.
      seed: Its seed.
      directory: Where it is.
      state: "finished", "diverged", "failed", "unfinished" or "missing".
      message: What it said when it failed, or an empty string.
      config: Its fields by dotted name; empty for a missing run.
      record: `run.json`.
      rows: `metrics.jsonl`, in order of step.
      result: `result.json`; None while the run has not ended.
      probes: Probe results, by step.
      label: What its directory is called in the report.
    """

    case: str
    seed: int
    directory: pathlib.Path
    state: str
    message: str
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any] | None
    probes: Mapping[int, Mapping[str, Any]]
    label: str

    @property
    def is_finished(self) -> bool:
        """Returns whether the run reached its end."""
        return self.state == "finished"

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step trains on."""
        return self.config["data.batch"] * self.config["data.length"]

    @property
    def budget(self) -> int:
        """Tokens that the run was to train on."""
        return self.config["train.steps"] * self.tokens_per_step

    @property
    def bits_per_byte(self) -> float | None:
        """The final figure on all held-out text."""
        return None if self.result is None else self.result.get("eval_bpb")

    @functools.cached_property
    def curve(self) -> list[tuple[int, float]]:
        """Held-out bits per byte by step, all on the same first batches."""
        points = (
            (row["step"], row.get("eval_first_bpb", row.get("eval_bpb")))
            for row in self.rows
        )
        return [(step, bits) for step, bits in points if bits is not None]

    @functools.cached_property
    def _clock(self) -> tuple[list[float], list[float]]:
        """Steps, and the seconds of training that each row ended at."""
        speeds = [row.get("step_seconds") for row in self.rows]
        # The first row after a resume has no speed; the next one's is used.
        known = [i for i, speed in enumerate(speeds) if speed is not None]
        steps, seconds = [0.0], [0.0]
        for index, row in enumerate(self.rows):
            if not known:
                break
            after = bisect.bisect_left(known, index)
            speed = speeds[known[min(after, len(known) - 1)]]
            seconds.append(seconds[-1] + speed * (row["step"] - steps[-1]))
            steps.append(float(row["step"]))
        return steps, seconds

    @property
    def seconds(self) -> float | None:
        """Time of training, without compiling, evaluations and checkpoints."""
        steps, seconds = self._clock
        return seconds[-1] if len(steps) > 1 else None

    def seconds_at(self, step: float) -> float | None:
        """Time of training up to a step; None where no speed was measured."""
        steps, seconds = self._clock
        return float(np.interp(step, steps, seconds)) if len(steps) > 1 else None

    def bits_at_time(self, time: float) -> float | None:
        """The held-out curve at a time of training, linear between evaluations.

        None outside of the curve: nothing is extrapolated.
        """
        times = [self.seconds_at(step) for step, _ in self.curve]
        known = [t for t in times if t is not None]
        if len(known) < len(times):
            return None
        return _inside(time, known, [bits for _, bits in self.curve])

    def bits_at_tokens(self, tokens: float) -> float | None:
        """The held-out curve at a number of tokens, linear between evaluations."""
        known = [step * self.tokens_per_step for step, _ in self.curve]
        return _inside(tokens, known, [bits for _, bits in self.curve])

    def step_reaching(self, bits: float) -> float | None:
        """The step at which the held-out curve first comes down to a figure.

        Linear between evaluations; None where it never does.
        """
        before: tuple[int, float] | None = None
        for step, here in self.curve:
            if here <= bits:
                if before is None:
                    return float(step)
                share = (before[1] - bits) / (before[1] - here)
                return before[0] + share * (step - before[0])
            before = step, here
        return None

    def values(self, name: str) -> list[float]:
        """Returns the values of a metric, in order."""
        return [row[name] for row in self.rows if row.get(name) is not None]


def _inside(x: float, known: Sequence[float], values: Sequence[float]) -> float | None:
    """Linear interpolation; None outside of what is known."""
    slack = 1e-9 * max(map(abs, known), default=0.0)
    if not known or x < known[0] - slack or x > known[-1] + slack:
        return None
    return float(np.interp(x, known, values))
