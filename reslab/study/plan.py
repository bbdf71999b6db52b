"""A study as a file, and the runs that it asks for."""

import dataclasses
import itertools
import json
import pathlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core.errors import ReslabError, nearest
from reslab.core.records import Form, check_seal, read_record
from reslab.runtime.storage import local_path
from reslab.study.algebra import Case
from reslab.study.declaration import Search as Search
from reslab.study.declaration import Study as Study
from reslab.study.declaration import baseline_share, check, load_study
from reslab.study.selection import ALL, Selection, selected

# Fields of study.json that are read by name.
_FORM: Form = {
    "name": str,
    "question": (None, str),
    "command": (None, str),
    "baselines": {...: (None, str)},
    "cases": ([str], {}),
    "cores": int,
    "margin": (None, float),
    "is_sequential": bool,
    "steps": {...: int},
    "search": (None, {"field": str, "factors": [float], "seeds": [int]}),
    "runs": [
        {"case": str, "seed": int, "sha256": (None, str), "factor": (None, float)}
    ],
}


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedRun:
    """One run of a study.

    Attributes:
      index: Its number in the study.
      case: Name of its case.
      seed: Its seed.
      config: Its resolved config.
      sha256: Digest of the config.
      factor: Multiple of the searched field; None for a run that judges.
    """

    index: int
    case: str
    seed: int
    config: ConfigDict
    sha256: str
    factor: float | None = None

    @property
    def directory(self) -> str:
        """Returns its directory, inside the study's.

        The same config is the same directory, whatever its case is called.
        """
        return self.sha256[:12]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study made concrete.

    Attributes:
      name: Name of the study, from its file.
      source: What was asked for: `FILE` or `FILE:SCALE`.
      study: The study.
      runs: Its runs that are known, in order: a search, then seeds first, so that an
        interrupted study has something to say about every case.
      baselines: For every case the name of its baseline; None where it has none.
      overrides: Fields that were changed for all runs, each as `FIELD=VALUE`.
      out: The directory that was asked for; None for the default.
      steps: Steps of the cases whose budget is in FLOPs.
      selection: The cases that were asked for.
    """

    name: str
    source: str
    study: Study
    runs: tuple[PlannedRun, ...]
    baselines: Mapping[str, str | None]
    overrides: tuple[str, ...] = ()
    out: str | None = None
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    selection: Selection = ALL

    @property
    def directory(self) -> pathlib.Path:
        """Directory of the runs: `runs/<name>` by default."""
        return local_path(self.out or f"runs/{self.name}", "--out")

    def command(self, *options: str) -> str:
        """The command that does all of this, on any machine."""
        sets = [part for text in self.overrides for part in ("--set", text)]
        out = ["--out", self.out] if self.out else []
        chosen = self.selection.options()
        return shlex.join(
            ["reslab", "sweep", self.source, *sets, *out, *chosen, *options]
        )

    def record(self) -> dict[str, Any]:
        """Builds `study.json`: everything that a report needs besides the runs."""
        search = self.study.search
        return {
            "name": self.name,
            "question": self.study.question,
            "command": self.command(),
            "baselines": dict(self.baselines),
            "cases": {one.name: dict(one.fields) for one in self.study.cases},
            "seeds": list(self.study.seeds),
            "margin": self.study.margin,
            "is_sequential": self.study.is_sequential,
            "steps": dict(self.steps),
            "search": None if search is None else dataclasses.asdict(search),
            "runs": [
                {
                    "index": run.index,
                    "case": run.case,
                    "seed": run.seed,
                    "directory": run.directory,
                    "sha256": run.sha256,
                    "factor": run.factor,
                }
                for run in self.runs
            ],
        }

    def manifest(self) -> list[str]:
        """One line of JSON a run, with the command that does it on any machine."""
        return [
            json.dumps({**line, "command": self.command("--only", str(line["index"]))})
            for line in self.record()["runs"]
        ]


# Given the case and the seed of a run: the multiple of the searched field that it is
# to take, and whether it is to be run at all.
Chosen = Callable[[str, int], tuple[float, bool]]


def plan(
    source: str,
    overrides: Sequence[str] = (),
    out: str | None = None,
    *,
    selection: Selection = ALL,
    steps: Mapping[str, int] | None = None,
    chosen: Chosen | None = None,
) -> Plan:
    """Resolves the runs of a study, and checks the study as a whole.

    Args:
      source: As in `load_study`.
      overrides: Fields that win over those of the study, for all runs, each as
        `FIELD=VALUE`.
      out: Where the runs go; `runs/<name>` if None.
      selection: The cases that are asked for.
      steps: Steps of the cases whose budget is in FLOPs.
      chosen: Tells what earlier runs have decided. Without it a search stands alone,
        and a sequential study has its first two seeds.

    Returns:
      The plan. Whether each config can be built is not checked here.

    Raises:
      ReslabError: If a field is wrong, two cases are the same, or a baseline does
        not exist.
    """
    name, study = load_study(source)
    changes = [configs.parse_override(text) for text in overrides]
    if any(field == "seed" for field, _ in changes):
        raise ReslabError("--set seed", hint="the study's seeds")
    check(study)
    if selection.more:
        study = dataclasses.replace(study, cases=(*study.cases, *selection.more))
        check(study)
    base = configs.load(study.config)
    configs.update(base, study.overrides.items())
    baselines = _baselines(base, study)
    if selection.names:
        study, baselines = selected(study, baselines, selection)
    steps = dict(steps or {})
    runs: list[PlannedRun] = []
    known: dict[str, str] = {}
    for index, (one, seed, factor) in enumerate(_all_runs(study, baselines)):
        taken, is_run = factor or 1.0, True
        if factor is None and chosen is not None:
            taken, is_run = chosen(one.name, seed)
        elif factor is None:
            first = study.seeds[:2] if study.is_sequential else (seed,)
            is_run = study.search is None and seed in first
        if not is_run:  # Its case has runs before it, which are checked.
            continue
        config = _resolve(base, study, one, seed, changes, taken, steps.get(one.name))
        sha256 = configs.digest(config)
        if sha256 in known:
            raise ReslabError(
                f"cases {known[sha256]!r} and {one.name!r} are the same",
                hint="leave one out, or make them differ",
            )
        known[sha256] = one.name
        runs.append(PlannedRun(index, one.name, seed, config, sha256, factor))
    return Plan(
        *(name, source, study, tuple(runs), baselines, tuple(overrides), out, steps),
        selection,
    )


def _all_runs(
    study: Study, baselines: Mapping[str, str | None]
) -> Iterator[tuple[Case, int, float | None]]:
    """Case, seed and factor of every run, in order; the search is before the rest."""
    if study.search is not None:
        for seed in study.search.seeds:
            for factor in study.search.factors:
                yield from ((one, seed, float(factor)) for one in study.cases)
    for seed in study.seeds:
        for one in study.cases:
            if one.name not in study.once or seed == study.seeds[0]:
                yield one, seed, None
    against = [base for base in baselines.values() if base is not None]
    taken = {*study.seeds, *(study.search.seeds if study.search else ())}
    for one in study.cases:
        extra = study.extra_baseline_seeds
        if extra is None:
            more = baseline_share(against.count(one.name)) - 1
            extra = 0 if study.is_sequential else more * len(study.seeds)
        if one.name in against and one.name not in study.once:
            free = (s for s in itertools.count(max(study.seeds)) if s not in taken)
            yield from ((one, s, None) for s in itertools.islice(free, extra))


def _resolve(
    base: ConfigDict,
    study: Study,
    one: Case,
    seed: int,
    overrides: Sequence[tuple[str, Any]],
    factor: float = 1.0,
    steps: int | None = None,
) -> ConfigDict:
    config = base.copy_and_resolve_references()
    try:
        configs.update(config, one.fields.items())
    except ReslabError as error:
        raise ReslabError(f"case {one.name!r}: {error}") from None
    configs.update(config, [*overrides, ("seed", seed)])
    if study.search is not None:
        field = study.search.field
        value = dict(configs.flatten(config)).get(field)
        if not isinstance(value, float) or value == 0.0:
            raise ReslabError(
                f"study: search of {field!r}",
                expected="a field that is a real number other than 0",
                got=repr(value),
            )
        configs.update(config, [(field, float(value * factor))])
    if steps is not None:
        configs.update(config, [("train.steps", steps)])
    return config


def _baselines(base: ConfigDict, study: Study) -> dict[str, str | None]:
    names = [one.name for one in study.cases]
    rule = study.baseline
    if rule is None:
        return dict.fromkeys(names)
    if isinstance(rule, str):
        if rule not in names:
            raise ReslabError(
                f"study: no case {rule!r} to be the baseline", hint=nearest(rule, names)
            )
        return {name: None if name == rule else rule for name in names}
    # Compared as configs: fields at their default may be omitted.
    digests = {
        configs.sha256(_resolve(base, study, one, 0, ())): one for one in study.cases
    }
    found: dict[str, str | None] = {}
    for one in study.cases:
        wanted = Case(one.name, {**one.fields, **rule})
        same = digests.get(configs.sha256(_resolve(base, study, wanted, 0, ())))
        if same is None:
            fields = ", ".join(f"{key}={value}" for key, value in rule.items())
            raise ReslabError(
                f"case {one.name!r} has no baseline",
                expected=f"a case that is the same but for {fields}",
                hint="add it, or name one case with baseline='...'",
            )
        found[one.name] = None if same is one else same.name
    return found


def choose(
    plan: Plan, only: int | None = None, shard: str | None = None
) -> tuple[PlannedRun, ...]:
    """The runs of a plan that one of several machines does.

    Args:
      plan: The study.
      only: The index of one run.
      shard: `I/N`: one of N parts, counted from 0.

    Raises:
      ReslabError: If there is no such run, or the shard is malformed.
    """
    if only is not None:
        found = tuple(run for run in plan.runs if run.index == only)
        if not found:
            last = max(run.index for run in plan.runs)
            raise ReslabError(
                "--only",
                expected=f"0 to {last}",
                got=str(only),
                hint="--manifest lists the runs that are known by now",
            )
        return found
    if shard is None:
        return plan.runs
    first, _, count = shard.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise ReslabError("--shard", expected="I/N with 0 <= I < N", got=repr(shard))
    # Rotated by one with every seed, so that no machine always gets the same case.
    ordered: list[PlannedRun] = []
    groups = itertools.groupby(plan.runs, lambda run: (run.seed, run.factor))
    for number, (_, found) in enumerate(groups):
        row = list(found)
        begin = number % len(row)
        ordered += row[begin:] + row[:begin]
    chosen = set(ordered[int(first) :: int(count)])
    return tuple(run for run in plan.runs if run in chosen)


def read_study(path: pathlib.Path) -> dict[str, Any]:
    """Reads `study.json`.

    Raises:
      ReslabError: If it is damaged, or was changed since the sweep wrote it.
    """
    record = read_record(path, _FORM)
    check_seal(record, str(path), "remove it; `reslab sweep` writes it again")
    return record


def run_directory(study: pathlib.Path, name: Any) -> pathlib.Path:
    """The directory of a run that `study.json` names, which lies in the study's.

    Raises:
      ReslabError: If the name leads anywhere else.
    """
    if (
        not isinstance(name, str)
        or name in ("", "..")
        or pathlib.Path(name).name != name
    ):
        raise ReslabError(
            f"{study / 'study.json'}: a run's directory",
            expected="a name in the study's directory",
            got=repr(name),
        )
    return study / name


def finished_runs(directory: str | pathlib.Path) -> list[pathlib.Path]:
    """The finished runs in the directory of a study; none if it is not one."""
    directory = pathlib.Path(directory)
    record = directory / "study.json"
    if not record.is_file():
        return []
    try:
        runs = [
            run_directory(directory, run["directory"])
            for run in read_study(record)["runs"]
        ]
    except (KeyError, TypeError) as error:
        raise ReslabError(f"{record}", expected="a study", got=f"no {error}") from None
    return [run for run in runs if (run / "result.json").is_file()]
