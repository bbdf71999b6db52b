"""Files of configs and studies: found by path or name, executed, called."""

import contextlib
import inspect
import pathlib
import sys
import typing
from collections.abc import Callable
from typing import Any

from reslab.core import foreign, imports
from reslab.core.errors import ReslabError, nearest
from reslab.core.notices import warn

# Earlier names of shipped configs, each with the present one.
RENAMED = {"small_124m": "small_85m"}


def call_in_file(what: str, path: pathlib.Path, function: str, *arguments: Any) -> Any:
    """Executes a Python file, with all that Python can do, and calls a function of it.

    Args:
      what: What to call the file in errors.
      path: The file.
      function: The function's name.
      *arguments: Its arguments.

    Returns:
      What it returns.

    Raises:
      ReslabError: If the file cannot be executed or has no such function, or the
        `Literal` annotation of an argument does not list it.
    """
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}

    def execute() -> Any:
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        exec(code, namespace)
        if function not in namespace:
            raise ReslabError(what, expected=f"a function {function}()")
        _check_arguments(what, namespace[function], arguments)
        return namespace[function](*arguments)

    folder = path.resolve().parent
    if any(folder.is_relative_to(shipped) for shipped in folders()):
        return foreign.call(what, path, execute)
    # Appended, so that files beside the config can be imported but shadow nothing.
    sys.path.append(str(folder))
    try:
        with imports.from_working_directory():
            return foreign.call(what, path, execute)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _check_arguments(what: str, function: Callable[..., Any], arguments: Any) -> None:
    signature = inspect.signature(function, eval_str=True)
    try:
        bound = signature.bind(*arguments).arguments
    except TypeError as error:
        expected = f"{function.__name__}({', '.join(signature.parameters)})"
        raise ReslabError(what, expected=expected, got=str(error)) from None
    for name, value in bound.items():
        annotation = signature.parameters[name].annotation
        choices = typing.get_args(annotation)
        if typing.get_origin(annotation) is typing.Literal and value not in choices:
            listed = " or ".join(map(repr, choices))
            raise ReslabError(f"{what}: {name}", expected=listed, got=repr(value))


def folders() -> list[pathlib.Path]:
    """Folders in which configs are found by name: installed, or in the checkout."""
    package = pathlib.Path(__file__).resolve().parent.parent
    candidates = [package / "configs", package.parent / "configs"]
    return [folder for folder in candidates if (folder / "base.py").is_file()]


def find(name: str) -> tuple[pathlib.Path, tuple[str, ...]]:
    """Finds the file that a config's name means, and the size after its colon, if any.

    Args:
      name: As `load` takes it.

    Raises:
      ReslabError: If there is no such file.
    """
    if (found := _file(name)) is not None:
        return found, ()
    # From the right: a directory name may contain a colon.
    file, _, size = name.rpartition(":")
    if file and size and (found := _file(file)) is not None:
        return found, (size,)
    known = {key for folder in folders() for key in _names(folder)}
    last = pathlib.PurePath(file or name).name.removesuffix(".py")
    close = [key for key in known if key.rpartition("/")[2] == last]
    hint = close[0] if len(close) == 1 else nearest(last, known)
    raise ReslabError(f"no config {name!r}", hint=hint)


def short_name(name: str) -> str:
    """Returns a config's name for directories and tables: its file, and its size.

    >>> short_name("configs/tiny.py"), short_name("configs/frontier/llama.py:published")
    ('tiny', 'llama-published')
    """
    last = pathlib.PurePath(name).name
    file, colon, size = last.rpartition(":")
    if not colon or last.endswith(".py"):
        return last.removesuffix(".py")
    return f"{file.removesuffix('.py')}-{size}"


def _file(name: str) -> pathlib.Path | None:
    path = pathlib.Path(name)
    if path.suffix == ".py" and path.is_file():
        return path.resolve()
    # Shipped configs are found by name, and by the path they have in a checkout.
    parts = pathlib.PurePath(name.removesuffix(".py")).parts
    parts = parts[1:] if parts[:1] == ("configs",) else parts
    if not parts or path.is_absolute() or ".." in parts:
        return None
    key = "/".join(parts)
    if now := RENAMED.get(key):
        warn(f"config {key!r} is now {now!r}", FutureWarning, depth=3)
        key = now
    candidates = [folder / f"{key}.py" for folder in folders()]
    return next((file for file in candidates if file.is_file()), None)


def _names(folder: pathlib.Path) -> list[str]:
    """Names of the configs in a folder and below: tiny, frontier/llama."""
    files = folder.rglob("*.py")
    return [file.relative_to(folder).with_suffix("").as_posix() for file in files]
