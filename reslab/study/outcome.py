"""One run of a study: what it measured, by step, tokens and time."""

import bisect
import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reslab.train.tasks import Headline

_SAMPLES = ("sample_", "first_", "")
# Records of older versions are of language runs.
_BITS_PER_BYTE = Headline("bpb", "bits per byte")


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
      factor: Multiple of the field that a search tried; None for a run that judges.
      is_timed: Whether its clock may be compared with those of the other runs.
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
    factor: float | None = None
    is_timed: bool = True

    @property
    def pack(self) -> int:
        """Number of seeds that one program trained at once, its own included."""
        return max(1, len(self.record.get("packed_seeds", ())))

    @property
    def is_finished(self) -> bool:
        """Returns whether the run reached its end."""
        return self.state == "finished"

    @property
    def is_measured(self) -> bool:
        """Returns whether it may be looked into: at its end, or before any training."""
        is_untrained = self.state == "unfinished" and not self.rows
        return self.is_finished or is_untrained

    @functools.cached_property
    def headline(self) -> Headline:
        """The figure by which runs of its task are compared."""
        found = self.record.get("headline")
        return _BITS_PER_BYTE if found is None else Headline(**found)

    @property
    def unit(self) -> str:
        """The plural of what its task counts, such as tokens."""
        return self.record.get("unit", "tokens")

    @property
    def units_per_step(self) -> int:
        """Tokens, images or other units that one step trains on."""
        units = self.record.get("units_per_example", self.config["data.length"])
        return self.config["data.batch"] * units

    @property
    def budget(self) -> int:
        """Units that the run was to train on."""
        return self.config["train.steps"] * self.units_per_step

    @property
    def training_flops_per_unit(self) -> float | None:
        """FLOPs of a training step per unit; None where they were not recorded."""
        return self.record.get(f"training_flops_per_{self.unit.removesuffix('s')}")

    @property
    def training_flops(self) -> float | None:
        """FLOPs that the run was to train for; None where they were not recorded."""
        each = self.training_flops_per_unit
        return None if each is None else each * self.budget

    @property
    def figure(self) -> float | None:
        """The final figure on all held-out data."""
        name = f"eval_{self.headline.metric}"
        return None if self.result is None else self.result.get(name)

    @functools.cached_property
    def curve(self) -> list[tuple[int, float]]:
        """Held-out figures by step, all on the same sample of the held-out data."""
        # Runs of older versions took the first batches for the sample.
        names = [f"eval_{part}{self.headline.metric}" for part in _SAMPLES]
        points = (
            (row["step"], next((row[name] for name in names if name in row), None))
            for row in self.rows
        )
        return [(step, figure) for step, figure in points if figure is not None]

    @functools.cached_property
    def _clock(self) -> tuple[list[float], list[float]]:
        """Steps, and the seconds of training that each row ended at."""
        speeds = [row.get("step_seconds") for row in self.rows]
        # The first row after a resume has no speed; the next one's is used.
        known = [i for i, speed in enumerate(speeds) if speed is not None]
        steps, seconds = [0.0], [0.0]
        for index, row in enumerate(self.rows):
            if not (known and self.is_timed):
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

    def figure_at_time(self, time: float) -> float | None:
        """The held-out curve at a time of training, linear between evaluations.

        None outside of the curve: nothing is extrapolated.
        """
        times = [self.seconds_at(step) for step, _ in self.curve]
        known = [t for t in times if t is not None]
        if len(known) < len(times):
            return None
        return _inside(time, known, [figure for _, figure in self.curve])

    def figure_at_units(self, units: float) -> float | None:
        """The held-out curve at a number of units, linear between evaluations."""
        known = [step * self.units_per_step for step, _ in self.curve]
        return _inside(units, known, [figure for _, figure in self.curve])

    def step_reaching(self, figure: float) -> float | None:
        """The step at which the held-out curve is first as good as a figure.

        Linear between evaluations; None where it never does.
        """
        before: tuple[int, float] | None = None
        for step, here in self.curve:
            if self.headline.order(here) <= self.headline.order(figure):
                if before is None:
                    return float(step)
                share = (before[1] - figure) / (before[1] - here)
                return before[0] + share * (step - before[0])
            before = step, here
        return None

    @property
    def loss_spikes(self) -> int:
        """Logged training losses more than a tenth above the median of five before."""
        losses = self.values("loss")
        return sum(
            loss > 1.1 * statistics.median(losses[i - 5 : i])
            for i, loss in enumerate(losses)
            if i >= 5
        )

    def values(self, name: str) -> list[float]:
        """Returns the values of a metric, in order."""
        return [row[name] for row in self.rows if row.get(name) is not None]


def _inside(x: float, known: Sequence[float], values: Sequence[float]) -> float | None:
    """Linear interpolation; None outside of what is known."""
    slack = 1e-9 * max(map(abs, known), default=0.0)
    if not known or x < known[0] - slack or x > known[-1] + slack:
        return None
    return float(np.interp(x, known, values))
