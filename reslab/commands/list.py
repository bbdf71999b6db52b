"""`reslab list`: list every variant, or those of one family."""

import argparse

HELP = "list every variant, or those of one family"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("family", nargs="?", help="a family, such as norms")
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="the names, as the table of docs/VARIANTS.md",
    )


def run(options: argparse.Namespace) -> int:
    """Prints the names of variants."""
    from reslab.commands.variants import list_variants, variants_table

    print(variants_table() if options.markdown else list_variants(options.family))
    return 0
