"""Content of a run's directory, to compare runs by."""

import json
import pathlib
from typing import Any


def fingerprint(run: pathlib.Path) -> dict[str, Any]:
    """Returns digests of a run's last state, and its metrics without the clock."""
    steps = sorted(int(p.name) for p in run.glob("checkpoints/*") if p.name.isdigit())
    record = run / "checkpoints" / str(steps[-1]) / "integrity" / "metadata"
    clocks = ("elapsed_seconds", "tokens_per_second", "step_seconds")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    sealed = json.loads(record.read_text())["record"]
    return {
        "state": {key: sealed[key] for key in ("step", "data_index", "leaves")},
        "metrics": [
            {key: value for key, value in json.loads(line).items() if key not in clocks}
            for line in lines
        ],
    }


def newest_step(run: pathlib.Path) -> int:
    """Returns the newest committed step, or 0."""
    found = (run / "checkpoints").glob("*/integrity")
    return max(
        (int(p.parent.name) for p in found if p.parent.name.isdigit()), default=0
    )


def losses(run: pathlib.Path) -> list[float]:
    """The loss of every step."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]
