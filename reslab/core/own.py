"""Source files of parts outside reslab, which decide what a run computes, too."""

import ast
import hashlib
import importlib.util
import pathlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator

from reslab.core import imports, syntax


def files(modules: Iterable[str]) -> dict[str, pathlib.Path]:
    """Returns the files of modules, and of those that they import beside them.

    These are modules of the same package, and outside of installed packages the files
    and packages in the same folder, but not reslab. Found in the text alone: an import
    whose name is computed is not seen. Modules without a file, and those that cannot be
    found, are left out.

    Args:
      modules: Full names of modules outside reslab.

    Returns:
      The file of each module by its full name, in order of name.
    """
    found: dict[str, pathlib.Path] = {}
    for module in modules:
        path = _file(module)
        if path is None:
            continue
        depth = module.count(".") + (path.name == "__init__.py")
        _add(module, path, path.parents[depth], found)
    return dict(sorted(found.items()))


def digests(modules: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of each of these `files`."""
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files(modules).items()
    }


def _file(module: str) -> pathlib.Path | None:
    if module in sys.modules:
        name = getattr(sys.modules[module], "__file__", None)
    else:
        try:
            with imports.from_working_directory():
                spec = importlib.util.find_spec(module)
        # Raised by a package above it. Importing the module raises it again, where it
        # is reported.
        except (Exception, SystemExit):
            spec = None
        name = spec.origin if spec and spec.has_location else None
    path = pathlib.Path(name) if name else None
    return path if path and path.suffix == ".py" and path.is_file() else None


def _add(
    module: str,
    path: pathlib.Path,
    root: pathlib.Path,
    found: dict[str, pathlib.Path],
) -> None:
    """Adds a module and, of those it imports, the ones below the same root."""
    if module in found:
        return
    found[module] = path
    try:
        tree = syntax.module(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    top = module.partition(".")[0]
    is_installed = _is_installed(root)
    for name in _imported(tree, package):
        first = name.partition(".")[0]
        if first != top and (first == "reslab" or is_installed):
            continue
        place = root.joinpath(*name.split("."))
        for candidate in (place.with_suffix(".py"), place / "__init__.py"):
            if candidate.is_file():
                _add(name, candidate, root, found)


def _is_installed(folder: pathlib.Path) -> bool:
    """Returns whether packages of others lie in a folder, too."""
    known = {pathlib.Path(path).resolve() for path in sysconfig.get_paths().values()}
    is_site = folder.name in ("site-packages", "dist-packages")
    return is_site or folder.resolve() in known


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*filter(None, above), *filter(None, [node.module])])
            if base:
                yield base
            yield from (".".join(filter(None, [base, one.name])) for one in node.names)
