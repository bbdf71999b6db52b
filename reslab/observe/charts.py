"""Charts as data: lines with bands, intervals, heat maps, and their keys.

`observe/svg.py` draws them for a page, `study/plots.py` for a paper.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from reslab.observe import drawing
from reslab.observe.drawing import Number
from reslab.observe.scales import Scale


class Series(NamedTuple):
    """One line of a chart.

    Attributes:
      name: Name in the legend.
      x: Abscissas.
      y: Ordinates; None or not finite breaks the line.
      low: Lower edge of the band, if any.
      high: Upper edge of the band, if any.
    """

    name: str
    x: Sequence[float]
    y: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None

    def rows(self) -> list[tuple[float, Number, Number, Number]]:
        """The points with their band; None for what is not finite."""
        empty: Sequence[Number] = [None] * len(self.x)
        columns = (self.y, self.low or empty, self.high or empty)
        return [
            (x, drawing.finite(y), drawing.finite(low), drawing.finite(high))
            for x, y, low, high in zip(self.x, *columns, strict=True)
        ]


class Interval(NamedTuple):
    """One row of an interval chart: a value, and where it may lie."""

    name: str
    value: Number
    low: Number
    high: Number


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chart:
    """A drawing with alternative text.

    Attributes:
      identifier: Unique in the page.
      title: What is shown.
      description: Alternative text, one sentence.
    """

    identifier: str
    title: str
    description: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineChart(_Chart):
    """Lines over a common axis, each with a band where it has one, and a legend.

    Attributes:
      series: The lines, baseline first.
      x_label: What runs along, with its unit.
      y_label: What runs up, with its unit.
      is_log_x: Whether the horizontal axis is logarithmic; points at or below 0 are
        left out.
      is_log_y: Whether the vertical axis is logarithmic; values at or below 0 break
        the line.
      y_range: Ends of the vertical axis, shared by panels; those of the data if None.
        Values outside break the line.
      is_panel: Whether it is one of several with a common legend of their own.
    """

    series: Sequence[Series]
    x_label: str
    y_label: str
    is_log_x: bool = False
    is_log_y: bool = False
    y_range: tuple[float, float] | None = None
    is_panel: bool = False

    def rows(self, one: Series) -> list[tuple[float, Number, Number, Number]]:
        """The points of a line that the axes can show."""
        low, high = self.y_range or (-math.inf, math.inf)
        if self.is_log_y:
            low = max(low, math.ulp(0.0))
        return [
            (x, y, a, b)
            if y is not None and low <= y <= high
            else (x, None, None, None)
            for x, y, a, b in one.rows()
            if x > 0 or not self.is_log_x
        ]

    def bounds(self) -> tuple[float, float]:
        """Ends of the vertical axis before any margin."""
        if self.y_range:
            return self.y_range
        values = []
        for one in self.series:
            for _, *rest in self.rows(one):
                # Below a mean a band may reach down to 0, which no logarithm does.
                shown = (rest[0], rest[2]) if self.is_log_y else rest
                values += [v for v in shown if v is not None]
        return (min(values), max(values)) if values else (1.0 * self.is_log_y, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntervalChart(_Chart):
    """Values with their intervals, one row each, about a line at zero.

    Attributes:
      rows: The values, in order from the top.
      x_label: What runs along, with its unit.
    """

    rows: Sequence[Interval]
    x_label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeatMap(_Chart):
    """A matrix as colours, the first row at the bottom; what is no number is grey.

    Attributes:
      values: Rows of numbers (rows, columns).
      scale: The colours, shared by the maps that are to be compared.
      columns: Names of the columns.
      rows: Names of the rows.
      x_label: What runs along.
      y_label: What runs up.
    """

    values: Sequence[Sequence[Number]]
    scale: Scale
    columns: Sequence[str]
    rows: Sequence[str]
    x_label: str
    y_label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourBar(_Chart):
    """The key to the colours of heat maps, with numbers; its title says of what."""

    scale: Scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Legend(_Chart):
    """The key to the lines of several line charts."""

    names: Sequence[str]


Chart = LineChart | IntervalChart | HeatMap | ColourBar | Legend


def colour_bar(scale: Scale, *, identifier: str, label: str) -> ColourBar:
    """Makes the key to a scale, described by its ends.

    Args:
      scale: The colours.
      identifier: Unique in the page.
      label: What the numbers are.

    Returns:
      The key.
    """
    label += ", logarithmic" if scale.is_logarithmic else ""
    ends = ("blue", "red") if scale.is_diverging else ("dark", "light")
    return ColourBar(
        identifier=identifier,
        title=label,
        description=f"{label}: from {scale.low:.4g} ({ends[0]}) to {scale.high:.4g} "
        f"({ends[1]})",
        scale=scale,
    )
