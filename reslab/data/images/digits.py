"""Handwritten digits, 8 x 8, that come with scikit-learn: nothing is downloaded."""

import dataclasses

import numpy as np

from reslab.core.errors import ReslabError
from reslab.data.images import Images


@dataclasses.dataclass(frozen=True)
class Digits:
    """1,797 digits of 43 people; every fifth image is held out.

    The test set of Alpaydin & Kaynak, 1998 (https://doi.org/10.24432/C50P49), with 17
    levels of gray spread over 0 to 255. Writers are not told apart, so a held-out
    digit may be by a hand that is known.

    Raises:
      ReslabError: If scikit-learn is not installed.
    """

    def load(self) -> tuple[Images, Images, int]:
        """Gives 1,437 images to train on and 360 held out."""
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError:
            raise ReslabError(
                "images digits",
                expected="scikit-learn",
                got="no such module",
                hint="pip install 'reslab[vision]'",
            ) from None
        levels, target = load_digits(return_X_y=True)
        levels, labels = np.asarray(levels), np.asarray(target, np.int32)
        images = np.round(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        is_held_out = np.arange(len(labels)) % 5 == 0
        train, test = (
            Images(images[chosen], labels[chosen])
            for chosen in (~is_held_out, is_held_out)
        )
        return train, test, 10


build = Digits
