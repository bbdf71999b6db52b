"""Marks, axes and legends of a chart, as SVG."""

import html
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

Number = float | None


# Okabe & Ito, 2008, https://jfly.uni-koeln.de/color/: distinguishable with every common
# kind of colour vision. Their black is the colour of the text; yellow comes last, since
# it is faintest on white.
COLOURS = ("currentColor", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
COLOURS += ("#E69F00", "#56B4E9", "#F0E442")


# Dashes and markers also differ, so lines are distinguishable in a grey print. The
# numbers of styles and colours are coprime, so pairs repeat late.
DASHES = ("", "6 3", "2 2", "8 3 2 3", "4 2", "1 3", "10 3", "6 2 1 2 1 2", "3 5")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "hollow", "plus")
WIDTH = 360
_FONT = 11
LINE = 15
LETTER = 0.58 * _FONT  # Mean width of a letter, rounded up.
_BOLD = 0.7 * _FONT


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


def finite(value: Number) -> Number:
    """Returns the value, or None where it cannot be drawn."""
    return value if value is not None and math.isfinite(value) else None


def axis(low: float, high: float) -> tuple[list[float], float, float]:
    """Ticks, and ends a little beyond the data."""
    margin = 0.04 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    return ticks(low, high, 5), low, high


def place(
    low: float,
    high: float,
    start: float,
    end: float,
    warp: Callable[[float], float] = float,
) -> Callable[[float], float]:
    """Maps values onto the drawing."""
    return lambda value: start + (warp(value) - low) / (high - low) * (end - start)


def exponent(values: Sequence[float]) -> int:
    """The power of ten, a multiple of 3, that is taken out of large numbers."""
    largest = max(map(abs, values), default=0.0)
    return 0 if largest < 10_000 else 3 * math.floor(math.log10(largest) / 3)


def power(exponent: int) -> str:
    """Writes a power of ten as a factor."""
    raised = str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"\u00d710{raised}"


def names(values: Sequence[float]) -> list[str]:
    """Tick values as text, all with the digits that tell them apart.

    >>> names([0.0, 0.5, 1.0]), names([1e-6, 1e-3]), names([10.0, 1e5])
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


def some(count: int, most: int) -> list[int]:
    """About `most` indices, evenly spread, with the first and the last."""
    step = max(1, math.ceil(count / max(1, most)))
    inner = [i for i in range(0, count, step) if i == 0 or count - 1 - i >= step]
    return inner if count == 1 else [*inner, *range(count - 1, count)]


def shortened(text: str, width: float) -> str:
    """Cuts a text to a width, with an ellipsis."""
    letters = int(width / LETTER)
    return text if len(text) <= letters else text[: letters - 1] + "…"


_MOST_TEXT_LINES = 8


def wrapped(text: str, width: float) -> list[str]:
    """A name in lines, broken at spaces where it has them."""
    letters = int(width / _BOLD)
    lines = []
    while len(text) > letters and len(lines) < _MOST_TEXT_LINES - 1:
        cut = text.rfind(" ", 0, letters + 1)
        cut = cut if cut > letters // 3 else letters
        lines.append(text[:cut])
        text = text[cut:].strip()
    return [*lines, text if len(text) <= letters else text[: letters - 1] + "…"]


def x_axis(
    values: Sequence[float],
    place: Callable[[float], float],
    left: float,
    right: float,
    bottom: float,
    width: float,
) -> list[str]:
    """Draws the horizontal axis: rules and their numbers, inside of a width."""
    parts = [rule(left, bottom, right, bottom)]
    end = -math.inf
    for value, name in zip(values, names(values), strict=True):
        x, half = place(value), len(name) * LETTER / 2
        parts.append(rule(x, bottom, x, bottom + 4))
        middle = min(x, width - half)
        if middle - half >= end:  # Omits a name that would touch the one before.
            parts.append(text(middle, bottom + 17, name, anchor="middle"))
            end = middle + half + 3
    return parts


def line(points: Sequence[tuple[float, Number]], index: int) -> str:
    """Draws a line, broken where it has no value, and its markers."""
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
    marks = known if len(known) <= 12 else [known[i] for i in some(len(known), 8)]
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


def band(
    rows: Sequence[tuple[float, Number, Number, Number]], index: int, top: float
) -> str:
    """Draws the area between the edges of a line, below the top of the plot."""
    known = [(x, a, b) for x, _, a, b in rows if a is not None and b is not None]
    if len(known) < 2:
        return ""
    there = "L".join(f"{x:.1f} {max(b, top):.1f}" for x, _, b in known)
    back = "L".join(f"{x:.1f} {a:.1f}" for x, a, _ in reversed(known))
    fill = COLOURS[index % len(COLOURS)]
    return f'<path d="M{there}L{back}z" fill="{fill}" fill-opacity=".16"/>'


def legend(names: Sequence[str], top: float) -> tuple[list[str], float]:
    """Samples with names, in two columns where they fit; and where it ends."""
    widest = max((len(name) for name in names), default=0) * LETTER + 38
    per_row = 2 if widest <= WIDTH / 2 and len(names) > 1 else 1
    column = WIDTH / per_row
    parts, y = [], top
    for index, name in enumerate(names):
        x = column * (index % per_row)
        lines = [name] if per_row == 2 else wrapped(name, column - 36)
        parts.append(_sample(x, y, index))
        for row, line in enumerate(lines):
            parts.append(text(x + 34, y + 4 + LINE * row, line))
        if index % per_row == per_row - 1 or index == len(names) - 1:
            y += LINE * len(lines)
    return parts, y - 2


def _sample(x: float, y: float, index: int) -> str:
    stroke, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
    line = rule(x + 1, y, x + 29, y, colour=stroke, width=1.7, dash=dash)
    return line + _marker(x + 15, y, index)


def rule(
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
    """Draws a straight line."""
    extra = f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
    extra += f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width:g}"{extra}/>'
    )


def text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    weight: str = "",
    turn: int = 0,
) -> str:
    """Draws a text."""
    attributes: Mapping[str, str] = {
        "text-anchor": "" if anchor == "start" else anchor,
        "font-weight": weight,
        "transform": f"rotate({turn} {x:.1f} {y:.1f})" if turn else "",
    }
    extra = "".join(f' {key}="{value}"' for key, value in attributes.items() if value)
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{html.escape(text)}</text>'


def svg(
    identifier: str,
    title: str,
    description: str,
    width: float,
    height: float,
    parts: Sequence[str],
) -> str:
    """Puts the parts of a chart into one SVG element."""
    name = html.escape(identifier, quote=True)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="{name}-t {name}-d" font-size="{_FONT}" '
        'fill="currentColor" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{name}-t">{html.escape(title)}</title>'
        f'<desc id="{name}-d">{html.escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )
