"""`reslab study power`: how many seeds an effect needs."""

import argparse

from reslab.commands.options import number, place

HELP = "how many seeds an effect needs, from the spread of a study"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="power")
    power = parts.add_parser("power", help=HELP, description=HELP)
    power.add_argument("study", type=place, metavar="STUDY", help="its directory")
    power.add_argument(
        "--effect",
        type=number(1e-9, 1e9),
        nargs="+",
        default=[],
        metavar="E",
        help="differences of the held-out figure (default: multiples of the spread)",
    )


def run(options: argparse.Namespace) -> int:
    """Prints the spread of a study and the power for some effects."""
    from reslab.study.power import of_study
    from reslab.study.results import read_results

    text, table = of_study(read_results([options.study]), options.effect)
    print(f"{text}\n\n{table.caption}\n{table.text()}")
    return 0
