"""A classifier of clips: an encoder of frames, and a mixer over time."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, bounded
from reslab.core.precision import statistics_dtype
from reslab.models._body import Body
from reslab.models._classifier import Classifier, as_floats
from reslab.models._convolution import Convolution
from reslab.nn.base.norm import mask_for
from reslab.nn.base.projection import ProjectingModule
from reslab.ops.grams import patch_gram


@bounded
class FrameClassifier(Body):
    """Encodes every frame alike, mixes frames in time, and averages what they say.

        x[t] = relu(W flatten(relu(conv(relu(conv(frame[t]))))))
        x    = stack(x)
        p    = mean over t of softmax(norm(x[t]) . head + bias)

    The last axis of an image is time. Convolutions are 3 x 3 with stride 2. A frame
    sees earlier ones alone. LRCN has the mixer `lstm` and a larger encoder.

    Reference: Donahue et al., 2014, https://arxiv.org/abs/1411.4389, Section 3.

    Attributes:
      classes: Number of classes.
      image_shape: Height and width of a frame, and number of frames.
      channels: Channels of the convolutions.
      (and those of `Body`)
    """

    classes: Count = 10
    image_shape: tuple[int, int, int] = (16, 16, 6)
    channels: Count = 16

    task: ClassVar[str] = "images"

    def setup(self):
        """Makes the parts."""
        self.check_depth()
        kept = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.convolutions = [Convolution(self.channels, 3, 2, **kept) for _ in range(2)]
        self.encoder = _Flattened(features=self.features, linear=self.linear, **kept)
        self.position_encoding = self.make_position(self.image_shape[-1])
        self.layers = self.make_stack()
        self.embedding_norm = self.embedding_norm_or_none()
        self.final_norm = self.final_norm_or_none()
        self.head = Classifier(self.classes, self.param_dtype)

    def first_grams(self, images: jax.Array) -> dict[str, jax.Array]:
        """X' X / b of the windows that the first convolution reads, by its path."""
        frames = self._frames(as_floats(images, statistics_dtype(self.dtype)))
        around = ((1, 1), (1, 1))
        return {"convolutions_0/kernel": patch_gram(frames, (3, 3), (2, 2), around)}

    def _frames(self, clips: jax.Array) -> jax.Array:
        """Images (batch * frames, height, width, 1) of clips."""
        frames = jnp.moveaxis(clips, -1, 1)
        return frames.reshape(-1, *frames.shape[2:], 1)

    def encoded(self, clips: jax.Array) -> jax.Array:
        """Features (batch, frames, embed) of clips (batch, height, width, frames)."""
        x = self._frames(as_floats(clips, self.dtype))
        for convolution in self.convolutions:
            x = nn.relu(convolution(x))
        shape = clips.shape[0], clips.shape[-1], -1
        return nn.relu(self.encoder(x.reshape(shape)))

    def steps(self, clips: jax.Array) -> jax.Array:
        """Float32 logits (batch, frames, classes) after every frame."""
        x = self.encoded(clips)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        segments = jnp.ones_like(positions)
        x = self.position_encoding.embed(x, positions)
        x = self.embedding_norm(x, **mask_for(self.first_norm, segments))
        x, _ = self.layers(x, positions=positions, segments=segments)
        return self.head(self.final_norm(x, **mask_for(self.last("norm"), segments)))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Log probabilities (batch, classes), in the dtype of statistics.

        Args:
          images: Clips (batch, height, width, frames): floats, or integers from 0 to
            255, which become -1 to 1.
        """
        logits = self.steps(images).astype(statistics_dtype(self.dtype))
        steps = jax.nn.log_softmax(logits, axis=-1)
        return jax.nn.logsumexp(steps, axis=1) - jnp.log(float(steps.shape[1]))


class _Flattened(ProjectingModule):
    """Projects the flattened features of a frame."""

    features: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, frames, inputs) to (batch, frames, features)."""
        axes = None, "embed"
        return self.project("projection", x, self.features, axes, use_bias=True)


build = FrameClassifier
