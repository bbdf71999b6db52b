"""Variants as text: what `reslab list` and `reslab show` print."""

import ast
import dataclasses
import inspect
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax

from reslab.core import extension, registry, syntax
from reslab.core.errors import ReslabError, nearest
from reslab.core.trees import (
    count_parameters,
    named_leaves,
    unbox,
)
from reslab.models.examples import CALLS, run_example


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the list of variants.

    Attributes:
      family: Family of the variant.
      name: Name to write in a config.
      summary: First line of its docstring.
      reference: Author, year and address, or an empty string.
    """

    family: str
    name: str
    summary: str
    reference: str


def entries(family: str) -> Iterator[Entry]:
    """Reads the rows of a family from its files, importing none of them."""
    for name in registry.names(family):
        path = registry.file(family, name)
        summary, reference = _docstring_heads(path)
        yield Entry(family, name, summary, reference)


def _docstring_heads(path: pathlib.Path) -> tuple[str, str]:
    tree = syntax.module(path.read_bytes())
    definitions = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    target = "build"
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "build":
            target = ast.unparse(node.value)
    node = definitions.get(target)
    text = (ast.get_docstring(node) if node else None) or ast.get_docstring(tree) or ""
    paragraph = ""
    if "Reference:" in text:
        paragraph = text.split("Reference:", 1)[1].split("\n\n", 1)[0]
    reference = " ".join(paragraph.split()).split(";", 1)[0].rstrip(".")
    return text.partition("\n")[0], reference


def list_variants(family: str | None = None) -> str:
    """Lists the variants of one family or of all: name, one line, reference.

    Raises:
      ReslabError: If there is no such family.
    """
    lines = []
    for one in [family] if family else registry.FAMILIES:
        rows = list(entries(one))
        lines.append(f"{one} ({len(rows)})")
        wide = max((len(row.name) for row in rows), default=0)
        for row in rows:
            lines.append(f"  {row.name:{wide}}  {row.summary}")
            if row.reference:
                lines.append(f"  {'':{wide}}  {row.reference}")
        lines.append("")
    return "\n".join(lines).rstrip()


def variants_table() -> str:
    """Returns all variants as a Markdown table, for docs/VARIANTS.md."""
    lines = ["| family | variants |", "|---|---|"]
    for family in registry.FAMILIES:
        listed = ", ".join(f"`{name}`" for name in registry.names(family))
        lines.append(f"| {family} | {listed} |")
    return "\n".join(lines)


def show_variant(name: str, width: int) -> str:
    """Docstring, arguments with defaults, and parameter shapes of a variant.

    Args:
      name: `family/name`.
      width: Width at which the shapes are given.

    Raises:
      ReslabError: If there is no such variant.
    """
    family, _, variant = name.partition("/")
    if family not in registry.FAMILIES:
        raise ReslabError(
            f"unknown family {family!r}", hint=nearest(family, registry.FAMILIES)
        )
    if not all(part.isidentifier() for part in variant.split(".")):
        raise ReslabError(
            f"{family} {variant!r}",
            expected="the name of a variant",
            hint=nearest(variant, registry.names(family)),
        )
    build = registry.module(family, variant).build
    lines = [name, "", documentation(build), "", "Arguments:"]
    for key, parameter in registry.arguments(build).items():
        default = parameter.default
        value = getattr(default, "__name__", repr(default))
        lines.append(f"  {key} = {'required' if default is parameter.empty else value}")
    try:
        shapes = parameter_shapes(family, variant, width)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, ReslabError) or extension.explain(error):
            raise
        raise ReslabError(
            f"{name} at width {width}",
            expected="a width that its parts divide",
            got=str(error).partition("\n")[0],
            hint="--width 128",
        ) from error
    if shapes is not None:
        lines += ["", f"Parameters at width {width}:"]
        for path, leaf in shapes.items():
            lines.append(f"  {path}  {tuple(leaf.shape)}")
        lines.append(f"  {count_parameters(list(shapes.values())):,} in all")
    return "\n".join(lines)


def documentation(build: Any) -> str:
    """Returns a docstring, with the attributes that it leaves to a base written out."""
    bases = {base.__name__: base for base in getattr(build, "__mro__", ())}

    def attributes(match: re.Match[str]) -> str:
        found = documentation(bases[match[1]]).partition("Attributes:\n")[2]
        return re.split(r"\n(?!  )", found, maxsplit=1)[0] + "\n"

    inherited = rf" *\((?:and )?those of `({'|'.join(bases)})`\)\n?"
    return re.sub(inherited, attributes, inspect.getdoc(build) or "")


def parameter_shapes(
    family: str, spec: registry.Spec, width: int
) -> dict[str, jax.ShapeDtypeStruct] | None:
    """Shapes of a variant's parameters at a width; None if it can have none."""
    if family not in CALLS:
        return None
    variables = jax.eval_shape(lambda: run_example(family, spec, width)[1])
    return named_leaves(unbox(variables).get("params", {}))
