"""Modules outside reslab: which of them a spec may import.

A command line, a config file and a study file are a person's own words and may name any
module. The config of a run is data: it names variants of reslab, and other modules only
where a person has allowed them.
"""

import contextlib
import keyword
import os
import sys
from collections.abc import Iterable, Iterator

from reslab.core.errors import ReslabError

_allowed: frozenset[str] = frozenset()
_is_guarded = False


@contextlib.contextmanager
def guarded(modules: Iterable[str] = ()) -> Iterator[None]:
    """Limits specs to the modules that are allowed.

    The command line and the processes of a sweep run guarded. Elsewhere the caller's
    own code names modules freely, and only what is read from a file is checked.

    Args:
      modules: Names of modules to allow from the start.

    Raises:
      ReslabError: If one is not the name of a module.
    """
    global _allowed, _is_guarded
    before = _allowed, _is_guarded
    _is_guarded = True
    try:
        allow(*modules)
        yield
    finally:
        _allowed, _is_guarded = before


def allow(*modules: str) -> None:
    """Allows specs that are read from files to name these modules, or ones below.

    Raises:
      ReslabError: If one is not the name of a module.
    """
    global _allowed
    for name in modules:
        check_name("a module to import", name)
    _allowed |= frozenset(modules)


def allowed() -> tuple[str, ...]:
    """The modules that have been allowed."""
    return tuple(sorted(_allowed))


def check_name(what: str, name: str) -> None:
    """Checks that a dotted name is absolute, and of identifiers alone.

    Raises:
      ReslabError: If it is not.
    """
    parts = name.split(".")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        raise ReslabError(what, expected="a name such as lab.bounded", got=repr(name))


def check_data(what: str, name: str) -> None:
    """Checks that a module which a file names has been allowed.

    Args:
      what: The part that needs the module, for the error.
      name: Full name of the module.

    Raises:
      ReslabError: If it has not.
    """
    check_name(what, name)
    if not any(name == one or name.startswith(f"{one}.") for one in _allowed):
        raise ReslabError(
            f"{what} needs the module {name!r}",
            expected="a variant of reslab, since a file names it",
            hint=f"--allow-import {name}, if you trust that module",
        )


def check(what: str, name: str) -> None:
    """Checks that a spec may import a module here; called before every import.

    Args:
      what: The part that needs the module, for the error.
      name: Full name of the module.

    Raises:
      ReslabError: If it may not.
    """
    check_name(what, name)
    if _is_guarded:
        check_data(what, name)


def check_sending(what: str, package: str) -> None:
    """Checks that a person has allowed a package to send to its host.

    Args:
      what: The part that would send, for the error.
      package: Name of the package.

    Raises:
      ReslabError: If only a file says so.
    """
    if _is_guarded and package not in _allowed:
        raise ReslabError(
            f"{what} sends metrics to a host",
            expected="mode='offline', since a file names it",
            hint=f"--set train.writers=... with the same, or --allow-import {package}",
        )


@contextlib.contextmanager
def from_working_directory() -> Iterator[None]:
    """Lets code that a person named import from the working directory, last in order.

    Outside of the block nothing is looked for there: not the optional packages of
    dependencies, and an untrusted directory may hold a file of that name.
    """
    here = os.getcwd()
    if not _is_guarded or "" in sys.path or here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
