"""A process of a sweep: checks configs, or trains one run.

    main("check")             # standard input: configs, one line of JSON each
    main("train", DIRECTORY)  # standard input: the config, one line of JSON

A failure of a run is its process's alone. The trainer takes the end of its standard
input for the end of the sweep, saves, and stops: a sweep that is killed leaves
no process behind.
"""

import contextlib
import json
import os
import signal
import sys
import threading

from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import imports
from reslab.core.errors import ReslabError
from reslab.runtime.exits import STOPPED
from reslab.runtime.text import warnings_in_one_line
from reslab.train.run import InUse

# Cores that this process may use, comma-separated; the sweep sets it.
CORES = "RESLAB_CORES"
# Seconds to wait for a run that another process has: a killed sweep's trainers
# need some to notice and save.
PATIENCE = 60.0
# Least seconds without a step after which a trainer ends itself.
WATCHDOG = 300.0


def check() -> int:
    """Prints for every config what a run costs, or what is wrong with it."""
    from reslab.train.cost import training_flops_per_unit
    from reslab.train.loop import prepare
    from reslab.train.probe import Prober

    for line in sys.stdin:
        # Only answers go to standard output, whatever a variant prints.
        with contextlib.redirect_stdout(sys.stderr):
            try:
                config = _config(line)
                setup = prepare(config)
                if config.probes.every:
                    Prober(setup, is_lenient=True)
                flops = training_flops_per_unit(setup)
                platform = setup.mesh.devices.flat[0].platform
                answer = {"flops_per_token": flops, "platform": platform}
            except ReslabError as error:
                answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
    return 0


def train(directory: str) -> int:
    """Trains the run whose config comes on standard input."""
    line = sys.stdin.readline()
    threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
    from reslab.train import loop
    from reslab.train.ending import end

    try:
        loop.train(_config(line), directory, patience=PATIENCE, watchdog=WATCHDOG)
    except InUse as error:  # Someone else is doing this run: that is no failure.
        print(error, file=sys.stderr)
        return STOPPED
    except (Exception, KeyboardInterrupt) as error:
        return end(error)
    return 0


def _config(line: str) -> ConfigDict:
    from reslab.parallel.hosts import configure_cpu

    told = json.loads(line)
    imports.allow(*told["allowed"])
    config = configs.from_json(told["config"], "config")
    configure_cpu(config.mesh.cpu_devices, told["cores"])
    return config


def _stop_with_the_sweep() -> None:
    # Not through sys.stdin, whose lock a waiting thread would hold at the end.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(verb: str, *arguments: str) -> int:
    """Does what the sweep asks for, and returns the exit code."""
    if CORES in os.environ and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, os.environ[CORES].split(",")))
    with imports.guarded(), warnings_in_one_line():
        return {"check": check, "train": train}[verb](*arguments)
