"""`reslab data`: tokenize a corpus, once and for all."""

import argparse
import sys

from reslab.commands.options import place
from reslab.core import imports

HELP = "tokenize a corpus, once and for all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("work", choices=["tokenize"])
    parser.add_argument("source", metavar="SOURCE", help="such as \"jsonl(path='x')\"")
    parser.add_argument("--tokenizer", default="bytes", help="default: bytes")
    parser.add_argument(
        "--out", type=place, required=True, metavar="DIR", help="a new directory"
    )


def run(options: argparse.Namespace) -> int:
    """Tokenizes a corpus and prints its record."""
    import time

    from reslab.core import registry
    from reslab.data.tokenized import tokenize

    imports.allow(*registry.outside("sources", options.source))
    imports.allow(*registry.outside("tokenizers", options.tokenizer))
    began = told = time.monotonic()

    def tell(documents: int, size: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 2.0:
            told = time.monotonic()
            print(
                f"{documents:,} documents  {size / 1e6:,.0f} MB  "
                f"{size / 1e6 / (told - began):,.1f} MB/s",
                file=sys.stderr,
                flush=True,
            )

    record = tokenize(options.source, options.tokenizer, options.out, tell)
    for name, count in record["tokens"].items():
        print(f"{name:10}  {count:,} tokens")
    print(f"{'sha256':10}  {record['sha256']}")
    print("next\n  reslab train --config small_85m --set \\")
    print(f"    data.source=\"tokens(path='{options.out}')\"")
    return 0
