"""The lines that a run prints before its first step."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from reslab.core.trees import count_parameters
from reslab.runtime.programs import FOLDER
from reslab.runtime.text import aligned
from reslab.train.state import Setup


def opening(
    setup: Setup, corpus: Mapping[str, Any], directory: pathlib.Path, step: int
) -> list[str]:
    """Describes a run before its first step.

    Args:
      setup: The setup.
      corpus: The task's record of its data.
      directory: The run directory.
      step: The step from which it resumes; 0 begins.

    Returns:
      A line each for the model, the devices, the data, the directory, parameters that
      lose small updates, and the folder of compiled programs.
    """
    config, devices = setup.config, setup.mesh.devices
    model, precision = config.model, config.precision.parameters
    compute = np.dtype(setup.model.dtype).name
    rows = [
        (
            "parameters",
            f"{count_parameters(setup.shapes.params):,} in {precision}: "
            f"{model.name}, {model.depth} layers of {model.features} features",
        ),
        ("devices", f"{devices.size} {devices.flat[0].device_kind}, {compute} compute"),
        ("data", f"{config.data.source}{_size(corpus)}"),
        ("run directory", f"{directory}" + (f", from step {step}" if step else "")),
    ]
    if jnp.finfo(precision).bits < 32:
        share = round(2 / float(jnp.finfo(precision).eps))
        told = f"updates below about 1/{share} of a {precision} parameter are rounded"
        remedy = "away; precision.parameters=float32 keeps them"
        rows.append(("precision", f"{told} {remedy}"))
    if folder := os.environ.get(FOLDER):
        rows.append(("compile cache", folder))
    return [line.rstrip() for line in aligned(rows)]


def _size(record: Mapping[str, Any]) -> str:
    found = [
        f"{record[key]:,} {key}" for key in ("documents", "bytes") if key in record
    ]
    return f": {', '.join(found)}" if found else ""
