"""Directory, record and data of a run, which must not change during the run."""

import contextlib
import pathlib
from collections.abc import Callable

from reslab.parallel.hosts import in_all, is_writer
from reslab.runtime.files import Place
from reslab.runtime.storage import StorageFailed, storage_errors
from reslab.train.run import Run

# Fields that only the end of the run depends on.
_FILES = ("config.json", "run.json", "lock")


class Held:
    """Checks before every save that the run could resume from it.

    No run resumes from a checkpoint without the record that names it, or from one that
    was trained on other data than the run began with.

    Args:
      run: The run, which is locked.
      check_data: As `Task.check_data`.
    """

    def __init__(self, run: Run, check_data: Callable[[], None]):
        self._check_data = check_data
        self._directory = run.directory
        self._place = Place(run.directory) if is_writer() else None
        self._files = self._contents()

    def check(self) -> None:
        """Checks all of it; every process makes the same calls.

        Raises:
          ReslabError: If the data have changed.
          StorageFailed: If the directory was moved or replaced, or a file of the record
            deleted or changed.
        """
        in_all(self._check)

    def _check(self) -> None:
        if self._place:
            self._place.check()
        now = self._contents()
        for path, content in self._files.items():
            if now.get(path) != content:
                raise StorageFailed(
                    f"{path} was deleted or changed while the run went on; "
                    "what was saved is where it was"
                )
        self._check_data()

    def _contents(self) -> dict[pathlib.Path, bytes]:
        found = {}
        for name in _FILES if self._place else ():
            path = self._directory / name
            with (
                storage_errors(f"{path}", expected="a file that can be read"),
                contextlib.suppress(FileNotFoundError),
            ):
                found[path] = path.read_bytes()
        return found

    def close(self) -> None:
        """Lets the directory go."""
        if self._place:
            self._place.close()
