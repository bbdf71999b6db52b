"""Metrics as TensorBoard event files, in `tensorboard/` of the run directory."""

import os
from collections.abc import Mapping
from typing import Any

from reslab.core.errors import missing_extra


class TensorBoard:
    """Writes every metric as a scalar, through tensorboardX."""

    def __init__(self, directory: str):
        self._directory = os.path.join(directory, "tensorboard")
        self._writer = _open(self._directory)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one point to every curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), step)

    def truncate(self, step: int) -> None:
        """Tells TensorBoard to hide the points after `step`."""
        self._writer.close()
        self._writer = _open(self._directory, purge_step=step + 1)

    def close(self) -> None:
        """Writes what is pending."""
        self._writer.close()


def _open(directory: str, **options: Any) -> Any:
    try:
        import tensorboardX
    except ModuleNotFoundError:
        raise missing_extra("tensorboardX", "track") from None
    return tensorboardX.SummaryWriter(directory, flush_secs=30, **options)


build = TensorBoard
