"""Writing inside an untrusted directory: no link leads out of it."""

import errno
import os
import pathlib
import stat
from typing import IO, Any

from reslab.core.errors import ReslabError


def open_inside(path: str | os.PathLike[str], mode: str) -> IO[Any]:
    """Opens a file to write to it, if it is a regular file of one name.

    Args:
      path: The file.
      mode: As `open` takes it.

    Raises:
      ReslabError: If it is a link, symbolic or hard, or a pipe or device; what it
        leads to stays as it is.
      OSError: If it cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        # Opening a pipe would wait for its other end. Existing contents are kept until
        # they are known to belong to the directory.
        safe = flags & ~os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
        handle = os.open(name, safe, 0o666)
        try:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise _is_special(path)
            if about.st_nlink > 1:
                raise _is_shared(path)
            if flags & os.O_TRUNC:
                os.ftruncate(handle, 0)
            os.set_blocking(handle, True)
        except BaseException:
            os.close(handle)
            raise
        return handle

    encoding = None if "b" in mode else "utf-8"
    try:
        return open(path, mode, encoding=encoding, opener=opener)
    except OSError as error:
        # A dangling or circular link also counts.
        if error.errno == errno.ELOOP or os.path.islink(path):
            raise _is_link(path) from None
        if error.errno == errno.ENXIO:  # A pipe without a reader, or a socket.
            raise _is_special(path) from None
        raise


def check_links(directory: str | os.PathLike[str]) -> None:
    """Checks that no symbolic link in a directory, however deep, leads out of it.

    Pipes and devices are refused as well: reading one may never end.

    Raises:
      ReslabError: If there is one.
    """
    top = os.path.realpath(directory)
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            try:
                mode = os.lstat(path).st_mode
            except OSError:  # Removed meanwhile, by the process that is writing.
                continue
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                continue
            named = pathlib.Path(directory, os.path.relpath(path, top))
            if not stat.S_ISLNK(mode):
                raise _is_special(named)
            if os.path.commonpath((top, os.path.realpath(path))) != top:
                raise _is_link(named)


def _is_link(path: str | os.PathLike[str]) -> ReslabError:
    return _not_own(path, "a symbolic link, which is not written through")


def _is_special(path: str | os.PathLike[str]) -> ReslabError:
    return _not_own(path, "a pipe, socket or device")


def _is_shared(path: str | os.PathLike[str]) -> ReslabError:
    return _not_own(path, "a hard link: the file has other names, too")


def _not_own(path: str | os.PathLike[str], got: str) -> ReslabError:
    return ReslabError(
        f"{os.fspath(path)}",
        expected="a file or directory of its own",
        got=got,
        hint="remove it, or use another directory",
    )
