"""`reslab bench`: costs of kernels, and of generation, as CSV."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from reslab.commands.options import place
from reslab.core.errors import ReslabError
from reslab.runtime.storage import local_path

HELP = "costs of kernels and of generation, as CSV"

# Options that only one of the benchmarks takes.
_OPTIONS = {"ops": ("operation", "target", "shape"), "generate": ("mixer", "context")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "what",
        choices=("ops", "generate"),
        help="ops: the operations with kernels, beside plain XLA; generate: tokens per "
        "second and bytes of state of mixers at long contexts",
    )
    parser.add_argument(
        "--operation",
        action="append",
        default=[],
        metavar="NAME",
        help="such as depth_read; may be repeated (default: all)",
    )
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="CHIP",
        help="compile for an absent v5e, v5p or v6e; may be repeated (default: run)",
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME",
        help="a shape of reslab/ops/*/shapes.py; may be repeated (default: all)",
    )
    parser.add_argument(
        "--mixer",
        action="append",
        default=[],
        metavar="SPEC",
        help="of generate: a mixer; may be repeated (default: eight kinds of layer)",
    )
    parser.add_argument(
        "--context",
        action="append",
        type=int,
        default=[],
        metavar="TOKENS",
        help="of generate: tokens so far; may be repeated (default: 1024 4096 16384)",
    )
    parser.add_argument(
        "--dtype", help="default: bfloat16 for ops, float32 for generate"
    )
    parser.add_argument("--out", type=place, metavar="FILE.csv", help="default: print")


def run(options: argparse.Namespace) -> int:
    """Measures, and prints or writes CSV."""
    from reslab.commands.measurements import as_csv
    from reslab.runtime.files import write_whole

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    for kind, names in _OPTIONS.items():
        for name in names:
            if getattr(options, name) and options.what != kind:
                raise ReslabError(
                    f"--{name}", expected=f"reslab bench {kind}", got=options.what
                )
    out = local_path(options.out, "--out") if options.out else None
    # Checked before compiling, which takes minutes.
    if out and not os.access(out.parent, os.W_OK):
        raise ReslabError(
            f"--out {out}",
            expected="a file in a directory that can be written",
            hint="--out FILE.csv",
        )
    rows: Sequence[Any]
    if options.what == "ops":
        from reslab.commands.kernels import bench_ops

        dtype = options.dtype or "bfloat16"
        arguments = options.operation, options.target, options.shape, dtype
        rows = bench_ops(*arguments, tell)
    else:
        from reslab.commands.decoding import bench_generate

        dtype = options.dtype or "float32"
        rows = bench_generate(options.mixer, options.context, dtype, tell)
    text = as_csv(rows)
    if out:
        write_whole(out, text)
    else:
        print(text, end="")
    return 0
