"""The clock of a core, and the operations that overlap what it runs."""

from collections.abc import Hashable, Mapping

MEMORY = "memory"


class Timeline:
    """Adds up a schedule: operations run in order, asynchronous ones overlap them.

    Work is in seconds that it takes alone, of a resource: the memory, or links to
    other devices. What is under way on one resource shares it equally, and memory
    gives it what the running work leaves: all bytes that are moved in a stretch of
    time fit that time. So a copy is free where enough runs beside it, and the remainder
    of it is waited for where its result is asked for.

    Attributes:
      now: Seconds so far.
      waited: Those of them in which nothing ran.

    >>> timeline = Timeline()
    >>> timeline.start("copy", {MEMORY: 5.0})
    >>> timeline.run(3.0, memory=1.0)  # Leaves 2 of the copy's 5.
    >>> timeline.wait("copy")
    >>> timeline.now
    6.0
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.waited = 0.0
        self._left: dict[Hashable, dict[str, float]] = {}

    def run(self, seconds: float, memory: float = 0.0) -> None:
        """Runs something to its end.

        Args:
          seconds: How long it computes.
          memory: How long its bytes take; the longer of the two counts, for it
            computes on one block while it moves the next.
        """
        seconds = max(seconds, memory)
        self._pass(seconds, seconds - memory)

    def start(self, name: str, work: Mapping[Hashable, float]) -> None:
        """Starts an asynchronous operation, by the resources that it takes."""
        for resource, seconds in work.items():
            self._left.setdefault(resource, {})[name] = seconds

    def wait(self, name: str) -> None:
        """Waits for something; it may be there already, or never have been started."""
        seconds = max(
            (
                # Until it has received its share, every other has received as much or
                # all it needs.
                sum(min(other, left[name]) for other in left.values())
                for left in self._left.values()
                if name in left
            ),
            default=0.0,
        )
        self.waited += seconds
        self._pass(seconds, seconds)
        for left in self._left.values():
            left.pop(name, None)

    def finish(self) -> None:
        """Waits for everything: the next operation may need any result."""
        for name in [name for left in self._left.values() for name in left]:
            self.wait(name)

    def _pass(self, seconds: float, memory: float) -> None:
        """Advances the clock; asynchronous copies use the memory's idle share."""
        self.now += seconds
        for resource, left in self._left.items():
            capacity = memory if resource == MEMORY else seconds
            for place, name in enumerate(sorted(left, key=left.__getitem__)):
                share = min(left[name], capacity / (len(left) - place))
                left[name] -= share
                capacity -= share
