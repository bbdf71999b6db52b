"""The runs of a study as they lie on disk: what was asked, and what came of it."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from reslab.core import config as configs
from reslab.core.errors import ReslabError, nearest
from reslab.core.records import read_record
from reslab.observe.writers import jsonl
from reslab.runtime.exits import DIVERGED
from reslab.study.fields import case_name, differing_fields
from reslab.study.marks import marks
from reslab.study.outcome import Outcome
from reslab.study.plan import read_study, run_directory
from reslab.train.run import Run
from reslab.train.tasks import Headline


@dataclasses.dataclass(frozen=True)
class Results:
    """A study, read.

    Attributes:
      name: What it is called.
      question: What was asked; may be empty.
      command: What repeats it; may be empty.
      cases: The names of the cases, in order.
      baselines: The case that each is held against, or None.
      runs: All runs, those that failed and those that are missing too.
      margin: Difference below which cases are as good as each other, or None.
      is_sequential: Whether seeds were added until e-values told a difference.
      searches: The runs that chose a field of each case, and which field.
      marks: What a reader must know before comparing, a sentence each.
    """

    name: str
    question: str
    command: str
    cases: Sequence[str]
    baselines: Mapping[str, str | None]
    runs: Sequence[Outcome]
    margin: float | None = None
    is_sequential: bool = False
    searches: tuple[str, Sequence[Outcome]] = ("", ())
    marks: Sequence[str] = ()

    def of(self, case: str) -> list[Outcome]:
        """Returns all runs of a case."""
        return [run for run in self.runs if run.case == case]

    def finished(self, case: str) -> list[Outcome]:
        """The runs of a case that ended as they were meant to."""
        return [run for run in self.of(case) if run.is_finished]

    def measured(self, case: str) -> list[Outcome]:
        """The runs of a case whose probes are shown."""
        return [run for run in self.of(case) if run.is_measured]

    @property
    def headline(self) -> Headline:
        """The figure by which the runs are compared."""
        return (self.present or self.runs)[0].headline

    @property
    def unit(self) -> str:
        """The plural of what the runs' task counts, such as tokens."""
        return (self.present or self.runs)[0].unit

    @property
    def present(self) -> list[Outcome]:
        """Returns all runs that have a config."""
        return [run for run in self.runs if run.config]


def read_results(
    paths: Sequence[str | pathlib.Path],
    *,
    baseline: str | None = None,
    margin: float | None = None,
    allow_mixed: bool = False,
) -> Results:
    """Reads a study directory, or run directories as a study of their own.

    Plain runs are grouped into cases by their configs apart from `seed`; a case is
    named by the fields in which the configs differ, and the first is the baseline.

    Args:
      paths: One study directory, or any number of run directories.
      baseline: The case that all others are held against; by default what the study
        says, or the first run's case.
      margin: Difference below which cases are as good as each other; by default what
        the study says.
      allow_mixed: Whether runs with different corpora or token budgets may stand in
        one table; if so, `marks` says it.

    Returns:
      The results.

    Raises:
      ReslabError: If a directory is neither, is damaged or of another version of
        reslab, is given twice, or cannot be compared with the others.
    """
    folders = [pathlib.Path(path) for path in paths]
    if not folders:
        raise ReslabError("reslab report", expected="a study or run directories")
    studies = [folder for folder in folders if (folder / "study.json").is_file()]
    if studies and len(folders) > 1:
        raise ReslabError(
            f"{studies[0]} is a study",
            expected="one study alone, or run directories",
            got=f"{len(folders)} paths",
        )
    results = _read_study(studies[0]) if studies else _read_runs(folders)
    if not any(run.rows or run.result or _is_made(run) for run in results.runs):
        raise ReslabError(
            f"{folders[0]}", expected="a run with metrics", got="none has any yet"
        )
    if baseline is not None:
        if baseline not in results.cases:
            raise ReslabError(
                f"no case {baseline!r} to compare with",
                hint=nearest(baseline, results.cases),
            )
        against = {c: None if c == baseline else baseline for c in results.cases}
        results = dataclasses.replace(results, baselines=against)
    if margin is not None:
        if results.is_sequential:
            raise ReslabError(
                "--margin",
                expected="a study of a fixed number of seeds",
                got="one whose seeds were added until e-values told a difference",
            )
        results = dataclasses.replace(results, margin=margin)
    found = marks(results.present, allow_mixed=allow_mixed)
    packs = sorted({run.pack for run in results.runs if run.is_finished})
    if len(packs) > 1:
        sizes = " and ".join(map(str, packs))
        found.append(
            f"One program trained {sizes} seeds at once: times are not compared."
        )
        untimed = [dataclasses.replace(run, is_timed=False) for run in results.runs]
        results = dataclasses.replace(results, runs=untimed)
    return dataclasses.replace(results, marks=found)


def _is_made(run: Outcome) -> bool:
    """Returns whether a run has parameters before it trains: imported, converted."""
    return any(run.directory.glob("checkpoints/[0-9]*"))


def _read_study(folder: pathlib.Path) -> Results:
    path = folder / "study.json"
    study = read_study(path)
    try:
        cases = list(study["cases"])
        baselines = {case: study["baselines"].get(case) for case in cases}
        entries = [
            (
                *(run["case"], run["seed"], run["directory"]),
                *(run.get("sha256"), run.get("factor")),
            )
            for run in study["runs"]
        ]
        name, question = study["name"], study.get("question") or ""
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReslabError(f"{path}", expected="a study", got=f"no {error}") from None
    margin, factors = study.get("margin"), [entry[4] for entry in entries]
    if any(one is not None and one <= 0 for one in (margin, *factors)):
        raise ReslabError(
            f"{path}: margin or factor", expected="more than 0", got="another number"
        )
    for case, against in baselines.items():
        if against == case:
            raise ReslabError(f"{path}: case {case!r} is its own baseline")
        if against is not None and against not in cases:
            raise ReslabError(
                f"{path}: case {case!r} has no baseline {against!r}",
                hint=nearest(against, cases),
            )
    runs = [
        read_run(run_directory(folder, directory), case, seed, sha256, factor)
        for case, seed, directory, sha256, factor in entries
    ]
    stray = {run.case for run in runs} - set(cases)
    if stray:
        raise ReslabError(f"{path}: a run of no case", got=sorted(stray)[0])
    _check_once(runs)
    searches = [run for run in runs if run.factor is not None]
    runs = [run for run in runs if run.factor is None]
    _check_cases(runs)
    return Results(
        *(name, question, study.get("command") or "", cases, baselines, runs),
        margin=margin,
        is_sequential=bool(study.get("is_sequential")),
        searches=((study.get("search") or {}).get("field", ""), searches),
    )


def _read_runs(folders: Sequence[pathlib.Path]) -> Results:
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise ReslabError(
                f"{folder}",
                expected="a study or a run directory",
                got="no study.json and no config.json"
                if folder.is_dir()
                else "nothing there",
            )
    leaves = [folder.name for folder in folders]
    runs = [
        dataclasses.replace(
            read_run(folder, "", None, None),
            label=leaf if leaves.count(leaf) == 1 else str(folder),
        )
        for folder, leaf in zip(folders, leaves, strict=True)
    ]
    _check_once(runs)
    groups: dict[str, list[Outcome]] = {}
    for run in runs:
        shared = {key: v for key, v in run.config.items() if key != "seed"}
        groups.setdefault(json.dumps(shared, sort_keys=True), []).append(run)
    firsts = [group[0].config for group in groups.values()]
    differing = [key for key in differing_fields(firsts) if key != "seed"]
    named = [
        dataclasses.replace(run, case=case_name(group[0].config, differing))
        for group in groups.values()
        for run in group
    ]
    cases = list(dict.fromkeys(run.case for run in named))
    baselines = {case: None if case == cases[0] else cases[0] for case in cases}
    name = folders[0].name if len(folders) == 1 else f"{len(folders)} runs"
    return Results(name, "", "", cases, baselines, named)


def read_run(
    folder: pathlib.Path,
    case: str,
    seed: int | None,
    sha256: str | None,
    factor: float | None = None,
) -> Outcome:
    """Reads a run as far as it got.

    Args:
      folder: Its directory.
      case: The case that it belongs to.
      seed: Its seed; None takes the config's.
      sha256: Digest that its config must have; any if None.
      factor: Multiple of the searched field; None for a run that judges.

    Raises:
      ReslabError: If it is damaged, or another run.
    """
    failure = folder / "failed.json"
    failed = read_record(failure) if failure.is_file() else {}
    message = str(failed.get("message", ""))
    diverged = failed.get("exit_code") == DIVERGED
    if not (folder / "config.json").is_file():
        state = "diverged" if diverged else "failed" if failed else "missing"
        return Outcome(
            *(case, seed or 0, folder, state, message, {}, {}, [], None, {}),
            *(folder.name, factor),
        )
    run = Run(folder)
    config = run.config(is_inert=True)
    # Digest of the recorded text: configs of older versions have fewer fields than
    # after loading.
    written = configs.sha256_of_text(
        (folder / "config.json").read_text(encoding="utf-8")
    )
    parts = run.recorded().get("parts", {})
    if sha256 not in (None, written, configs.combined(written, parts)):
        raise ReslabError(
            f"{folder} is not the run that the study planned",
            expected=f"config {str(sha256)[:12]}",
            got=written[:12],
            hint="run the sweep again",
        )
    result = run.result()
    if result:
        state, message = "finished", ""
    elif failed:
        state = "diverged" if diverged else "failed"
    else:
        state = "unfinished"
    probes: dict[int, dict[str, Any]] = {}
    for name in ("probes.jsonl", "inspect.jsonl"):
        for row in _lines(folder / name):
            probes.setdefault(row["step"], {}).update(
                {key: value for key, value in row.items() if key != "step"}
            )
    return Outcome(
        case,
        config.seed if seed is None else seed,
        folder,
        state,
        message,
        dict(configs.flatten(config)),
        _record(run) if (folder / "run.json").is_file() else {},
        sorted(map(_numbers, _lines(folder / "metrics.jsonl")), key=_step),
        result,
        dict(sorted(probes.items())),
        folder.name,
        factor,
    )


def _record(run: Run) -> dict[str, Any]:
    """Reads `run.json`, and checks what figures are computed from.

    Raises:
      ReslabError: If it does not say what a run of a task does.
    """
    record = run.record()
    found = record.get("headline")
    kinds = {"metric": str, "name": str, "is_higher_better": bool}
    is_right = (
        (found is None or (isinstance(found, dict) and found.keys() == kinds.keys()))
        and all(isinstance(value, kinds[key]) for key, value in (found or {}).items())
        and isinstance(record.get("unit", ""), str)
        and isinstance(record.get("units_per_example", 1), int)
    )
    if not is_right:
        raise ReslabError(
            f"{run.directory / 'run.json'}",
            expected="headline, unit and units_per_example of a task",
            got=f"{found!r:.60}",
        )
    return record


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return jsonl.read(path) if path.is_file() else []


def _step(row: Mapping[str, Any]) -> int:
    return row["step"]


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics; lists are of probes."""
    return {key: value for key, value in row.items() if not isinstance(value, list)}


def _check_once(runs: Sequence[Outcome]) -> None:
    """Refuses to count the same run twice: n would be a lie."""
    seen: dict[str, Outcome] = {}
    for run in runs:
        if not run.config:
            continue
        key = json.dumps([run.case, dict(run.config)], sort_keys=True)
        if key in seen:
            raise ReslabError(
                f"{seen[key].directory} and {run.directory} are the same run",
                expected="configs that differ, at least in their seed",
            )
        seen[key] = run


def _check_cases(runs: Sequence[Outcome]) -> None:
    """Checks that the runs of a case are of one config, but for their seeds.

    Raises:
      ReslabError: If a run is of another case or seed than the study says.
    """
    firsts: dict[str, Outcome] = {}
    for run in runs:
        if not run.config:
            continue
        if run.config["seed"] != run.seed:
            raise ReslabError(
                f"{run.directory} is not of the seed that the study says",
                expected=str(run.seed),
                got=str(run.config["seed"]),
            )
        first = firsts.setdefault(run.case, run)
        differing = differing_fields([first.config, run.config])
        if others := [key for key in differing if key != "seed"]:
            raise ReslabError(
                f"{first.directory} and {run.directory} are not of one case",
                expected=f"configs of {run.case!r} that differ in their seed alone",
                got=f"different {', '.join(others[:3])}",
            )
