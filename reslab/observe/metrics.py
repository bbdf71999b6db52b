"""Metrics go to several writers at once."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence

from reslab.core import imports, registry, surroundings
from reslab.core.errors import ReslabError, missing_extra
from reslab.observe.trackers import Trackers


def senders(specs: Sequence[str]) -> Iterator[str]:
    """Yields the packages of writers that send metrics to a host as the run trains.

    What is no spec of a writer is passed over: `factory` refuses it.
    """
    for spec in specs:
        try:
            parsed = registry.parse(spec)
        except ReslabError:
            continue
        if parsed.name in registry.names("writers"):
            module = registry.module("writers", parsed.name)
            is_sending = getattr(module, "is_sending", None)
            if is_sending and is_sending(parsed.arguments):
                yield module.PACKAGE


def check_writers(specs: Sequence[str]) -> None:
    """Checks that writers exist and that the packages they need are installed.

    Raises:
      ReslabError: If one is unknown, its package is missing, or it sends metrics to a
        host because a file says so.
    """
    for spec in specs:
        registry.factory("writers", spec)
        module = registry.module("writers", registry.parse(spec).name)
        for package in senders([spec]):
            imports.check_sending(f"train.writers: {spec}", package)
        package = getattr(module, "PACKAGE", None)
        if package and importlib.util.find_spec(package) is None:
            raise missing_extra(package, "track")


class Writers:
    """Several writers as one; `jsonl` is always among them.

    In a multi-process run only process 0 should build one.

    Args:
      specs: Spec strings of the family `writers`, such as `"tensorboard"`.
      directory: The run directory, which exists.
      trackers: The writers beside `jsonl`; made from the specs if None.

    Attributes:
      lines: The writer of JSON lines.
    """

    def __init__(
        self, specs: Sequence[str], directory: str, trackers: Trackers | None = None
    ):
        # First: if one cannot begin, nothing is written.
        self._trackers = trackers or Trackers(specs, directory)
        self.lines = registry.make(
            "writers", "jsonl", **surroundings.Writers(directory=directory)
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step everywhere."""
        self.lines.write(step, metrics)
        self._trackers.write(step, metrics)

    def truncate(self, step: int) -> None:
        """Forgets every step after `step` everywhere."""
        self.lines.truncate(step)
        self._trackers.truncate(step)

    def sync(self) -> None:
        """Waits until the lines of `metrics.jsonl` are on the disk."""
        self.lines.sync()

    def close(self) -> None:
        """Closes every writer."""
        self.lines.close()
        self._trackers.close()
