"""Metrics to Weights & Biases, offline unless asked otherwise."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from reslab.core.errors import missing_extra

# Checked before a run writes anything.
PACKAGE = "wandb"


def is_sending(arguments: Mapping[str, Any]) -> bool:
    """Returns whether a spec with these arguments sends metrics as the run trains."""
    return arguments.get("mode", "offline") not in ("offline", "disabled")


class WeightsAndBiases:
    """Logs every metric to one W&B run per run directory.

    Args:
      directory: The run directory; W&B keeps its files in `wandb/` there.
      project: The W&B project.
      mode: `"offline"` needs no account and no network (upload later with
        `wandb sync`); `"online"` uploads while training.
    """

    def __init__(self, directory: str, project: str = "reslab", mode: str = "offline"):
        try:
            import wandb  # pyrefly: ignore[missing-import]
        except ModuleNotFoundError:
            raise missing_extra("wandb", "track") from None
        path = os.path.abspath(directory)
        # The same directory is the same run: a resumed run continues its curves.
        self._run = wandb.init(
            dir=path,
            project=project,
            mode=mode,
            name=os.path.basename(path),
            id=hashlib.sha256(path.encode()).hexdigest()[:16],
            resume="allow",
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs one point of every curve."""
        self._run.log({name: float(v) for name, v in metrics.items()}, step=step)

    def truncate(self, step: int) -> None:
        """Does nothing: W&B ignores points at steps that it already has."""

    def close(self) -> None:
        """Writes what is pending."""
        self._run.finish()


build = WeightsAndBiases
