"""The Python standard library's own source files: a corpus on every machine."""

import dataclasses
import pathlib
import sysconfig
from collections.abc import Iterator

from reslab.core.errors import ReslabError

# Tests and some modules are packaged separately on some systems: without them the file
# set is nearly the same everywhere.
SKIPPED = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)


@dataclasses.dataclass(frozen=True)
class StandardLibrarySource:
    """The `.py` files of the running Python's standard library, one a document.

    About 11 MB in some 570 files, sorted by POSIX path as bytes. The order is
    stable; the content belongs to the Python build, so compare runs across
    machines by the corpus's sha256. Python code is small and repetitive text:
    good for comparing variants, no measure of a model's quality.
    """

    def documents(self) -> Iterator[bytes]:
        """Yields the content of every file.

        Raises:
          ReslabError: If this Python has no source files on disk.
        """
        root = pathlib.Path(sysconfig.get_paths()["stdlib"])
        relative = (path.relative_to(root) for path in root.rglob("*.py"))
        names = [path.as_posix() for path in relative if not SKIPPED & {*path.parts}]
        if not names:
            raise ReslabError(
                "source stdlib",
                expected=f"Python source files under {root}",
                got="none",
                hint="text(path=...)",
            )
        for name in sorted(names, key=str.encode):
            yield (root / name).read_bytes()


build = StandardLibrarySource
