"""`reslab transform`: convert a run to another architecture."""

import argparse

from reslab.commands.options import compiling, importing, place
from reslab.commands.runs import open_run
from reslab.core import imports

HELP = "convert a run to another architecture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    importing(parser)
    compiling(parser)
    parser.add_argument("name", metavar="NAME", help="see `reslab list transforms`")
    parser.add_argument(
        "run", type=place, metavar="RUN", help="the run directory to convert"
    )
    parser.add_argument(
        "--out", type=place, required=True, metavar="RUN2", help="the new one"
    )


def run(options: argparse.Namespace) -> int:
    """Converts a run and prints how far its outputs moved."""
    open_run(options)

    from reslab.core import registry
    from reslab.train.transform import transform_run

    imports.allow(*registry.outside("transforms", options.name))

    result = transform_run(options.name, options.run, options.out)
    for key, value in sorted(result.changes.items()):
        print(f"{key} = {value!r}")
    print(
        f"\nlargest logit difference  {result.logit_difference:.3g} "
        f"(float32, {result.tokens:,} held-out tokens, "
        f"logits up to {result.largest_logit:.3g})"
    )
    print(f"run directory  {options.out}, from step {result.step} of {options.run}")
    print("next")
    print(f"  reslab eval {options.out}")
    print(f"  reslab train --from-run {options.out} --run {options.out}")
    return 0
