"""Appendix of a report: runs, configs, environments and commands."""

import json
from typing import Any

from reslab.study import numbers
from reslab.study.document import Table, Text
from reslab.study.fields import differing_fields, short_names
from reslab.study.results import Outcome, Results


def runs(results: Results) -> list[Table | Text]:
    """Lists the runs that finished, and why others did not."""
    others = [run for run in results.runs if not run.is_finished]
    header = ["case", "seed", "directory", "state", "step", results.headline.name]
    rows = [
        [
            run.case,
            str(run.seed),
            run.label,
            run.state,
            f"{run.rows[-1]['step']:,}" if run.rows else numbers.DASH,
            numbers.number(run.figure),
        ]
        for run in results.runs
    ]
    parts: list[Table | Text] = []
    if others:
        failures = [
            [r.case, str(r.seed), r.label, r.state, r.message or numbers.DASH]
            for r in others
        ]
        parts.append(
            Table("Runs that did not finish.", [*header[:4], "message"], failures)
        )
    else:
        parts.append(Text("Every run finished."))
    parts.append(Table("All runs.", header, rows, is_folded=True))
    return parts


def configs(results: Results) -> list[Table | Text]:
    """Lists the fields in which the cases differ."""
    firsts = {run.case: run.config for run in reversed(results.present)}
    cases = [case for case in results.cases if case in firsts]
    everywhere = [run.config for run in results.present]
    differing = [k for k in differing_fields(everywhere) if k != "seed"]
    parts: list[Table | Text] = []
    if differing:
        rows = [[c, *(_value(firsts[c].get(key)) for key in differing)] for c in cases]
        caption = "Fields in which the cases differ, besides the seed."
        parts.append(Table(caption, ["case", *differing], rows))
    else:
        parts.append(Text("All runs have the same config, apart from the seed."))
    if cases:
        shared = firsts[cases[0]]
        constant = [
            [k, _value(shared[k])] for k in sorted(shared) if k not in differing
        ]
        constant = [row for row in constant if row[0] != "seed"]
        title = f"The {len(constant)} fields that are the same in all runs."
        parts.append(Table(title, ["field", "value"], constant, is_folded=True))
    return parts


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def environment(results: Results) -> list[Table | Text]:
    """Lists the machines and versions of the runs."""
    found = [(run, _surroundings(run)) for run in results.present if run.record]
    if not found:
        return [Text("No run recorded its environment.")]
    parts: list[Table | Text] = []
    differing = differing_fields([about for _, about in found])
    if differing:
        rows = []
        for key in differing:
            by_value: dict[str, list[str]] = {}
            for run, about in found:
                value = about.get(key, numbers.DASH)
                by_value.setdefault(value, []).append(f"{run.case} seed {run.seed}")
            rows += [[key, value, ", ".join(runs)] for value, runs in by_value.items()]
        names = ", ".join(short_names(differing).values())
        parts.append(Text(f"The runs were not made alike: {names} differ.", "mark"))
        parts.append(Table("Where they differ.", ["what", "value", "runs"], rows))
    shared = found[0][1]
    rows = [[key, value] for key, value in shared.items() if key not in differing]
    parts.append(Table("The same in all runs.", ["what", "value"], rows))
    return parts


def _surroundings(run: Outcome) -> dict[str, str]:
    """Returns the environment of a run, flat."""
    about: dict[str, str] = {}
    environment = dict(run.record.get("environment", {}))
    versions = environment.pop("versions", {})
    about["commit"] = str(environment.pop("commit", None) or "not in a checkout")
    for group in (environment, versions):
        for key, value in group.items():
            about[key] = value if isinstance(value, str) else json.dumps(value)
    for key in ("mesh", "compute_dtype"):
        if key in run.record:
            value = run.record[key]
            about[key] = value if isinstance(value, str) else json.dumps(value)
    corpus = run.record.get("corpus", {})
    if corpus:
        about["corpus"] = str(corpus.get("sha256"))
    return about


def commands(results: Results) -> list[Table | Text]:
    """Gives the commands that repeat the study."""
    if results.command:
        return [Text(results.command, "code")]
    commands = [str(run.record.get("command", "")) for run in results.present]
    known = list(dict.fromkeys(command for command in commands if command))
    return [Text("\n".join(known), "code")] if known else [Text("Not recorded.")]
