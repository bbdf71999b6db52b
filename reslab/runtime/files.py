"""Files and directories that are there whole or not at all, after a power cut, too."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator

from reslab.core.errors import ReslabError
from reslab.runtime.stopping import ended_as_interrupted
from reslab.runtime.storage import (
    StorageFailed,
    local_path,
    storage_error,
    storage_errors,
)

# Seconds to wait for threads of a failed write, and within which a remaining one would
# have written again.
PATIENCE = 5.0
SETTLED = 0.1
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file in one move; several processes may write the same one.

    The file is on the disk, with its name, when this returns.

    Args:
      path: The file, in a directory that exists.
      content: Bytes, or text, written as UTF-8 with line ends as they are.

    Raises:
      OSError: If it cannot be written; what was there before is still there.
    """
    path = pathlib.Path(path)
    # A unique name: another process may be writing the same file.
    partial, handle = _make_owned(path.parent, f".{path.name}.partial-", _new_file)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fchmod(handle, 0o666 & ~_umask())
            os.fsync(handle)
            os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    sync(path.parent)


@contextlib.contextmanager
def whole_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A directory that takes its name when the block has ended well.

    Several processes may make the same one; the first to end has the name. Remains
    of one that was killed are removed.

    Args:
      path: The directory, which must not be there, or be empty. Those above it are
        made.

    Yields:
      Where to write meanwhile, beside it; nothing of it is left if the block fails, or
      is ended by SIGTERM.

    Raises:
      ReslabError: If it is there already, or cannot be written.
      StorageFailed: If the disk is full, or fails otherwise.
    """
    path = local_path(path, "directory")
    expected = "a directory that can be written"
    with contextlib.ExitStack() as stack:
        with storage_errors(f"{path}", expected=expected):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise ReslabError(
                    f"{path}", expected="a new directory", got="one that is not empty"
                )
            make_directory(path.parent)
            prefix = f".{path.name}.partial-"
            stack.enter_context(ended_as_interrupted())
            partial = stack.enter_context(scratch_directory(prefix, path.parent))
            os.chmod(partial, 0o777 & ~_umask())
        try:
            yield partial
        except OSError as error:
            if str(partial) not in str(error.filename or partial):
                raise  # For example a file that was read.
            raise storage_error(f"{path}", error, expected=expected) from error
        with storage_errors(f"{path}", expected=expected):
            sync_tree(partial)
            os.replace(partial, path)
            sync(path.parent)


@contextlib.contextmanager
def scratch_directory(
    prefix: str, parent: str | os.PathLike[str] | None = None
) -> Iterator[pathlib.Path]:
    """A directory for the length of a block, removed afterwards.

    A process that is killed cannot remove its own: the next call with the same
    prefix does. A lock identifies the owner and ends with its process.

    Args:
      prefix: What the name begins with.
      parent: Where it is made; the temporary folder if None.
    """
    parent = pathlib.Path(parent or tempfile.gettempdir())
    made, handle = _make_owned(parent, prefix, _new_directory)
    try:
        yield made
    except BaseException:
        _remove_for_good(made)
        raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(handle)


def _remove_for_good(path: pathlib.Path) -> None:
    """Removes a directory in which threads of a failed write may still be at work."""
    end = time.monotonic() + PATIENCE
    shutil.rmtree(path, ignore_errors=True)
    time.sleep(SETTLED)
    while path.exists() and time.monotonic() < end:
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(SETTLED)


def _make_owned(
    parent: pathlib.Path, prefix: str, make: Callable[[str, pathlib.Path], str]
) -> tuple[pathlib.Path, int]:
    """Makes a file or directory, and locks it for as long as its handle is open.

    Those of the same prefix whose process has ended are removed.
    """
    _remove_abandoned(parent, prefix)
    while True:
        path = pathlib.Path(make(prefix, parent))
        try:
            handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        except FileNotFoundError:
            continue
        _lock(handle)
        if path.exists():  # Otherwise another process removed it before it was locked.
            return path, handle
        os.close(handle)


def _new_file(prefix: str, parent: pathlib.Path) -> str:
    handle, path = tempfile.mkstemp(prefix=prefix, dir=parent)
    os.close(handle)
    return path


def _new_directory(prefix: str, parent: pathlib.Path) -> str:
    return tempfile.mkdtemp(prefix=prefix, dir=parent)


def _lock(handle: int, *, is_waiting: bool = True) -> bool:
    """Locks an open file or directory; returns whether it is locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))
    except OSError:  # It is in use, or the file system has no locks.
        return False
    return True


def _remove_abandoned(parent: pathlib.Path, prefix: str) -> None:
    """Removes the files and directories of a prefix that no living process owns."""
    with contextlib.suppress(OSError):
        for path in [p for p in parent.iterdir() if p.name.startswith(prefix)]:
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    if not _lock(handle, is_waiting=False):
                        continue
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                finally:
                    os.close(handle)


def make_directory(path: str | os.PathLike[str]) -> None:
    """Makes a directory and those above it; they outlast a power cut."""
    path = pathlib.Path(path)
    if path.is_dir():
        return
    if path.parent != path:
        make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems persist names themselves and reject the call.
        if not os.path.isdir(path) or error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def sync_tree(path: str | os.PathLike[str]) -> None:
    """Waits until all below a directory, and its names, are on the disk."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            sync(os.path.join(folder, name))
        sync(folder)


class Place:
    """A directory that is held, so that its loss is noticed and nothing replaces it.

    Attributes:
      path: The directory as it was named.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)

    def check(self) -> None:
        """Checks that the directory is still the one of that name.

        Raises:
          StorageFailed: If it was renamed, deleted or replaced.
        """
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._handle), os.stat(self.path)):
                return
        raise StorageFailed(
            f"{self.path} was renamed, deleted or replaced while in use; "
            "what was saved is where it is now"
        )

    @property
    def held(self) -> pathlib.Path:
        """A path that leads to the directory whatever its name is by now."""
        held = pathlib.Path(f"/proc/self/fd/{self._handle}")
        return held if held.exists() else self.path

    def close(self) -> None:
        """Lets the directory go."""
        os.close(self._handle)


def _umask() -> int:
    """Returns the process's umask; temporary files allow their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
