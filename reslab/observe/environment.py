"""Environment of a run: versions, devices, flags, source commit."""

import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
from typing import Any

import jax

import reslab
from reslab.core.platform import cpu_threads

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint")
_PACKAGES += ("grain", "numpy")


def environment() -> dict[str, Any]:
    """Describes software and hardware, as JSON values.

    Neither host nor user is named.

    Returns:
      `versions` (of the packages that are installed), `platform`, `device_kind`,
      `device_count`, `process_count`, `cpu_count`, `cpu_threads`, `flags` (those set
      among `XLA_FLAGS` and `LIBTPU_INIT_ARGS`) and `commit` (None outside a checkout).
    """
    versions = {"python": platform.python_version(), "reslab": reslab.__version__}
    versions |= {p: v for p in _PACKAGES if (v := _version(p)) is not None}
    device = jax.devices()[0]
    flags = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    return {
        "versions": versions,
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "cpu_threads": cpu_threads(),
        "flags": {name: os.environ[name] for name in flags if name in os.environ},
        "commit": _commit(pathlib.Path(reslab.__file__).parent),
    }


def extras() -> dict[str, dict[str, str | None]]:
    """Says which optional packages are installed.

    Returns:
      For every extra of the installed distribution its packages with their
      versions, None for one that is missing. Empty when reslab itself is not
      installed but only on the path.
    """
    try:
        requirements = importlib.metadata.requires("reslab") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", requirement)
        if package and extra:
            found.setdefault(extra[1], {})[package[0]] = _version(package[0])
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(folder: pathlib.Path) -> str | None:
    """The commit of the source tree, `-dirty` when it has changes.

    Where the source was copied without its repository, what the copy says.
    """
    git = ("git", "--no-optional-locks", "-C", str(folder))

    def ask(*command: str) -> str:
        answer = subprocess.run(
            [*git, *command], capture_output=True, text=True, timeout=10, check=True
        )
        return answer.stdout.strip()

    try:
        # An installed copy may lie inside an unrelated repository.
        ask("ls-files", "--error-unmatch", "__init__.py")
        return ask("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return _copied_commit(folder.parent / ".commit")


def _copied_commit(path: pathlib.Path) -> str | None:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch(r"[0-9a-f]{40}(-dirty)?", text) else None
