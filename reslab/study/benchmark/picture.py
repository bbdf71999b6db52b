"""The leaderboard as a picture: cases down, tasks across, colours by the difference."""

from collections.abc import Sequence

from reslab.observe import drawing
from reslab.observe.scales import colour
from reslab.study.benchmark import leaderboard
from reslab.study.benchmark.leaderboard import Column

# Differences beyond this many standard deviations have the same colour.
_MOST = 8.0
_WIDE, _HIGH = 84, 18
_MARKS = {"better": "better", "worse": "worse"}


def draw(columns: Sequence[Column]) -> str:
    """Draws a leaderboard as SVG, with a background of its own.

    Blue is better and red is worse, by the difference in standard deviations; a word
    says where it is told from noise. Cells that were not tested are empty.

    Args:
      columns: The tasks; those that judge nothing are left out.
    """
    judged = [one for one in columns if one.rows]
    cases = [name for name in leaderboard.names(judged) if name != "baseline"]
    left = 12 + max(map(len, cases), default=1) * drawing.LETTER
    top, width = 46, left + _WIDE * max(1, len(judged)) + 8
    height = top + _HIGH * max(1, len(cases)) + 26
    parts = [
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
        drawing.text(8, 16, "Against the baseline of each task"),
    ]
    for j, one in enumerate(judged):
        x = left + (j + 0.5) * _WIDE
        parts.append(drawing.text(x, top - 8, one.task.name, anchor="middle"))
        for i, case in enumerate(cases):
            parts += _cell(one, case, left + j * _WIDE, top + i * _HIGH)
    for i, case in enumerate(cases):
        y = top + i * _HIGH + 13
        parts.append(drawing.text(left - 6, y, case, anchor="end"))
    key = f"colour: difference in standard deviations, blue better, up to {_MOST:g}"
    parts.append(drawing.text(8, height - 8, key))
    body = drawing.svg(
        "leaderboard", "Leaderboard", f"{len(cases)} cases.", width, height, parts
    )
    return body.replace('fill="currentColor"', 'fill="#222222"', 1) + "\n"


def _cell(one: Column, case: str, x: float, y: float) -> list[str]:
    row = one.rows.get(case)
    if row is None:
        return []
    size = leaderboard.standardized(row)
    share = 0.5 if size is None else 0.5 - max(-_MOST, min(_MOST, size)) / (2 * _MOST)
    fill = "#dddddd" if size is None else colour(share, is_diverging=True)
    word = "diverged" if row.diverged else _MARKS.get(row.verdict, "")
    box = f'<rect x="{x:g}" y="{y:g}" width="{_WIDE - 1}" height="{_HIGH - 1}" '
    found = [f'{box}fill="{fill}"/>']
    if word:
        found.append(
            drawing.text(x + _WIDE / 2, y + 13, word, anchor="middle").replace(
                "<text ",
                '<text fill="#ffffff" ' if abs(share - 0.5) > 0.3 else "<text ",
            )
        )
    return found
