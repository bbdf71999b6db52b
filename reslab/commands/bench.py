"""`reslab bench`: what kernels cost beside plain XLA, as CSV."""

import argparse
import os
import sys

from reslab.commands.options import place
from reslab.core.errors import ReslabError
from reslab.runtime.storage import local_path

HELP = "what kernels cost beside plain XLA, as CSV"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "what", choices=("ops",), help="ops: the operations with kernels"
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
    parser.add_argument("--dtype", default="bfloat16", help="default: bfloat16")
    parser.add_argument("--out", type=place, metavar="FILE.csv", help="default: print")


def run(options: argparse.Namespace) -> int:
    """Measures operations and prints or writes CSV."""
    from reslab.commands.kernels import bench_ops
    from reslab.commands.measurements import as_csv
    from reslab.runtime.files import write_whole

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    out = local_path(options.out, "--out") if options.out else None
    # Checked before compiling, which takes minutes.
    if out and not os.access(out.parent, os.W_OK):
        raise ReslabError(
            f"--out {out}",
            expected="a file in a directory that can be written",
            hint="--out FILE.csv",
        )
    arguments = options.operation, options.target, options.shape, options.dtype
    text = as_csv(bench_ops(*arguments, tell))
    if out:
        write_whole(out, text)
    else:
        print(text, end="")
    return 0
