"""A Griffe extension: docstrings of reslab in the form that mkdocstrings reads."""

import re
import textwrap
from typing import Any

from griffe import (
    Class,
    Extension,
    Function,
    GriffeLoader,
    Module,
    Parameter,
    ParameterKind,
)

# The arguments that `reslab.optim.base.wrapping.wrapper` adds to what it decorates.
ADDED = {
    "learning_rate": ("optax.ScalarOrSchedule", None),
    "weight_decay": ("float", "0.0"),
}
INHERITED = re.compile(r"^ *\((?:and )?those of `(\w+)`\) *\n?", re.MULTILINE)


class Docstrings(Extension):
    """Writes out inherited attributes and marks examples as a section."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **_: Any) -> None:
        """Rewrites every docstring of a package once all of it is loaded."""
        named: dict[str, Class | Function] = {}
        _collect(pkg, named)
        for found in named.values():
            if found.is_function:
                _complete(found)
            if found.docstring:
                text = INHERITED.sub(
                    lambda match: _attributes(match[1], named), found.docstring.value
                )
                found.docstring.value = _with_examples(text)


def _complete(found: Any) -> None:
    """Gives an optimizer that wraps another the arguments that it is called with."""
    if not any(str(one.value).startswith("wrapper(") for one in found.decorators):
        return
    for name, (annotation, default) in ADDED.items():
        if name not in found.parameters:
            kind = ParameterKind.keyword_only
            found.parameters.add(
                Parameter(name, annotation=annotation, kind=kind, default=default)
            )


def _collect(scope: Any, named: dict[str, Class | Function]) -> None:
    for member in scope.members.values():
        if member.is_alias:
            continue
        if member.is_class or member.is_function:
            named[member.name if member.is_class else member.path] = member
            if member.is_function and member.name == "build":
                named[member.module.name] = member
        if member.is_class or member.is_module:
            _collect(member, named)


def _attributes(name: str, named: dict[str, Class | Function]) -> str:
    """Returns the attributes that a class's own docstring lists, as lines."""
    found = named.get(name)
    if found is None or found.docstring is None:
        return ""
    _, _, rest = found.docstring.value.partition("Attributes:\n")
    lines = re.split(r"\n(?!  )", rest, maxsplit=1)[0]
    return INHERITED.sub(lambda match: _attributes(match[1], named), lines + "\n")


def _with_examples(text: str) -> str:
    """Puts the examples at the end of a docstring under a heading."""
    paragraphs = text.rstrip().split("\n\n")
    begin = len(paragraphs)
    while begin and paragraphs[begin - 1].startswith(">>> "):
        begin -= 1
    if begin == len(paragraphs):
        return text.rstrip()
    examples = textwrap.indent("\n\n".join(paragraphs[begin:]), "    ")
    return "\n\n".join([*paragraphs[:begin], f"Examples:\n{examples}"])
