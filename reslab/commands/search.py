"""`reslab search`: look for what a trained run could do otherwise."""

import argparse
import pathlib

from reslab.commands.options import compiling, importing, place, whole
from reslab.commands.runs import open_run

HELP = "search the paths through a run's layers that keep or improve its answers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    importing(parser)
    compiling(parser)
    parser.add_argument("what", choices=("paths",), help="what is searched")
    parser.add_argument("run", type=place, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--samples", type=whole(1, 2**24), default=32, help="how many examples"
    )
    parser.add_argument(
        "--simulations",
        type=whole(1, 2**24),
        default=50,
        help="the budget: paths tried for each of them, at most",
    )
    parser.add_argument(
        "--split",
        choices=("held_out", "training"),
        default="held_out",
        help="where the examples come from",
    )
    parser.add_argument(
        "--score",
        metavar="NAME",
        help="correct, probability, or a module with score(logits, batch) (default: "
        "correct for problems, probability for text)",
    )
    parser.add_argument(
        "--prompt",
        type=whole(0),
        default=0,
        help="first tokens of each example that are not scored",
    )
    parser.add_argument(
        "--together", action="store_true", help="one path for all the examples"
    )
    parser.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, help="chooses what is tried"
    )
    parser.add_argument(
        "--out",
        type=place,
        metavar="FILE",
        help="the paths found (default: RUN/paths.jsonl); an interrupted "
        "search continues it",
    )


def run(options: argparse.Namespace) -> int:
    """Searches the paths of a run and prints what was found."""
    config = open_run(options)

    import jax

    from reslab.core import registry
    from reslab.core.errors import ReslabError
    from reslab.core.model_state import check_updated
    from reslab.train.paths import files, scores, searching
    from reslab.train.restoring import restore, with_stack
    from reslab.train.run import Run

    stack = registry.parse(config.model.stack).name
    if stack not in ("uniform", "path"):
        raise ReslabError(
            f"{options.run}: model.stack",
            expected="uniform, whose layers can be applied in any order",
            got=repr(stack),
        )
    if options.score:
        scores.score_of(options.score)
    setup, variables = restore(options.run, config, jax.devices()[:1])
    check_updated(variables)
    request = searching.Request(
        samples=options.samples,
        simulations=options.simulations,
        split=options.split,
        score=options.score or scores.usual(setup.task),
        prompt=options.prompt,
        is_together=options.together,
        seed=options.seed,
    )
    file = pathlib.Path(options.out or f"{options.run}/paths.jsonl")
    found = searching.search_run(
        with_stack(setup, "path"),
        variables,
        Run(pathlib.Path(options.run)),
        file,
        request,
    )
    about, _ = files.read(file)
    print(searching.table(about, found))
    if options.together:
        print(f"\nreslab eval {options.run} --stack 'path(layers={found[0]['path']})'")
    print(f"\npaths of all samples  {file}")
    return 0
