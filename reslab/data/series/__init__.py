"""Series of several variates over time, one source a file."""

import dataclasses
import hashlib
import operator
from typing import Protocol

import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError


@dataclasses.dataclass(frozen=True)
class Series:
    """Values over time.

    Attributes:
      values: (time, variates), finite.
      names: Names of the variates.
      held_out: Number of last steps that are forecast, and not trained on.
    """

    values: np.ndarray
    names: tuple[str, ...]
    held_out: int


class SeriesSource(Protocol):
    """A source of a series: `build` of a file in this folder, or of the caller's."""

    def load(self) -> Series:
        """Gives the whole series."""
        ...


@dataclasses.dataclass(frozen=True)
class Windows:
    """Random access to parts of a series: what is known, and what follows.

    Attributes:
      values: float32, (time, variates).
      history: Steps that are known.
      horizon: Steps that follow.

    >>> one = Windows(np.arange(6.0, dtype=np.float32)[:, None], 2, 1)[3]
    >>> one["history"][:, 0].tolist(), one["target"][:, 0].tolist()
    ([3.0, 4.0], [5.0])
    """

    values: np.ndarray
    history: int
    horizon: int

    def __len__(self) -> int:
        return len(self.values) - self.history - self.horizon + 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Gives `history`, `target` and `loss_mask` of one window.

        Args:
          index: From 0 to `len(self) - 1`.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        now = index + self.history
        return {
            "history": self.values[index:now],
            "target": self.values[now : now + self.horizon],
            "loss_mask": np.ones((), np.bool_),
        }


@dataclasses.dataclass(frozen=True)
class SeriesSet:
    """A series in windows, and what identifies it.

    Attributes:
      train: Windows to train on.
      test: Windows whose steps to forecast are held out.
      names: Names of the variates.
      sha256: Digest of all values.
    """

    train: Windows
    test: Windows
    names: tuple[str, ...]
    sha256: str


def load_series(source: registry.Spec, history: int, horizon: int) -> SeriesSet:
    """Reads a series, scales it, and cuts it.

    Every variate is scaled to mean 0 and standard deviation 1 over the steps to train
    on; errors are those of scaled values. A held-out window may know steps that were
    trained on.

    Args:
      source: Spec of the family `series`, for example `"waves"`.
      history: Steps that are known.
      horizon: Steps to forecast.

    Raises:
      ReslabError: If the spec is wrong, or the series too short.
    """
    series = registry.make("series", source).load()
    values = np.asarray(series.values, np.float64)
    first = len(values) - series.held_out
    if min(first - history, series.held_out) < horizon:
        raise ReslabError(
            f"series {source!r}: steps",
            expected=f"{history + horizon} to train on and {horizon} held out, for "
            f"data.length {history} and horizon {horizon}",
            got=f"{first} and {series.held_out}",
            hint="a longer series, or a shorter data.length or horizon",
        )
    known = values[:first]
    scale = np.std(known, axis=0)
    values = (values - np.mean(known, axis=0)) / np.where(scale > 0, scale, 1)
    values = values.astype(np.float32)
    digest = hashlib.sha256(f"{series.values.shape} {first}\n".encode())
    digest.update(np.ascontiguousarray(series.values, "<f8").tobytes())
    return SeriesSet(
        Windows(values[:first], history, horizon),
        Windows(values[first - history :], history, horizon),
        series.names,
        digest.hexdigest(),
    )
