"""Configs and parameters of runs, as commands ask for them."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reslab.core import imports
from reslab.core.errors import ReslabError
from reslab.runtime.storage import local_path

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def configure(
    options: argparse.Namespace, source: str, *, is_run: bool
) -> "ConfigDict":
    """Loads the config of a file, a name or a run directory and applies `--set`."""
    from reslab.core import config as configs
    from reslab.parallel.hosts import configure_cpu
    from reslab.train.run import Run

    config = Run(pathlib.Path(source)).config() if is_run else configs.load(source)
    changes = [configs.parse_override(text) for text in options.set]
    configs.update(config, changes)
    # The config as its author wrote it, in a Python file or on the command line.
    words = changes if is_run else configs.flatten(config)
    allow(dict(words))
    configure_cpu(config.mesh.cpu_devices)
    return config


def allow(fields: Mapping[str, Any]) -> None:
    """Allows what a person's own values of fields name: modules, and hosts."""
    from reslab.core import config as configs
    from reslab.observe.metrics import senders

    imports.allow(*(module for _, module in configs.outside(fields)))
    imports.allow(*senders(fields.get("train.writers", ())))


def check_is_run(directory: str) -> None:
    """Refuses a path that is no directory."""
    if not local_path(directory, "run directory").is_dir():
        raise ReslabError(directory, expected="a run directory", got="nothing there")


def open_run(options: argparse.Namespace) -> "ConfigDict":
    """Loads the config of the run that a command is about."""
    check_is_run(options.run)
    options.set = []
    return configure(options, options.run, is_run=True)
