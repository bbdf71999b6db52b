"""The vision transformer: patches of an image as a sequence (Dosovitskiy et al.)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.models._body import Body
from reslab.models._classifier import Classifier, as_floats
from reslab.nn.base.norm import mask_for
from reslab.ops.grams import gram


@bounded
class VisionTransformer(Body):
    """Classifies images with the layers of the language model.

        x      = patches . kernel + position
        x      = stack(x)
        logits = mean over patches(norm(x)) . head + bias

    Attention sees all patches; a recurrent mixer goes through them row by row.
    Compute is in `dtype`, logits in float32.

    Reference: Dosovitskiy et al., 2020, https://arxiv.org/abs/2010.11929, Eq. 1-4;
    the mean in place of a class token is Beyer et al., 2022,
    https://arxiv.org/abs/2205.01580.

    Attributes:
      classes: Number of classes.
      image_shape: Height, width and channels of an image.
      patch: Height and width of a patch.
      (and those of `Body`)

    Raises:
      ReslabError: If patches do not divide the image.
    """

    classes: Count = 10
    image_shape: tuple[int, int, int] = (8, 8, 1)
    patch: Count = 2

    task: ClassVar[str] = "images"

    @property
    def is_causal(self) -> bool:
        """Every patch may see all others."""
        return False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width, _ = self.image_shape
        if self.patch < 1 or height % self.patch or width % self.patch:
            raise ReslabError(
                "models 'vit': patch",
                expected=f"a divisor of {height} and {width}",
                got=str(self.patch),
            )
        return height // self.patch, width // self.patch

    def setup(self):
        """Makes the parts."""
        self.check_depth()
        rows, columns = self.grid
        inputs = self.patch**2 * self.image_shape[-1]
        self.embedding = parameter(
            self,
            "embedding",
            nn.initializers.lecun_normal(),
            (inputs, self.features),
            (None, "embed"),
            self.param_dtype,
        )
        self.position_encoding = self.make_position(rows * columns)
        self.layers = self.make_stack()
        self.embedding_norm = self.embedding_norm_or_none()
        self.final_norm = self.final_norm_or_none()
        self.head = Classifier(self.classes, self.param_dtype)

    def patches(self, images: jax.Array) -> jax.Array:
        """Cuts images (batch, height, width, channels) into (batch, length, inputs)."""
        rows, columns = self.grid
        size = self.patch
        x = images.reshape(-1, rows, size, columns, size, self.image_shape[-1])
        return jnp.swapaxes(x, 2, 3).reshape(x.shape[0], rows * columns, -1)

    def first_grams(self, images: jax.Array) -> dict[str, jax.Array]:
        """X' X / b of the patches that `embedding` reads, by its path."""
        exact = as_floats(images, statistics_dtype(self.dtype))
        return {"embedding": gram(self.patches(exact))}

    def __call__(self, images: jax.Array) -> jax.Array:
        """Float32 logits (batch, classes) of images (batch, height, width, channels).

        Args:
          images: Floats, or integers from 0 to 255, which become -1 to 1.
        """
        x = self.patches(as_floats(images, self.dtype))
        x = x @ self.embedding.astype(self.dtype)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        segments = jnp.ones_like(positions)
        x = self.position_encoding.embed(x, positions)
        x = self.embedding_norm(x, **mask_for(self.first_norm, segments))
        x, _ = self.layers(x, positions=positions, segments=segments)
        x = self.final_norm(x, **mask_for(self.last("norm"), segments))
        return self.head(jnp.mean(x, axis=1))


build = VisionTransformer
