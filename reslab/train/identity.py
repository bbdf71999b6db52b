"""The identity of a run: what its checkpoints were made from, and what is there now."""

import functools
import sys
from collections.abc import Mapping
from typing import Any

from reslab.core.errors import ReslabError
from reslab.observe.environment import environment
from reslab.parallel.hosts import is_writer

# Entries of a run's data record, and their meaning.
DATA = {
    "corpus": "sha256",
    "tokens": "tokens_sha256",
    "tokenizer": "tokenizer_sha256",
}


def of_data(record: Mapping[str, Any]) -> dict[str, str]:
    """The digests in a task's record of its data: documents, tokens, tokenizer.

    Args:
      record: As `Task.record` gives it, or a part of it.
    """
    return {name: record[key] for name, key in DATA.items() if record.get(key)}


@functools.cache
def of_code() -> str:
    """The versions of reslab and what it stands on, and the source's commit."""
    about = environment()
    parts = {**about["versions"], "commit": about["commit"]}
    return ", ".join(f"{name} {version}" for name, version in parts.items())


def check_data(began: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Checks that data are those that a run was begun on.

    Args:
      began: Digests that were recorded; older versions recorded fewer.
      now: Digests of what is there; those that were not asked for are missing.

    Raises:
      ReslabError: If one differs.
    """
    names = {"corpus": "corpus", "tokenizer": "tokenizer", "tokens": "corpus"}
    for part, name in names.items():
        if part in began and part in now and began[part] != now[part]:
            raise ReslabError(
                f"the {name} changed since the run began",
                expected=f"sha256 {began[part][:12]}",
                got=now[part][:12],
                hint="restore the files, or start a new run with --run",
            )


def check_given(began: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that a resumed run is given the same parts as when it began.

    Args:
      began: The record of the run's data, whose `given` names the caller's parts.
      now: The record of the data as they are given now.

    Raises:
      ReslabError: If something else was given, or nothing.
    """
    before, after = began.get("given", {}), now.get("given", {})
    if before != after:
        raise ReslabError(
            "batches, held_out, loss or step of the caller",
            expected=f"{before or 'none'}, as when the run began",
            got=f"{after or 'none'}",
            hint="give the same, or another run directory",
        )


def compare(sealed: Mapping[str, str], now: Mapping[str, str], where: str) -> None:
    """Checks that a checkpoint is of this run, its config and its data.

    Other code or libraries are reported in one line.

    Args:
      sealed: The identity that was saved in the checkpoint.
      now: Identity of the run it is read for.
      where: What to call the checkpoint.

    Raises:
      ReslabError: If it is another run's, or the config or the data have changed.
    """
    differing = [
        part
        for part in ("run", "config")
        if part in sealed and part in now and sealed[part] != now[part]
    ]
    if "run" in differing:
        raise ReslabError(
            f"{where} is another run's",
            expected=_name(now),
            got=_name(sealed),
            hint="the run's own checkpoints",
        )
    earlier = now.get("earlier", "").split()
    if "config" in differing and sealed["config"] not in earlier:
        raise ReslabError(
            f"{where} was trained with another config",
            expected=f"sha256 {sealed['config'][:12]}",
            got=f"{now['config'][:12]}",
            hint="the run's own config.json, or a new run with --config or --set",
        )
    check_data(sealed, now)
    if sealed.get("code", now.get("code")) != now.get("code"):
        _tell_of_code(sealed["code"], now["code"])


def _name(identity: Mapping[str, str]) -> str:
    return f"run {identity['run']} (config {identity.get('config', '?')[:12]})"


@functools.cache  # Computed once for all steps of a run.
def _tell_of_code(saved: str, now: str) -> None:
    if is_writer():
        old, new = saved.split(", "), now.split(", ")
        before = ", ".join(part for part in old if part not in new)
        after = ", ".join(part for part in new if part not in old)
        print(
            f"the checkpoint was saved by other code ({before}; now {after}): "
            "it may not give the same numbers",
            file=sys.stderr,
        )
