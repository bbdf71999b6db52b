"""Run directories written by hand, as a run would have written them."""

import json
import math

import numpy as np
import pytest

from reslab.core import config as configs

ENVIRONMENT = {
    "versions": {"python": "3.11.2", "jax": "0.10.2", "reslab": "0.1.0"},
    "platform": "cpu",
    "device_kind": "cpu",
    "device_count": 1,
    "commit": "0123456789abcdef",
}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(
    folder,
    seed,
    *,
    level=2.0,
    noise=0.01,
    step_seconds=0.1,
    steps=100,
    state="finished",
    corpus="c" * 64,
    probes=True,
    flops=5_500_000,
    environment=ENVIRONMENT,
    **fields,
):
    """A run whose curve falls to about `level`; returns the digest of its config.

    Fields are given with `__` for the dot.
    """
    folder.mkdir(parents=True)
    config = configs.load("base")
    changes = {key.replace("__", "."): value for key, value in fields.items()}
    every = {"train.steps": steps, "train.eval_every": 20, "data.batch": 4}
    configs.update(config, (every | changes | {"seed": seed}).items())
    # By name: the same numbers wherever the test's directory is.
    random = np.random.default_rng([seed, *"/".join(folder.parts[-2:]).encode()])
    shift = float(random.normal(0, noise))
    rows = []
    last = steps if state == "finished" else steps // 2
    for step in range(10, last + 1, 10):
        bits = level + shift + 3.0 * math.exp(-step / (0.12 * steps))
        row = {
            "step": step,
            "loss": bits * math.log(2),
            "bpb": bits + float(random.normal(0, 0.02)),
            "elapsed_seconds": 5.0 + step * step_seconds,
            "tokens_per_second": 4 * 128 / step_seconds,
            "step_seconds": step_seconds,
        }
        if step == steps:
            row |= {"eval_bpb": bits, "eval_sample_bpb": bits + 0.001}
        elif step % 20 == 0:
            row |= {"eval_bpb": bits + 0.001}
        rows.append(row)
    write_lines(folder / "metrics.jsonl", rows)
    if probes:
        depth = 2 * config.model.depth
        looks = [
            {
                "step": step,
                "stream/norm": [
                    (1 + i * (1 + step / steps)) * level for i in range(depth + 1)
                ],
                "contribution/cosine": [math.sin(i + step) for i in range(depth)],
                "unknown/matrix": [[i + j + step for j in range(4)] for i in range(4)],
            }
            for step in range(0, last + 1, 25)
        ]
        write_lines(folder / "probes.jsonl", looks)
    digest = configs.sha256(config)
    record = {
        "config_sha256": digest,
        "command": f"reslab train --config tiny --set seed={seed}",
        "environment": environment,
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
        "compute_dtype": "float32",
        "corpus": {"sha256": corpus, "documents": 3, "bytes": 1000},
        "parameters": 852_352,
        "training_flops_per_token": flops,
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.json").write_text(configs.canonical_json(config))
    if state == "finished":
        (folder / "result.json").write_text(json.dumps(rows[-1]))
    elif state == "diverged":
        failed = {"exit_code": 75, "message": "step 50: loss is not finite: got nan"}
        (folder / "failed.json").write_text(json.dumps(failed))
    return digest


def write_study(folder, cases, seeds=3, baseline=None, **shared):
    """A study; `cases` maps a name to the arguments of `write_run`."""
    folder.mkdir(parents=True, exist_ok=True)
    first = baseline or next(iter(cases))
    runs = []
    for case, arguments in cases.items():
        for seed in range(seeds):
            own = dict(shared | arguments)
            states = own.pop("states", {})
            directory = f"{len(runs):012x}"
            state = states.get(seed, "finished")
            digest = "0" * 64
            if state != "missing":
                digest = write_run(folder / directory, seed, state=state, **own)
            runs.append(
                {
                    "index": len(runs),
                    "case": case,
                    "seed": seed,
                    "directory": directory,
                    "sha256": digest,
                }
            )
    study = {
        "name": folder.name,
        "question": "Does the place of the norm matter at depth 4?",
        "command": f"reslab sweep {folder.name}.py",
        "baselines": {case: None if case == first else first for case in cases},
        "cases": {case: {} for case in cases},
        "seeds": list(range(seeds)),
        "runs": runs,
    }
    (folder / "study.json").write_text(json.dumps(study))
    return folder


PLACES = {
    "pre": {"level": 2.0},
    "post": {"level": 2.06, "model__placement": "post"},
    "hyper with four streams": {
        "level": 1.98,
        "step_seconds": 0.16,
        "model__residual": "hyper(streams=4)",
    },
    "deep": {"level": 1.9, "model__depth": 8, "states": {1: "diverged", 2: "missing"}},
}


@pytest.fixture
def run_writer():
    """`write_run`, for tests that need one run."""
    return write_run


@pytest.fixture
def study_writer():
    """`write_study`, for tests that need one of their own."""
    return write_study


@pytest.fixture
def places(tmp_path):
    """A study of four cases; in one of them a run diverged and one is missing."""
    return write_study(tmp_path / "places", PLACES)


def end_runs(planned, figure, **only):
    """Ends the runs of a plan with a figure, as a run would; None diverges.

    A figure is in bits per byte, or metrics by name, the first the headline.
    """
    for run in planned.runs:
        folder = planned.directory / run.directory
        if folder.exists() or any(getattr(run, k) != v for k, v in only.items()):
            continue
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(configs.canonical_json(run.config))
        found = figure(run)
        metrics = found if isinstance(found, dict) else {"bpb": found}
        metric = next(iter(metrics))
        record = {
            "config_sha256": configs.sha256(run.config),
            "corpus": {"sha256": "c" * 64},
            "training_flops_per_token": 1000,
            "headline": {"metric": metric, "name": metric, "is_higher_better": False},
            "parameters": 2000,
        }
        (folder / "run.json").write_text(json.dumps(record))
        if found is None:
            failed = {"exit_code": 75, "message": "diverged"}
            (folder / "failed.json").write_text(json.dumps(failed))
            continue
        row = {f"eval_{name}": value for name, value in metrics.items()}
        row |= {"step": run.config.train.steps, "step_seconds": 0.1}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (folder / "result.json").write_text(json.dumps(row))


@pytest.fixture
def end():
    """`end_runs`, for tests of what follows from the figures of runs."""
    return end_runs
