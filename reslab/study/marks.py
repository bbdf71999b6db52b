"""Conditions under which runs may stand in one table, and what must be said."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from reslab.core.errors import ReslabError
from reslab.study.outcome import Outcome
from reslab.train.identity import of_data

# Budgets in FLOPs are equal up to whole steps.
EQUAL_FLOPS = 0.02
_WINDOWS = ("eval.batch", "eval.batches", "data.length")


def marks(runs: Sequence[Outcome], *, allow_mixed: bool) -> list[str]:
    """Checks that runs may stand in one table.

    Args:
      runs: Those that have a config.
      allow_mixed: Whether runs with different data or budgets may.

    Returns:
      What a reader must know before comparing, a sentence each.

    Raises:
      ReslabError: If they may not, and `--allow-mixed` was not given.
    """
    sentences = []
    figures = {run.headline.metric: run.directory.name for run in runs}
    if len(figures) > 1:
        (a, one), (b, other) = list(figures.items())[:2]
        raise ReslabError(
            "runs of different tasks in one table",
            expected="the same figure",
            got=f"{one} {a}, {other} {b}",
        )
    unit = runs[0].unit
    budget = "train.steps * data.batch"
    budget += " * data.length" if unit == "tokens" else ""
    for what, shared, values in (
        ("corpora", "corpus", lambda run: run.record.get("corpus", {}).get("sha256")),
        (f"{unit.removesuffix('s')} budgets", budget, lambda run: run.budget),
    ):
        found: dict[Any, Outcome] = {}
        for run in runs:
            if (value := values(run)) is not None:
                found.setdefault(value, run)
        if len(found) < 2:
            continue
        if what.endswith("budgets") and _are_of_equal_flops(runs):
            sentences.append(
                f"Cases train on different numbers of {unit}, at equal training FLOPs."
            )
            continue
        (a, one), (b, other) = list(found.items())[:2]
        values = [v[:12] if isinstance(v, str) else v for v in (a, b)]
        if not allow_mixed:
            raise ReslabError(
                f"runs with different {what} in one table",
                expected=f"the same {shared}",
                got=f"{one.directory.name} {values[0]}, {other.directory.name} "
                f"{values[1]}",
                hint="--allow-mixed marks the table and continues",
            )
        told = f"{_titled(one)} {values[0]}, {_titled(other)} {values[1]}"
        sentences.append(f"Runs with different {what} stand in one table: {told}.")
    sentences += _mark_tokens(runs)
    windows = {
        tuple(run.config[key] for key in _WINDOWS)
        for run in runs
        if all(key in run.config for key in _WINDOWS)
    }
    if len(windows) > 1:
        sentences.append(
            "The curves are not all of the same held-out data: "
            f"{', '.join(_WINDOWS)} differ."
        )
    return sentences


def _are_of_equal_flops(runs: Sequence[Outcome]) -> bool:
    totals = [run.training_flops for run in runs]
    known = [flops for flops in totals if flops]
    return len(known) == len(totals) and max(known) <= (1 + EQUAL_FLOPS) * min(known)


def _titled(run: Outcome) -> str:
    return f"{run.case} seed {run.seed}"


def _mark_tokens(runs: Sequence[Outcome]) -> Iterator[str]:
    """Tells apart data that have the same name: in the config, or by its documents."""
    for what, known in (
        ("tokenizer files", lambda run: run.config.get("data.tokenizer")),
        ("tokens of the same documents", _documents),
    ):
        part = "tokens" if known is _documents else "tokenizer"
        groups: dict[Any, dict[str, Outcome]] = {}
        for run in runs:
            if digest := of_data(run.record.get("corpus", {})).get(part):
                groups.setdefault(known(run), {}).setdefault(digest, run)
        for found in groups.values():
            if len(found) > 1:
                told = ", ".join(
                    f"{_titled(run)} {digest[:12]}"
                    for digest, run in itertools.islice(found.items(), 2)
                )
                yield f"Runs with different {what} stand in one table: {told}."


def _documents(run: Outcome) -> tuple[Any, ...]:
    """Returns the digests of a run's documents and of its tokenizer."""
    found = of_data(run.record["corpus"])
    return found.get("corpus"), found.get("tokenizer")
