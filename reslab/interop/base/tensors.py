"""Tensors of theirs and parameters of ours: a name for each, and how they differ."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reslab.interop.base.forms import AsIs, Kernel, Shape, Vector

_SAME = AsIs()
# Which slice of a leaf: numbers of its first axes, or spans of any.
Index = tuple[int | slice, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table of tensors.

    Attributes:
      theirs: Name of the tensor; `{i}` is the layer, `{e}` the number of an expert,
        which the first axis of each of our parameters counts.
      ours: Paths of the parameters, below the layer's block where there is a layer.
      form: How they differ.
      has_prefix: Whether the family's prefix comes before the name.
      beside: Path of another parameter that the layer must have; "" asks for none.
      without: Path of a parameter that it must not have.
      grouped_by: Path of a parameter whose heads, its second axis from the end, are
        the groups of the form.
      part: Number of the part of our parameter's last axis that the tensor holds.
      parts: Count of equal parts, or for each part a kernel whose outputs it has.
      stores_gain_offset: Whether a gain is stored as an offset from one; None is the
        family's.
    """

    theirs: str
    ours: tuple[str, ...]
    form: AsIs = _SAME
    has_prefix: bool = True
    beside: str = ""
    without: str = ""
    grouped_by: str = ""
    part: int = 0
    parts: int | tuple[str, ...] = 1
    stores_gain_offset: bool | None = None

    @property
    def is_layered(self) -> bool:
        """Returns whether there is one for each layer."""
        return "{i}" in self.theirs

    @property
    def is_of_experts(self) -> bool:
        """Returns whether there is one for each expert."""
        return "{e}" in self.theirs


def only(rows: Sequence[Row], **fields: Any) -> tuple[Row, ...]:
    """Rows with other fields, such as those of a kind of layers by `beside`."""
    return tuple(dataclasses.replace(row, **fields) for row in rows)


def renamed(rows: Sequence[Row], **names: str) -> tuple[Row, ...]:
    """Rows whose names have other parts between their dots."""
    return tuple(
        dataclasses.replace(
            row,
            theirs=".".join(names.get(part, part) for part in row.theirs.split(".")),
        )
        for row in rows
    )


@dataclasses.dataclass(frozen=True)
class Place:
    """Position of a tensor's parameter in our tree.

    Attributes:
      path: Path of the leaf.
      index: Its slice of the leaf; () is all of it.
      shape: Shape of the slice.
    """

    path: str
    index: Index
    shape: Shape


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that a checkpoint must hold.

    Attributes:
      name: Its name.
      row: Its line of the table.
      form: How it differs from its parameters.
      places: Where its parts are among our parameters.
      layer: Its layer, if it is of one.
    """

    name: str
    row: Row
    form: AsIs
    places: tuple[Place, ...]
    layer: int | None = None

    @property
    def shape(self) -> Shape:
        """Returns its shape."""
        return self.form.shape([place.shape for place in self.places])


def tensors(
    rows: Sequence[Row],
    shapes: Mapping[str, Shape],
    blocks: Mapping[str, Any],
    prefix: str = "",
) -> list[Tensor]:
    """The tensors of a model, row by row.

    Args:
      rows: The table; rows whose parameters the model does not have are left out.
      shapes: Shape of each leaf of ours.
      blocks: The layers in each block of each scan (`core.depth.block_layers`).
      prefix: What their names begin with.

    Returns:
      Tensors whose places cover every leaf.
    """
    layers = sorted(
        (layer, f"{block}/", (index,))
        for block, numbers in blocks.items()
        for index, layer in enumerate(map(int, numbers))
    )
    found: list[Tensor] = []
    for row in rows:
        for layer, block, index in layers if row.is_layered else [(None, "", ())]:
            found += _of_row(row, shapes, prefix, layer, block, index)
    return found


def _of_row(
    row: Row,
    shapes: Mapping[str, Shape],
    prefix: str,
    layer: int | None,
    block: str,
    index: tuple[int, ...],
) -> Iterator[Tensor]:
    """The tensors of one row in one layer: one, or one for each expert."""
    paths = [block + path for path in row.ours]
    asked = [*paths, *(block + one for one in (row.beside, row.grouped_by) if one)]
    if not all(path in shapes for path in asked):
        return
    if row.without and block + row.without in shapes:
        return
    form = row.form
    if row.grouped_by:
        assert isinstance(form, Kernel | Vector)
        form = dataclasses.replace(form, groups=shapes[block + row.grouped_by][-2])
    count = shapes[paths[0]][len(index)] if row.is_of_experts else 0
    for expert in [(n,) for n in range(count)] if row.is_of_experts else [()]:
        at = (*index, *expert)
        places = tuple(
            _place(path, at, shapes[path], _span(row, shapes, path, block))
            for path in paths
        )
        names = {"i": layer, **({"e": expert[0]} if expert else {})}
        name = (prefix if row.has_prefix else "") + row.theirs.format(**names)
        yield Tensor(name, row, form, places, layer)


def _span(row: Row, shapes: Mapping[str, Shape], path: str, block: str) -> slice | None:
    """The part of the last axis that a tensor holds; None is all of it."""
    if row.parts == 1:
        return None
    size = shapes[path][-1]
    if isinstance(row.parts, int):
        each = math.ceil(size / row.parts)  # The last part may be smaller.
        return slice(row.part * each, min((row.part + 1) * each, size))
    sizes = [math.prod(shapes[block + one][-2:]) for one in row.parts]
    first = sum(sizes[: row.part])
    return slice(first, first + sizes[row.part])


def _place(path: str, index: Index, shape: Shape, span: slice | None) -> Place:
    rest = shape[len(index) :]
    if span is None:
        return Place(path, index, rest)
    at = (*index, *[slice(None)] * (len(rest) - 1), span)
    return Place(path, at, (*rest[:-1], span.stop - span.start))


def uncovered(found: Sequence[Tensor], shapes: Mapping[str, Any]) -> list[str]:
    """The leaves of ours that no tensor has a part of."""
    covered = {place.path for tensor in found for place in tensor.places}
    return sorted(shapes.keys() - covered)
