"""Charts as SVG text. Numbers in, text out.

A chart is drawn narrow, so that its letters keep their size on a phone; a wide page
sets several beside each other. Everything but the data is drawn in `currentColor`
and follows the page into the dark and onto paper.
"""

import math
from collections.abc import Callable, Sequence

from reslab.observe import drawing
from reslab.observe.charts import (
    Chart,
    ColourBar,
    HeatMap,
    IntervalChart,
    Legend,
    LineChart,
)
from reslab.observe.drawing import Number
from reslab.observe.scales import colour

_PANEL_WIDTH = 280  # Three line charts share a row.


def draw(chart: Chart) -> str:
    """Draws a chart as an `<svg>` element."""
    drawn: Callable[..., tuple[float, float, list[str]]] = {
        LineChart: _lines,
        IntervalChart: _intervals,
        HeatMap: _map,
        ColourBar: _bar,
        Legend: _legend,
    }[type(chart)]
    width, height, parts = drawn(chart)
    return drawing.svg(
        chart.identifier, chart.title, chart.description, width, height, parts
    )


def _lines(chart: LineChart) -> tuple[float, float, list[str]]:
    width = _PANEL_WIDTH if chart.is_panel else drawing.WIDTH
    shown = [chart.rows(one) for one in chart.series]
    points = [x for rows in shown for x, y, *_ in rows if y is not None]
    exponent = drawing.exponent(points)
    x_label = chart.x_label
    x_label += f" ({drawing.power(exponent)})" if exponent else ""
    factor = 10.0**-exponent
    xs = [x * factor for x in points] or [0.0, 1.0]
    y_ticks, place_y, y_low = _vertical(chart)
    y_names = drawing.names(y_ticks)
    left = 24 if chart.y_label else 8
    left += max(map(len, y_names)) * drawing.LETTER
    heads = drawing.wrapped(chart.title, width)
    top, plot_height = 15 + drawing.LINE * len(heads), 196
    right, bottom = width - 10, top + plot_height
    if chart.is_log_x:
        x_low, x_high = min(xs), max(max(xs), min(xs) * 1.001)
        x_ticks = drawing.log_ticks(x_low, x_high)
        place_x = drawing.place(
            math.log(x_low), math.log(x_high), left, right, math.log
        )
    else:
        x_low, x_high = min(0.0, *xs), max(xs)
        x_high = x_high if x_high > x_low else x_low + 1.0
        # A few layers are counted in whole numbers.
        is_counted = all(x == int(x) for x in xs)
        most = min(5, int(x_high - x_low)) if is_counted else 5
        x_ticks = drawing.ticks(x_low, x_high, max(1, most))
        place_x = drawing.place(x_low, x_high, left, right)

    def height(value: Number) -> Number:
        if value is None:
            return None
        return bottom + place_y(max(value, y_low)) * (top - bottom)

    parts = _heading(heads)
    for value, name in zip(y_ticks, y_names, strict=True):
        y = bottom + place_y(value) * (top - bottom)
        parts.append(drawing.rule(left, y, right, y, opacity=0.13))
        parts.append(drawing.text(left - 5, y + 4, name, anchor="end"))
    parts += drawing.x_axis(x_ticks, place_x, left, right, bottom, width)
    parts += _labels(x_label, chart.y_label, left, right, top, bottom)
    bands, lines = [], []
    for index, rows in enumerate(shown):
        placed = [
            (place_x(x * factor), height(y), height(low), height(high))
            for x, y, low, high in rows
        ]
        bands.append(drawing.band(placed, index, top))
        lines.append(drawing.line([(x, y) for x, y, *_ in placed], index))
    # Bands first, so that they hide no line.
    parts += [part for part in (*bands, *lines) if part]
    if chart.is_panel:
        return width, bottom + 42, parts
    legend, end = drawing.legend([one.name for one in chart.series], bottom + 52)
    return width, end, [*parts, *legend]


def _vertical(
    chart: LineChart,
) -> tuple[list[float], Callable[[float], float], float]:
    """Ticks of the vertical axis, places on it from 0 to 1, and its lower end."""
    low, high = chart.bounds()
    if not chart.is_log_y:
        ticks, low, high = drawing.axis(low, high)
        return ticks, drawing.place(low, high, 0.0, 1.0), low
    margin = max((high / low) ** 0.04, 1.02)
    low, high = low / margin, high * margin
    place = drawing.place(math.log(low), math.log(high), 0.0, 1.0, math.log)
    return drawing.log_ticks(low, high), place, low


def _heading(lines: Sequence[str]) -> list[str]:
    return [
        drawing.text(0, 12 + drawing.LINE * i, line, weight="600")
        for i, line in enumerate(lines)
    ]


def _labels(
    x_label: str, y_label: str, left: float, right: float, top: float, bottom: float
) -> list[str]:
    middle = (top + bottom) / 2
    labels = [drawing.text((left + right) / 2, bottom + 34, x_label, anchor="middle")]
    if y_label:
        labels.append(drawing.text(11, middle, y_label, anchor="middle", turn=-90))
    return labels


def _intervals(chart: IntervalChart) -> tuple[float, float, list[str]]:
    known = [v for row in chart.rows for v in row[1:] if v is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    left, right, top = 8, drawing.WIDTH - 8, 28
    place = drawing.place(low, high, left, right)
    parts = _heading([chart.title])
    y = top - 12.0
    for row in chart.rows:
        name = row.name if row.value is not None else f"{row.name}: no figure"
        for line in drawing.wrapped(name, right - left):
            y += drawing.LINE
            parts.append(drawing.text(left, y - 1, line))
        y += 11
        # Zero is marked beside the interval only: a full line would cross names.
        parts.append(
            drawing.rule(place(0), y - 8, place(0), y + 8, opacity=0.6, dash="2 2")
        )
        if row.value is not None:
            if row.low is not None and row.high is not None:
                a, b = place(row.low), place(row.high)
                parts.append(drawing.rule(a, y, b, y, width=1.6))
                parts += [drawing.rule(x, y - 4, x, y + 4, width=1.6) for x in (a, b)]
            parts.append(
                f'<circle cx="{place(row.value):.1f}" cy="{y:g}" r="4" '
                f'fill="{drawing.COLOURS[1]}" stroke="currentColor" stroke-width=".8"/>'
            )
        y += 12
    bottom = y + 6
    ticks = drawing.ticks(low, high, 4)
    parts += drawing.x_axis(ticks, place, left, right, bottom, drawing.WIDTH)
    parts.append(
        drawing.text((left + right) / 2, bottom + 34, chart.x_label, anchor="middle")
    )
    return drawing.WIDTH, bottom + 42, parts


_MAP_WIDTH, _MAP_HEIGHT = 176, 130


def _map(chart: HeatMap) -> tuple[float, float, list[str]]:
    columns, rows = chart.columns, chart.rows
    heads = drawing.wrapped(chart.title, _MAP_WIDTH)
    left = 22 + max([len(name) for name in rows] or [1]) * drawing.LETTER
    right, top = _MAP_WIDTH - 8, 14 + drawing.LINE * len(heads)
    bottom = top + _MAP_HEIGHT
    wide, high = (
        (right - left) / max(1, len(columns)),
        _MAP_HEIGHT / max(1, len(rows)),
    )
    cells: dict[str, list[str]] = {}  # Cells of a colour share one path.
    for i, row in enumerate(chart.values):
        for j, value in enumerate(row):
            fill = chart.scale.colour(value)
            if fill is None:
                continue
            # Edges rounded to pixels, to leave no gaps between cells.
            x, x_end = round(left + j * wide, 1), round(left + (j + 1) * wide, 1)
            y, y_end = round(bottom - (i + 1) * high, 1), round(bottom - i * high, 1)
            cells.setdefault(fill, []).append(
                f"M{x:g} {y:g}h{x_end - x:.4g}v{y_end - y:.4g}h{x - x_end:.4g}z"
            )
    paths = (
        f'<path fill="{fill}" d="{"".join(d)}"/>' for fill, d in sorted(cells.items())
    )
    parts = [
        *_heading(heads),
        f'<rect x="{left:.1f}" y="{top}" width="{right - left:.1f}" '
        f'height="{_MAP_HEIGHT}" fill="currentColor" fill-opacity=".12"/>',
        f'<g shape-rendering="crispEdges">{"".join(paths)}</g>',
    ]
    widest = max([len(name) for name in columns] or [1]) * drawing.LETTER + 8
    for j in drawing.some(
        len(columns), max(1, int((right - left + widest / 2) / widest))
    ):
        x = left + (j + 0.5) * wide
        # Names at the edges stay inside the drawing.
        half = len(columns[j]) * drawing.LETTER / 2
        x = min(max(x, half), _MAP_WIDTH - half)
        parts.append(drawing.text(x, bottom + 14, columns[j], anchor="middle"))
    for i in drawing.some(len(rows), 6):
        y = bottom - (i + 0.5) * high
        parts.append(drawing.text(left - 4, y + 4, rows[i], anchor="end"))
    parts += _labels(chart.x_label, chart.y_label, left, right, top, bottom - 5)
    return _MAP_WIDTH, bottom + 36, parts


def _bar(chart: ColourBar) -> tuple[float, float, list[str]]:
    scale, identifier = chart.scale, chart.identifier
    left, right = 16, drawing.WIDTH - 16
    stops = "".join(
        f'<stop offset="{i / 20:g}" '
        f'stop-color="{colour(i / 20, is_diverging=scale.is_diverging)}"/>'
        for i in range(21)
    )
    marks = [scale.low]
    if scale.high > scale.low:
        if scale.is_logarithmic:
            marks = drawing.log_ticks(scale.low, scale.high)
        else:
            marks = drawing.ticks(scale.low, scale.high, 4)
    parts = [
        f'<defs><linearGradient id="{identifier}-colours">{stops}</linearGradient>'
        "</defs>",
        drawing.text(left, 12, drawing.shortened(chart.title, right - left)),
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
    return drawing.WIDTH, 52, parts


def _legend(chart: Legend) -> tuple[float, float, list[str]]:
    parts, end = drawing.legend(chart.names, 10)
    return drawing.WIDTH, end, parts
