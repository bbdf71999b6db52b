"""`reslab export`: write a run as a checkpoint of another library."""

import argparse

from reslab.commands.options import importing, place, whole
from reslab.commands.runs import open_run

HELP = "write a run as a Hugging Face checkpoint (config.json and safetensors)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    importing(parser)
    parser.add_argument("run", type=place, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--out", type=place, required=True, metavar="PATH", help="the new directory"
    )
    parser.add_argument("--step", type=whole(0), help="one step (default: the newest)")


def run(options: argparse.Namespace) -> int:
    """Exports a run and prints what it is there."""
    open_run(options)

    from reslab.train.exporting import export_run

    record = export_run(options.run, options.out, options.step)
    files = sum(name.endswith(".safetensors") for name in record["files"])
    print(
        f"{record['model_type']}: {record['tensors']:,} tensors in {files} "
        f"file{'s' * (files > 1)}, from step {record['step']} of {options.run}"
    )
    if "tokenizer.json" not in record["files"]:
        print("no tokenizer.json: the run has no file of its tokens, only their ids")
    print(f"checkpoint  {options.out}")
    return 0
