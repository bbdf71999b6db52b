"""Compiled programs, kept for the next process in a folder of the user."""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from reslab.runtime.files import write_whole

# Total bytes of stored programs; the oldest are removed first.
LIMIT = 2**30
# Digests of the programs of a folder, and the names that JAX gives to their files.
DIGESTS = "digests.json"
PROGRAM = "*-cache"
# Programs that compile in fewer seconds are not stored.
WORTH_A_FILE = 0.3
# Environment variables of JAX.
FOLDER = "JAX_COMPILATION_CACHE_DIR"
ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def programs_folder() -> pathlib.Path | None:
    """Returns the user's folder for the programs of this machine and compiler.

    A home directory may be shared by machines of other instructions, and programs of
    one compiler are of no use to another. None where the user has no home.
    """
    # Imported here: most commands compile nothing.
    from importlib.metadata import version

    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.join(os.path.expanduser("~"), ".cache")
        # An empty HOME would be the root directory.
        if not os.path.isabs(home) or os.environ.get("HOME") == "":
            return None
    named = "-".join((version("jaxlib"), _instructions()))
    return pathlib.Path(home) / "reslab" / "programs" / named


def _instructions() -> str:
    """Names the instructions of this machine's processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            # As x86 and Arm call them.
            names = ("flags", "Features")
            lines = sorted({line for line in file if line.startswith(names)})
    except OSError:
        lines = [platform.processor()]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"


@contextlib.contextmanager
def kept_programs(is_wanted: bool | None) -> Iterator[None]:
    """Keeps what JAX compiles in the block, in this process and those it starts.

    A program is used only if it is as it was when a command that compiled it ended: one
    flipped bit may change a result without a word. Without a folder that can be
    written, nothing is kept. A folder that the caller has chosen by
    `JAX_COMPILATION_CACHE_DIR` stays, and is not checked.

    Args:
      is_wanted: Whether to keep anything; None changes nothing.
    """
    values: dict[str, Any] = {}
    folder = None
    if is_wanted is False:
        values = {ENABLED: False}
    elif is_wanted and FOLDER not in os.environ and (folder := _writable()):
        values = {FOLDER: str(folder)}
        if LEAST_SECONDS not in os.environ:
            values[LEAST_SECONDS] = WORTH_A_FILE
    with contextlib.ExitStack() as stack:
        if folder:
            stack.callback(_seal, folder, _checked(folder))
        for variable, value in values.items():
            stack.callback(_set, variable, os.environ.get(variable))
            os.environ[variable] = str(value)
            # JAX reads these variables when it is imported.
            if "jax" in sys.modules:
                stack.callback(_configure, variable, _configure(variable, value))
        yield


def _set(variable: str, value: str | None) -> None:
    if value is None:
        del os.environ[variable]
    else:
        os.environ[variable] = value


def _configure(variable: str, value: Any) -> Any:
    """Gives JAX the value of a variable of its own; returns the one before."""
    import jax

    before = getattr(jax.config, variable.lower())
    jax.config.update(variable.lower(), value)
    return before


def _writable() -> pathlib.Path | None:
    """The user's folder, made and with room; None if it cannot be written."""
    folder = programs_folder()
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(folder.parent)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """Reads the digests of a folder; empty where they cannot be read."""
    try:
        found = json.loads((folder / DIGESTS).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(folder: pathlib.Path) -> dict[str, str]:
    """Removes programs that changed, or whose command did not end.

    Returns:
      The digests of the others, by name.
    """
    known, kept = _digests(folder), {}
    for path in folder.glob(PROGRAM):
        with contextlib.suppress(OSError):
            if path.is_symlink() or known.get(path.name) != _sha256(path):
                path.unlink()
            else:
                kept[path.name] = known[path.name]
    return kept


def _seal(folder: pathlib.Path, checked: Mapping[str, str]) -> None:
    """Writes the digests of all programs of a folder, those checked as they were."""
    with contextlib.suppress(OSError):
        found = {
            path.name: checked.get(path.name) or _sha256(path)
            for path in folder.glob(PROGRAM)
        }
        write_whole(folder / DIGESTS, json.dumps(found))


def _prune(root: pathlib.Path) -> None:
    """Removes the oldest programs where they are more than `LIMIT` bytes.

    Only files that JAX wrote, in folders that are named as here.
    """
    found = []
    for path in root.glob(f"*-{platform.machine()}-????????/{PROGRAM}"):
        with contextlib.suppress(OSError):
            about = path.lstat()
            found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= LIMIT:
            break
        path.unlink(missing_ok=True)
        total -= size
