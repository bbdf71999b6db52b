"""`reslab compile`: cost of a step on an absent TPU."""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from reslab.commands.options import compiling, configurable, is_change, place
from reslab.commands.runs import configure
from reslab.core import imports
from reslab.core.errors import ReslabError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from reslab.commands.costs import Measured

HELP = "cost of a step on an absent TPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "configs",
        nargs="+",
        type=place,
        metavar="CONFIG",
        help="a config, or a run directory",
    )
    parser.add_argument(
        "--topology",
        action="append",
        metavar="SLICE",
        help="v4, v5e, v5p, v6e or tpu7x and its shape in chips, v5e:2x4 (default), or "
        "an accelerator type, v5litepod-8; may be repeated",
    )
    parser.add_argument(
        "--what",
        default="train",
        choices=("train", "eval", "generate"),
        help="the step: of training (default), evaluation, or all of a generation",
    )
    parser.add_argument(
        "--fit",
        action="store_true",
        help="where it does not fit, compile its remedies too, until one does",
    )
    configurable(parser)
    compiling(parser)
    parser.add_argument(
        "--versus",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="compile again with this change, for one more column; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")


def run(options: argparse.Namespace) -> int:
    """Compiles steps and prints their costs."""
    from reslab.commands.costs import as_json, table
    from reslab.core import config as configs
    from reslab.core import config_files
    from reslab.parallel.aot.topology import topology
    from reslab.train.compiled import compile_configs

    options.set += filter(is_change, options.configs)
    options.configs = [one for one in options.configs if not is_change(one)]
    if not options.configs:
        raise ReslabError("reslab compile", expected="a config, or a run directory")
    named: dict[str, ConfigDict] = {}
    measured: dict[str, Measured] = {}
    for source in options.configs:
        is_run = (pathlib.Path(source) / "config.json").is_file()
        for change in (None, *options.versus):
            config = configure(options, source, is_run=is_run)
            # Runs of the same name are told apart by their paths.
            stems = [config_files.short_name(path) for path in options.configs]
            stem = config_files.short_name(source)
            name = stem if stems.count(stem) == 1 else source
            if change is not None:
                field, value = configs.parse_override(change)
                configs.update(config, [(field, value)])
                imports.allow(*(m for _, m in configs.outside({field: value})))
                name += f", {change}"
            if name in named:
                raise ReslabError(f"{name} is there twice")
            named[name] = config
            if is_run and change is None and not options.set:
                found = _measured(source)
                measured |= {name: found} if found else {}

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    slices = list(dict.fromkeys(options.topology or ["v5e:2x4"]))
    for name in slices:
        topology(name)
    written, is_fitting = [], True
    for number, name in enumerate(slices, start=1):
        reports = compile_configs(
            named, name, tell, work=options.what, is_fitting=options.fit
        )
        is_fitting &= all(report.is_fitting for report in reports)
        if options.json:
            written.append(as_json(reports, name))
        else:
            is_last = number == len(slices)
            written.append(table(reports, name, measured, has_notes=is_last))
    if options.json and len(written) > 1:
        written = ["[" + ",\n".join(written) + "]"]
    print("\n".join(written))
    return 0 if is_fitting else 1


def _measured(run: str) -> "Measured | None":
    """Training steps as a run has measured them; None if it has not ended."""
    from reslab.commands.costs import Measured
    from reslab.train.run import Run

    found = Run(pathlib.Path(run))
    result = found.result() or {}
    if "step_seconds" not in result:
        return None
    record = found.recorded().get("environment", {})
    share = f"{result['mfu']:.2f}" if "mfu" in result else "-"
    devices = f"{record.get('device_count', 1)} x {record.get('device_kind', '?')}"
    return Measured(result["step_seconds"], share, devices)
