"""Findings of a study, in sentences, and the facts at its head."""

from collections.abc import Mapping, Sequence
from typing import Any

from reslab.study import numbers
from reslab.study.comparison import Row
from reslab.study.document import Facts, Text
from reslab.study.family import LEVEL, Comparison
from reslab.study.results import Results
from reslab.study.tables import ranked


def facts(results: Results) -> Facts:
    """Lists study, hardware, model, data and command."""
    finished = sum(run.is_finished for run in results.runs)
    rows = [
        (
            "Study",
            f"{results.name}: {numbers.counted(len(results.cases), 'case')}, "
            f"{finished} of {numbers.counted(len(results.runs), 'run')} finished",
        )
    ]
    rows += [
        (name, found)
        for name, found in (
            ("Hardware", _hardware(results)),
            ("Model", _model(results)),
            (results.unit.capitalize(), _budget(results)),
        )
        if found
    ]
    end = "higher" if results.headline.is_higher_better else "lower"
    told = f"held-out {results.headline.name} unless named otherwise; {end} is better"
    rows.append(("Figures", told))
    if command := _command(results):
        rows.append(("Command", command))
    return Facts(rows)


def _hardware(results: Results) -> str:
    found = []
    for run in results.present:
        about = run.record.get("environment", {})
        count = about.get("device_count")
        kind = about.get("device_kind")
        if not kind:
            continue
        if about.get("platform") == "cpu":
            cores = about.get("cpu_threads") or about.get("cpu_count")
            found.append(f"CPU, {numbers.counted(cores, 'core')}" if cores else "CPU")
        else:
            found.append(f"{count} x {kind}" if count else str(kind))
    return "; ".join(dict.fromkeys(found))


def _model(results: Results) -> str:
    configs = [run.config for run in results.present]
    parts = []
    for name, key in (("", "model.name"), ("depth ", "model.depth")):
        parts.append(name + _ends([config.get(key) for config in configs]))
    parts.append(f"width {_ends([config.get('model.features') for config in configs])}")
    counts = [run.record.get("parameters") for run in results.present]
    if any(counts):
        parts.append(f"{_ends([count for count in counts if count])} parameters")
    return ", ".join(parts) if configs else ""


def _ends(values: Sequence[Any]) -> str:
    """One value, the ends of several numbers, or all of several names."""
    different = list(dict.fromkeys(values))
    if all(isinstance(value, int) for value in different):
        ends = dict.fromkeys(f"{end:,}" for end in (min(different), max(different)))
        return " to ".join(ends)
    return " or ".join(map(str, different))


def _budget(results: Results) -> str:
    runs = results.present
    if not runs:
        return ""
    budget = _ends([run.budget for run in runs])
    steps = _ends([run.config["train.steps"] for run in runs])
    batch = _ends([run.config["data.batch"] for run in runs])
    length = _ends([run.config["data.length"] for run in runs])
    size = f"{batch} x {length}" if results.unit == "tokens" else batch
    return f"{budget} for each run: {steps} steps of {size}"


def _command(results: Results) -> str:
    if results.command:
        return results.command
    known = [str(run.record.get("command") or "") for run in results.present]
    known = list(dict.fromkeys(filter(None, known)))
    return known[0] if len(known) == 1 else ""


_MOST_SENTENCES = 6  # The table has all.


def verdicts(results: Results, places: Mapping[str, Sequence[Row]]) -> list[Text]:
    """Writes the findings in order of the result, one sentence each.

    Args:
      results: The study.
      places: Rows by what is equal among them, such as time.
    """
    texts = []
    for name, rows in places.items():
        compared = [row for row in ranked(results, rows) if row.baseline is not None]
        decided = [
            f"At equal {name}, {row.case} is {row.verdict} than {row.baseline} by "
            f"{_size(results, row, row.comparison)}{_unfinished(results, row)}."
            for row in compared
            if row.verdict in ("better", "worse") and row.comparison
        ]
        more = len(decided) - _MOST_SENTENCES
        if more > 0:
            half = _MOST_SENTENCES // 2
            between = f"At equal {name}, {numbers.counted(more, 'more difference')} "
            between += f"{'is' if more == 1 else 'are'} shown, in the table."
            decided = [*decided[:half], between, *decided[-half:]]
        texts += decided
        alike = [
            f"{row.case} ({_percent(row, row.comparison)})"
            for row in compared
            if row.verdict == "no difference shown" and row.comparison
        ]
        if alike:
            texts.append(
                f"At equal {name}, no difference from the baseline is shown for "
                f"{_listed(alike)} at the {LEVEL:.0%} level."
            )
        if equal := [
            f"{row.case} ({_percent(row, row.comparison)})"
            for row in compared
            if row.verdict == "as good as" and row.comparison
        ]:
            texts.append(
                f"At equal {name}, as good as the baseline within {results.margin:g} "
                f"{results.headline.name}: {_listed(equal)}."
            )
        if lost := [f"{r.case} {r.verdict}" for r in compared if r.diverged]:
            texts.append(
                f"At equal {name}, no verdict in favor of a case whose runs diverge: "
                f"{_listed(lost)}."
            )
        if untold := [row.case for row in compared if row.verdict == "cannot tell"]:
            texts.append(
                f"At equal {name}, nothing can be concluded about {_listed(untold)}: "
                "too few figures, none that vary, or a baseline that diverged."
            )
    return [Text(text) for text in texts]


def _listed(names: Sequence[str]) -> str:
    """Names the first of many things, and counts the others."""
    more = len(names) - _MOST_SENTENCES
    told = ", ".join(names[:_MOST_SENTENCES])
    return f"{told} and {more} more" if more > 0 else told


def _size(results: Results, row: Row, found: Comparison) -> str:
    """The size of a difference that is shown, with its interval."""
    assert row.against is not None
    name = results.headline.name
    base = abs(row.against.mean or 0.0)
    ends = (found.low, found.high)
    if base:
        told = f"{abs(found.difference) / base:.1%} ("
        if None not in ends:
            low, high = sorted(abs(v or 0.0) / base for v in ends)
            told += f"95% interval {low:.1%} to {high:.1%}; "
    else:  # Nothing is a share of zero.
        told = "its whole figure ("
        if None not in ends:
            told += f"95% interval {numbers.interval(*ends, '+')}; "
    told += f"{numbers.number(found.difference, '+')} {name}, "
    count = f"n = {row.summary.count} and {row.against.count}"
    return f"{told}p {numbers.p_value(found.p)}, {count})"


def _percent(row: Row, found: Comparison) -> str:
    if not (row.against and row.against.mean):
        return numbers.number(found.difference, "+")
    base = abs(row.against.mean)
    told = f"{found.difference / base:+.1%}"
    if found.low is not None and found.high is not None:
        told += f", 95% interval {found.low / base:+.1%} to {found.high / base:+.1%}"
    return told


def _unfinished(results: Results, row: Row) -> str:
    """Says of how few runs a figure is, where not all of them finished."""
    told = ""
    for case in dict.fromkeys((row.case, row.baseline or row.case)):
        runs, finished = results.of(case), results.finished(case)
        if len(finished) < len(runs):
            told += f"; only {len(finished)} of {len(runs)} runs of {case} finished"
    return told


def survivors(results: Results) -> list[Text]:
    """A warning where means are over the runs that survived."""
    lost = [run for run in results.runs if not run.is_finished]
    if not lost:
        return []
    cases = ", ".join(dict.fromkeys(run.case for run in lost))
    return [
        Text(
            f"{numbers.counted(len(lost), 'run')} did not finish ({cases}). Means are "
            "over finished runs only; runs that diverged count against their case, "
            "which is then not called better.",
            "mark",
        )
    ]
