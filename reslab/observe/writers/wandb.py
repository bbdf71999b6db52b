"""Metrics to Weights & Biases, offline unless asked otherwise."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from reslab.core.errors import missing_extra
from reslab.observe.writers import jsonl

# Checked before a run writes anything.
PACKAGE = "wandb"


def is_sending(arguments: Mapping[str, Any]) -> bool:
    """Returns whether a spec with these arguments sends metrics as the run trains."""
    return arguments.get("mode", "offline") not in ("offline", "disabled")


class WeightsAndBiases:
    """Logs every metric to one W&B run per run, with the run's config.

    A resumed run continues its curves. W&B cannot take points back: a run that goes
    back past points that were logged continues as another W&B run of the same group,
    which begins with the points that are kept.

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
        self._directory = pathlib.Path(directory).absolute()
        self._id = _identity(self._directory)
        self._last = 0  # The last step that was logged.
        self._init = functools.partial(
            wandb.init,
            dir=str(self._directory),
            project=project,
            mode=mode,
            name=self._directory.name,
            group=self._id,
            config=_read(self._directory / "config.json"),
            resume="allow",
            # Beside other W&B runs of this process.
            reinit="create_new",
        )
        self._run = self._begin(self._part)

    @property
    def _part(self) -> int:
        """Number of times the run went back and began another W&B run."""
        try:
            return int(self._part_file.read_text())
        except (OSError, ValueError):
            return 0

    @property
    def _part_file(self) -> pathlib.Path:
        return self._directory / "wandb" / "part"

    def _begin(self, part: int) -> Any:
        return self._init(id=f"{self._id}-{part}" if part else self._id)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs one point of every curve."""
        self._run.log({name: float(v) for name, v in metrics.items()}, step=step)
        self._last = step

    def truncate(self, step: int) -> None:
        """Begins another W&B run where points after `step` have been logged."""
        if self._last <= step:
            return
        self._run.finish()
        part = self._part + 1
        self._part_file.parent.mkdir(exist_ok=True)
        self._part_file.write_text(f"{part}\n")
        self._run, self._last = self._begin(part), 0
        for record in _lines(self._directory / "metrics.jsonl"):
            at = record.pop("step")
            if at <= step:
                known = {k: v for k, v in record.items() if isinstance(v, int | float)}
                self.write(at, known)

    def close(self) -> None:
        """Writes what is pending."""
        self._run.finish()


def _identity(directory: pathlib.Path) -> str:
    """The id of a run's W&B run: the run's own, wherever it lies."""
    path_id = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
    # As an older version named it.
    if any((directory / "wandb").glob(f"*-{path_id}")):
        return path_id
    return str(_read(directory / "run.json").get("id", path_id))


def _read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return jsonl.read(path) if path.is_file() else []


build = WeightsAndBiases
