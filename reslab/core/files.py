"""Files and directories that are there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from reslab.core.errors import ReslabError


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in one move; several processes may write the same one.

    Args:
      path: The file, in a directory that exists.
      text: Its content, written as UTF-8 with line ends as they are.

    Raises:
      OSError: If it cannot be written; what was there before is still there.
    """
    path = pathlib.Path(path)
    # A name of its own: another process may be writing the same file.
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


@contextlib.contextmanager
def whole_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A directory that takes its name when the block has ended well.

    Several processes may make the same one; the first to end has the name.

    Args:
      path: The directory, which must not be there, or be empty. Those above it are
        made.

    Yields:
      Where to write meanwhile, beside it; nothing of it is left if the block fails.

    Raises:
      ReslabError: If it is there already, or cannot be written.
    """
    path = pathlib.Path(path)
    partial: str | None = None
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ReslabError(
                f"{path}", expected="a new directory", got="one that is not empty"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent)
        os.chmod(partial, 0o777 & ~_umask())
        yield pathlib.Path(partial)
        os.replace(partial, path)
    except OSError as error:
        raise ReslabError(
            f"{path}",
            expected="a directory that can be written",
            got=error.strerror or str(error),
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    """What new files may not allow: temporary ones allow their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
