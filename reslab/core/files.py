"""Files that are there whole or not at all."""

import os
import pathlib
import tempfile


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
        # Readable by whom other new files are, not by the owner alone.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(partial, 0o666 & ~mask)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
