"""Line files of a run: metrics, probes, values by layer."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from reslab.core.errors import ReslabError
from reslab.observe.metrics import Writers
from reslab.observe.trackers import Trackers
from reslab.observe.writers.jsonl import JsonLines
from reslab.parallel.hosts import on_writer
from reslab.train.run import Run


class Lines:
    """Files that a run writes, in one of its processes.

    Args:
      run: The run; None writes nothing.
      config: Its config.
      trackers: Its writers beside `metrics.jsonl`; made from the config if None.
    """

    def __init__(
        self,
        run: Run | None = None,
        config: ConfigDict | None = None,
        trackers: Trackers | None = None,
    ):
        self.metrics = self.probes = self.layers = None
        if run is None or config is None:
            return
        self.metrics = Writers(config.train.writers, str(run.directory), trackers)
        self.probes = JsonLines(run.directory / "probes.jsonl")
        if config.train.log_layers:
            self.layers = JsonLines(run.directory / "layers.jsonl")

    def digests(self) -> dict[str, str]:
        """Digests of the lines so far, by file; a checkpoint keeps them."""
        return {file.path.name: file.sha256 for file in self._lines()}

    def go_back(self, step: int, digests: Mapping[str, str]) -> None:
        """Forgets what comes after `step`.

        Lines that are not those of the checkpoint of that step are set aside.
        """
        for file in (self.metrics, self.probes, self.layers):
            if file:
                # The probes of `step` are evaluated again.
                file.truncate(step - (file is self.probes))
        for file in self._lines():
            if digests.get(file.path.name, file.sha256) != file.sha256:
                file.begin_after(step - (file is self.probes))

    def _lines(self) -> list[JsonLines]:
        first = self.metrics.lines if self.metrics else None
        return [file for file in (first, self.probes, self.layers) if file]

    def sync(self) -> None:
        """Waits until all that was written is on the disk."""
        for file in (self.metrics, self.probes, self.layers):
            if file:
                file.sync()

    def close(self) -> None:
        """Closes the files."""
        for file in (self.metrics, self.probes, self.layers):
            if file:
                file.close()


def begin_trackers(run: Run, config: ConfigDict, is_begun: bool) -> Trackers:
    """Begins the writers of a run beside its own files, in process 0.

    Args:
      run: The run, which is locked.
      config: Its config.
      is_begun: Whether it was there before: then a writer that cannot begin is left
        out. A new run is undone.

    Raises:
      ReslabError: If a writer of a new run cannot begin.
    """
    directory = str(run.directory)
    trackers = [Trackers((), directory)]

    def begin() -> None:
        try:
            trackers[0] = Trackers(config.train.writers, directory, is_begun=is_begun)
        except ReslabError:
            if not is_begun:
                run.undo()
            raise

    on_writer(begin)
    return trackers[0]
