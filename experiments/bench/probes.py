"""What the probes cost: an evaluation, against the steps between two of them.

    python experiments/bench/probes.py --config tiny --evaluations 20

Steps and evaluations take turns in one process, so that both see the machine in the
same state; the figure is the median evaluation over `probes.every` median steps. An
evaluation is a run's: the probes of the config, on its held-out sequences and on the
whole next batch. Appends a row to experiments/bench/probes.csv.
"""

import argparse
import pathlib
import statistics
import time

import jax
from _table import append

from reslab.core import config as configs
from reslab.observe.environment import environment
from reslab.parallel.hosts import configure_cpu
from reslab.parallel.mesh import place_on, use_mesh
from reslab.train.loop import prepare
from reslab.train.probe import Prober
from reslab.train.step import jit_step

TABLE = pathlib.Path(__file__).with_name("probes.csv")
STEPS_EACH = 5


def timed(function, *arguments):
    """How long a call takes until its result is there, and the result."""
    begin = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begin, result


def main():
    """Measures, prints and records one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--evaluations", type=int, default=20)
    options = parser.parse_args()
    config = configs.load(options.config)
    configs.update(config, map(configs.parse_override, options.set))
    configure_cpu(config.mesh.cpu_devices)
    setup = prepare(config)
    step = jit_step(setup)
    prober = Prober(setup)
    place = place_on(setup.mesh)
    batches = setup.task.train_batches()
    state = setup.init()
    with use_mesh(setup.mesh):
        step_compile, (state, _) = timed(step, state, place(next(batches)))
        probe_compile, _ = timed(prober, state, place(next(batches)))
        steps, probes = [], []
        for _ in range(options.evaluations):
            probes.append(timed(prober, state, place(next(batches)))[0])
            for _ in range(STEPS_EACH):
                taken, (state, _) = timed(step, state, place(next(batches)))
                steps.append(taken)
    step_seconds, probe_seconds = map(statistics.median, (steps, probes))
    about = environment()
    row = {
        "config": " ".join([options.config, *options.set]),
        "probes": " ".join(config.probes.names),
        "every": config.probes.every,
        "step_seconds": f"{step_seconds:.4f}",
        "probe_seconds": f"{probe_seconds:.4f}",
        "added": f"{probe_seconds / (config.probes.every * step_seconds):.4f}",
        "step_compile_seconds": f"{step_compile:.1f}",
        "probe_compile_seconds": f"{probe_compile:.1f}",
        "device": about["device_kind"],
        "jax": about["versions"]["jax"],
        "commit": about["commit"],
    }
    append(TABLE, [row])
    for key, value in row.items():
        print(f"{key:22} {value}")


if __name__ == "__main__":
    main()
