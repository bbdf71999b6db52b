"""Charts as SVG text: lines with bands, heat maps, intervals. Numbers in, text out.

A chart is drawn narrow, so that its letters keep their size on a phone; a wide page
sets several beside each other. Everything but the data is drawn in `currentColor`
and follows the page into the dark and onto paper.
"""

import html
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Number = float | None

# Okabe & Ito, 2008, https://jfly.uni-koeln.de/color/: told apart with every common
# kind of colour vision. Their black is the colour of the text; yellow comes last,
# it is the faintest on white.
COLOURS = ("currentColor", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
COLOURS += ("#E69F00", "#56B4E9", "#F0E442")
# Dashes and markers differ too: a grey print still tells the lines apart. Their
# number and that of the colours have no common factor, so pairs repeat late.
DASHES = ("", "6 3", "2 2", "8 3 2 3", "4 2", "1 3", "10 3", "6 2 1 2 1 2", "3 5")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "hollow", "plus")

# Nine colours of viridis (van der Walt & Smith, 2015, https://bids.github.io/colormap/),
# which is even in lightness to normal and colour-blind eyes; between them, straight
# lines in sRGB.
_ANCHORS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80")
_ANCHORS += ("5ec962", "addc30", "fde725")

WIDTH = 360
_FONT = 11
_LINE = 15
_LETTER = 0.58 * _FONT  # Mean width of a letter, on the generous side.
_BOLD = 0.7 * _FONT


class Series(NamedTuple):
    """One line of a chart.

    Attributes:
      name: What it is.
      x: Where the points are.
      y: How high; None or not finite breaks the line.
      low: Lower edge of the band; None where there is none.
      high: Its upper edge.
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
    """The scale of all finite values; a logarithmic one is that of the positive."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return Scale(0.0, 1.0, False)
    positive = [v for v in finite if v > 0]
    if is_logarithmic and positive:
        return Scale(min(positive), max(positive), True)
    return Scale(min(finite), max(finite), False)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two ends, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0.0, 1.0), ticks(1.83, 2.21, 4)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [1.9, 2.0, 2.1, 2.2])
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two ends, with their 2 and 5 fold where those are few.

    >>> log_ticks(1.0, 1000.0), log_ticks(2.0, 20.0)
    ([1.0, 10.0, 100.0, 1000.0], [2.0, 5.0, 10.0, 20.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [
            value
            for decade in decades
            for factor in factors
            if low * 0.999 <= (value := factor * 10.0**decade) <= high * 1.001
        ]
        if len(found) >= 3:
            spread = math.ceil(len(found) / 6)
            return found[::spread]
    return found if len(found) > 1 else ticks(low, high, 3)


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
      description: The same in a sentence, for those who do not see it.
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
    exponent = _exponent([x for x, *_ in points])
    x_label += f" ({_power(exponent)})" if exponent else ""
    factor = 10.0**-exponent
    xs = [x * factor for x, *_ in points] or [0.0, 1.0]
    ys = [v for _, *rest in points for v in rest if v is not None] or [0.0, 1.0]
    y_ticks, y_low, y_high = _axis(min(ys), max(ys))
    y_names = _names(y_ticks)
    left = 24 + max(map(len, y_names)) * _LETTER
    top, plot_height = 30, 196
    right, bottom = WIDTH - 10, top + plot_height
    if is_log_x:
        x_low, x_high = min(xs), max(max(xs), min(xs) * 1.001)
        x_ticks = log_ticks(x_low, x_high)
        place_x = _place(math.log(x_low), math.log(x_high), left, right, math.log)
    else:
        x_low, x_high = min(0.0, *xs), max(xs)
        x_high = x_high if x_high > x_low else x_low + 1.0
        x_ticks = ticks(x_low, x_high, 5)
        place_x = _place(x_low, x_high, left, right)
    place_y = _place(y_low, y_high, bottom, top)

    parts = [_text(0, 12, title, weight="600")]
    for value, name in zip(y_ticks, y_names, strict=True):
        y = place_y(value)
        parts.append(_rule(left, y, right, y, opacity=0.13))
        parts.append(_text(left - 5, y + 4, name, anchor="end"))
    parts += _x_axis(x_ticks, place_x, left, right, bottom)
    parts.append(_text((left + right) / 2, bottom + 34, x_label, anchor="middle"))
    middle = (top + bottom) / 2
    parts.append(_text(11, middle, y_label, anchor="middle", turn=-90))

    def height(value: Number) -> Number:
        return None if value is None else place_y(value)

    bands, lines = [], []
    for index, one in enumerate(series):
        rows = [
            (place_x(x * factor), height(y), height(low), height(high))
            for x, y, low, high in _rows(one)
            if x > 0 or not is_log_x
        ]
        bands.append(_band(rows, index))
        lines.append(_line([(x, y) for x, y, *_ in rows], index))
    # Bands first: no line is hidden by another's band.
    parts += [part for part in (*bands, *lines) if part]
    legend, height = _legend([one.name for one in series], bottom + 52)
    parts += legend
    return _svg(identifier, title, description, WIDTH, height, parts)


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
      description: The same in a sentence, for those who do not see it.
      x_label: What runs along, with its unit.

    Returns:
      An `<svg>` element.
    """
    known = [v for row in rows for v in row[1:] if v is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    left, right, top = 8, WIDTH - 8, 28
    bottom = top + _ROW * len(rows) + 4
    place = _place(low, high, left, right)
    parts = [_text(0, 12, title, weight="600")]
    for index, row in enumerate(rows):
        y = top + _ROW * index + 26
        # Zero is marked beside the interval only: a line through would cross names.
        parts.append(_rule(place(0), y - 8, place(0), y + 8, opacity=0.6, dash="2 2"))
        name = row.name if row.value is not None else f"{row.name}: no figure"
        parts.append(_text(left, y - 12, _shortened(name, right - left)))
        if row.value is None:
            continue
        if row.low is not None and row.high is not None:
            a, b = place(row.low), place(row.high)
            parts.append(_rule(a, y, b, y, width=1.6))
            parts += [_rule(x, y - 4, x, y + 4, width=1.6) for x in (a, b)]
        parts.append(
            f'<circle cx="{place(row.value):.1f}" cy="{y}" r="4" '
            f'fill="{COLOURS[1]}" stroke="currentColor" stroke-width=".8"/>'
        )
    parts += _x_axis(ticks(low, high, 4), place, left, right, bottom)
    parts.append(_text((left + right) / 2, bottom + 34, x_label, anchor="middle"))
    return _svg(identifier, title, description, WIDTH, bottom + 42, parts)


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
      description: The same in a sentence, for those who do not see it.
      columns: Names of the columns.
      rows: Names of the rows.
      x_label: What runs along.
      y_label: What runs up.

    Returns:
      An `<svg>` element.
    """
    heads = _wrapped(title, MAP_WIDTH)
    left = 22 + max([len(name) for name in rows] or [1]) * _LETTER
    right, top = MAP_WIDTH - 8, 14 + _LINE * len(heads)
    bottom = top + 130
    wide, high = (right - left) / max(1, len(columns)), 130 / max(1, len(rows))
    cells: dict[str, list[str]] = {}
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            share = scale.share(value)
            # In 64 steps, so that cells of a colour share one path.
            fill = "none" if share is None else colour(round(share * 63) / 63)
            # Edges rounded to the pixel, or gaps would show between the cells.
            x, x_end = round(left + j * wide, 1), round(left + (j + 1) * wide, 1)
            y, y_end = round(bottom - (i + 1) * high, 1), round(bottom - i * high, 1)
            cells.setdefault(fill, []).append(
                f"M{x:g} {y:g}h{x_end - x:.4g}v{y_end - y:.4g}h{x - x_end:.4g}z"
            )
    parts = [
        _text(0, 12 + _LINE * i, head, weight="600") for i, head in enumerate(heads)
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
    widest = max([len(name) for name in columns] or [1]) * _LETTER + 8
    for j in _some(len(columns), max(1, int((right - left + widest / 2) / widest))):
        x = left + (j + 0.5) * wide
        # Names at the edges stay inside the drawing.
        half = len(columns[j]) * _LETTER / 2
        x = min(max(x, half), MAP_WIDTH - half)
        parts.append(_text(x, bottom + 14, columns[j], anchor="middle"))
    for i in _some(len(rows), 6):
        y = bottom - (i + 0.5) * high
        parts.append(_text(left - 4, y + 4, rows[i], anchor="end"))
    parts.append(_text((left + right) / 2, bottom + 29, x_label, anchor="middle"))
    middle = (top + bottom) / 2
    parts.append(_text(11, middle, y_label, anchor="middle", turn=-90))
    return _svg(identifier, title, description, MAP_WIDTH, bottom + 36, parts)


def colour_bar(scale: Scale, *, identifier: str, label: str) -> str:
    """The key to the colours of heat maps, with numbers.

    Args:
      scale: The colours.
      identifier: Unique in the page.
      label: What the numbers are.

    Returns:
      An `<svg>` element.
    """
    left, right = 16, WIDTH - 16
    stops = "".join(
        f'<stop offset="{i / 16:g}" stop-color="{colour(i / 16)}"/>' for i in range(17)
    )
    marks = [scale.low]
    if scale.high > scale.low:
        if scale.is_logarithmic:
            marks = log_ticks(scale.low, scale.high)
        else:
            marks = ticks(scale.low, scale.high, 4)
    label += ", logarithmic" if scale.is_logarithmic else ""
    parts = [
        f'<defs><linearGradient id="{identifier}-colours">{stops}</linearGradient>'
        "</defs>",
        _text(left, 12, _shortened(label, right - left)),
        f'<rect x="{left}" y="19" width="{right - left}" height="12" '
        f'fill="url(#{identifier}-colours)"/>',
    ]
    end = -math.inf
    for mark, name in zip(marks, _names(marks), strict=True):
        share = scale.share(mark)
        x = left + (right - left) * (0.5 if share is None else share)
        half = len(name) * _LETTER / 2
        if x - half < end:
            continue
        end = x + half + 4
        parts.append(_rule(x, 31, x, 35))
        parts.append(_text(x, 46, name, anchor="middle"))
    text = f"{label}: from {scale.low:.4g} (dark) to {scale.high:.4g} (light)"
    return _svg(identifier, label, text, WIDTH, 52, parts)


def _rows(one: Series) -> list[tuple[float, Number, Number, Number]]:
    empty: Sequence[Number] = [None] * len(one.x)
    columns = (one.y, one.low or empty, one.high or empty)
    return [
        (x, _finite(y), _finite(low), _finite(high))
        for x, y, low, high in zip(one.x, *columns, strict=True)
    ]


def _finite(value: Number) -> Number:
    return value if value is not None and math.isfinite(value) else None


def _axis(low: float, high: float) -> tuple[list[float], float, float]:
    """Ticks, and ends a little beyond the data."""
    margin = 0.04 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    return ticks(low, high, 5), low, high


def _place(
    low: float,
    high: float,
    start: float,
    end: float,
    warp: Callable[[float], float] = float,
) -> Callable[[float], float]:
    """Maps values onto the drawing."""
    return lambda value: start + (warp(value) - low) / (high - low) * (end - start)


def _exponent(values: Sequence[float]) -> int:
    """The power of ten, a multiple of 3, that is taken out of large numbers."""
    largest = max(map(abs, values), default=0.0)
    return 0 if largest < 10_000 else 3 * math.floor(math.log10(largest) / 3)


def _power(exponent: int) -> str:
    raised = str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"\u00d710{raised}"


def _names(values: Sequence[float]) -> list[str]:
    """Tick values as text, all with the digits that tell them apart.

    >>> _names([0.0, 0.5, 1.0]), _names([1e-6, 1e-3]), _names([10.0, 1e5])
    (['0.0', '0.5', '1.0'], ['1e-6', '0.001'], ['10', '1e5'])
    """
    steps = [b - a for a, b in itertools.pairwise(values)]
    is_even = len(steps) > 1 and max(steps) - min(steps) < 1e-6 * max(map(abs, steps))
    if is_even and steps[0] > 1e-4 and max(map(abs, values)) < 1e5:
        digits = max(0, -math.floor(math.log10(steps[0]) + 1e-9))
        return [f"{value:.{digits}f}" for value in values]
    return [_brief(value) for value in values]


def _brief(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _some(count: int, most: int) -> list[int]:
    """About `most` indices, evenly spread, with the first and the last."""
    step = max(1, math.ceil(count / max(1, most)))
    inner = [i for i in range(0, count, step) if i == 0 or count - 1 - i >= step]
    return inner if count == 1 else [*inner, *range(count - 1, count)]


def _shortened(text: str, width: float) -> str:
    letters = int(width / _LETTER)
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _wrapped(text: str, width: float) -> list[str]:
    """A heading in at most three lines, broken at spaces where it has them."""
    letters = int(width / _BOLD)
    lines = []
    while len(text) > letters and len(lines) < 2:
        cut = text.rfind(" ", 0, letters + 1)
        cut = cut if cut > letters // 3 else letters
        lines.append(text[:cut])
        text = text[cut:].strip()
    return [*lines, text if len(text) <= letters else text[: letters - 1] + "…"]


def _x_axis(
    values: Sequence[float],
    place: Callable[[float], float],
    left: float,
    right: float,
    bottom: float,
) -> list[str]:
    parts = [_rule(left, bottom, right, bottom)]
    end = -math.inf
    for value, name in zip(values, _names(values), strict=True):
        x, half = place(value), len(name) * _LETTER / 2
        parts.append(_rule(x, bottom, x, bottom + 4))
        middle = min(x, WIDTH - half)
        if middle - half >= end:  # A name that would touch the one before is left out.
            parts.append(_text(middle, bottom + 17, name, anchor="middle"))
            end = middle + half + 3
    return parts


def _line(points: Sequence[tuple[float, Number]], index: int) -> str:
    known = [(x, y) for x, y in points if y is not None]
    if not known:
        return ""
    path, is_down = [], False
    for x, y in points:
        if y is not None:
            path.append(f"{'L' if is_down else 'M'}{x:.1f} {y:.1f}")
        is_down = y is not None
    stroke = COLOURS[index % len(COLOURS)]
    dash = DASHES[index % len(DASHES)]
    marks = known if len(known) <= 12 else [known[i] for i in _some(len(known), 8)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<path d="{"".join(path)}" fill="none" stroke="{stroke}" stroke-width="1.7" '
        f'stroke-linejoin="round"{dashed}/>'
        + "".join(_marker(x, y, index) for x, y in marks)
    )


def _marker(x: float, y: float, index: int) -> str:
    kind, paint = MARKERS[index % len(MARKERS)], COLOURS[index % len(COLOURS)]
    if kind in ("circle", "hollow"):
        fill = paint if kind == "circle" else "none"
        return (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.8" fill="{fill}" '
            f'stroke="{paint}" stroke-width="1.3"/>'
        )
    paths = {
        "square": "m-2.6 -2.6h5.2v5.2h-5.2z",
        "triangle": "m0 -3.4l3.2 5.8h-6.4z",
        "diamond": "m0 -3.6l3.2 3.6l-3.2 3.6l-3.2 -3.6z",
        "cross": "m-2.8 -2.8l5.6 5.6m0 -5.6l-5.6 5.6",
        "plus": "m-3.4 0h6.8m-3.4 -3.4v6.8",
    }
    fill = "none" if kind in ("cross", "plus") else paint
    return (
        f'<path d="M{x:.1f} {y:.1f}{paths[kind]}" fill="{fill}" '
        f'stroke="{paint}" stroke-width="1.3"/>'
    )


def _band(rows: Sequence[tuple[float, Number, Number, Number]], index: int) -> str:
    known = [(x, a, b) for x, _, a, b in rows if a is not None and b is not None]
    if len(known) < 2:
        return ""
    there = "L".join(f"{x:.1f} {b:.1f}" for x, _, b in known)
    back = "L".join(f"{x:.1f} {a:.1f}" for x, a, _ in reversed(known))
    fill = COLOURS[index % len(COLOURS)]
    return f'<path d="M{there}L{back}z" fill="{fill}" fill-opacity=".16"/>'


def _legend(names: Sequence[str], top: float) -> tuple[list[str], float]:
    """Samples with names, in two columns where they fit; and where it ends."""
    widest = max((len(name) for name in names), default=0) * _LETTER + 38
    per_row = 2 if widest <= WIDTH / 2 and len(names) > 1 else 1
    column = WIDTH / per_row
    parts = []
    for index, name in enumerate(names):
        x, y = column * (index % per_row), top + _LINE * (index // per_row)
        parts.append(_sample(x, y, index))
        parts.append(_text(x + 34, y + 4, _shortened(name, column - 36)))
    return parts, top + _LINE * math.ceil(len(names) / per_row) - 2


def _sample(x: float, y: float, index: int) -> str:
    stroke, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
    line = _rule(x + 1, y, x + 29, y, colour=stroke, width=1.7, dash=dash)
    return line + _marker(x + 15, y, index)


def _rule(
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    *,
    colour: str = "currentColor",
    width: float = 0.8,
    opacity: float = 1.0,
    dash: str = "",
) -> str:
    extra = f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
    extra += f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width:g}"{extra}/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    weight: str = "",
    turn: int = 0,
) -> str:
    attributes: Mapping[str, str] = {
        "text-anchor": "" if anchor == "start" else anchor,
        "font-weight": weight,
        "transform": f"rotate({turn} {x:.1f} {y:.1f})" if turn else "",
    }
    extra = "".join(f' {key}="{value}"' for key, value in attributes.items() if value)
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{html.escape(text)}</text>'


def _svg(
    identifier: str,
    title: str,
    description: str,
    width: float,
    height: float,
    parts: Sequence[str],
) -> str:
    name = html.escape(identifier, quote=True)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="{name}-t {name}-d" font-size="{_FONT}" '
        'fill="currentColor" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{name}-t">{html.escape(title)}</title>'
        f'<desc id="{name}-d">{html.escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )
