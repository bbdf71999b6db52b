"""Sets of labelled images, one a file."""

import dataclasses
import hashlib
import operator
from typing import Protocol

import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError


@dataclasses.dataclass(frozen=True)
class Images:
    """Random access to labelled images in memory.

    Attributes:
      images: uint8, (number, height, width, channels).
      labels: int32, (number,), from 0.

    >>> one = Images(np.zeros((2, 8, 8, 1), np.uint8), np.array([3, 1], np.int32))[1]
    >>> one["images"].shape, int(one["labels"]), bool(one["loss_mask"])
    ((8, 8, 1), 1, True)
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Gives `images`, `labels` and `loss_mask` of one image.

        Args:
          index: From 0 to `len(self) - 1`.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return {
            "images": self.images[index],
            "labels": self.labels[index],
            "loss_mask": np.ones((), np.bool_),
        }


class ImageSource(Protocol):
    """A source of images: `build` of a file in this folder, or of the caller's."""

    def load(self) -> tuple[Images, Images, int]:
        """Gives those to train on, those held out, and the number of classes."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A set of images and what identifies it.

    Attributes:
      train: Those to train on.
      test: Those held out.
      classes: Number of classes.
      sha256: Digest of all images and labels, in order.
    """

    train: Images
    test: Images
    classes: int
    sha256: str


def load_images(source: registry.Spec) -> ImageSet:
    """Reads a set of images.

    Args:
      source: Spec of the family `images`, for example `"digits"`.

    Raises:
      ReslabError: If the spec is wrong, or the images are not as they must be.
    """
    train, test, classes = registry.make("images", source).load()
    digest = hashlib.sha256()
    for split, one in (("train", train), ("test", test)):
        images, labels = one.images, one.labels
        is_right = images.dtype == np.uint8 and images.ndim == 4 and len(images)
        if not is_right or labels.shape != (len(images),):
            raise ReslabError(
                f"images {source!r}: {split} split",
                expected="uint8 (number, height, width, channels), a label each",
                got=f"{images.dtype}{images.shape}, labels {labels.shape}",
            )
        if labels.min() < 0 or labels.max() >= classes:
            raise ReslabError(
                f"images {source!r}: {split} split",
                expected=f"labels from 0 to {classes - 1}",
                got=f"{labels.min()} to {labels.max()}",
            )
        digest.update(f"{split} {images.shape}\n".encode())
        digest.update(images.tobytes())
        digest.update(labels.astype("<i4").tobytes())
    return ImageSet(train, test, classes, digest.hexdigest())
