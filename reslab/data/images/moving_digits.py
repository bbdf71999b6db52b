"""Digits that move: clips in which no single frame tells the direction."""

import dataclasses

import numpy as np

from reslab.core.bounds import Count, Seed, bounded
from reslab.data.images import Images
from reslab.data.images.digits import Digits

_SIDE = 16
# Rows and columns that a digit moves in a frame: up, right, down, left.
_STEPS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])


@dataclasses.dataclass(frozen=True)
class Clips:
    """Each digit of `digits` moves across a square of 16 and comes in again behind.

    The label is the direction, one of four; place and direction are drawn. The last
    axis of an image is time.

    Attributes:
      frames: Number of frames.
      seed: Seed of places and directions.
    """

    frames: int = 6
    seed: int = 0

    def load(self) -> tuple[Images, Images, int]:
        """Gives clips of the digits to train on, of those held out, and 4."""
        random = np.random.default_rng(self.seed)
        train, test, _ = Digits().load()
        return self._moved(train, random), self._moved(test, random), len(_STEPS)

    def _moved(self, digits: Images, random: np.random.Generator) -> Images:
        clips = np.zeros((len(digits), _SIDE, _SIDE, self.frames), np.uint8)
        labels = random.integers(0, len(_STEPS), len(digits))
        places = random.integers(0, _SIDE, (len(digits), 2))
        blank = np.zeros((_SIDE, _SIDE), np.uint8)
        for clip, digit, label, place in zip(
            clips, digits.images[..., 0], labels, places, strict=True
        ):
            blank[: digit.shape[0], : digit.shape[1]] = digit
            for frame in range(self.frames):
                shift = tuple(place + frame * _STEPS[label])
                clip[..., frame] = np.roll(blank, shift, axis=(0, 1))
        return Images(clips, labels.astype(np.int32))


@bounded
def build(frames: Count = 6, seed: Seed = 0) -> Clips:
    """Makes clips of moving digits.

    Args:
      frames: Number of frames.
      seed: Seed of places and directions.
    """
    return Clips(frames, seed)
