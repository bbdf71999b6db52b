"""What every optimizer costs a step, over adamw.

    python experiments/bench/optimizers.py
    python experiments/bench/optimizers.py --config small_85m --topology v5e:2x4

Without `--topology` the training step of each optimizer runs on this machine: all take
turns in one process, so that they see it in the same state, and the figure is the
median step over adamw's. What an optimizer does every so many steps (a decomposition, a
spectrum) is not in a median: `periodic` is a step that does it less one that does not,
over as many steps as lie between two, of the optimizer's own step. With `--topology`
the steps are compiled for a TPU slice that is not there, and nothing is run: bytes
moved to and from memory and an estimate of the step, each over adamw's (what is done
under a condition counts as if it were always done). Appends its rows to
experiments/bench/optimizers.csv.
"""

import argparse
import pathlib
import statistics
import time

import jax
from _table import append

from reslab.core import config as configs
from reslab.core import registry
from reslab.observe.environment import environment
from reslab.parallel.hosts import configure_cpu
from reslab.parallel.mesh import place_on, use_mesh
from reslab.train.compiled import compile_configs
from reslab.train.loop import prepare
from reslab.train.step import jit_step

TABLE = pathlib.Path(__file__).with_suffix(".csv")
# How often those do their periodic work that do it not at every step.
EVERY = {"heavy_tail": 100, "soap": 10, "spectral": 100}
NEVER = 10**9
FIELDS = (
    *("optimizer", "config", "target", "step_seconds", "over_adamw", "periodic"),
    *("state_mib", "hbm_mib", "hbm_over_adamw", "estimate_over_adamw"),
    *("collective_mib", "jax", "libtpu", "commit", "estimator"),
)


def names():
    """Every optimizer, `adamw` first."""
    found = registry.names("optimizers")
    return sorted(found, key=lambda name: (name != "adamw", name))


def make_config(options, optimizer):
    """The config with this optimizer, which has its own cadence."""
    config = configs.load(options.config)
    configs.update(config, map(configs.parse_override, options.set))
    return configs.update(config, [("optim.name", optimizer)])


class Steps:
    """The training steps of one config, one at a time."""

    def __init__(self, config):
        self._setup = prepare(config)
        self._step = jit_step(self._setup)
        self._batches = self._setup.task.train_batches()
        self._state = self._setup.init()
        self.state_bytes = sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(self._state.opt_state)
        )
        self.take()

    def take(self):
        """Seconds that a step takes until its result is there."""
        with use_mesh(self._setup.mesh):
            batch = place_on(self._setup.mesh)(next(self._batches))
            begin = time.perf_counter()
            self._state, metrics = self._step(self._state, batch)
            jax.block_until_ready((self._state, metrics))
            return time.perf_counter() - begin


def in_turns(named, rounds):
    """Median seconds of a step of each."""
    seconds = {name: [] for name in named}
    for _ in range(rounds):
        for name, steps in named.items():
            seconds[name].append(steps.take())
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def measured(options):
    """Rows of figures taken on this machine."""
    named = {name: Steps(make_config(options, name)) for name in options.optimizer}
    seconds = in_turns(named, options.rounds)
    sizes = {name: steps.state_bytes for name, steps in named.items()}
    del named
    for name in options.optimizer:
        row = {
            "optimizer": name,
            "step_seconds": f"{seconds[name]:.4f}",
            "over_adamw": f"{seconds[name] / seconds['adamw']:.3f}",
            "state_mib": f"{sizes[name] / 2**20:.1f}",
        }
        if every := EVERY.get(name):
            cadences = {
                cadence: Steps(make_config(options, f"{name}(every={cadence})"))
                for cadence in (1, NEVER)
            }
            taken = in_turns(cadences, options.rounds)
            work = taken[1] - taken[NEVER]
            row["periodic"] = f"{work / (every * taken[NEVER]):.4f}"
        yield row


def compiled(options, topology):
    """Rows of figures from programs that are compiled and not run."""
    base = None
    for name in options.optimizer:
        config = make_config(options, name)
        (report,) = compile_configs({name: config}, topology, print)
        base = base or report
        cost = report.cost
        if cost is None:
            print(f"{name}: {report.verdict}")
            continue
        moved = sum(traffic.bytes for traffic in cost.collectives.values())
        yield {
            "optimizer": name,
            "target": f"{topology} compiled",
            "hbm_mib": f"{cost.hbm_bytes / 2**20:.0f}",
            "hbm_over_adamw": f"{cost.hbm_bytes / base.cost.hbm_bytes:.3f}",
            "estimate_over_adamw": (
                f"{report.estimated_seconds / base.estimated_seconds:.3f}"
            ),
            "collective_mib": f"{moved / 2**20:.0f}",
        }


def told(common, found):
    """Prints rows as they come, and completes them."""
    for row in found:
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        yield common | row


def main():
    """Measures or compiles, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--optimizer", nargs="*", default=names())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--topology")
    options = parser.parse_args()
    others = [name for name in options.optimizer if name != "adamw"]
    options.optimizer = ["adamw", *others]
    about = environment()
    common = {
        "config": " ".join([options.config, *options.set]),
        "target": about["device_kind"],
        "jax": about["versions"]["jax"],
        "commit": about["commit"],
    }
    if options.topology:
        common |= {"libtpu": about["versions"]["libtpu"], "estimator": "timeline"}
        found = compiled(options, options.topology)
    else:
        configure_cpu(1)
        found = measured(options)
    append(TABLE, told(common, found), FIELDS)


if __name__ == "__main__":
    main()
