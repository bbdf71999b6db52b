import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.data.batches import TrainBatches, validation_batches
from reslab.data.images import Images, load_images


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


def test_digits(digits):
    assert (len(digits.train), len(digits.test), digits.classes) == (1437, 360, 10)
    assert digits.train.images.shape == (1437, 8, 8, 1)
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)
    for split in (digits.train, digits.test):
        assert set(split.labels.tolist()) == set(range(10))
    assert load_images("digits").sha256 == digits.sha256


def test_every_image_once_an_epoch(digits):
    batches = TrainBatches(digits.test, 90, seed=0)
    epoch = [next(batches) for _ in range(4)]
    seen = sorted(image.tobytes() for batch in epoch for image in batch["images"])
    assert seen == sorted(image.tobytes() for image in digits.test.images)


def test_the_rest_of_the_held_out_images_is_filled_up(digits):
    batches = list(validation_batches(digits.test, 128))
    assert [int(batch["loss_mask"].sum()) for batch in batches] == [128, 128, 104]
    assert {batch["images"].shape for batch in batches} == {(128, 8, 8, 1)}


def source(images, labels, classes):
    images, labels = np.asarray(images), np.asarray(labels, np.int32)
    one = Images(images, labels)
    return lambda: type("Source", (), {"load": lambda self: (one, one, classes)})()


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (np.zeros((2, 4, 4, 1), np.float32), [0, 1], "expected uint8"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], "height, width, channels"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0], "a label each"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0, 3], "labels from 0 to 2; got 0 to 3"),
    ],
)
def test_refuses_what_are_no_images(images, labels, told):
    with pytest.raises(ReslabError, match=told):
        load_images(source(images, labels, 3))


def test_tfds_needs_a_name():
    with pytest.raises(ReslabError, match="name or directory"):
        load_images("tfds")
    with pytest.raises(ReslabError, match="a prepared dataset"):
        load_images("tfds(directory='/nowhere')")
