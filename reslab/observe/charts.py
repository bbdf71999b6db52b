"""Charts as SVG text: lines with bands, heat maps, intervals. Numbers in, text out.

A chart is drawn narrow, so that its letters keep their size on a phone; a wide page
sets several beside each other. Everything but the data is drawn in `currentColor`
and follows the page into the dark and onto paper.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from reslab.observe import drawing
from reslab.observe.drawing import Number

# Nine colours of viridis (van der Walt & Smith, 2015, https://bids.github.io/colormap/),
# which is even in lightness to normal and colour-blind eyes; between them, straight
# lines in sRGB.
_ANCHORS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80")
_ANCHORS += ("5ec962", "addc30", "fde725")


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


class Interval(NamedTuple):
    """One row of an interval chart: a value, and where it may lie."""

    name: str
    value: Number
    low: Number
    high: Number


class Scale(NamedTuple):
    """The range of colours that several heat maps share."""

    low: float
    high: float
    is_logarithmic: bool

    def share(self, value: Number) -> float | None:
        """Returns a value's place in the range, 0 to 1; None without a colour."""
        if value is None or not math.isfinite(value):
            return None
        low, high = self.low, self.high
        if self.is_logarithmic:
            if value <= 0:
                return None
            value, low, high = math.log(value), math.log(low), math.log(high)
        return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5


def colour(share: float) -> str:
    """The colour at a share of the map, 0 dark to 1 light.

    >>> colour(0.0), colour(1.0)
    ('#440154', '#fde725')
    """
    position = min(1.0, max(0.0, share)) * (len(_ANCHORS) - 1)
    index = min(int(position), len(_ANCHORS) - 2)
    rest = position - index
    mixed = (
        round((1 - rest) * int(a, 16) + rest * int(b, 16))
        for a, b in (
            (_ANCHORS[index][i : i + 2], _ANCHORS[index + 1][i : i + 2])
            for i in (0, 2, 4)
        )
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def common_scale(values: Sequence[Number], *, is_logarithmic: bool = False) -> Scale:
    """Returns a scale of all finite values, or of positive ones if logarithmic."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return Scale(0.0, 1.0, False)
    positive = [v for v in finite if v > 0]
    if is_logarithmic and positive:
        return Scale(min(positive), max(positive), True)
    return Scale(min(finite), max(finite), False)


def line_chart(
    series: Sequence[Series],
    *,
    identifier: str,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    is_log_x: bool = False,
) -> str:
    """Lines over a common axis, each with a band where it has one, and a legend.

    Args:
      series: The lines, baseline first.
      identifier: Unique in the page.
      title: What is shown.
      description: Alternative text, one sentence.
      x_label: What runs along, with its unit.
      y_label: What runs up, with its unit.
      is_log_x: Whether the horizontal axis is logarithmic; points at or below 0 are
        left out.

    Returns:
      An `<svg>` element.
    """
    points = [
        (x, y, low, high)
        for one in series
        for x, y, low, high in _rows(one)
        if y is not None and (x > 0 or not is_log_x)
    ]
    exponent = drawing.exponent([x for x, *_ in points])
    x_label += f" ({drawing.power(exponent)})" if exponent else ""
    factor = 10.0**-exponent
    xs = [x * factor for x, *_ in points] or [0.0, 1.0]
    ys = [v for _, *rest in points for v in rest if v is not None] or [0.0, 1.0]
    y_ticks, y_low, y_high = drawing.axis(min(ys), max(ys))
    y_names = drawing.names(y_ticks)
    left = 24 + max(map(len, y_names)) * drawing.LETTER
    top, plot_height = 30, 196
    right, bottom = drawing.WIDTH - 10, top + plot_height
    if is_log_x:
        x_low, x_high = min(xs), max(max(xs), min(xs) * 1.001)
        x_ticks = drawing.log_ticks(x_low, x_high)
        place_x = drawing.place(
            math.log(x_low), math.log(x_high), left, right, math.log
        )
    else:
        x_low, x_high = min(0.0, *xs), max(xs)
        x_high = x_high if x_high > x_low else x_low + 1.0
        x_ticks = drawing.ticks(x_low, x_high, 5)
        place_x = drawing.place(x_low, x_high, left, right)
    place_y = drawing.place(y_low, y_high, bottom, top)

    parts = [drawing.text(0, 12, title, weight="600")]
    for value, name in zip(y_ticks, y_names, strict=True):
        y = place_y(value)
        parts.append(drawing.rule(left, y, right, y, opacity=0.13))
        parts.append(drawing.text(left - 5, y + 4, name, anchor="end"))
    parts += drawing.x_axis(x_ticks, place_x, left, right, bottom)
    parts.append(
        drawing.text((left + right) / 2, bottom + 34, x_label, anchor="middle")
    )
    middle = (top + bottom) / 2
    parts.append(drawing.text(11, middle, y_label, anchor="middle", turn=-90))

    def height(value: Number) -> Number:
        return None if value is None else place_y(value)

    bands, lines = [], []
    for index, one in enumerate(series):
        rows = [
            (place_x(x * factor), height(y), height(low), height(high))
            for x, y, low, high in _rows(one)
            if x > 0 or not is_log_x
        ]
        bands.append(drawing.band(rows, index))
        lines.append(drawing.line([(x, y) for x, y, *_ in rows], index))
    # Bands first, so that they hide no line.
    parts += [part for part in (*bands, *lines) if part]
    legend, height = drawing.legend([one.name for one in series], bottom + 52)
    parts += legend
    return drawing.svg(identifier, title, description, drawing.WIDTH, height, parts)


def interval_chart(
    rows: Sequence[Interval],
    *,
    identifier: str,
    title: str,
    description: str,
    x_label: str,
) -> str:
    """Values with their intervals, one row each, about a line at zero.

    Args:
      rows: The values, in order from the top.
      identifier: Unique in the page.
      title: What is shown.
      description: Alternative text, one sentence.
      x_label: What runs along, with its unit.

    Returns:
      An `<svg>` element.
    """
    known = [v for row in rows for v in row[1:] if v is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    left, right, top = 8, drawing.WIDTH - 8, 28
    bottom = top + _ROW * len(rows) + 4
    place = drawing.place(low, high, left, right)
    parts = [drawing.text(0, 12, title, weight="600")]
    for index, row in enumerate(rows):
        y = top + _ROW * index + 26
        # Zero is marked beside the interval only: a full line would cross names.
        parts.append(
            drawing.rule(place(0), y - 8, place(0), y + 8, opacity=0.6, dash="2 2")
        )
        name = row.name if row.value is not None else f"{row.name}: no figure"
        parts.append(drawing.text(left, y - 12, drawing.shortened(name, right - left)))
        if row.value is None:
            continue
        if row.low is not None and row.high is not None:
            a, b = place(row.low), place(row.high)
            parts.append(drawing.rule(a, y, b, y, width=1.6))
            parts += [drawing.rule(x, y - 4, x, y + 4, width=1.6) for x in (a, b)]
        parts.append(
            f'<circle cx="{place(row.value):.1f}" cy="{y}" r="4" '
            f'fill="{drawing.COLOURS[1]}" stroke="currentColor" stroke-width=".8"/>'
        )
    parts += drawing.x_axis(drawing.ticks(low, high, 4), place, left, right, bottom)
    parts.append(
        drawing.text((left + right) / 2, bottom + 34, x_label, anchor="middle")
    )
    return drawing.svg(
        identifier, title, description, drawing.WIDTH, bottom + 42, parts
    )


_ROW = 38  # Height of a row of an interval chart.
MAP_WIDTH = 176


def heat_map(
    values: Sequence[Sequence[Number]],
    scale: Scale,
    *,
    identifier: str,
    title: str,
    description: str,
    columns: Sequence[str],
    rows: Sequence[str],
    x_label: str,
    y_label: str,
) -> str:
    """A matrix as colours, the first row at the bottom; what is no number is grey.

    Args:
      values: Rows of numbers (rows, columns).
      scale: The colours, shared by the maps that are to be compared.
      identifier: Unique in the page.
      title: What is shown.
      description: Alternative text, one sentence.
      columns: Names of the columns.
      rows: Names of the rows.
      x_label: What runs along.
      y_label: What runs up.

    Returns:
      An `<svg>` element.
    """
    heads = drawing.wrapped(title, MAP_WIDTH)
    left = 22 + max([len(name) for name in rows] or [1]) * drawing.LETTER
    right, top = MAP_WIDTH - 8, 14 + drawing.LINE * len(heads)
    bottom = top + 130
    wide, high = (right - left) / max(1, len(columns)), 130 / max(1, len(rows))
    cells: dict[str, list[str]] = {}
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            share = scale.share(value)
            # Quantized to 64 levels, so that cells of a colour share one path.
            fill = "none" if share is None else colour(round(share * 63) / 63)
            # Edges rounded to pixels, to leave no gaps between cells.
            x, x_end = round(left + j * wide, 1), round(left + (j + 1) * wide, 1)
            y, y_end = round(bottom - (i + 1) * high, 1), round(bottom - i * high, 1)
            cells.setdefault(fill, []).append(
                f"M{x:g} {y:g}h{x_end - x:.4g}v{y_end - y:.4g}h{x - x_end:.4g}z"
            )
    parts = [
        drawing.text(0, 12 + drawing.LINE * i, head, weight="600")
        for i, head in enumerate(heads)
    ]
    parts.append(
        f'<rect x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="130" '
        'fill="currentColor" fill-opacity=".12"/>'
    )
    parts.append(
        '<g shape-rendering="crispEdges">'
        + "".join(
            f'<path fill="{fill}" d="{"".join(paths)}"/>'
            for fill, paths in sorted(cells.items())
            if fill != "none"
        )
        + "</g>"
    )
    widest = max([len(name) for name in columns] or [1]) * drawing.LETTER + 8
    for j in drawing.some(
        len(columns), max(1, int((right - left + widest / 2) / widest))
    ):
        x = left + (j + 0.5) * wide
        # Names at the edges stay inside the drawing.
        half = len(columns[j]) * drawing.LETTER / 2
        x = min(max(x, half), MAP_WIDTH - half)
        parts.append(drawing.text(x, bottom + 14, columns[j], anchor="middle"))
    for i in drawing.some(len(rows), 6):
        y = bottom - (i + 0.5) * high
        parts.append(drawing.text(left - 4, y + 4, rows[i], anchor="end"))
    parts.append(
        drawing.text((left + right) / 2, bottom + 29, x_label, anchor="middle")
    )
    middle = (top + bottom) / 2
    parts.append(drawing.text(11, middle, y_label, anchor="middle", turn=-90))
    return drawing.svg(identifier, title, description, MAP_WIDTH, bottom + 36, parts)


def colour_bar(scale: Scale, *, identifier: str, label: str) -> str:
    """The key to the colours of heat maps, with numbers.

    Args:
      scale: The colours.
      identifier: Unique in the page.
      label: What the numbers are.

    Returns:
      An `<svg>` element.
    """
    left, right = 16, drawing.WIDTH - 16
    stops = "".join(
        f'<stop offset="{i / 16:g}" stop-color="{colour(i / 16)}"/>' for i in range(17)
    )
    marks = [scale.low]
    if scale.high > scale.low:
        if scale.is_logarithmic:
            marks = drawing.log_ticks(scale.low, scale.high)
        else:
            marks = drawing.ticks(scale.low, scale.high, 4)
    label += ", logarithmic" if scale.is_logarithmic else ""
    parts = [
        f'<defs><linearGradient id="{identifier}-colours">{stops}</linearGradient>'
        "</defs>",
        drawing.text(left, 12, drawing.shortened(label, right - left)),
        f'<rect x="{left}" y="19" width="{right - left}" height="12" '
        f'fill="url(#{identifier}-colours)"/>',
    ]
    end = -math.inf
    for mark, name in zip(marks, drawing.names(marks), strict=True):
        share = scale.share(mark)
        x = left + (right - left) * (0.5 if share is None else share)
        half = len(name) * drawing.LETTER / 2
        if x - half < end:
            continue
        end = x + half + 4
        parts.append(drawing.rule(x, 31, x, 35))
        parts.append(drawing.text(x, 46, name, anchor="middle"))
    text = f"{label}: from {scale.low:.4g} (dark) to {scale.high:.4g} (light)"
    return drawing.svg(identifier, label, text, drawing.WIDTH, 52, parts)


def _rows(one: Series) -> list[tuple[float, Number, Number, Number]]:
    empty: Sequence[Number] = [None] * len(one.x)
    columns = (one.y, one.low or empty, one.high or empty)
    return [
        (x, drawing.finite(y), drawing.finite(low), drawing.finite(high))
        for x, y, low, high in zip(one.x, *columns, strict=True)
    ]
