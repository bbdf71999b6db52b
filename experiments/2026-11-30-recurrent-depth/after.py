"""Trained runs of the study under other stacks, and what they have learned inside.

    python experiments/2026-11-30-recurrent-depth/after.py \
        runs/2026-11-30-recurrent-depth

Prints Markdown: held-out bits per byte by passes, by layers that are left out, and by
corrections of layers that are evaluated at once; CART's gates; the load of experts.
"""

import argparse
import collections
import pathlib
import statistics
from collections.abc import Sequence

import jax
import numpy as np

from reslab.core.trees import named_leaves
from reslab.study.plan import finished_runs
from reslab.study.results import read_results
from reslab.train.evaluate import Evaluator
from reslab.train.restoring import restore, with_stack
from reslab.train.run import Run

LAYERS = range(8)
# Held-out batches, of rows that are spread over the split.
BATCHES = 8
# Stacks to evaluate by case; the first is that of training.
STACKS = {
    "looped": [f"looped(loops={n})" for n in (2, 1, 3, 4)],
    "looped_4_times": [f"looped(loops={n})" for n in (4, 1, 2, 3, 5, 6, 8)],
    "huginn": [f"huginn(loops={n}, prelude=1, coda=1)" for n in (3, 1, 2, 4, 6, 8)],
    "uniform_8": [
        "uniform",
        *(f"path(layers={(*LAYERS[:n], *LAYERS[n + 1 :])})" for n in LAYERS),
        "path(layers=(0, 1, 3, 5, 7))",
        *(f"newton(parallel=6, iterations={n})" for n in (1, 2, 3)),
    ],
    "newton": [
        "uniform",
        *(f"newton(parallel=6, iterations={n})" for n in (1, 2, 3)),
    ],
}


def evaluated(runs: Sequence[pathlib.Path], stack: str) -> list[float]:
    """Held-out bits per byte of the runs of a case under a stack, on a sample."""
    found, evaluate = [], None
    for run in runs:
        setup, variables = restore(run, Run(run).config(), jax.devices()[:1])
        # Seeds differ in nothing that is compiled.
        evaluate = evaluate or Evaluator(with_stack(setup, stack))
        found.append(evaluate(variables, BATCHES)["eval_bpb"])
    return found


def gates(run: pathlib.Path) -> tuple[float, float]:
    """Mean and largest sigmoid of the gates of a run of CART."""
    _, variables = restore(run, Run(run).config(), jax.devices()[:1])
    leaves = named_leaves(variables["params"])
    (gate,) = (leaf for name, leaf in leaves.items() if name.endswith("layers/gate"))
    share = 1 / (1 + np.exp(-np.asarray(gate, np.float64)))
    return float(np.mean(share)), float(np.max(share))


def summary(values: Sequence[float]) -> str:
    """Mean and standard deviation of seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ({spread:.3f})"


def main(study: pathlib.Path) -> None:
    """Prints every table for the finished runs of a study."""
    runs = collections.defaultdict(list)
    outcomes = read_results([study]).runs
    by_directory = {run.directory.name: run for run in outcomes}
    for run in finished_runs(study):
        runs[by_directory[run.name].case].append(run)
    print("| case | evaluated as | bits per byte (sd) |\n| --- | --- | --- |")
    for name, stacks in STACKS.items():
        for stack in stacks if runs[name] else ():
            told = summary(evaluated(runs[name], stack))
            print(f"| `{name}` | `{stack}` | {told} |", flush=True)
    print("\n| seed | CART's gate, mean | largest |\n| --- | --- | --- |")
    for run in runs["cart"]:
        mean, most = gates(run)
        print(f"| {by_directory[run.name].seed} | {mean:.3f} | {most:.3f} |")
    print(
        "\n| case | seed | largest share of an expert by layer |\n| --- | --- | --- |"
    )
    for name in ("experts_4", "wide_experts"):
        for run in runs[name]:
            own = by_directory[run.name]
            look = own.probes[max(own.probes)]
            shares = np.max(np.asarray(look["expert_load/share"]), axis=-1)
            told = " ".join(f"{share:.2f}" for share in shares)
            print(f"| `{name}` | {own.seed} | {told} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=pathlib.Path)
    main(parser.parse_args().study)
