"""Figures for a paper, with matplotlib: SVG, PDF and PNG at the widths of columns.

Only `reslab report --figures` imports this file.
"""

import io
import itertools
import math
import pathlib
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from reslab.core.errors import ReslabError, missing_extra, printable
from reslab.observe import drawing, scales
from reslab.observe.charts import (
    ColourBar,
    HeatMap,
    IntervalChart,
    Legend,
    LineChart,
)
from reslab.study.document import MARK, Figure

try:
    import matplotlib
    from matplotlib import cm, colors, figure, lines, ticker
except ImportError:
    raise missing_extra("matplotlib", "plots") from None

# Widths in inches of one and of two columns in the styles of most conferences.
WIDTHS = {"one-column": 3.25, "two-column": 6.75}
_METADATA: Mapping[str, Mapping[str, str | None]] = {
    # Without dates, so that equal figures are equal files.
    "svg": {"Creator": MARK, "Date": None},
    "pdf": {"Creator": MARK, "CreationDate": None},
    "png": {"Software": MARK},
}
_STYLE = {
    "font.size": 7,
    "font.family": "DejaVu Sans",  # Comes with matplotlib.
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "text.parse_math": False,  # Names are text.
    "pdf.fonttype": 42,  # TrueType, which publishers ask for.
    "svg.fonttype": "path",
    "svg.hashsalt": MARK,
    "savefig.dpi": 300,
}
_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}
_MARKERS |= {"cross": "x", "hollow": "o", "plus": "+"}
_LETTER = 0.062  # Mean width of a letter in inches, at the size of the style.
_SAMPLE = 0.5  # Width in inches of a line in a legend with its gaps.


def drawn_figures(figures: Sequence[Figure], folder: pathlib.Path) -> dict[str, bytes]:
    """Draws figures for a paper.

    Args:
      figures: The figures of a report.
      folder: Where they are to be; a file that no report wrote is not replaced.

    Returns:
      The content of each file, by its name: `NAME-WIDTH.KIND`.

    Raises:
      ReslabError: If a file of that name was not written by a report.
    """
    for one, name, kind in itertools.product(figures, WIDTHS, _METADATA):
        path = folder / f"{one.name}-{name}.{kind}"
        if path.is_file() and MARK.encode() not in path.read_bytes():
            raise ReslabError(
                f"{path}",
                expected="no file, or one that a report wrote",
                got="a file that reslab did not write",
                hint="--figures OTHER",
            )
    return {
        f"{one.name}-{name}.{kind}": content
        for one in figures
        for name, width in WIDTHS.items()
        for kind, content in _drawn(one, width).items()
    }


def picture(one: Figure) -> str:
    """Names the file of a figure that Markdown shows."""
    return f"{one.name}-two-column.png"


def _drawn(one: Figure, width: float) -> dict[str, bytes]:
    contents = {}
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A letter that no font has is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        page = _page(one, width)
        for kind, metadata in _METADATA.items():
            file = io.BytesIO()
            page.savefig(file, format=kind, metadata=metadata)
            contents[kind] = file.getvalue()
    return contents


def _page(one: Figure, width: float) -> figure.Figure:
    panels = [c for c in one.charts if not isinstance(c, ColourBar | Legend)]
    is_wide = width > 5
    if len(panels) == 1:
        columns = 1
    elif isinstance(panels[0], HeatMap):
        columns = min(len(panels), 4 if is_wide else 2)
    else:
        columns = min(len(panels), 3 if is_wide else 1)
    rows = math.ceil(len(panels) / columns)
    names = [_folded(name, width - _SAMPLE) for name in _names(one)]
    per_row = _legend_columns(names, width)
    height = sum(
        max(_height(c, width / columns) for c in panels[columns * i :][:columns])
        for i in range(rows)
    )
    height += 0.13 * sum(1 + name.count("\n") for name in names) / per_row
    height += 0.5 * isinstance(one.charts[-1], ColourBar)
    page = figure.Figure(figsize=(width, height), layout="constrained")
    is_shared = len(panels) > 1
    axes = page.subplots(
        rows, columns, squeeze=False, sharey=is_shared and bool(names)
    ).ravel()
    for number, (chart, ax) in enumerate(zip(panels, axes, strict=False)):
        _DRAWN[type(chart)](chart, ax)
        if is_shared:
            # Axes are narrower than panels by the numbers at their side.
            ax.set_title(_folded(chart.title, width / columns - 0.4), loc="left")
        if isinstance(chart, LineChart) and number % columns == 0:
            label = chart.y_label or one.title or chart.title
            ax.set_ylabel(_folded(label, 0.8 * _PLOT))
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    if names:
        handles = [_handle(index, name) for index, name in enumerate(names)]
        page.legend(handles=handles, loc="outside lower left", ncols=per_row)
    key = one.charts[-1]
    if isinstance(key, ColourBar):
        _colour_bar(key, page, axes[: len(panels)])
    return page


_PLOT = 1.7  # Height in inches of lines with their axis, in one column.


def _height(chart: Any, width: float) -> float:
    if isinstance(chart, IntervalChart):
        return 0.5 + sum(
            0.2 + 0.13 * len(_interval_name(row, width)) for row in chart.rows
        )
    if isinstance(chart, HeatMap):
        return 1.25 + 0.13 * _folded(chart.title, width - 0.4).count("\n")
    return _PLOT if width < 5 else 1.4 * _PLOT


def _folded(text: str, width: float) -> str:
    return "\n".join(textwrap.wrap(printable(text), max(8, int(width / _LETTER))))


def _names(one: Figure) -> list[str]:
    """The names of the lines, for a legend."""
    for chart in reversed(one.charts):
        if isinstance(chart, Legend):
            return list(chart.names)
        if isinstance(chart, LineChart):
            return [line.name for line in chart.series]
    return []


def _legend_columns(names: Sequence[str], width: float) -> int:
    widest = max((len(name) for name in names), default=0) * _LETTER + _SAMPLE
    return max(1, min(len(names), int(width / widest)))


def _style(index: int) -> dict[str, Any]:
    """Colour, dash and marker of a line, as on the page."""
    paint = drawing.COLOURS[index % len(drawing.COLOURS)]
    dash = drawing.DASHES[index % len(drawing.DASHES)]
    marker = drawing.MARKERS[index % len(drawing.MARKERS)]
    pattern = tuple(float(length) / 1.7 for length in dash.split())
    style: dict[str, Any] = {
        "color": "black" if paint == "currentColor" else paint,
        "linestyle": (0, pattern) if pattern else "-",
        "linewidth": 1.0,
        "marker": _MARKERS[marker],
        "markersize": 2.8,
        "markeredgewidth": 0.7,
    }
    return style | ({"markerfacecolor": "none"} if marker == "hollow" else {})


def _handle(index: int, name: str) -> lines.Line2D:
    return lines.Line2D([], [], label=name, **_style(index))


def _lines(chart: LineChart, ax: Any) -> None:
    for index, one in enumerate(chart.series):
        rows = np.array(chart.rows(one), dtype=np.float64).reshape(-1, 4)
        x, y, low, high = rows.T
        style = _style(index)
        most = 12
        ax.plot(x, y, markevery=max(1, math.ceil(len(x) / most)), **style)
        if np.isfinite(low).any():
            # On a logarithmic axis a band that reaches 0 ends at the frame.
            low = np.maximum(low, 1e-300) if chart.is_log_y else low
            ax.fill_between(x, low, high, color=style["color"], alpha=0.16, linewidth=0)
    if chart.is_log_x:
        ax.set_xscale("log")
        _ticks(ax.xaxis, *ax.get_xlim())
    else:
        ax.xaxis.get_major_locator().set_params(integer=True)
    low, high = chart.bounds()
    if chart.is_log_y:
        margin = max((high / low) ** 0.04, 1.02)
        ax.set_yscale("log")
        ax.set_ylim(low / margin, high * margin)
        _ticks(ax.yaxis, low / margin, high * margin)
    else:
        _, low, high = drawing.axis(low, high)
        ax.set_ylim(low, high)
    ax.set_xlabel(printable(chart.x_label))
    ax.grid(axis="y", alpha=0.2, linewidth=0.5)


def _ticks(axis: Any, low: float, high: float) -> None:
    """Marks a logarithmic axis as on the page; matplotlib would write formulas."""
    marks = drawing.log_ticks(low, high)
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_ticks(marks, drawing.names(marks))


def _interval_name(row: Any, width: float) -> list[str]:
    name = row.name if row.value is not None else f"{row.name}: no figure"
    return _folded(name, width - 0.2).split("\n")


def _intervals(chart: IntervalChart, ax: Any) -> None:
    y = 0.0
    for row in chart.rows:
        name = _interval_name(row, ax.figure.get_figwidth())
        ax.text(0.0, y, "\n".join(name), transform=ax.get_yaxis_transform(), va="top")
        y += 0.13 * len(name) + 0.07
        if row.value is not None:
            if row.low is not None and row.high is not None:
                ax.plot([row.low, row.high], [y, y], "|-k", linewidth=1, markersize=5)
            ax.plot([row.value], [y], "o", color=drawing.COLOURS[1], markersize=4)
        y += 0.13
    ax.axvline(0, color="black", linewidth=0.5, linestyle=":", zorder=0)
    ax.set_ylim(y, -0.03)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(printable(chart.x_label))


def _colours(scale: scales.Scale) -> tuple[Any, Any]:
    """A scale as matplotlib's colour map and norm."""
    is_diverging = scale.is_diverging
    steps = [scales.colour(i / 256, is_diverging=is_diverging) for i in range(257)]
    palette = colors.LinearSegmentedColormap.from_list("scale", steps, N=257)
    palette = palette.with_extremes(bad="0.88")
    norm = colors.LogNorm if scale.is_logarithmic else colors.Normalize
    high = scale.high if scale.high > scale.low else scale.low + abs(scale.low) + 1e-12
    return palette, norm(scale.low, high)


def _map(chart: HeatMap, ax: Any) -> None:
    palette, norm = _colours(chart.scale)
    values = np.array(chart.values, dtype=np.float64)
    ax.imshow(
        np.ma.masked_where(
            [[chart.scale.share(v) is None for v in r] for r in values], values
        ),
        cmap=palette,
        norm=norm,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    across, up = drawing.some(len(chart.columns), 3), drawing.some(len(chart.rows), 5)
    ax.set_xticks(across, [printable(chart.columns[i]) for i in across])
    ax.set_yticks(up, [printable(chart.rows[i]) for i in up])
    ax.set_xlabel(printable(chart.x_label))
    ax.set_ylabel(printable(chart.y_label))


def _colour_bar(key: ColourBar, page: figure.Figure, axes: Any) -> None:
    palette, norm = _colours(key.scale)
    shown = cm.ScalarMappable(norm, palette)
    bar = page.colorbar(shown, ax=list(axes), location="bottom", shrink=0.8, aspect=40)
    if key.scale.is_logarithmic and key.scale.high > key.scale.low:
        _ticks(bar.ax.xaxis, key.scale.low, key.scale.high)
    bar.set_label(_folded(key.title, page.get_figwidth()))


_DRAWN: Mapping[type, Callable[[Any, Any], None]] = {
    LineChart: _lines,
    IntervalChart: _intervals,
    HeatMap: _map,
}
