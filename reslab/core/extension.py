"""Parts of a user's own: what is expected of them, and where they break it."""

import contextlib
import dataclasses
import inspect
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from reslab.core.errors import ReslabError

# One line on a part of each family; `reslab.core.types` has the full protocols.
_PROTOCOLS: Mapping[str, str] = types.MappingProxyType(
    {
        "norms": "__call__(x) of the shape and dtype of x",
        "ffns": "__call__(x) of the shape and dtype of x",
        "linears": "__call__(x) of the dtype of x",
        "mixers": "__call__(x, *, positions, segments, shared, state) that returns "
        "(y, shared, state), y of the shape and dtype of x",
        "residuals": "widen(x), __call__(stream, branch, *, site) that returns a "
        "stream of the same form, and narrow(stream) of the shape of x",
        "placements": "__call__(stream, residual, branch, *, site) that returns a "
        "stream of the same form",
        "blocks": "__call__(stream, shared, *, layer, ...) that returns (stream, "
        "shared, state), the stream of the same form",
        "stacks": "__call__(x, ...) that returns (y, state), y of the shape and dtype "
        "of x",
        "positions": "embed(x, positions) of the shape and dtype of x",
        "optimizers": "an optax.GradientTransformation whose update returns a tree "
        "like the gradient",
        "schedules": "a function of the step",
    }
)
# Methods that a part must have.
_METHODS: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {
        **dict.fromkeys(("norms", "ffns", "linears", "mixers"), ("__call__",)),
        **dict.fromkeys(("placements", "blocks", "stacks", "schedules"), ("__call__",)),
        "residuals": ("widen", "__call__", "narrow"),
        "positions": ("embed",),
        "optimizers": ("init", "update"),
    }
)


@dataclasses.dataclass(frozen=True)
class _Part:
    family: str
    name: str
    file: str


# Modules outside reslab that specs have named.
_parts: dict[str, _Part] = {}


def register(family: str, module: types.ModuleType) -> None:
    """Notes that a part of a family is a module outside reslab."""
    name = module.__name__
    _parts[name] = _Part(family, name, getattr(module, "__file__", None) or name)


def family_of(module: str) -> str | None:
    """Returns the family that a module outside reslab was named for, or None."""
    part = _parts.get(module)
    return part.family if part else None


def is_used() -> bool:
    """Returns whether any part comes from outside reslab."""
    return bool(_parts)


def explain(error: BaseException) -> ReslabError | None:
    """The error for a person, if a module outside reslab was being executed.

    Args:
      error: What was raised.

    Returns:
      An error that names the file, the line and the protocol; None if no part from
      outside was involved.
    """
    files = {part.file: part for part in _parts.values()}
    found = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in files
    ]
    if not found:
        return None
    part, line = files[found[-1].filename], found[-1].lineno
    return _error(part, line, f"{type(error).__name__}: {_first_line(error)}")


@contextlib.contextmanager
def buildable(what: str) -> Iterator[None]:
    """Tells in one line what building something from specs raises.

    Parts that are valid alone may fail in combination.

    Args:
      what: What is built.

    Raises:
      ReslabError: If anything is raised but errors of the machine.
    """
    try:
        yield
    except (ReslabError, OSError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "JaxRuntimeError":
            raise
        raise explain(error) or ReslabError(
            f"{what} cannot be built",
            got=f"{type(error).__name__}: {_first_line(error)}",
            hint="python -X dev -m reslab ... for a traceback",
        ) from error


def _first_line(error: BaseException) -> str:
    try:
        return (str(error).strip().splitlines() or [""])[0]
    except Exception:  # The user's own exception may raise here, too.
        return ""


def _error(part: _Part, line: int | None, got: str) -> ReslabError:
    where = f"{part.file}, line {line}" if line else part.file
    return ReslabError(
        f"{part.family} {part.name!r}: {where}",
        expected=_PROTOCOLS.get(part.family),
        got=got,
    )


def build(family: str, name: str, make: Callable[..., Any], /, **context: Any) -> Any:
    """Builds a part from outside reslab, and checks that it has the right methods.

    Args:
      family: Its family.
      name: Full name of its module.
      make: What builds it.
      **context: What it is given.

    Raises:
      ReslabError: If building it raises anything, or the methods are not there.
    """
    part = _parts.get(name) or _Part(family, name, name)
    try:
        made = make(**context)
    except ReslabError:
        raise
    except Exception as error:
        raise explain(error) or _error(
            part, _line_of(make), f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    for method in _METHODS.get(family, ()):
        if not callable(getattr(made, method, None)):
            kind = type(made)
            what = "None" if made is None else f"{kind.__name__} without {method}"
            line = _line_of(make if made is None else kind)
            raise _error(part, line, what)
    if family == "optimizers":
        made = made._replace(update=_checked_update(part, made.update))
    return made


def _line_of(thing: Any) -> int | None:
    """The line at which a class or a function begins; None if it is not known."""
    try:
        return inspect.getsourcelines(inspect.unwrap(thing))[1]
    except (OSError, TypeError):
        return None


def _checked_update(part: _Part, update: Callable[..., Any]) -> Callable[..., Any]:
    def checked(gradients: Any, *arguments: Any, **keywords: Any) -> Any:
        found = update(gradients, *arguments, **keywords)
        line = _line_of(update)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise _error(part, line, f"{_form(found)}, not (updates, state)")
        _check_like(part, line, gradients, found[0])
        return found

    return checked


@contextlib.contextmanager
def held_to_protocols() -> Iterator[None]:
    """Checks what parts from outside reslab return while a model is traced.

    Costs nothing without such parts, and nothing when a program runs.
    """
    if not _parts:
        yield
        return
    import flax.linen as nn

    widened: dict[str, Any] = {}

    def check(call: Callable[..., Any], args: Any, keywords: Any, context: Any) -> Any:
        found = call(*args, **keywords)
        part = _parts.get(type(context.module).__module__)
        if part is not None and args:
            method = getattr(type(context.module), context.method_name)
            _check_call(part, context, _line_of(method), args[0], found, widened)
        return found

    with nn.intercept_methods(check):
        yield


def _check_call(
    part: _Part,
    context: Any,
    line: int | None,
    given: Any,
    found: Any,
    widened: dict[str, Any],
) -> None:
    family, method = part.family, context.method_name
    if family == "residuals" and method in ("widen", "narrow"):
        if method == "widen":
            widened[part.name] = given
        elif part.name in widened:
            _check_like(part, line, widened[part.name], found)
        return
    if method != ("embed" if family == "positions" else "__call__"):
        return
    if family in ("norms", "ffns", "positions"):
        _check_like(part, line, given, found)
    elif family == "linears":
        if getattr(found, "dtype", None) != given.dtype:
            raise _error(part, line, f"{_form(found)} for {_form(given)}")
    elif family in ("mixers", "blocks", "stacks"):
        parts = 2 if family == "stacks" else 3
        if not (isinstance(found, tuple) and len(found) == parts):
            raise _error(part, line, f"{_form(found)}, not {parts} values")
        # Queries, keys and values may come as separate arrays of the same shape.
        given = getattr(given, "query", given)
        if family != "blocks" or not _is_history(given):
            _check_like(part, line, given, found[0])
    elif family in ("residuals", "placements") and not _is_history(given):
        _check_like(part, line, given, found)


def _is_history(stream: Any) -> bool:
    """Returns whether a stream grows along depth."""
    return type(stream).__name__ == "History"


def _check_like(part: _Part, line: int | None, given: Any, found: Any) -> None:
    """Checks that a tree has the structure, shapes and dtypes of another."""
    if _forms(given) != _forms(found):
        raise _error(part, line, f"{_form(found)} for {_form(given)}")


def _forms(tree: Any) -> Any:
    import jax

    leaves, structure = jax.tree.flatten(tree)
    return structure, [
        (getattr(x, "shape", ()), getattr(x, "dtype", type(x))) for x in leaves
    ]


def _form(tree: Any) -> str:
    """A tree in a few words: `bfloat16(8, 16)`, or its leaves."""
    import jax

    if hasattr(tree, "shape") and hasattr(tree, "dtype"):
        return f"{tree.dtype}{tuple(tree.shape)}"
    leaves = jax.tree.leaves(tree)
    if not leaves or isinstance(tree, int | float | str):
        return f"{tree!r}"
    few = ", ".join(_form(leaf) for leaf in leaves[:3])
    more = f" and {len(leaves) - 3} more" if len(leaves) > 3 else ""
    return f"{type(tree).__name__} of {few}{more}"
