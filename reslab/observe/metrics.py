"""Metrics go to several writers at once."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Protocol

from reslab.core import registry
from reslab.core.errors import missing_extra


class Writer(Protocol):
    """A place that metrics are written to, one file of `writers/` each.

    `build(directory=..., **options)` makes one.
    """

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""

    def truncate(self, step: int) -> None:
        """Drops every step after `step`, from which the run resumes."""

    def close(self) -> None:
        """Writes what is pending and lets go of the files."""


def check_writers(specs: Sequence[str]) -> None:
    """Checks that writers exist and that the packages they need are installed.

    Raises:
      ReslabError: If one is unknown or its package is missing.
    """
    for spec in specs:
        registry.factory("writers", spec)
        module = registry.module("writers", registry.parse(spec).name)
        package = getattr(module, "PACKAGE", None)
        if package and importlib.util.find_spec(package) is None:
            raise missing_extra(package, "track")


class Writers:
    """Several writers as one; `jsonl` is always among them.

    In a multi-process run only process 0 should build one.

    Args:
      specs: Spec strings of the family `writers`, such as `"tensorboard"`.
      directory: The run directory, which exists.

    Attributes:
      lines: The writer of JSON lines.
    """

    def __init__(self, specs: Sequence[str], directory: str):
        factories = {
            registry.parse(spec).name: registry.factory("writers", spec)
            for spec in ("jsonl", *specs)
        }
        jsonl = factories.pop("jsonl")
        # The optional ones first: where a package is missing nothing is written.
        others = [build(directory=directory) for build in factories.values()]
        self.lines = jsonl(directory=directory)
        self._writers: list[Writer] = [self.lines, *others]

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step everywhere."""
        for writer in self._writers:
            writer.write(step, metrics)

    def truncate(self, step: int) -> None:
        """Forgets every step after `step` everywhere."""
        for writer in self._writers:
            writer.truncate(step)

    def sync(self) -> None:
        """Waits until the lines of `metrics.jsonl` are on the disk."""
        self.lines.sync()

    def close(self) -> None:
        """Closes every writer."""
        for writer in self._writers:
            writer.close()
