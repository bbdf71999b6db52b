"""What a path in a data config stands for: a file, a directory or a glob."""

import glob
import pathlib

from reslab.core.errors import ReslabError


def matching_files(path: str, what: str) -> list[pathlib.Path]:
    """Lists the files that a path names, in the order of their bytes.

    The order is that of the POSIX path as bytes, so it is the same on every
    machine and in every locale. Hidden files of a directory are left out.

    Args:
      path: A file, a directory (searched recursively) or a glob (`**` crosses
        directories); `~` is the home directory.
      what: What asks, for the message.

    Returns:
      The files, at least one.

    Raises:
      ReslabError: If the path names no file.
    """
    if not path:
        raise ReslabError(
            f"{what}: path", expected="a file, a directory or a glob", got="none"
        )
    if "://" in path:
        raise ReslabError(
            f"{what}: path",
            expected="a path of this machine",
            got=repr(path),
            hint="mount the bucket; tpu_setup does, at /mnt/reslab",
        )
    root = pathlib.Path(path).expanduser()
    if root.is_file():
        return [root]
    if root.is_dir():
        found = [p for p in root.rglob("*") if not _is_hidden(p.relative_to(root))]
    elif glob.has_magic(str(root)):
        found = [pathlib.Path(p) for p in glob.glob(str(root), recursive=True)]
    else:
        raise ReslabError(
            f"{what}: path",
            expected="a file, a directory or a glob",
            got=f"{path!r}, which does not exist",
        )
    files = sorted((p for p in found if p.is_file()), key=_order)
    if not files:
        raise ReslabError(f"{what}: path", expected="at least one file", got=repr(path))
    return files


def _is_hidden(path: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _order(path: pathlib.Path) -> bytes:
    return path.as_posix().encode("utf-8", errors="surrogateescape")
