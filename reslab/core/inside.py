"""Writing inside a directory that may be somebody else's: no link leads out of it."""

import errno
import os
import pathlib
from typing import IO, Any

from reslab.core.errors import ReslabError


def open_inside(path: str | os.PathLike[str], mode: str) -> IO[Any]:
    """Opens a file to write to it, unless its name is a symbolic link.

    Args:
      path: The file.
      mode: As `open` takes it.

    Raises:
      ReslabError: If it is a link; what it leads to stays as it is.
      OSError: If it cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    encoding = None if "b" in mode else "utf-8"
    try:
        return open(path, mode, encoding=encoding, opener=opener)
    except OSError as error:
        # A link that leads nowhere, or in a circle, is one as well.
        if error.errno == errno.ELOOP or os.path.islink(path):
            raise _is_link(path) from None
        raise


def check_links(directory: str | os.PathLike[str]) -> None:
    """Checks that no symbolic link in a directory, however deep, leads out of it.

    Raises:
      ReslabError: If one does.
    """
    top = os.path.realpath(directory)
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                continue
            if os.path.commonpath((top, os.path.realpath(path))) != top:
                raise _is_link(pathlib.Path(directory, os.path.relpath(path, top)))


def _is_link(path: str | os.PathLike[str]) -> ReslabError:
    return ReslabError(
        f"{os.fspath(path)}",
        expected="a file or directory of its own",
        got="a symbolic link, which is not written through",
        hint="remove it, or use another directory",
    )
