"""Errors of storage: mistakes of the user, told apart from failures worth a retry."""

import contextlib
import errno
import os
import pathlib
import re
from collections.abc import Iterator

from reslab.core.errors import ReslabError

# A retry cannot help: the path is wrong or not permitted.
_MISTAKES = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.EINVAL, errno.ENXIO),
}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


class StorageFailed(Exception):
    """Storage that failed for now: full, unreachable or broken; worth another try."""


def is_transient(error: BaseException) -> bool:
    """Returns whether an error is one of storage that a retry may survive."""
    number = error.errno if isinstance(error, OSError) else None
    return number is not None and number not in _MISTAKES


def storage_error(
    what: str, error: OSError, *, expected: str, hint: str | None = None
) -> ReslabError | StorageFailed:
    """Turns an error of the system into the one that a person sees.

    Args:
      what: The file or directory, and what it is for.
      error: What the system says.
      expected: What would have been right.
      hint: What to try if it is a mistake.

    Returns:
      `StorageFailed` if a retry may succeed, otherwise `ReslabError`.
    """
    got = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
    told = ReslabError(what, expected=expected, got=got, hint=hint)
    if not is_transient(error):
        return told
    return StorageFailed(str(ReslabError(what, expected=expected, got=got)))


@contextlib.contextmanager
def storage_errors(
    what: str, *, expected: str, hint: str | None = None
) -> Iterator[None]:
    """Raises the errors of the system in a block as `storage_error` tells them."""
    try:
        yield
    except OSError as error:
        raise storage_error(what, error, expected=expected, hint=hint) from error


def local_path(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """Returns a path of this machine's file system; `~` is the home directory.

    Args:
      path: The path.
      what: What it is for, such as `--run`.

    Raises:
      ReslabError: If it is a URL, which would become a local directory `gs:`.
    """
    text = os.fspath(path)
    # `pathlib.Path` merges two slashes into one.
    if _URL.match(text):
        raise ReslabError(
            f"{what} {text}",
            expected="a path on this machine",
            got="a URL",
            hint="mount the bucket; tpu_setup does, at /mnt/reslab",
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise ReslabError(f"{what} {text}", expected="a known user after ~") from None
