"""Changes of config and machine with which a run may go on."""

import json
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import own, registry
from reslab.core.errors import ReslabError
from reslab.core.records import Form, parse_record
from reslab.core.schema import ALWAYS
from reslab.train import parts

if TYPE_CHECKING:
    from reslab.train.run import Run

# One of `changes` in run.json.
FORM: Form = {
    "step": int,
    "config_sha256": str,
    "fields": {},
    "removed": {},
    "added": [str],
}
# Entries of `environment` that each checkpoint also records.
_CODE = ("versions", "commit")


def refused(began: ConfigDict, now: ConfigDict, step: int) -> list[str]:
    """Names the changes with which a run would not be the same.

    Fields that say what is written, kept or shown may change, as may the devices.
    `train.steps` may grow if no step that is done would have been another.

    Args:
      began: The config of the run so far.
      now: The config to go on with.
      step: Steps that are done.

    Returns:
      What differs and may not, in order of name; a reason may follow a name.
    """
    schema = configs.schema()
    found = []
    for field in configs.differences(began, now):
        if field == "train.steps":
            if reason := _why_not_as_long(began, now, step):
                found.append(f"{field} ({reason})")
        elif not schema[field].may_change:
            found.append(field)
    return found


def _why_not_as_long(began: ConfigDict, now: ConfigDict, step: int) -> str:
    before, after = began.train.steps, now.train.steps
    if after < before:
        return f"{after}, and it was begun for {before}"
    groups = [options for _, options in now.optim.groups]

    def named(default: str, option: str) -> list[str]:
        found = (options.get(option, default) for options in groups)
        return sorted({default, *found})

    for spec in named(now.optim.name, "method"):
        if registry.accepts("optimizers", spec, "steps"):
            return f"optimizer {spec!r} depends on it"
    for spec in named(now.optim.schedule, "schedule"):
        factors = []
        for steps in (before, after):
            factor = registry.make("schedules", spec, steps=steps)
            with jax.numpy_dtype_promotion("standard"):
                factors.append(jax.vmap(factor)(np.arange(max(step, 1))))
        if not np.array_equal(*factors):
            return f"schedule {spec!r} would have been another at the steps done"
    return ""


def check_config(run: "Run", config: ConfigDict) -> None:
    """Checks that a run that is there may go on with a config.

    Raises:
      ReslabError: If it holds another config, or parts of its own have changed.
    """
    if not (run.directory / "config.json").is_file():
        return
    began = run.config(is_inert=True)
    if differing := refused(began, config, run.last_step()):
        had, schema = dict(configs.flatten(began)), configs.schema()
        # Fields that the run's version did not have.
        older = [
            f"{name}={had[name]!r}"
            for name in differing
            if name in had and had[name] == schema[name].since
        ]
        hint = "--run with another directory"
        raise ReslabError(
            f"run directory {run.directory} holds another config",
            got=f"different {', '.join(differing[:3])}",
            hint=f"{' '.join(older)} resumes the run, or {hint}" if older else hint,
        )
    now = own.digests(configs.modules(config))
    parts.check(run.recorded().get("parts", {}), now, run.directory)


def adopt(run: "Run", config: ConfigDict) -> None:
    """Makes a config that differs in what may change the run's own.

    The change is recorded in `run.json`. A finished run is extended to its new end.
    A kill at any moment leaves a run that can resume with either config.

    Args:
      run: The run, which is locked.
      config: The config, which `Run.open` has accepted.
    """
    differing = configs.differences(run.config(is_inert=True), config)
    if not differing:
        return
    # As written: an older version knew fewer fields, or others.
    before = json.loads((run.directory / "config.json").read_text())
    after = json.loads(configs.canonical_json(config))
    both = sorted(before.keys() & after.keys())
    fields = {k: [before[k], after[k]] for k in both if before[k] != after[k]}
    step, record = run.last_step(), run.record()
    told = ", ".join(f"{name}={after[name]!r}" for name in differing)
    print(f"{run.directory}: from step {step} on with {told}", file=sys.stderr)
    digest, earlier = _digest(before), record.get("changes", [])
    if earlier and earlier[-1]["config_sha256"] == digest:
        earlier = earlier[:-1]  # A kill came before its config was written.
    change = {
        "step": step,
        "config_sha256": digest,
        "fields": fields,
        "removed": {k: before[k] for k in before.keys() - after.keys()},
        "added": sorted(after.keys() - before.keys()),
    }
    (run.directory / "result.json").unlink(missing_ok=True)
    record |= {
        "config_sha256": configs.sha256(config),
        "changes": [*earlier, change],
        "ended": {},
    }
    run.write("run.json", record)
    run.write_config(config)


def warn_of_machine(run: "Run", about: Mapping[str, Any]) -> None:
    """Says on standard error what may keep a resumed run from being exact.

    Changed code is detected by checkpoints, which name the code that saved them.

    Args:
      run: The run.
      about: As `Run.open` takes it.
    """

    def leaves(record: Mapping[str, Any]) -> dict[str, Any]:
        found = json.loads(json.dumps(record))
        machine = found.pop("environment", None) or {}
        machine = {k: v for k, v in machine.items() if k not in _CODE}
        return {key: found.get(key) for key in ("mesh", "compute_dtype")} | machine

    began, now = leaves(run.recorded()), leaves(about)
    # Older versions recorded less.
    differing = sorted(k for k in began if began[k] != now.get(k))
    if differing:
        changes = (f"{k} {now.get(k)} for {began[k]}" for k in differing)
        print(
            f"{run.directory}: {', '.join(changes)} since the run began; "
            "it may not end bit for bit as it would have",
            file=sys.stderr,
        )


def check(record: Mapping[str, Any], text: bytes, where: pathlib.Path) -> None:
    """Checks that the changes in `run.json` lead from config to config.

    Each must be of fields that may change, and undone give the config before it. The
    config itself may be the one before the last change, where a kill came between.

    Args:
      record: `run.json`.
      text: `config.json`.
      where: What to call the record in errors.

    Raises:
      ReslabError: If one does not.
    """
    changes = record.get("changes", [])
    if not changes:
        return
    fields = parse_record(text, str(where))
    if _digest(fields) == changes[-1].get("config_sha256"):
        changes = changes[:-1]
    for change in reversed(changes):
        before = _undone(fields, change)
        if before is None or _digest(before) != change.get("config_sha256"):
            raise ReslabError(
                f"{where}: changes",
                expected="changes that lead from each config to the next",
                hint="restore the file",
            )
        fields = before


def _undone(
    fields: Mapping[str, Any], change: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The fields before a change; None if no run may have made it."""
    schema = configs.schema()
    pairs = change.get("fields", {})
    added, removed = change.get("added", []), change.get("removed", {})

    def may_be(name: str, pair: Any) -> bool:
        if not isinstance(pair, list) or len(pair) != 2 or name not in schema:
            return False
        old, new = pair
        if fields.get(name) != new:
            return False
        is_growth = name == "train.steps" and type(old) is int and old < new
        return is_growth or schema[name].may_change

    def was_absent(name: str) -> bool:
        """Returns whether another version may have written no such field."""
        if name not in schema or name not in fields:
            return False
        field = schema[name]
        if field.since is ALWAYS or field.may_change:
            return field.may_change or bool(field.was)
        return fields[name] == json.loads(json.dumps(field.since))

    is_right = (
        change.get("step", -1) >= 0
        and all(may_be(name, pair) for name, pair in pairs.items())
        and all(map(was_absent, added))
        and not any(name in schema for name in removed)
    )
    if not is_right:
        return None
    kept = {name: value for name, value in fields.items() if name not in added}
    return {**kept, **removed, **{name: old for name, (old, _) in pairs.items()}}


def _digest(fields: Mapping[str, Any]) -> str:
    return configs.sha256_of_text(json.dumps(fields, sort_keys=True, indent=1))
