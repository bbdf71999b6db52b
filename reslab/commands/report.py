"""`reslab report`: report a study, or runs, as one page."""

import argparse

from reslab.commands.options import number, place

HELP = "report a study, or runs, as one page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "paths", nargs="+", type=place, metavar="STUDY|RUN", help="directories"
    )
    parser.add_argument(
        "--out",
        type=place,
        metavar="FILE.html",
        help="default: in the study or run; here for several",
    )
    parser.add_argument(
        "--figures",
        type=place,
        metavar="DIR",
        help="write every figure for a paper: SVG, PDF and PNG, one and two columns "
        "wide (needs reslab[plots])",
    )
    parser.add_argument("--baseline", metavar="NAME", help="the case to compare with")
    parser.add_argument(
        "--margin",
        type=number(1e-9),
        metavar="M",
        help="call a case as good as the baseline where the data exclude a difference "
        "of M or more in the held-out figure",
    )
    parser.add_argument(
        "--allow-mixed",
        action="store_true",
        help="runs with different corpora or budgets in one table, marked",
    )


def run(options: argparse.Namespace) -> int:
    """Writes the page of a report and prints its tables."""
    from reslab.study.report import answer, write_report

    choices = {
        "baseline": options.baseline,
        "margin": options.margin,
        "allow_mixed": options.allow_mixed,
    }
    page = write_report(
        options.paths, options.out, figures_folder=options.figures, **choices
    )
    print(answer(options.paths, **choices))
    print(f"\nreport  {page}")
    if options.figures is not None:
        print(f"figures {options.figures}")
    return 0
