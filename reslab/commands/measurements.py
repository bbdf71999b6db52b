"""Rows of `reslab bench`, and their CSV."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass
class Row:
    """One measurement; what was not measured is empty.

    Attributes:
      operation: Which one.
      shape: Name of the shape (`reslab/ops/*/shapes.py`).
      dtype: Of its arrays.
      direction: "forward", or "both" with the gradient.
      implementation: "reference" or "pallas".
      device: What it ran on, or the chip that it was compiled for.
      is_compiled: Whether it was compiled and did not run.
      ideal_bytes: The least that must be read and written.
      hbm_bytes: What the compiled program reads and writes.
      bytes_ratio: Of the second to the first.
      estimate_us: The compiler's own estimate, calibrated, of what is no kernel.
      bundles_per_step: Bundles of a step of the grid, of all kernels.
      compute_us: Bundles of all steps over the clock.
      dma_us: Bytes over the bandwidth.
      bound: "memory" or "compute", whichever takes longer.
      measured_us: Median time of a run.
      gigabytes_per_second: Ideal bytes over that.
      copy_fraction: Of the rate of a copy on the device, in the same process.
      speedup: Time of the reference over this one's; of what was compiled the least
        time, which is the reference's bytes over the bandwidth alone.
      commit: Of the source.
      jax: Version.
      libtpu: Version.
      date: Of the run.
    """

    operation: str
    shape: str
    dtype: str
    direction: str
    implementation: str
    device: str
    is_compiled: bool
    ideal_bytes: int
    hbm_bytes: int | None = None
    bytes_ratio: float | None = None
    estimate_us: float | None = None
    bundles_per_step: int | None = None
    compute_us: float | None = None
    dma_us: float | None = None
    bound: str | None = None
    measured_us: float | None = None
    gigabytes_per_second: float | None = None
    copy_fraction: float | None = None
    speedup: float | None = None
    commit: str | None = None
    jax: str = ""
    libtpu: str | None = None
    date: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """Names the columns on which rows must agree to be compared."""
        return self.operation, self.shape, self.dtype, self.direction, self.device

    @property
    def least_us(self) -> float | None:
        """The least time that what was compiled can take."""
        return max(self.dma_us or 0.0, self.compute_us or 0.0) or None


FIELDS = [field.name for field in dataclasses.fields(Row)]


def as_csv(rows: Sequence[Any]) -> str:
    """Rows, data classes of one kind, as CSV with a header."""
    text = io.StringIO()
    fields = [field.name for field in dataclasses.fields(rows[0])] if rows else FIELDS
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return text.getvalue()
