"""Changes of config and machine with which a run may go on."""

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import registry

if TYPE_CHECKING:
    from reslab.train.run import Run

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


def adopt(run: "Run", config: ConfigDict) -> None:
    """Makes a config that differs in what may change the run's own.

    The change is recorded in `run.json`. A finished run is extended to its new end.
    A kill at any moment leaves a run that can resume with either config.

    Args:
      run: The run, which is locked.
      config: The config, which `Run.open` has accepted.
    """
    before = dict(configs.flatten(run.config(is_inert=True)))
    after = dict(configs.flatten(config))
    fields = {name: [before[name], after[name]] for name in after}
    fields = {name: pair for name, pair in fields.items() if pair[0] != pair[1]}
    if not fields:
        return
    step, record = run.last_step(), run.record()
    told = ", ".join(f"{name}={new!r}" for name, (_, new) in fields.items())
    print(f"{run.directory}: from step {step} on with {told}", file=sys.stderr)
    digest = record["config_sha256"]
    change = {"step": step, "config_sha256": digest, "fields": fields}
    (run.directory / "result.json").unlink(missing_ok=True)
    record |= {
        "config_sha256": configs.sha256(config),
        "changes": [*record.get("changes", []), change],
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
