"""`reslab generate`: sample text from a run."""

import argparse

from reslab.commands.options import compiling, importing, number, place, whole
from reslab.commands.runs import open_run

HELP = "sample text from a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    importing(parser)
    compiling(parser)
    parser.add_argument("run", type=place, metavar="RUN", help="a run directory")
    parser.add_argument("--prompt", help="text to continue (default: a new document)")
    parser.add_argument(
        "--length",
        type=whole(1, 2**20),
        help="most tokens to add (default: 200, within the length of training)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; the end of a document always ends (repeatable)",
    )
    parser.add_argument(
        "--temperature", type=number(0), default=0.8, help="0 is greedy"
    )
    parser.add_argument("--top-k", type=whole(0), default=0, help="0 keeps all tokens")
    parser.add_argument(
        "--top-p", type=number(0, 1), default=1.0, help="1 keeps all tokens"
    )
    parser.add_argument(
        "--exit",
        choices=("none", "latent", "entropy", "kl", "halting"),
        default="none",
        help="end the passes of a looped stack early: huginn by the change of this, "
        "act and ponder by halting",
    )
    parser.add_argument(
        "--threshold", type=number(0), default=0.0, help="the change, for --exit"
    )
    parser.add_argument("--samples", type=whole(1, 2**12), default=1, help="how many")
    parser.add_argument(
        "--slots",
        type=whole(0, 2**12),
        default=0,
        help="samples that are continued at a time, each at a pass of its own (stack "
        "recursive; default: all at once)",
    )
    parser.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, help="chooses the samples"
    )


def run(options: argparse.Namespace) -> int:
    """Prints samples of a run."""
    open_run(options)
    from reslab.train import api

    samples = api.generate(
        options.run,
        options.prompt,
        length=options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        exit=options.exit,
        threshold=options.threshold,
        samples=options.samples,
        stop=options.stop,
        slots=options.slots,
        seed=options.seed,
    )
    print("\n---\n".join(samples))
    return 0
