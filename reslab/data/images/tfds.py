"""Image sets of TensorFlow Datasets, read without TensorFlow."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets

from reslab.core.errors import ReslabError
from reslab.data.features import check_dataset
from reslab.data.images import Images


@dataclasses.dataclass(frozen=True)
class TFDSImages:
    """A dataset with the features `image` and `label`, all of it in memory.

    Its files must be in a random-access format, such as array_record.

    Attributes:
      name: Dataset name, for example `"cifar10"`; downloaded if it is not there.
      train_split: Split or slice of one to train on.
      test_split: Split held out.
      directory: Data directory of `name`, or a builder directory without it.

    Raises:
      ReslabError: If neither a name nor a directory is given.
    """

    name: str = ""
    train_split: str = "train"
    test_split: str = "test"
    directory: str = ""

    def __post_init__(self) -> None:
        if not (self.name or self.directory):
            raise ReslabError("images tfds", expected="name or directory", got="none")

    def load(self) -> tuple[Images, Images, int]:
        """Reads both splits.

        Raises:
          ReslabError: If there is no such dataset, split or feature, or images
            differ in shape.
        """
        check_dataset("images tfds", self.name, self.directory)
        try:
            if self.name:
                builder = tensorflow_datasets.builder(
                    self.name,
                    data_dir=self.directory or None,
                    file_format="array_record",
                )
                builder.download_and_prepare()
            else:
                builder = tensorflow_datasets.builder_from_directory(self.directory)
            sources = [
                builder.as_data_source(split=split)
                for split in (self.train_split, self.test_split)
            ]
        # TFDS raises many types; each names the dataset, split or file.
        except Exception as error:
            raise ReslabError(
                f"images tfds: {self.name or self.directory}",
                expected="a prepared dataset in a random-access format",
                got=f"{type(error).__name__}: {(str(error) or '?').splitlines()[0]}",
            ) from error
        train, test = (self._images(source) for source in sources)
        classes = getattr(builder.info.features.get("label"), "num_classes", None)
        if classes is None:
            classes = int(max(train.labels.max(), test.labels.max())) + 1
        return train, test, classes

    def _images(self, source: Any) -> Images:
        examples = [source[index] for index in range(len(source))]
        for feature in ("image", "label"):
            if not examples or feature not in examples[0]:
                raise ReslabError(
                    f"images tfds: {self.name or self.directory}",
                    expected=f"examples with the feature {feature!r}",
                    got=", ".join(examples[0]) if examples else "no examples",
                )
        shapes = {np.shape(example["image"]) for example in examples}
        if len(shapes) > 1:
            raise ReslabError(
                f"images tfds: {self.name or self.directory}",
                expected="images of one shape",
                got=", ".join(map(str, sorted(shapes)[:3])),
            )
        return Images(
            np.stack([example["image"] for example in examples]),
            np.array([example["label"] for example in examples], np.int32),
        )


build = TFDSImages
