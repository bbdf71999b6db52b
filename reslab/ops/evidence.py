"""Compiled costs of kernels and of plain XLA, by which "auto" chooses.

`evidence.csv` holds rows of `reslab bench ops --target ...`: forward and backward of an
operation on a real shape, compiled for a chip. A kernel takes at least its bytes over
the chip's bandwidth and its bundles over its clock. Plain XLA is given its bytes over
the bandwidth alone, which it can only exceed; a kernel is taken where even that is
longer.
"""

import csv
import functools
import importlib.resources
from collections.abc import Mapping, Sequence

import jax

from reslab.core.platform import platform

# JAX's names of the chips.
CHIPS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def preferred(operation: str) -> str:
    """Returns the implementation that an operation runs where both can.

    Args:
      operation: Its name in `reslab.ops.catalogue`.

    Returns:
      "pallas" where the kernel was cheaper when compiled for the chip at hand, or for
      all of them together on a TPU that is not in `CHIPS`; else
      "reference", so on a GPU, where nothing was measured.
    """
    if platform() == "gpu":
        return "reference"
    rows = [row for row in _rows() if row["operation"] == operation]
    chip = CHIPS.get(_device_kind())
    rows = [row for row in rows if chip in (None, row["device"])]
    return "pallas" if rows and kernel_gain(rows) > 1 else "reference"


def kernel_gain(rows: Sequence[Mapping[str, str]]) -> float:
    """Returns the least time of plain XLA divided by the kernel's, by these rows."""
    times = {"reference": 0.0, "pallas": 0.0}
    for row in rows:
        costs = [float(row[key]) for key in ("dma_us", "compute_us") if row[key]]
        times[row["implementation"]] += max(costs)
    return times["reference"] / times["pallas"]


def _device_kind() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


@functools.cache
def _rows() -> tuple[Mapping[str, str], ...]:
    file = importlib.resources.files("reslab.ops") / "evidence.csv"
    rows = csv.DictReader(file.read_text().splitlines())
    return tuple(row for row in rows if row["direction"] == "both")
