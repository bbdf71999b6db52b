"""Names in configs become objects from files.

A *spec string* such as `"dyt(alpha=0.8)"` names a variant of a family and its
keyword arguments. The family is a folder, the variant a file in it that defines
`build`; adding a variant therefore edits no existing file. A dotted name is a
module of the caller's own.
"""

import ast
import collections.abc
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pathlib
import types
import typing
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from reslab.core import extension, foreign, imports, renames, syntax
from reslab.core.bounds import Choices
from reslab.core.errors import ReslabError, nearest
from reslab.core.literals import LONGEST, check_plain

FAMILIES: Mapping[str, str] = types.MappingProxyType(
    {
        "norms": "reslab.nn.norms",
        "placements": "reslab.nn.placements",
        "residuals": "reslab.nn.residuals",
        "mixers": "reslab.nn.mixers",
        "ffns": "reslab.nn.ffns",
        "linears": "reslab.nn.linears",
        "positions": "reslab.nn.positions",
        "value_paths": "reslab.nn.value_paths",
        "blocks": "reslab.nn.blocks",
        "stacks": "reslab.nn.stacks",
        "optimizers": "reslab.optim",
        "schedules": "reslab.optim.schedules",
        "scalings": "reslab.optim.scalings",
        "sources": "reslab.data.sources",
        "models": "reslab.models",
        "tasks": "reslab.train.tasks",
        "tokenizers": "reslab.data.tokenizers",
        "images": "reslab.data.images",
        "series": "reslab.data.series",
        "problems": "reslab.data.problems",
        "writers": "reslab.observe.writers",
        "probes": "reslab.observe.probes",
        "transforms": "reslab.transforms",
    }
)

# Annotations that a literal is checked against.
_PLAIN = {int, float, bool, str, tuple, types.NoneType}
# Sizes and counts are int32 where they meet an array.
_LARGEST_SIZE = 2**31 - 1

# A variant by name, or any callable that takes the same keyword arguments.
Spec = str | Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A spec string taken apart: the variant's name and its literal arguments."""

    name: str
    arguments: Mapping[str, Any]


def parse(spec: str) -> Parsed:
    """Parses `"name"` or `"name(key=literal, ...)"`; evaluates nothing.

    Args:
      spec: The spec string.

    Returns:
      The name and the keyword arguments.

    Raises:
      ReslabError: If the text is anything else.

    >>> parse("dyt(alpha=0.8)").arguments
    {'alpha': 0.8}
    """
    try:
        return _parsed(spec)
    except TypeError:  # Neither a string nor hashable.
        raise _malformed(spec) from None


def spec_text(name: str, arguments: Mapping[str, Any]) -> str:
    """Writes a spec string; the inverse of `parse`.

    >>> spec_text("rms", {"epsilon": 1e-05})
    'rms(epsilon=1e-05)'
    """
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"{name}({written})" if written else name


def _malformed(spec: Any) -> ReslabError:
    form = "name or name(key=literal, ...)"
    return ReslabError("malformed spec", expected=form, got=repr(spec))


# A model requests the same few specs for every part and trace.
@functools.lru_cache(maxsize=1024, typed=True)
def _parsed(spec: str) -> Parsed:
    try:
        if len(spec) > LONGEST:
            raise ValueError(f"{len(spec):,} characters")
        node = syntax.expression(spec.strip())
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if call.args or not isinstance(call.func, ast.Name | ast.Attribute):
            raise ValueError("only keyword arguments")
        arguments = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in arguments:
                raise ValueError("repeated or starred argument")
            arguments[keyword.arg] = check_plain(ast.literal_eval(keyword.value))
        return Parsed(ast.unparse(call.func), arguments)
    except (
        *(SyntaxError, ValueError, TypeError, AttributeError),
        *(MemoryError, RecursionError),
    ):
        raise _malformed(spec) from None


@functools.cache
def names(family: str) -> tuple[str, ...]:
    """Lists the variants of a family without importing any of them."""
    return tuple(sorted(_files(family)))


@functools.cache
def _files(family: str) -> Mapping[str, pathlib.Path]:
    if family not in FAMILIES:
        raise ReslabError(f"unknown family {family!r}", hint=nearest(family, FAMILIES))
    found = importlib.util.find_spec(FAMILIES[family])
    folders = found.submodule_search_locations if found else ()
    paths = (p for folder in folders or () for p in pathlib.Path(folder).glob("*.py"))
    return {p.stem: p for p in paths if p.stem[0] != "_" and _defines_build(p)}


def _defines_build(path: pathlib.Path) -> bool:
    """Returns whether a file defines `build`; helpers beside variants do not."""
    for node in syntax.module(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == "build":
            return True
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "build"
            for target in node.targets
        ):
            return True
    return False


def file(family: str, name: str) -> pathlib.Path:
    """The file of a variant."""
    return _files(family)[name]


def module(family: str, name: str) -> types.ModuleType:
    """Imports the file of one variant; a dotted name is the caller's own module.

    Raises:
      ReslabError: If there is no such variant, or it has no `build`.
    """
    if "." not in name:
        if name not in names(family):
            raise ReslabError(
                f"unknown {family} {name!r}", hint=nearest(name, names(family))
            )
        return importlib.import_module(f"{FAMILIES[family]}.{name}")
    found = own_module(f"{family} {name!r}", name, "build")
    extension.register(family, found)
    return found


def own_module(what: str, name: str, function: str) -> types.ModuleType:
    """Imports a caller's own module, which must define a function.

    Args:
      what: The part that needs the module, for errors.
      name: Full name of the module.
      function: Name of the function.

    Raises:
      ReslabError: If it may not be imported, does not exist, or has no such function.
    """
    imports.check(what, name)
    with imports.from_working_directory():
        found = foreign.call(what, None, _import, what, name)
    if not callable(getattr(found, function, None)):
        raise ReslabError(
            f"{what}, {found.__file__}", expected=f"a module with `{function}`"
        )
    return found


def _import(what: str, name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ReslabError(
                what,
                expected="an importable module",
                got=f"no module named {error.name!r}",
                hint="install it or set PYTHONPATH",
            ) from None
        raise


def outside(family: str, spec: Any) -> Iterator[str]:
    """Yields the modules outside reslab that specs name, in their arguments as well.

    Imports none of them. What is no spec is passed over: `factory` refuses it.

    Args:
      family: The family of the variant.
      spec: A spec string, or a sequence of them.

    >>> list(outside("mixers", "attention(value_path='lab.path', linear='lab.noisy')"))
    ['lab.path', 'lab.noisy']
    >>> list(outside("sources", "text(path='lab.txt')"))
    []
    """
    if isinstance(spec, list | tuple):
        for one in spec:
            yield from outside(family, one)
        return
    try:
        parsed = parse(spec)
    except ReslabError:
        return
    if "." in parsed.name:
        yield parsed.name
    for key, value in parsed.arguments.items():
        found = list(outside(_family_of_argument(key, family), value))
        if found and _takes_specs(family, parsed.name, key):
            yield from found


def _family_of_argument(name: str, family: str) -> str:
    """The family of an argument's spec: `qkv_norm` is a norm, `others` are siblings."""
    return next((f for f in FAMILIES if f"{name}s".endswith(f)), family)


def _takes_specs(family: str, name: str, argument: str) -> bool:
    """Returns whether an argument may be a spec, so is not declared a text."""
    if name not in names(family):
        return False
    try:
        hint = _hints(module(family, name).build).get(argument)
    except Exception:  # An extra is missing, so nothing will be built.
        return False
    return not _PLAIN.issuperset(typing.get_args(hint) or {hint})


def arguments(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword arguments that a variant takes, in order."""
    parameters = _parameters(build)
    # Linen modules take both in addition to their own fields.
    linen = {"parent", "name"}
    hidden = linen if linen <= parameters.keys() else set()
    return {name: p for name, p in parameters.items() if name not in hidden}


def accepts(family: str, spec: Spec, argument: str) -> bool:
    """Returns whether a variant takes an argument of that name."""
    build = spec if callable(spec) else module(family, parse(spec).name).build
    return argument in arguments(build)


def factory(family: str, spec: Spec) -> Callable[..., Any]:
    """Resolves a spec to a callable that takes the surrounding context.

    The result is called with everything the surroundings know (`dtype`,
    `depth`, ...) and passes on what the variant accepts. Arguments written in
    the spec win over the context.

    Args:
      family: A key of `FAMILIES`.
      spec: A spec string, or a callable, which is used as it is.

    Returns:
      A callable that builds the variant.

    Raises:
      ReslabError: On a malformed spec, an unknown variant, or an argument that
        the variant does not have or that has the wrong type.
    """
    if callable(spec):
        kind: Any = spec
        while isinstance(kind, functools.partial):
            kind = kind.func
        if isinstance(kind, type):
            _classes[kind] = family
        return functools.partial(_call, spec, {})
    if not isinstance(spec, str):
        raise ReslabError(f"{family}", expected="a spec string", got=repr(spec))
    parsed = _current(family, parse(spec))
    build = module(family, parsed.name).build
    accepted = arguments(build)
    hints = _hints(build)
    written: dict[str, Any] = {}
    for key, value in parsed.arguments.items():
        if key not in accepted:
            known = accepted.keys() - _reserved(family)
            raise ReslabError(
                f"{family} {parsed.name!r} has no argument {key!r}",
                hint=nearest(key, known) if known else "it takes none",
            )
        if key in _reserved(family):
            raise ReslabError(
                f"{family} {parsed.name!r}: {key} is not set in a spec",
                hint="leave it out: a field of the config or the model sets it",
            )
        where = f"{family} {parsed.name!r}: {key}"
        written[key] = _typed(where, hints.get(key), value)
    if "." in parsed.name:
        build = functools.wraps(build)(
            functools.partial(extension.build, family, parsed.name, build)
        )
    return functools.partial(_call, build, written)


def _reserved(family: str) -> Collection[str]:
    # Imported here: it needs JAX, and imports this module.
    from reslab.core.surroundings import reserved

    return reserved(family)


def _current(family: str, parsed: Parsed) -> Parsed:
    """A spec of an earlier version in present names."""
    found = module(family, parsed.name)
    if renamed := getattr(found, "RENAMED", None):
        known = family, parsed.name, found.build, renamed
        return Parsed(*renames.current(*known, parsed.arguments))
    return parsed


def typed_arguments(family: str, spec: str) -> dict[str, Any]:
    """The arguments of a spec string, each of the type of its annotation.

    >>> typed_arguments("norms", "dyt(alpha=1)")
    {'alpha': 1.0}
    """
    made: Any = factory(family, spec)
    return dict(made.args[1])


def make(family: str, spec: Spec, **context: Any) -> Any:
    """Builds a variant: `factory(family, spec)(**context)`."""
    return factory(family, spec)(**context)


def family_of(part: type) -> str | None:
    """Returns the family of a class, or None.

    A class is of the family in whose folder it or a base of it is defined, or that it
    was named for: as a callable (also inside a `functools.partial`), or by a module of
    the caller's own.

    >>> family_of(module("norms", "rms").build)
    'norms'
    """
    for base in part.__mro__:
        if found := _classes.get(base) or _packages.get(_package(base)):
            return found
        if found := extension.family_of(base.__module__):
            return found
    return None


# Classes passed as specs, and the folders of the families.
_classes: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
_packages = {package: family for family, package in FAMILIES.items()}


def _package(part: type) -> str:
    return part.__module__.rpartition(".")[0]


def unbound(family: str, spec: Spec, **context: Any) -> Any:
    """Builds a variant outside of any module, to read its traits.

    The same spec and context give the same object, so reading a trait while a model
    is traced costs no build.

    Args:
      family: A key of `FAMILIES`.
      spec: A spec string, or a callable.
      **context: Surroundings, all hashable.

    Returns:
      The variant; a Linen module has no parent.

    Raises:
      ReslabError: As in `factory`.
    """
    build = spec if callable(spec) else module(family, parse(spec).name).build
    return _unbound(family, spec, **_accepted(build, {**context, "parent": None}))


@functools.lru_cache(maxsize=1024, typed=True)
def _unbound(family: str, spec: Spec, **context: Any) -> Any:
    return make(family, spec, **context)


def _call(
    build: Callable[..., Any], written: Mapping[str, Any], /, **context: Any
) -> Any:
    return build(**_accepted(build, context) | written)


def _accepted(build: Callable[..., Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a context that a variant takes."""
    parameters = _parameters(build)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(context)
    return {key: value for key, value in context.items() if key in parameters}


def _parameters(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Reads a signature; those of classes and functions are kept."""
    if isinstance(build, type | types.FunctionType):
        return _kept_parameters(build)
    return inspect.signature(build).parameters


@functools.lru_cache(maxsize=1024)
def _kept_parameters(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(build).parameters


def _hints(build: Callable[..., Any]) -> Mapping[str, Any]:
    """Reads annotations; those of classes and functions are kept."""
    target = build.func if isinstance(build, functools.partial) else build
    if isinstance(target, type | types.FunctionType):
        return _kept_hints(target)
    return _read_hints(target)


def _read_hints(target: Any) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError):
        return {}


_kept_hints = functools.lru_cache(maxsize=1024)(_read_hints)


def _is_callable(hint: Any) -> bool:
    return typing.get_origin(hint) is collections.abc.Callable


def _typed(where: str, hint: Any, value: Any) -> Any:
    """A literal as its annotation has it; anything richer than plain is let through."""
    if choices := Choices.of(hint):
        choices.check(where, value)
    options = (hint,)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        # A literal cannot be a callable, so a spec is a string here.
        options = tuple(o for o in typing.get_args(hint) if not _is_callable(o))
    wanted = {typing.get_origin(option) or option for option in options}
    if wanted and wanted <= _PLAIN:
        if type(value) is int and float in wanted and int not in wanted:
            return float(value)
        is_tuple = tuple in wanted and isinstance(value, list)
        if type(value) not in wanted and not is_tuple:
            expected = " or ".join(
                sorted("None" if t is types.NoneType else t.__name__ for t in wanted)
            )
            raise ReslabError(where, expected=expected, got=repr(value))
    is_large = isinstance(value, int) and abs(value) > _LARGEST_SIZE
    if is_large and not where.endswith("seed"):
        raise ReslabError(where, expected="a number of 31 bits", got=str(value))
    return value
