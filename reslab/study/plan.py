"""A study as a file, and the runs that it asks for."""

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core.errors import ReslabError, nearest
from reslab.core.records import Form, check_seal, read_record
from reslab.runtime.storage import local_path
from reslab.study.algebra import Case, Sweep

# Fields of study.json that are read by name.
_FORM: Form = {
    "name": str,
    "question": (None, str),
    "command": (None, str),
    "baselines": {...: (None, str)},
    "cases": ([str], {}),
    "cores": int,
    "runs": [{"case": str, "seed": int, "sha256": (None, str)}],
}


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, and the cases whose comparison answers it.

    Attributes:
      question: What is asked, in a sentence or two.
      config: File or name of the config that every case changes.
      cases: What is compared; made with `reslab.study.algebra`.
      seeds: Every case is run once with each.
      baseline: What a case is compared to: the name of a case for all, or the
        fields that make a case its own baseline (`{"model.placement": "pre"}`: each
        is compared to the case that is the same but for these), or None.
      overrides: Fields that all cases share.
      once: Names of the cases that are run with the first seed alone.
      cores: Cores of a CPU that each run computes with, since results depend on their
        number; 0 takes those of the machine that the study is begun on.
    """

    question: str
    config: str
    cases: Sweep
    seeds: Sequence[int] = (0, 1, 2)
    baseline: str | Mapping[str, Any] | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    once: Sequence[str] = ()
    cores: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedRun:
    """One run of a study.

    Attributes:
      index: Its number in the study.
      case: Name of its case.
      seed: Its seed.
      config: Its resolved config.
      sha256: Digest of the config.
    """

    index: int
    case: str
    seed: int
    config: ConfigDict
    sha256: str

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
      runs: Its runs, in order: seeds first, so that an interrupted study has
        something to say about every case.
      baselines: For every case the name of its baseline; None where it has none.
      overrides: Fields that were changed for all runs, each as `FIELD=VALUE`.
      out: The directory that was asked for; None for the default.
    """

    name: str
    source: str
    study: Study
    runs: tuple[PlannedRun, ...]
    baselines: Mapping[str, str | None]
    overrides: tuple[str, ...] = ()
    out: str | None = None

    @property
    def directory(self) -> pathlib.Path:
        """Directory of the runs: `runs/<name>` by default."""
        return local_path(self.out or f"runs/{self.name}", "--out")

    def command(self, *options: str) -> str:
        """The command that does all of this, on any machine."""
        sets = [part for text in self.overrides for part in ("--set", text)]
        out = ["--out", self.out] if self.out else []
        return shlex.join(["reslab", "sweep", self.source, *sets, *out, *options])

    def record(self) -> dict[str, Any]:
        """Builds `study.json`: everything that a report needs besides the runs."""
        return {
            "name": self.name,
            "question": self.study.question,
            "command": self.command(),
            "baselines": dict(self.baselines),
            "cases": {one.name: dict(one.fields) for one in self.study.cases},
            "seeds": list(self.study.seeds),
            "runs": [
                {
                    "index": run.index,
                    "case": run.case,
                    "seed": run.seed,
                    "directory": run.directory,
                    "sha256": run.sha256,
                }
                for run in self.runs
            ],
        }

    def manifest(self) -> list[str]:
        """One line of JSON a run, with the command that does it on any machine."""
        return [
            json.dumps({**line, "command": self.command("--only", str(i))})
            for i, line in enumerate(self.record()["runs"])
        ]


def load_study(source: str) -> tuple[str, Study]:
    """Loads a study from a file with a `get_study()`.

    Args:
      source: The file, or `FILE:SCALE`: then `get_study(SCALE)` is called, for
        instance for a size that needs an accelerator.

    Returns:
      The name of the study and the study.

    Raises:
      ReslabError: If there is no such file, or it makes no study.
    """
    path, scale = pathlib.Path(source), ""
    if not path.is_file():
        # From the right: a directory name may contain a colon.
        file, _, scale = source.rpartition(":")
        path = pathlib.Path(file or source)
    file = str(path)
    if not path.is_file():
        raise ReslabError(f"no study {file!r}", expected="a file with get_study()")
    scales = [scale] if scale else []
    study = configs.call_in_file(f"study {file}", path, "get_study", *scales)
    if not isinstance(study, Study):
        raise ReslabError(
            f"study {file}: get_study()",
            expected="a Study",
            got=type(study).__name__,
        )
    name = path.resolve().parent.name if path.stem == "study" else path.stem
    return f"{name}-{scale}" if scale else name, study


def plan(source: str, overrides: Sequence[str] = (), out: str | None = None) -> Plan:
    """Resolves every run of a study, and checks the study as a whole.

    Args:
      source: As in `load_study`.
      overrides: Fields that win over those of the study, for all runs, each as
        `FIELD=VALUE`.
      out: Where the runs go; `runs/<name>` if None.

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
    _check(study)
    runs: list[PlannedRun] = []
    known: dict[str, str] = {}
    for seed in study.seeds:
        for one in study.cases:
            if one.name in study.once and seed != study.seeds[0]:
                continue
            config = _resolve(study, one, seed, changes)
            sha256 = configs.digest(config)
            if sha256 in known:
                raise ReslabError(
                    f"cases {known[sha256]!r} and {one.name!r} are the same",
                    hint="leave one out, or make them differ",
                )
            known[sha256] = one.name
            runs.append(PlannedRun(len(runs), one.name, seed, config, sha256))
    return Plan(
        name, source, study, tuple(runs), _baselines(study), tuple(overrides), out
    )


def _check(study: Study) -> None:
    for name, kinds in (
        ("question", str | None),
        ("cases", list | tuple),
        ("seeds", list | tuple | range),
        ("once", list | tuple),
        ("overrides", Mapping),
        ("baseline", str | Mapping | None),
    ):
        if not isinstance(getattr(study, name), kinds):
            got = type(getattr(study, name)).__name__
            raise ReslabError(f"study: {name}", expected=str(kinds), got=got)
    if type(study.cores) is not int or study.cores < 0:
        raise ReslabError("study: cores", expected="0 or more", got=repr(study.cores))
    for one in study.cases:
        if not isinstance(one, Case):
            raise ReslabError(
                "study: cases",
                expected="cases",
                got=f"a {type(one).__name__} among them",
                hint="chain(...) joins sweeps",
            )
    if not study.cases or not study.seeds:
        raise ReslabError("study", expected="at least one case and one seed")
    names = [one.name for one in study.cases]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ReslabError(f"study: two cases are called {min(twice)!r}")
    for name in study.once:
        if name not in names:
            raise ReslabError(
                f"study: no case {name!r} to run once", hint=nearest(name, names)
            )
    if len(set(study.seeds)) < len(study.seeds):
        raise ReslabError("study: seeds", expected="each once", got=f"{study.seeds}")
    for one in study.cases:
        if "seed" in one.fields:
            raise ReslabError(
                f"case {one.name!r} sets the seed", hint="Study(seeds=...)"
            )


def _resolve(
    study: Study, one: Case, seed: int, overrides: Sequence[tuple[str, Any]]
) -> ConfigDict:
    config = configs.load(study.config)
    configs.update(config, study.overrides.items())
    try:
        configs.update(config, one.fields.items())
    except ReslabError as error:
        raise ReslabError(f"case {one.name!r}: {error}") from None
    return configs.update(config, [*overrides, ("seed", seed)])


def _baselines(study: Study) -> dict[str, str | None]:
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
    digests = {configs.sha256(_resolve(study, one, 0, ())): one for one in study.cases}
    found: dict[str, str | None] = {}
    for one in study.cases:
        wanted = Case(one.name, {**one.fields, **rule})
        same = digests.get(configs.sha256(_resolve(study, wanted, 0, ())))
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
        if not 0 <= only < len(plan.runs):
            raise ReslabError(
                "--only", expected=f"0 to {len(plan.runs) - 1}", got=str(only)
            )
        return (plan.runs[only],)
    if shard is None:
        return plan.runs
    first, _, count = shard.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise ReslabError("--shard", expected="I/N with 0 <= I < N", got=repr(shard))
    # Rotated by one with every seed, so that no machine always gets the same case.
    cases = len(plan.study.cases)
    return tuple(
        run
        for run in plan.runs
        if (run.index + run.index // cases) % int(count) == int(first)
    )


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
