"""Numbers of a report, as text."""

import math

DASH = "—"


def counted(number: int, word: str) -> str:
    """Writes a number of things."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def plain(value: float | None, unit: float = 1.0) -> str:
    """Writes a value in a unit."""
    return DASH if value is None else f"{value / unit:.4g}"


def share(value: float | None, whole: float | None) -> str:
    """Writes the ratio of two values."""
    return f"{value / whole:.2f}" if value is not None and whole else DASH


def number(value: float | None, sign: str = "") -> str:
    """Writes a held-out figure, with four digits behind the point or in all."""
    if value is None:
        return DASH
    form = "f" if value == 0 or abs(value) >= 1e-3 else "g"
    return f"{value:{sign}.4{form}}"


def interval(low: float | None, high: float | None, sign: str = "") -> str:
    """Writes the ends of an interval."""
    if low is None or high is None:
        return DASH
    return f"[{number(low, sign)}, {number(high, sign)}]"


def p_value(p: float | None) -> str:
    """Writes a p-value."""
    if p is None:
        return DASH
    return "<1e-6" if p < 1e-6 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def thousands(value: float | None) -> str:
    """Writes a large number with commas."""
    return DASH if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Writes a number of bytes."""
    if value is None:
        return DASH
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def exact(value: float | None) -> str:
    """Writes a value with the digits behind a figure."""
    return "" if value is None or math.isnan(value) else f"{value:.10g}"
