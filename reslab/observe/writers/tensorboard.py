"""Metrics as TensorBoard event files, in `tensorboard/` of the run directory."""

import os
from collections.abc import Mapping
from typing import Any

from reslab.core.errors import missing_extra

# Checked before a run writes anything.
PACKAGE = "tensorboardX"


class TensorBoard:
    """Writes every metric as a scalar, through tensorboardX."""

    def __init__(self, directory: str):
        try:
            import tensorboardX
        except ModuleNotFoundError:
            raise missing_extra("tensorboardX", "track") from None
        self._open = tensorboardX.SummaryWriter
        self._directory = os.path.join(directory, "tensorboard")
        self._writer: Any = None  # Opened by the first write.
        self._purge_step: int | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one point to every curve."""
        if self._writer is None:
            self._writer = self._open(
                self._directory,
                purge_step=self._purge_step,
                flush_secs=30,
                # File names contain only the second: two files could share one.
                filename_suffix=f".{os.getpid()}.{step}",
            )
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), step)

    def truncate(self, step: int) -> None:
        """Tells TensorBoard to hide the points after `step`."""
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
        """Writes what is pending."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


build = TensorBoard
