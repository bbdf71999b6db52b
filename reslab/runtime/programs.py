"""Compiled programs, kept for the next process in a folder of the user."""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

# Total bytes of stored programs; the oldest are removed first.
LIMIT = 4 * 2**30
# Programs that compile in fewer seconds are not stored.
WORTH_A_FILE = 0.3
# Environment variables of JAX.
FOLDER = "JAX_COMPILATION_CACHE_DIR"
ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def programs_folder() -> pathlib.Path:
    """Returns the user's folder for the programs of this machine and compiler.

    A home directory may be shared by machines of other instructions, and programs of
    one compiler are of no use to another.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = "-".join((version("jaxlib"), _instructions()))
    return pathlib.Path(home).expanduser() / "reslab" / "programs" / named


def _instructions() -> str:
    """Names the instructions of this machine's processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = sorted({line for line in file if line.startswith("flags")})
    except OSError:
        lines = [platform.processor()]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"


@contextlib.contextmanager
def kept_programs(is_wanted: bool | None) -> Iterator[None]:
    """Keeps what JAX compiles in the block, in this process and those it starts.

    Without a folder that can be written, nothing is kept. A folder that the caller has
    chosen by `JAX_COMPILATION_CACHE_DIR` stays.

    Args:
      is_wanted: Whether to keep anything; None changes nothing.
    """
    values: dict[str, Any] = {}
    if is_wanted is False:
        values = {ENABLED: False}
    elif is_wanted and FOLDER not in os.environ and (folder := _writable()):
        values = {FOLDER: str(folder)}
        if LEAST_SECONDS not in os.environ:
            values[LEAST_SECONDS] = WORTH_A_FILE
    with contextlib.ExitStack() as stack:
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
    """The user's folder, made and with room; None where it cannot be written."""
    folder = programs_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(folder.parent)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _prune(root: pathlib.Path) -> None:
    """Removes the oldest programs where they are more than `LIMIT` bytes."""
    found = []
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            about = path.lstat()
            if path.is_file():
                found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= LIMIT:
            break
        path.unlink(missing_ok=True)
        total -= size
