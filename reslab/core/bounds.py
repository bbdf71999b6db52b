"""Values that arguments and fields may have, stated once: in their annotations.

@bounded
class Hyper(nn.Module):
streams: Annotated[int, Bounds(least=1, most=256)] = 4
form: Literal["static", "dynamic"] = "static"
"""

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from reslab.core.errors import ReslabError

Build = TypeVar("Build", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Bounds:
    """A range of finite numbers; of a tuple, each of its elements.

    Attributes:
      least: The smallest number in it; None is no end.
      above: The largest number below it.
      most: The largest number in it.
      below: The smallest number above it.
      also: A number outside that is in it, too.
      words: Description for errors; "" names the ends.

    >>> print(Bounds(least=1, most=256))
    at least 1 and at most 256
    >>> print(Bounds(above=0))
    above 0
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    also: float | None = None
    words: str = ""

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and (
            value == self.also
            or (
                (self.least is None or value >= self.least)
                and (self.above is None or value > self.above)
                and (self.most is None or value <= self.most)
                and (self.below is None or value < self.below)
            )
        )

    def __str__(self) -> str:
        ends = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        told = [f"{end} {value:,}" for end, value in ends.items() if value is not None]
        return self.words or " and ".join(told)

    def check(self, where: str, value: float) -> None:
        """Refuses a number outside.

        Raises:
          ReslabError: If it is; NaN and infinities always are.
        """
        if value not in self:
            got = f"{value:,}" if isinstance(value, int) else str(value)
            raise ReslabError(where, expected=str(self), got=got)


# Ranges that many parts share. Real numbers end where float32 has room to square them.
# Positive ones begin there, too: 1e-300 is 0 in float32.
_LARGEST, _SMALLEST = 10**9, 1e-18
Count = Annotated[int, Bounds(least=1)]
# Iterations within a step of a run, which a program may unroll.
Repeats = Annotated[int, Bounds(least=1, most=256)]
Whole = Annotated[int, Bounds(least=0)]
Seed = Annotated[int, Bounds(least=0, most=2**32 - 1)]
Real = Annotated[float, Bounds(least=-_LARGEST, most=_LARGEST)]
NonNegative = Annotated[float, Bounds(least=0, most=_LARGEST)]
Positive = Annotated[
    float,
    Bounds(
        least=_SMALLEST,
        most=_LARGEST,
        words=f"above 0 and at most {_LARGEST:,}, and no less than {_SMALLEST}",
    ),
]
Fraction = Annotated[float, Bounds(least=0, most=1)]
Momentum = Annotated[float, Bounds(least=0, below=1)]
Epsilon = Annotated[float, Bounds(least=0, most=1)]


@dataclasses.dataclass(frozen=True)
class Choices:
    """Values that a `Literal` lists.

    >>> print(Choices(("a", "b", "c")))
    'a', 'b' or 'c'
    """

    values: tuple[Any, ...]

    @classmethod
    def of(cls, hint: Any) -> "Choices | None":
        """Returns the choices of an annotation; None if it is no `Literal`."""
        if typing.get_origin(hint) is typing.Literal:
            return cls(typing.get_args(hint))
        return None

    def __str__(self) -> str:
        *first, last = map(repr, self.values)
        return f"{', '.join(first)} or {last}"

    def check(self, where: str, value: Any) -> None:
        """Refuses any other value.

        Raises:
          ReslabError: If it is another.
        """
        if value not in self.values:
            raise ReslabError(where, expected=str(self), got=repr(value))


def bounded(build: Build) -> Build:
    """Checks arguments with `Bounds` or a `Literal` whenever a part is built.

    Args:
      build: A Linen module, a class that is then made a dataclass, or a function, with
        arguments of type `Annotated[..., Bounds(...)]` or `Literal[...]`. Subclasses of
        a module are checked, too.

    Returns:
      The same module, or a function that checks first.
    """
    if not inspect.isclass(build):
        return typing.cast(Build, _bounded_function(build))
    module: Any = build
    after = getattr(module, "__post_init__", None)
    if getattr(after, "is_checking", False):
        return build  # A decorated base class also checks its subclasses.

    def __post_init__(self: Any) -> None:
        kind = type(self)
        _check(kind, {name: getattr(self, name) for name in bounds_of(kind)})
        if after is not None:
            after(self)

    checked: Any = __post_init__
    checked.is_checking = True
    module.__post_init__ = checked
    return build


def _bounded_function(build: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(build)

    @functools.wraps(build)
    def checked(*arguments: Any, **keywords: Any) -> Any:
        bound = signature.bind(*arguments, **keywords)
        _check(build, bound.arguments)
        return build(*arguments, **keywords)

    kept: Any = checked
    kept.is_checking = True
    return checked


@functools.cache
def bounds_of(build: Callable[..., Any]) -> Mapping[str, Bounds | Choices]:
    """Returns the bounds of a module's or a function's arguments, by name."""
    classes = reversed(build.__mro__) if inspect.isclass(build) else (build,)
    return {
        name: found
        for one in classes
        for name, hint in inspect.get_annotations(one).items()
        for found in (Choices.of(hint), *getattr(hint, "__metadata__", ()))
        if isinstance(found, Bounds | Choices)
    }


def _check(build: Callable[..., Any], values: Mapping[str, Any]) -> None:
    for name, bounds in bounds_of(build).items():
        value = values.get(name)
        for one in value if isinstance(value, tuple | list) else (value,):
            if one is not None:
                bounds.check(f"{_name(build)}: {name}", one)


def _name(build: Callable[..., Any]) -> str:
    """The name of a part as errors have it: "norms 'rms'"."""
    *_, folder, file = ("", *build.__module__.split("."))
    if not build.__module__.startswith("reslab."):
        return build.__name__
    return f"{'optimizers' if folder == 'optim' else folder} {file!r}"
