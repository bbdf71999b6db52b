"""A disk that loses what was not synced, simulated beside a running process.

No power is cut and no block device is needed, so this works on every machine, and is
stricter than a real file system. Python's `os.fsync` notes what is safe from then on:
the content of a file, or the names in a directory. Files written by C++ code, such as
the arrays of a checkpoint, count as unsynced unless Python syncs them, too.
"""

import json
import os
import pathlib
import random
import signal
import stat
from typing import Any


class Disk:
    """Notes what is on the disk, in a directory beside the one that is watched.

    Args:
      root: What is watched; all in it counts as synced at first.
      store: Where it is noted, a file for each file and directory, by inode.
      limit: Number of the sync at which power fails; None is never.
    """

    def __init__(
        self, root: pathlib.Path, store: pathlib.Path, limit: int | None = None
    ):
        self._store, self._limit, self._count = store, limit, 0
        self._handles: list[int] = []
        store.mkdir()
        # One byte for every sync: the file is valid whenever the process is killed.
        self._log = os.open(store / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for folder, _, names in os.walk(root):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                handle = os.open(path, os.O_RDONLY)
                self._note(handle, self._content(handle))
                os.close(handle)
        self._fsync, os.fsync = os.fsync, self._sync

    def _sync(self, fd: Any) -> None:
        self._count += 1
        if self._count == self._limit:
            os.kill(os.getpid(), signal.SIGKILL)
        handle = fd if isinstance(fd, int) else fd.fileno()
        content = self._content(handle)
        self._fsync(fd)
        self._note(handle, content)
        os.write(self._log, b".")

    def _content(self, handle: int) -> bytes:
        """The bytes of a file, or the names and inodes of a directory as JSON."""
        about = os.fstat(handle)
        if stat.S_ISDIR(about.st_mode):
            with os.scandir(handle) as entries:
                names = {e.name: (e.inode(), e.is_dir()) for e in entries}
            return json.dumps(names).encode()
        again = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY)
        try:
            return os.pread(again, about.st_size, 0)
        finally:
            os.close(again)

    def _note(self, handle: int, content: bytes) -> None:
        # An open inode is not given to another file.
        self._handles.append(os.dup(handle))
        inode = os.fstat(handle).st_ino
        part = self._store / f"{inode}-{len(self._handles)}.part"
        part.write_bytes(content)
        part.rename(self._store / str(inode))


def after_cut(
    root: pathlib.Path, store: pathlib.Path, out: pathlib.Path, chance: random.Random
) -> None:
    """Makes the directory that is found when power is back.

    Every directory has the names that were synced last, or those of the moment of the
    cut; every file what was synced last, what it had, or a part: what was appended
    may be zeros, and a file that was never synced may be empty.

    Args:
      root: The directory at the moment of the cut; nothing runs in it any more.
      store: What was noted.
      out: The new directory.
      chance: Chooses what is lost.
    """
    now = {path.stat().st_ino: path for path in (root, *root.rglob("*"))}
    # At 0 all unsynced names or contents are lost; at 1 all are kept.
    names_kept, contents_kept = (
        chance.choice((0.0, 0.5, 1.0)),
        chance.choice((0.0, 0.5)),
    )

    def synced(inode: int) -> bytes | None:
        path = store / str(inode)
        return path.read_bytes() if path.exists() else None

    def directory(inode: int, out: pathlib.Path) -> None:
        out.mkdir()
        names = json.loads(synced(inode) or b"{}")
        if inode in now and chance.random() < names_kept:
            paths = now[inode].iterdir()
            names = {p.name: (p.stat().st_ino, p.is_dir()) for p in paths}
        for name, (child, is_directory) in names.items():
            (directory if is_directory else file)(child, out / name)

    def file(inode: int, out: pathlib.Path) -> None:
        content = synced(inode) or b""
        if inode in now and chance.random() < contents_kept:
            whole = now[inode].read_bytes()
            tail = whole[len(content) :]
            is_torn = chance.random() < 0.5 and whole.startswith(content)
            content = content + bytes(len(tail)) if is_torn else whole
        out.write_bytes(content)

    directory(root.stat().st_ino, out)
