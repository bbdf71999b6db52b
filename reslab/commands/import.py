"""`reslab import`: make a run of a checkpoint of another library."""

import argparse

from reslab.commands.options import configurable, place
from reslab.commands.runs import allow

HELP = "make a run of a Hugging Face checkpoint (config.json and safetensors)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    configurable(parser)
    parser.add_argument(
        "path",
        type=place,
        metavar="PATH",
        help="a directory with config.json and *.safetensors; nothing is downloaded",
    )
    parser.add_argument(
        "--out", type=place, required=True, metavar="RUN", help="the run directory"
    )


def run(options: argparse.Namespace) -> int:
    """Imports a checkpoint and prints what it is."""
    from reslab.core import config as configs
    from reslab.train.importing import import_run

    changes = [configs.parse_override(text) for text in options.set]
    allow(dict(changes))
    record = import_run(options.path, options.out, changes)
    print(
        f"{record['model_type']}: {record['parameters']:,} parameters in "
        f"{record['tensors']:,} tensors, kept in {record['dtype']}"
        + _mixed(record["dtypes"])
    )
    if "tokenizer.json" not in record["files"]:
        print("no tokenizer.json: texts are numbers, the ids of tokens")
    print(f"run directory  {options.out}")
    print("next")
    print(f"  reslab eval {options.out}")
    print(f"  reslab train --continue-from {options.out}")
    print(f"  reslab export {options.out} --out PATH")
    return 0


def _mixed(dtypes: list[str]) -> str:
    """Says so where the files hold several dtypes: parameters have one."""
    if len(dtypes) == 1:
        return ""
    return f"; the files hold {' and '.join(dtypes)}, which an export gives back"
