"""A study as its file declares it."""

import dataclasses
import importlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from reslab.core import config as configs
from reslab.core.errors import ReslabError, nearest
from reslab.study.algebra import Case, Sweep

# Studies that come with reslab, by the module that makes them.
BUILT_IN = {"benchmark": "reslab.study.benchmark"}


@dataclasses.dataclass(frozen=True)
class Search:
    """A search of one field, for every case alike, on seeds that do not judge.

    Attributes:
      factors: What is tried: multiples of the value that the case's config has.
      seeds: Every factor of every case is run once with each.
      field: The field.
    """

    factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)
    seeds: Sequence[int] = (1000,)
    field: str = "optim.learning_rate"


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
      extra_baseline_seeds: How many more seeds a baseline is run with, which all its
        comparisons gain from. None makes its seeds `round(sqrt(m))` times those of a
        case, where `m` cases are compared to it: the least sum of runs for an error.
      margin: Difference of the held-out figure below which cases are called as good as
        each other, where the data exclude a larger one; None calls none so.
      equal: "steps" gives every case the steps of the config; "flops" gives it the
        training FLOPs of its baseline, and a schedule that ends there.
      search: Chooses a field of each case, such as the learning rate, before the seeds
        that judge are run; None takes it from the config.
      is_sequential: Whether a case is left out of further seeds once e-values tell it
        from its baseline; the report then judges by them.
    """

    question: str
    config: str
    cases: Sweep
    seeds: Sequence[int] = (0, 1, 2)
    baseline: str | Mapping[str, Any] | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    once: Sequence[str] = ()
    cores: int = 0
    extra_baseline_seeds: int | None = None
    margin: float | None = None
    equal: str = "steps"
    search: Search | None = None
    is_sequential: bool = False


def baseline_share(cases: int) -> int:
    """Returns the default number of seeds of a baseline for each seed of a case.

    It is the root of the number of cases that are compared to it: the least sum of runs
    for an error of the differences (Dunnett, 1955).
    """
    return max(1, round(math.sqrt(cases)))


def load_study(source: str) -> tuple[str, Study]:
    """Loads a study from a file with a `get_study()`, or one that comes with reslab.

    Args:
      source: The file or name, or `FILE:SCALE`: then `get_study(SCALE)` is called, for
        instance for a size that needs an accelerator.

    Returns:
      The name of the study and the study.

    Raises:
      ReslabError: If there is no such file, or it makes no study.
    """
    builtin, _, scale = source.partition(":")
    if builtin in BUILT_IN and not pathlib.Path(source).is_file():
        study = importlib.import_module(BUILT_IN[builtin]).get_study(scale)
        return f"{builtin}-{scale}", study
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


def check(study: Study) -> None:
    """Checks a study as far as that needs no config.

    Raises:
      ReslabError: If a field is of another type or range, or names no case.
    """
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
    _check_rules(study)
    for one in study.cases:
        if "seed" in one.fields:
            raise ReslabError(
                f"case {one.name!r} sets the seed", hint="Study(seeds=...)"
            )


def _check_rules(study: Study) -> None:
    """Checks how cases are to be run and judged."""
    if study.equal not in ("steps", "flops"):
        raise ReslabError(
            "study: equal", expected="'steps' or 'flops'", got=repr(study.equal)
        )
    extra = study.extra_baseline_seeds
    if extra is not None and (type(extra) is not int or extra < 0):
        raise ReslabError(
            "study: extra_baseline_seeds", expected="0 or more", got=repr(extra)
        )
    margin = study.margin
    if margin is not None and not (_is_number(margin) and margin > 0):
        raise ReslabError("study: margin", expected="more than 0", got=repr(margin))
    if not isinstance(study.is_sequential, bool):
        raise ReslabError(
            "study: is_sequential",
            expected="True or False",
            got=repr(study.is_sequential),
        )
    if study.is_sequential:
        for is_right, expected in (
            (
                len(study.seeds) > 2,
                "at least 3 seeds, the most that a case may need",
            ),
            (study.baseline is not None, "a baseline"),
            (not extra, "no extra_baseline_seeds: seeds are compared one by one"),
            (margin is None, "no margin: e-values tell differences alone"),
        ):
            if not is_right:
                raise ReslabError("study: is_sequential", expected=expected)
    if study.search is not None:
        _check_search(study.search, study.seeds)


def _check_search(search: Search, seeds: Sequence[int]) -> None:
    is_right = isinstance(search, Search) and isinstance(search.field, str)
    for name in ("factors", "seeds"):
        value = getattr(search, name, None)
        is_right = is_right and isinstance(value, list | tuple | range)
    if not is_right or not all(type(seed) is int for seed in search.seeds):
        raise ReslabError(
            "study: search",
            expected="Search(factors=(0.5, 1.0, 2.0), seeds=(1000,))",
            got=f"{search!r:.80}",
        )
    if len(set(search.seeds)) < len(search.seeds):
        raise ReslabError(
            "study: search", expected="seeds, each once", got=f"{search.seeds}"
        )
    factors = search.factors
    if not all(_is_number(factor) and factor > 0 for factor in factors):
        raise ReslabError("study: search", expected="factors > 0", got=repr(factors))
    if len(set(factors)) < max(2, len(factors)):
        raise ReslabError(
            "study: search",
            expected="at least two different factors, or no search",
            got=repr(tuple(factors)),
            hint="one value shows nothing of others",
        )
    shared = sorted(set(search.seeds) & set(seeds))
    if shared or not search.seeds:
        raise ReslabError(
            "study: search",
            expected="seeds that do not judge",
            got=f"{shared[0]} for both" if shared else "none",
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
