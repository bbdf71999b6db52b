"""The input pipeline alone, and what the host adds to a step.

    python experiments/bench/loader.py
    python experiments/bench/loader.py --source "tokens(path='corpus')"

Loader: shuffled batches of windows as a run of configs/small_85m.py takes them (512 x
1,024 tokens), made, stacked and put on the device, one after the other, with nothing
else going on. It must never be the bottleneck, even for devices four times as fast.

Host: what a step of the whole training loop costs this process (batches, dispatch,
judging, metrics every ten steps) where the model is so small that nothing else is left
of it. It is a bound from above: the loop prepares a step while the devices compute the
one before, and the small model's own products are in it.

Each is compared with the step of the eight v5e chips of a host: as the compiled program
is estimated (nothing ran on a TPU), and as it would be if they did nothing but matrix
products at their peak, which no step does.

Both are in seconds of this process's CPU time, since the machine may be shared; those
of a clock stand beside them. Appends a row to loader.csv. The estimate of a row whose
`estimator` is "sum" is of before estimates were a timeline.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax
from _table import append

from reslab.core import config as configs
from reslab.observe.environment import environment
from reslab.observe.meter import PEAK_FLOPS
from reslab.parallel.mesh import make_mesh, place_on
from reslab.train import loop
from reslab.train.compiled import compile_configs
from reslab.train.state import make_setup
from reslab.train.tasks import make_task

TABLE = pathlib.Path(__file__).with_suffix(".csv")
PRESET, KIND, DEVICES, FASTER = "small_85m", "TPU v5 lite", 8, 4
TOPOLOGY = "v5e:2x4"

# As many leaves and metrics as the preset has, and nothing to compute.
SMALL = {
    "model.features": 8,
    "model.depth": 2,
    "model.mixer": "attention(heads=1)",
    "model.loop": "scan",
    "model.remat": "none",
    "model.vocabulary_multiple": 8,
    "precision.compute": "float32",
    "data.source": "synthetic(documents=60)",
    "data.length": 8,
    "data.batch": 1,
    "eval.batch": 1,
    "eval.batches": 1,
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "probes.every": 0,
    "optim.schedule": "constant",
}


def loader_seconds(config, batches: int) -> tuple[float, float]:
    """Seconds of a batch, by CPU and by clock: medians."""
    task = make_task(config)
    place = place_on(make_mesh({}, jax.devices()[:1]))
    source, taken = task.train_batches(), []
    jax.block_until_ready(place(next(source)))
    for _ in range(batches):
        begin = time.process_time(), time.perf_counter()
        jax.block_until_ready(place(next(source)))
        end = time.process_time(), time.perf_counter()
        taken.append([b - a for a, b in zip(begin, end, strict=True)])
    cpu, clock = map(statistics.median, zip(*taken, strict=True))
    return cpu, clock


def host_seconds(config, steps: int) -> tuple[float, float]:
    """The same of a step of the loop with next to nothing to compute."""
    few = configs.from_json(configs.canonical_json(config), PRESET)
    never = {"train.checkpoint_every": 10 * steps, "train.eval_every": 10 * steps}
    fields = SMALL | never | {"train.steps": steps}
    configs.update(few, fields.items())
    marks = {}

    def mark(step: int) -> None:
        marks[step] = time.process_time(), time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        loop.train(few, pathlib.Path(folder) / "run", after_step=mark)
    # The first steps compile, the last one saves and evaluates.
    first, last = steps // 10, steps - 1
    cpu, clock = (
        (b - a) / (last - first) for a, b in zip(marks[first], marks[last], strict=True)
    )
    return cpu, clock


def main() -> None:
    """Measures, prints and records one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="stdlib")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    config = configs.load(PRESET)
    configs.update(config, [("data.source", options.source)])
    setup = make_setup(config, make_mesh({}, jax.devices()[:1]))
    per_token = setup.task.flops_per_unit(setup.model, setup.shapes.params)
    tokens = config.data.batch * config.data.length
    (report,) = compile_configs({PRESET: config}, TOPOLOGY, print)
    estimated = report.estimated_seconds
    fastest = tokens * per_token / (DEVICES * PEAK_FLOPS[KIND])
    loader, loader_clock = loader_seconds(config, options.batches)
    host, host_clock = host_seconds(config, options.steps)
    about = environment()
    row = {
        "source": options.source,
        "tokens_per_batch": tokens,
        "loader_tokens_per_cpu_second": round(tokens / loader),
        "loader_tokens_per_second": round(tokens / loader_clock),
        "devices": f"{DEVICES} x {KIND}",
        "estimated_step_seconds": f"{estimated:.4f}",
        "peak_step_seconds": f"{fastest:.4f}",
        f"loader_to_{FASTER}_times_estimated": f"{estimated / (FASTER * loader):.2f}",
        f"loader_to_{FASTER}_times_peak": f"{fastest / (FASTER * loader):.2f}",
        "host_cpu_seconds_per_step": f"{host:.5f}",
        "host_seconds_per_step": f"{host_clock:.5f}",
        "host_share_of_estimated_step": f"{host / estimated:.5f}",
        "host_share_of_peak_step": f"{host / fastest:.5f}",
        "jax": about["versions"]["jax"],
        "libtpu": about["versions"]["libtpu"],
        "commit": about["commit"],
        "estimator": "timeline",
    }
    append(TABLE, [row])
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
