"""Writers beside `metrics.jsonl`: what becomes of them ends no run."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from reslab.core import registry, surroundings
from reslab.core.errors import ReslabError, one_line


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


class Trackers:
    """Several writers as one; one that fails is told once, and left out from then on.

    Args:
      specs: Spec strings of the family `writers`; `jsonl` and repetitions are left out.
      directory: The run directory, which exists.
      is_begun: Whether the run has begun: a writer that cannot begin is left out.

    Raises:
      ReslabError: If a spec is wrong, a package is missing, or a writer cannot begin.
    """

    def __init__(self, specs: Sequence[str], directory: str, *, is_begun: bool = False):
        given = surroundings.Writers(directory=directory)
        builds = {
            spec: registry.factory("writers", spec)
            for spec in specs
            if registry.parse(spec).name != "jsonl"
        }
        self._writers: dict[str, Writer] = {}
        for spec, build in builds.items():
            try:
                self._writers[spec] = build(**given)
            except ReslabError:
                self.close()
                raise
            except (Exception, SystemExit) as error:
                if not is_begun:
                    self.close()
                    raise ReslabError(
                        f"train.writers: {spec}",
                        expected="a writer that can begin",
                        got=_said(error),
                        hint="log in to its host, or leave it out",
                    ) from None
                _tell(spec, error)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""
        self._each(lambda writer: writer.write(step, metrics))

    def truncate(self, step: int) -> None:
        """Forgets every step after `step`."""
        self._each(lambda writer: writer.truncate(step))

    def close(self) -> None:
        """Closes every writer."""
        self._each(lambda writer: writer.close())

    def _each(self, work: Callable[[Writer], Any]) -> None:
        for spec, writer in list(self._writers.items()):
            try:
                work(writer)
            except (Exception, SystemExit) as error:
                del self._writers[spec]
                _tell(spec, error)


def _tell(spec: str, error: BaseException) -> None:
    print(
        f"train.writers: {spec} failed ({_said(error)}); the run continues without it",
        file=sys.stderr,
    )


def _said(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")
