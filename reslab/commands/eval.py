"""`reslab eval`: evaluate a run on all of its held-out text."""

import argparse
import math

from reslab.commands.options import importing, place
from reslab.commands.runs import open_run, restore
from reslab.core.errors import ReslabError

HELP = "evaluate a run on all of its held-out text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    importing(parser)
    parser.add_argument("run", type=place, metavar="RUN", help="a run directory")


def run(options: argparse.Namespace) -> int:
    """Evaluates a run and prints its metrics."""
    config = open_run(options)

    import jax

    from reslab.core.model_state import check_updated
    from reslab.train.evaluate import Evaluator

    devices = jax.devices()
    # All devices where they share the batch evenly, otherwise one.
    devices = devices if config.eval.batch % len(devices) == 0 else devices[:1]
    setup, variables = restore(options.run, config, devices)
    check_updated(variables)
    evaluator = Evaluator(setup)
    found = evaluator(variables)
    for name, value in found.items():
        if not math.isfinite(value):
            raise ReslabError(
                f"{options.run}: {name}", expected="a finite value", got=str(value)
            )
    for name, value in found.items():
        print(f"{name} {value:.6g}")
    return 0
