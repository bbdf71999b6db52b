"""Resolution of data paths: a file, a directory, a glob or a bucket."""

import contextlib
import glob
import itertools
import logging
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from reslab.core.errors import ReslabError
from reslab.runtime.files import scratch_directory

# Object stores. A recorded config may name one, but not an arbitrary host, which would
# learn the reader's address, nor a chain, which may name anything.
BUCKETS = ("gs", "gcs", "s3", "abfs", "az", "memory")


class File(NamedTuple):
    """A file that a path named.

    Attributes:
      path: Where it is on this machine.
      name: What to call it in messages.
      is_listed: Whether it was found in a directory instead of being named.
    """

    path: pathlib.Path
    name: str
    is_listed: bool


def matching_files(path: str, what: str) -> Iterator[File]:
    """Yields the files that a path names, in the order of their bytes.

    Files are ordered by POSIX path as bytes, so the order is the same on every
    machine and in every locale. Hidden files of a directory are left out. Files of
    buckets (`gs://bucket/shards` and other `BUCKETS`, by fsspec) are copied here one
    at a time; the copy is gone when the next is asked for.

    Args:
      path: A file, a directory (searched recursively) or a glob (`**` crosses
        directories); `~` is the home directory.
      what: What asks, for the message.

    Yields:
      The files, at least one.

    Raises:
      ReslabError: If the path names no file, or a bucket cannot be read.
    """
    if not path:
        raise ReslabError(
            f"{what}: path", expected="a file, a directory or a glob", got="none"
        )
    yield from _copied(path, what) if "://" in path else _local(path, what)


def _local(path: str, what: str) -> list[File]:
    root = pathlib.Path(path).expanduser()
    if root.is_file():
        return [File(root, str(root), is_listed=False)]
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
    files = sorted(
        (p for p in found if p.is_file()), key=lambda p: _order(p.as_posix())
    )
    if not files:
        raise ReslabError(f"{what}: path", expected="at least one file", got=repr(path))
    return [File(file, str(file), root.is_dir()) for file in files]


def _copied(path: str, what: str) -> Iterator[File]:
    """Yields copies of the files of a bucket, each until the next is asked for."""
    protocol, _, inside = path.partition("://")
    if protocol not in BUCKETS or "::" in path:
        raise ReslabError(
            f"{what}: path",
            expected=f"a local path, or one of {', '.join(f'{p}://' for p in BUCKETS)}",
            got=repr(path),
        )
    is_google = protocol in ("gs", "gcs")
    mounted = "or mount the bucket; tpu_setup does, at /mnt/reslab"
    try:
        import fsspec

        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        package = "reslab[gcs]" if is_google else "its fsspec package"
        raise ReslabError(
            f"{what}: path",
            expected=f"{protocol}:// to be known here",
            got=_first_line(error),
            hint=f"pip install {package}, {mounted}",
        ) from None

    @contextlib.contextmanager
    def reading():
        # The library also logs the traceback of its error.
        logger = logging.getLogger("gcsfs")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        except Exception as error:  # Every file system raises its own types.
            login = f"gcloud auth application-default login, {mounted}"
            raise ReslabError(
                f"{what}: path",
                expected=f"{path}, and to be allowed to read it",
                got=_first_line(error),
                hint=login if is_google else None,
            ) from None
        finally:
            logger.setLevel(level)

    with reading():
        # A glob may name hidden folders explicitly.
        literal = itertools.takewhile(
            lambda p: not glob.has_magic(p), inside.split("/")
        )
        system, root = fsspec.core.url_to_fs(f"{protocol}://{'/'.join(literal)}")
        is_glob = glob.has_magic(inside)
        found = (system.glob if is_glob else system.find)(path, detail=True)
        files = sorted(
            (
                name
                for name, about in found.items()
                if about["type"] == "file"
                and not _is_hidden(pathlib.PurePath(name.removeprefix(root)))
            ),
            key=_order,
        )
    if not files:
        raise ReslabError(f"{what}: path", expected="at least one file", got=repr(path))
    is_listed = not is_glob and files != [root]
    for name in files:
        with scratch_directory("reslab.copy-") as folder:
            copy = folder / pathlib.PurePosixPath(name).name
            with reading():
                system.get_file(name, str(copy))
            yield File(copy, f"{protocol}://{name.lstrip('/')}", is_listed)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_hidden(path: pathlib.PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _order(path: str) -> bytes:
    return path.encode("utf-8", errors="surrogateescape")
