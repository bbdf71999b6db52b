"""Beginnings of the cases of a study: what a comparison changes beside its question."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from reslab.study import numbers
from reslab.study.document import Table, Text
from reslab.study.outcome import Outcome
from reslab.study.results import Results


class _Quantity(NamedTuple):
    """One number of a run before it has learned anything.

    Attributes:
      name: Its name.
      read: Reads it from a run; None where it was not recorded.
      factor: Ratio to the baseline from which on a reader is warned.
    """

    name: str
    read: Callable[[Outcome], float | None]
    factor: float


def _first(name: str) -> Callable[[Outcome], float | None]:
    def read(run: Outcome) -> float | None:
        row = next((row for row in run.rows if row["step"] == 1), {})
        return row.get(name)

    return read


def _stream(site: int) -> Callable[[Outcome], float | None]:
    def read(run: Outcome) -> float | None:
        found: Any = run.probes.get(0, {}).get("stream/norm")
        is_there = isinstance(found, list) and len(found) > site
        return found[site] if is_there else None

    return read


_QUANTITIES = (
    _Quantity("parameters", lambda run: run.record.get("parameters"), 1.1),
    _Quantity("training FLOPs", lambda run: run.training_flops_per_unit, 1.1),
    _Quantity("initial loss", _first("loss"), 1.1),
    _Quantity("initial gradient norm", _first("gradient_norm"), 2.0),
    _Quantity("initial stream norm, embedding", _stream(0), 2.0),
    _Quantity("initial stream norm, second sublayer", _stream(1), 2.0),
)


def table(results: Results) -> Table | None:
    """Lists what each case begins with; None where nothing was recorded."""
    known = _known(results)
    if not known:
        return None
    rows = []
    for case in results.cases:
        cells = []
        for quantity in known:
            value, ratio = _against_baseline(results, case, quantity)
            told = numbers.plain(value)
            cells.append(told if ratio is None else f"{told} (x{ratio:.3g})")
        rows.append([case, *cells])
    return Table(
        "What else each case changes: numbers at step 0, means over its runs, and "
        "their ratio to the baseline. A case that begins elsewhere may be better for "
        "that alone, which a change of the baseline would show.",
        ["case", *(quantity.name for quantity in known)],
        rows,
    )


def warnings(results: Results) -> list[Text]:
    """Warns of each quantity that a case changes by more than its factor."""
    texts = []
    for quantity in _known(results):
        changed = []
        for case in results.cases:
            _, ratio = _against_baseline(results, case, quantity)
            factor = quantity.factor
            if ratio is not None and not 1 / factor <= ratio <= factor:
                changed.append(f"{case} x{ratio:.3g}")
        if changed:
            more = len(changed) - _MOST
            told = ", ".join(changed[:_MOST]) + (
                f" and {more} more" if more > 0 else ""
            )
            texts.append(
                Text(
                    f"Cases differ from their baseline in more than their question: "
                    f"{quantity.name}, {told}.",
                    "mark",
                )
            )
    return texts


_MOST = 6  # The table has all.


def _known(results: Results) -> Sequence[_Quantity]:
    return [
        quantity
        for quantity in _QUANTITIES
        if any(quantity.read(run) is not None for run in results.present)
    ]


def _against_baseline(
    results: Results, case: str, quantity: _Quantity
) -> tuple[float | None, float | None]:
    """The mean over a case's runs, and its ratio to the baseline's."""
    value = _mean(results, case, quantity)
    baseline = results.baselines.get(case)
    before = _mean(results, baseline, quantity) if baseline else None
    return value, value / before if value is not None and before else None


def _mean(results: Results, case: str, quantity: _Quantity) -> float | None:
    values = [quantity.read(run) for run in results.of(case) if run.config]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
