"""`reslab show`: show a variant (norms/rms) or a config in full."""

import argparse
import pathlib

from reslab.commands.options import configurable, place, whole
from reslab.commands.runs import configure
from reslab.core import imports

HELP = "show a variant (norms/rms) or a config in full"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "what", type=place, help="family/name, a config, or a run directory"
    )
    parser.add_argument(
        "--width", type=whole(1, 2**20), default=128, help="for parameter shapes"
    )
    configurable(parser)


def run(options: argparse.Namespace) -> int:
    """Prints a variant or a config."""
    from reslab.commands.summary import show_config
    from reslab.commands.variants import show_variant
    from reslab.core import registry
    from reslab.train.run import Run

    family, _, variant = options.what.partition("/")
    if family in registry.FAMILIES:
        imports.allow(*registry.outside(family, variant))
        print(show_variant(options.what, options.width))
    else:
        path = pathlib.Path(options.what)
        is_run = (path / "config.json").is_file()
        config = configure(options, options.what, is_run=is_run)
        if is_run:
            Run(path).result()  # Raises if the record is damaged.
        steps = [p.name for p in path.glob("checkpoints/*") if p.name.isdigit()]
        print(show_config(config, step=max(map(int, steps), default=0)))
    return 0
