"""Classification of images."""

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, ModelState
from reslab.core.randomness import training_keys
from reslab.core.trees import named_leaves
from reslab.data.images import Images, ImageSet, load_images
from reslab.ops.orthogonality.api import (
    column_orthogonality,
    convolution_orthogonality,
    matrix_orthogonality,
)
from reslab.train.tasks import Batch, Headline, Sums
from reslab.train.tasks._examples import InputTask


class ImageClassification(InputTask):
    """Labelled images; losses in nats per image, and accuracy.

    Args:
      config: The resolved config.
    """

    unit: ClassVar[str] = "images"
    headline: ClassVar[Headline] = Headline("accuracy", "accuracy", True)
    source_family: ClassVar[str] = "images"
    input_name: ClassVar[str] = "images"

    @functools.cached_property
    def images(self) -> ImageSet:
        """The images, in memory."""
        return load_images(self._config.data.source)

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.images.train.images.shape[1:]

    def model_fields(self) -> dict[str, Any]:
        """Number of classes, and the shape of an image."""
        return {"classes": self.images.classes, "image_shape": self._shape}

    def batch_shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch."""
        return {
            "images": jax.ShapeDtypeStruct((rows, *self._shape), jnp.uint8),
            "labels": jax.ShapeDtypeStruct((rows,), jnp.int32),
            "loss_mask": jax.ShapeDtypeStruct((rows,), jnp.bool_),
        }

    def record(self) -> dict[str, Any]:
        """Digest and size of the set."""
        images = self.images
        return {
            "sha256": images.sha256,
            "images": len(images.train) + len(images.test),
            "bytes": images.train.images.nbytes + images.test.images.nbytes,
        }

    def train_examples(self) -> Images:
        """Images to train on, as they are."""
        return self.images.train

    def held_out_examples(self) -> Images:
        """Images held out."""
        return self.images.test

    def loss_sums(
        self,
        model: Any,
        variables: ModelState,
        batch: Batch,
        *,
        is_training: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Sums, ModelState]:
        """Adds up the cross-entropies of the images that count.

            objective = sum over images of nll + orthogonality, once per image

        The second term belongs to training: `train.orthogonality` times the sum of
        the distances of the convolutions from orthogonal ones, the first left out
        (see `reslab.ops.orthogonality`); `train.orthogonality_form` says of what.

        Args:
          model: The model.
          variables: Its parameters and state.
          batch: `images`, `labels` and `loss_mask`.
          is_training: Whether norms over a batch see this one, and the second
            term counts.
          key: Random key, for parts that draw numbers while training.

        Returns:
          The objective; the sums `nll` (nats), `images` and `correct`; and the
          statistics written.
        """
        outcome: Any = model.apply(
            variables,
            batch["images"],
            mutable=[BATCH_STATS] if is_training else [],
            rngs=training_keys(key),
        )
        logits, written = outcome
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        mask = batch["loss_mask"].astype(nll.dtype)
        is_correct = jnp.argmax(logits, axis=-1) == batch["labels"]
        total, images = jnp.sum(nll * mask), jnp.sum(mask)
        sums = {
            "nll": total,
            "images": images,
            "correct": jnp.sum(is_correct.astype(nll.dtype) * mask),
        }
        factor = self._config.train.orthogonality
        if is_training and factor:
            form = self._config.train.orthogonality_form
            distance = orthogonality(model, variables["params"], form)
            total = total + images * factor * distance.astype(total.dtype)
        return total, sums, written.get(BATCH_STATS, {})

    def tokens(self, model: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Masks of the patches: all of an image count, and none begins a document."""
        patches = math.prod(getattr(model, "grid", (1, 1)))
        mask = batch["loss_mask"].astype(bool)[:, None]
        is_counted = jnp.broadcast_to(mask, (mask.shape[0], patches))
        return is_counted, jnp.zeros_like(is_counted)

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Nats per image, and the share of images that are classified right."""
        return {
            "loss": sums["nll"] / sums["images"],
            "accuracy": sums["correct"] / sums["images"],
        }


def orthogonality(model: Any, params: Any, form: str = "rows") -> jax.Array:
    """Sum over a model's convolutions of their distance from orthogonal ones.

    Args:
      model: The model.
      params: Its parameters.
      form: "rows" or "columns" of the convolutions' matrices, or "kernels", the
        kernels alone as matrices, which leaves their shifts out.

    Raises:
      ReslabError: If the model does not say what its convolutions are.
    """
    if not hasattr(model, "strides"):
        raise ReslabError(
            "train.orthogonality",
            expected="a model of convolutions, such as resnet",
            got=type(model).__name__,
        )
    kernels = named_leaves(params)
    distances = []
    for name, stride in model.strides().items():
        kernel = kernels[name]
        if kernel.shape[0] <= stride or form == "kernels":
            distances.append(matrix_orthogonality(kernel))
        elif form == "columns":
            distances.append(column_orthogonality(kernel, stride))
        else:
            distances.append(convolution_orthogonality(kernel, stride))
    return jnp.sum(jnp.stack(distances))


build = ImageClassification
