"""The residual network for small images (He et al., 2015 and 2016)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.parameters import parameter
from reslab.models._classifier import Classifier, as_floats
from reslab.nn.norm import norm_and_activation


class ResNet(nn.Module):
    """A residual network of the CIFAR layout, with pre-activation blocks.

        x = conv(image)
        x = x + conv(act(norm(conv(act(norm(x))))))       `depth` times a stage
        logits = mean over positions(act(norm(x))) . head + bias

    Each stage but the first begins with a block of stride 2 that doubles the
    channels; its shortcut is a 1 x 1 convolution of the block's first activation.
    A norm that contains its activation (EvoNorm) stands for both; any other is
    followed by a ReLU. Norms over groups take all positions of an image.

    Compute is in `dtype`, logits in float32.

    Reference: He et al., 2015, https://arxiv.org/abs/1512.03385, Section 4.2
    (layout); He et al., 2016, https://arxiv.org/abs/1603.05027, Figure 4e (order).

    Attributes:
      classes: Number of classes.
      image_shape: Height, width and channels of an image.
      features: Channels of the first stage.
      depth: Blocks in a stage.
      stages: Number of stages.
      norm: Spec of the norm, or of norm and activation in one.
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.
    """

    classes: int
    image_shape: tuple[int, int, int]
    features: int = 16
    depth: int = 1
    stages: int = 3
    norm: registry.Spec = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    task: ClassVar[str] = "images"

    def strides(self) -> dict[str, int]:
        """The stride of every convolution but the first, by path of its kernel."""
        found = {}
        for stage in range(self.stages):
            for block in range(self.depth):
                path = f"stage_{stage}_block_{block}"
                stride = 2 if stage and not block else 1
                found[f"{path}/conv_0/kernel"] = stride
                found[f"{path}/conv_1/kernel"] = 1
                if stride > 1:
                    found[f"{path}/shortcut/kernel"] = stride
        return found

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Float32 logits (batch, classes) of images (batch, height, width, channels).

        Args:
          images: Floats, or integers from 0 to 255, which become -1 to 1.
        """
        x = as_floats(images, self.dtype)
        x = self._convolution(self.features, name="stem")(x)
        for stage in range(self.stages):
            for block in range(self.depth):
                x = ResidualBlock(
                    features=self.features * 2**stage,
                    stride=2 if stage and not block else 1,
                    norm=self.norm,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"stage_{stage}_block_{block}",
                )(x)
        x = norm_and_activation(
            self.norm, is_spatial=True, param_dtype=self.param_dtype, name="norm"
        )(x)
        return Classifier(self.classes, self.param_dtype, name="head")(
            jnp.mean(x, axis=(1, 2))
        )

    def _convolution(self, features: int, **keywords) -> nn.Module:
        return Convolution(
            features, 3, dtype=self.dtype, param_dtype=self.param_dtype, **keywords
        )


class ResidualBlock(nn.Module):
    """Two convolutions, each after norm and activation, beside a shortcut.

    Attributes:
      features: Channels of the output.
      stride: Stride of the first convolution and of the shortcut.
      norm: Spec of the norm, or of norm and activation in one.
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.
    """

    features: int
    stride: int
    norm: registry.Spec
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (..., features)."""
        shortcut, h = x, x
        for index, stride in enumerate((self.stride, 1)):
            h = norm_and_activation(
                self.norm,
                is_spatial=True,
                param_dtype=self.param_dtype,
                name=f"norm_{index}",
            )(h)
            if index == 0 and (stride > 1 or x.shape[-1] != self.features):
                shortcut = self._convolution(1, stride, name="shortcut")(h)
            h = self._convolution(3, stride, name=f"conv_{index}")(h)
        return shortcut + h

    def _convolution(self, size: int, stride: int, **keywords) -> nn.Module:
        return Convolution(
            self.features,
            size,
            stride,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            **keywords,
        )


class Convolution(nn.Module):
    """A square convolution without bias, zero-padded; starts as He et al. (2015).

    Reference: https://arxiv.org/abs/1502.01852, Eq. 10.

    Attributes:
      features: Channels of the output.
      size: Height and width of the kernel, odd.
      stride: Stride along both axes.
      dtype: Compute dtype.
      param_dtype: Dtype in which the kernel is stored.
    """

    features: int
    size: int
    stride: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (..., features)."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = parameter(
            self,
            "kernel",
            nn.initializers.he_normal(),
            shape,
            (None, None, None, "embed"),
            self.param_dtype,
        )
        pad = self.size // 2
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


build = ResNet
