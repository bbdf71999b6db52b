"""A progress bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TextIO

from reslab.observe.meter import duration
from reslab.runtime.streams import Telling


class Progress(Protocol):
    """Shows how far a run is."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows that `step` is done, with the metrics among `_COLUMNS`."""


_COLUMNS = (
    ("loss", "loss {:.4f}"),
    ("bpb", "bpb {:.3f}"),
    ("accuracy", "accuracy {:.3f}"),
    ("tokens_per_second", "{:,.0f} tokens/s"),
    ("images_per_second", "{:,.0f} images/s"),
    ("mfu", "MFU {:.1%}"),
    ("runs_ended", "{:.0f} runs ended"),
)


@contextlib.contextmanager
def progress(
    total: int,
    start: int = 0,
    label: str = "train",
    *,
    every: float = 10.0,
    is_silent: bool = False,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Shows progress on standard error, which leaves standard output for results.

    On a terminal: a bar that redraws itself. Elsewhere: the first and the last
    update and between them at most one line every `every` seconds, such as
    `train 120/1000  loss 2.3456  bpb 3.384  12,345 tokens/s  ETA 1m20s`.
    In a multi-process run one process shows progress, the others are silent. A
    reader that leaves, or a terminal that is closed, ends the display alone.

    Args:
      total: The step at which the run ends.
      start: The step at which this process starts, after a resume.
      label: Name of the current activity.
      every: Seconds between two plain lines.
      is_silent: Whether to show nothing at all.
      stream: Where to write; `sys.stderr` when None.
      clock: Seconds from any origin.

    Yields:
      An object whose `update(step, metrics)` is called as steps complete.
    """
    if is_silent:
        yield _Nothing()
        return
    stream = sys.stderr if stream is None else stream
    stream = getattr(stream, "beneath", stream)  # The bar moves the cursor.
    if stream is None:  # Closed before Python started.
        yield _Nothing()
        return
    shown: Any = Telling(stream)
    pace = _Pace(total, clock)
    if not shown.isatty():
        lines = _Lines(total, label, every, shown, clock, pace)
        try:
            yield lines
        finally:
            lines.finish()
        return
    # Imported here: not needed for pipes and log files.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    with RichProgress(
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(file=shown),
        # The bar redirects prints to the terminal, never those to a pipe.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    ) as bar:
        yield _Bar(bar, bar.add_task("", total=total, completed=start), pace)


class _Nothing:
    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        pass


class _Pace:
    """Time to the end, from the pace since the first update: compiling is over."""

    def __init__(self, total: int, clock: Callable[[], float]):
        self._total = total
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def describe(self, step: int, metrics: Mapping[str, float]) -> str:
        words = [form.format(metrics[k]) for k, form in _COLUMNS if k in metrics]
        now = self._clock()
        if self._first is None:
            self._first = step, now
        first_step, first_time = self._first
        if first_step < step < self._total:
            pace = (now - first_time) / (step - first_step)
            words.append("ETA " + duration(pace * (self._total - step)))
        if "elapsed_seconds" in metrics:
            words.append("elapsed " + duration(metrics["elapsed_seconds"]))
        return "  ".join(words)


class _Lines:
    def __init__(
        self,
        total: int,
        label: str,
        every: float,
        stream: TextIO,
        clock: Callable[[], float],
        pace: _Pace,
    ):
        self._total = total
        self._label = label
        self._every = every
        self._stream = stream
        self._clock = clock
        self._pace = pace
        self._next = clock()
        self._pending: str | None = None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        details = self._pace.describe(step, metrics)
        self._pending = f"{self._label} {step}/{self._total}  {details}".rstrip()
        if self._clock() >= self._next:
            self._next = self._clock() + self._every
            self.finish()

    def finish(self) -> None:
        """Prints the latest update unless it has been printed."""
        if self._pending is not None:
            print(self._pending, file=self._stream, flush=True)
            self._pending = None


class _Bar:
    def __init__(self, bar: Any, task: Any, pace: _Pace):
        self._bar = bar
        self._task = task
        self._pace = pace

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        text = self._pace.describe(step, metrics)
        self._bar.update(self._task, completed=step, description=text)
